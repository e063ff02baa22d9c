"""Why does this job not run? Or what is it doing instead? One answer, in a few queries."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any

from container_manager.conf import settings
from container_manager.models import ContainerJob, JobAttempt
from container_manager.models.base import database_now
from container_manager.reports.explanation import Code, Explanation, as_text, at, span
from container_manager.reports.fleet import Seen, seen_workers
from container_manager.reports.waiting import queued
from container_manager.states import Blame, JobStatus, Phase, Reason, StopKind

__all__ = ["Code", "Explanation", "explain"]


def explain(job: ContainerJob, owner: Any = None) -> Explanation:
    """Why it does not run, or what it is doing instead, as the database stands now.

    Jobs of others than `owner` (None: of nobody) are counted, not named.
    """
    found = _explain(job, owner)
    if found.code in (Code.BARRED, Code.UNHELD):  # or it moved between two looks
        now = ContainerJob.objects.filter(pk=job.pk).first()
        if now is not None and now.version != job.version:
            return _explain(now, owner)
    return found


def _explain(job: ContainerJob, owner: Any) -> Explanation:
    if job.status == JobStatus.QUEUED:
        return queued(job, owner)
    return _BY_STATUS.get(JobStatus(job.status), _settled)(job)


def _not_queued(job: ContainerJob) -> Explanation:
    due = f" Once it is queued it waits until {at(job.scheduled_for)}." if job.scheduled_for else ""
    return Explanation(
        Code.NOT_QUEUED,
        f"Nobody has queued it.{due}",
        {"created_at": as_text(job.created_at), "scheduled_for": as_text(job.scheduled_for)},
    )


# Running ------------------------------------------------------------------------------------------


def _running(job: ContainerJob) -> Explanation:
    attempt = JobAttempt.objects.active().filter(job=job).first()
    if attempt is None:
        sentence = (
            "It was made running by hand: no worker holds it. Whoever did so must end it; cancel"
            " and kill act at once."
        )
        return Explanation(Code.UNHELD, sentence, {"since": as_text(job.launched_at)})
    holder = next((seen for seen in seen_workers() if seen.row.pk == attempt.worker_id), None)
    code, sentence = _how_it_runs(job, attempt)
    orphaned = "" if holder and holder.alive else f" {_orphaned(attempt, holder)}"
    return Explanation(code, sentence + orphaned, _of_attempt(job, attempt, holder))


def _how_it_runs(job: ContainerJob, attempt: JobAttempt) -> tuple[Code, str]:
    if attempt.unreachable_since is not None:
        return Code.UNREACHABLE, _unreachable(job, attempt)
    if _stop_kind(job, attempt):
        return Code.STOPPING, _stopping(job, attempt)
    if attempt.phase in _BEFORE_ITS_START:
        doing = _BEFORE_ITS_START[Phase(attempt.phase)]
        since = at(attempt.created_at)
        return Code.STARTING, f"Worker {attempt.worker_name} took it at {since} and {doing}."
    since = at(attempt.started_at or job.launched_at)
    ended = " It has ended; its output is being read." * (attempt.phase == Phase.COLLECTING)
    where = f"on worker {attempt.worker_name}, attempt {attempt.attempt}"
    return Code.RUNNING, f"It runs since {since} {where}.{ended}"


_BEFORE_ITS_START = {
    Phase.CLAIMED: "has created nothing yet",
    Phase.PULLING: "is fetching its image",
    Phase.CREATED: "has created it; it has not started",
}


def _unreachable(job: ContainerJob, attempt: JobAttempt) -> str:
    kind = _stop_kind(job, attempt)
    asker = _asker(job, kind)
    by = f" by {asker}" if asker else ""
    asked = f" A {kind} was asked for{by} and acts when it answers." if kind else ""
    given_up = settings.LOST_AFTER_SECONDS
    until = f" It is given up {span(given_up)} after that." if given_up is not None else ""
    return (
        f"Its engine ({attempt.executor}) answers no worker since"
        f" {at(attempt.unreachable_since)}; nothing is decided until it does.{until}{asked}"
    )


def _stop_kind(job: ContainerJob, attempt: JobAttempt) -> StopKind | None:
    """The strongest stop that was asked for or begun."""
    if job.kill_requested_at or attempt.stop_kind == StopKind.KILL:
        return StopKind.KILL
    if job.cancel_requested_at:
        return StopKind.CANCEL
    return StopKind(attempt.stop_kind) if attempt.stop_kind else None


def _stopping(job: ContainerJob, attempt: JobAttempt) -> str:
    kind = _stop_kind(job, attempt)
    why = {
        StopKind.KILL: f"{_who(job.kill_requested_by)} asked for a kill"
        f" at {at(job.kill_requested_at)}",
        StopKind.CANCEL: f"{_who(job.cancel_requested_by)} asked to cancel it"
        f" at {at(job.cancel_requested_at)}",
        StopKind.TIMEOUT: f"It ran longer than {job.timeout_seconds} s",
        StopKind.DRAIN: "Its worker shuts down",
    }
    if job.signalled_at is None:
        return f"{why[kind or StopKind.KILL]}; its worker is about to act."
    grace = f", {job.stop_grace_seconds} s before force" if kind != StopKind.KILL else ""
    return f"{why[kind or StopKind.KILL]}; it was signalled at {at(job.signalled_at)}{grace}."


def _asker(job: ContainerJob, kind: str | None) -> str:
    """Who asked for a stop that a worker carried out, or shall; empty when that is not known."""
    if kind in (StopKind.KILL, JobStatus.KILLED):
        return job.kill_requested_by
    return job.cancel_requested_by if kind in (StopKind.CANCEL, JobStatus.CANCELLED) else ""


def _who(requester: str) -> str:
    return requester or "Somebody"


def _orphaned(attempt: JobAttempt, holder: Seen | None) -> str:
    if holder is None:
        return "No worker holds it just now; the next one on its engine goes on with it."
    silence = span(holder.seconds_since_beat)
    return (
        f"Its worker {attempt.worker_name} was last heard of {silence} ago; another one on its"
        " engine goes on with it."
    )


def _of_attempt(job: ContainerJob, attempt: JobAttempt, holder: Seen | None) -> dict[str, Any]:
    return {
        "attempt": attempt.attempt,
        "phase": attempt.phase,
        "worker": attempt.worker_name,
        "worker_alive": bool(holder and holder.alive),
        "executor": attempt.executor,
        "isolation": attempt.isolation,
        "since": as_text(attempt.started_at or job.launched_at),
        "unreachable_since": as_text(attempt.unreachable_since),
        "stop": str(_stop_kind(job, attempt) or "") or None,
        "kill_requested_at": as_text(job.kill_requested_at),
        "kill_requested_by": job.kill_requested_by,
        "cancel_requested_at": as_text(job.cancel_requested_at),
        "cancel_requested_by": job.cancel_requested_by,
        "signalled_at": as_text(job.signalled_at),
    }


# Ended --------------------------------------------------------------------------------------------


def _backoff(job: ContainerJob) -> Explanation:
    left = _seconds_until(job.scheduled_for)
    infra = bool(job.reason) and Reason(job.reason).blame == Blame.INFRA
    number = job.infra_retry_count if infra else job.retry_count
    most = settings.MAX_INFRA_RETRIES if infra else job.max_retries
    kind = "retry after a failure of the machinery" if infra else "retry"
    when = f"at {at(job.scheduled_for)}, in {span(left)}" if left > 0 else "now"
    nobody = "" if any(seen.alive for seen in seen_workers()) else " No worker is alive to do so."
    return Explanation(
        Code.BACKOFF,
        f"{_failure(job)} It goes back into its queue {when} ({kind} {number} of {most}).{nobody}",
        {
            "until": as_text(job.scheduled_for),
            "seconds_left": round(left, 1),
            "retry": number,
            "of": most,
            "infra": infra,
            **_result(job),
        },
    )


def _seconds_until(moment: datetime | None) -> float:
    left = (moment - database_now("default")).total_seconds() if moment else 0.0
    return max(0.0, left)


def _settled(job: ContainerJob) -> Explanation:
    took = f" after {span(job.duration.total_seconds())}" if job.duration is not None else ""
    if job.status == JobStatus.COMPLETED:
        sentence = f"It completed{took}."
    elif job.status == JobStatus.FAILED:
        sentence = f"{_failure(job)} Nothing more happens by itself; it can be retried."
    else:
        why = f" {Reason(job.reason).meaning}" if job.reason else ""
        asker = _asker(job, job.status)
        sentence = f"It was {job.status}{took}.{why}" + (f" Asked by {asker}." if asker else "")
    return Explanation(Code.SETTLED, sentence, {"status": str(job.status), **_result(job)})


def _failure(job: ContainerJob) -> str:
    why = Reason(job.reason).meaning if job.reason else "Somebody moved it by hand."
    code = f" Exit code {job.exit_code}." if job.exit_code is not None else ""
    return f"It failed. {why}{code}"


def _result(job: ContainerJob) -> dict[str, Any]:
    return {
        "reason": job.reason,
        "blame": str(Reason(job.reason).blame) if job.reason else "",
        "exit_code": job.exit_code,
        "requested_by": _asker(job, job.status),
        "ended_at": as_text(job.completed_at),
    }


_BY_STATUS: dict[JobStatus, Callable[[ContainerJob], Explanation]] = {
    JobStatus.PENDING: _not_queued,
    JobStatus.RUNNING: _running,
    JobStatus.RETRYING: _backoff,
}
