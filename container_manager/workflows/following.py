"""How a task follows its job. Pure: the moves that bring the one to where the other stands."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from container_manager import states
from container_manager.states import JobStatus, Reason, WorkflowState

_W = WorkflowState

SKIPPED_ITSELF = "skip"
"""The reason of a task that succeeded with one of its `skip_exit_codes`."""

JOB_GONE = "job_deleted"
"""The reason of a task whose job was deleted before its end was read."""


@dataclass(frozen=True, slots=True)
class JobNow:
    """Where a job stands."""

    status: str
    attempt: int
    exit_code: int | None = None
    reason: str = ""


def moves(
    state: str, try_number: int, job: JobNow | None, skip_exit_codes: Collection[int] = ()
) -> tuple[str, ...]:
    """The states that a task goes through, in order; none where it stands right already.

    A task whose job began an attempt that it has not seen passes through `running`.

    >>> [state.value for state in moves("queued", 0, JobNow("completed", 1, 0))]
    ['running', 'success']
    >>> [state.value for state in moves("running", 1, JobNow("running", 2))]
    ['retrying', 'running']
    """
    if job is None:
        return (_W.FAILED,)
    goal = _goal(state, job, skip_exit_codes)
    steps: list[str] = []
    if job.attempt > try_number:
        steps += [_W.RETRYING, _W.RUNNING] if state == _W.RUNNING else [_W.RUNNING]
    if goal != (steps[-1] if steps else state):
        steps.append(goal)
    return tuple(steps)


def _goal(state: str, job: JobNow, skip_exit_codes: Collection[int]) -> str:
    if job.status in _GOALS:
        return _GOALS[job.status]
    if job.status == JobStatus.FAILED:
        by_itself = job.reason in ("", Reason.EXIT_CODE)
        return _W.SUCCESS if by_itself and job.exit_code in skip_exit_codes else _W.FAILED
    return _W.RETRYING if job.attempt or state == _W.RETRYING else _W.QUEUED


_GOALS: dict[str, str] = {
    JobStatus.RUNNING: _W.RUNNING,
    JobStatus.RETRYING: _W.RETRYING,
    JobStatus.COMPLETED: _W.SUCCESS,
    JobStatus.CANCELLED: _W.FAILED,
    JobStatus.KILLED: _W.FAILED,
}


def counts_as(state: str, reason: str) -> str:
    """The state that trigger rules see."""
    return _W.SKIPPED if state == _W.SUCCESS and reason == SKIPPED_ITSELF else state


def outcome_of_run(counts: dict[str, int], *, cancelled: bool) -> tuple[str, str]:
    """State and reason of a run whose tasks ended so; `cancelled`: and some never began for it.

    >>> outcome_of_run({"success": 3, "skipped": 1}, cancelled=False)
    (<WorkflowState.SUCCESS: 'success'>, '')
    """
    if cancelled:
        return _W.FAILED, "cancelled"
    if any(counts.get(state) for state in states.WENT_WRONG):
        return _W.FAILED, "task_failed"
    return _W.SUCCESS, ""
