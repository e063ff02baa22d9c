"""What each job must look like: a second, simpler telling of the job's life, without a database."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from container_manager.models import ContainerJob, JobAttempt, JobLog, StateHistory
from container_manager.models.leases import Claimant, Lease

MAX_INFRA_RETRIES = 3
STOPPED_AS = {
    "kill": ("killed", "killed"),
    "cancel": ("cancelled", "cancelled"),
    "timeout": ("failed", "timeout"),
    "drain": ("failed", "worker_stopped"),
}
NO_EVIDENCE = ("worker_lost", "worker_stopped")


@dataclass
class Start:
    """One attempt."""

    worker: Claimant | None
    lease: Lease
    epoch: int = 1
    phase: str = "claimed"
    stop_kind: str = ""
    reason: str = ""
    exit_code: int | None = None
    cleaned_up: bool = False
    unreachable: bool = False
    printed: int = 0

    @property
    def is_active(self) -> bool:
        return self.phase != "done"

    def seen(self) -> tuple[Any, ...]:
        worker = self.worker.worker_id if self.worker else None
        told = (self.phase, self.stop_kind, self.reason, self.exit_code)
        return (worker, self.epoch, *told, self.cleaned_up, self.unreachable, self.printed)


@dataclass
class Expected:
    """One job."""

    pk: UUID
    queue: str
    max_retries: int
    waits: bool
    """Its backoff is long: it is not due before somebody turns the clock."""
    path: list[str]
    due: bool = True
    attempt: int = 0
    retries: int = 0
    infra_retries: int = 0
    kill_requested: bool = False
    cancel_requested: bool = False
    signalled: bool = False
    reason: str = ""
    exit_code: int | None = None
    priority: int = 50
    starts: dict[int, Start] = field(default_factory=dict)

    @property
    def status(self) -> str:
        return self.path[-1]

    @property
    def start(self) -> Start | None:
        """The attempt that some worker holds, or held when it died."""
        found = self.starts.get(self.attempt)
        return found if found and found.is_active else None

    @property
    def is_settled(self) -> bool:
        return self.status in ("completed", "failed", "cancelled", "killed")

    def seen(self) -> tuple[Any, ...]:
        asked = (self.kill_requested, self.cancel_requested, self.signalled)
        counts = (self.attempt, self.retries, self.infra_retries, self.max_retries, self.priority)
        return (self.status, len(self.path), *counts, *asked, self.reason, self.exit_code)

    # Moves

    def go(self, status: str, reason: str | None = None) -> None:
        self.path.append(status)
        if status == "queued":
            self.kill_requested = self.cancel_requested = self.signalled = False
            self.reason, self.exit_code = "", None
        if status in ("cancelled", "killed"):
            self.reason = status
        if reason is not None:
            self.reason = reason

    def claimed(self, worker: Claimant, lease: Lease) -> None:
        self.go("running")
        self.attempt += 1
        self.starts[self.attempt] = Start(worker, lease)

    def ended(self, reason: str, exit_code: int | None, stopped: str | None) -> None:
        """What `finish` must make of such an end."""
        start = self.starts[self.attempt]
        status = "completed" if not reason and exit_code == 0 else "failed"
        if stopped:
            status, reason = STOPPED_AS[stopped]
        again = status == "failed" and self._has_another(reason)
        if status == "failed" and not again and reason == "worker_lost":
            reason = "poison"
        start.phase, start.reason, start.exit_code = "done", reason, exit_code
        start.unreachable = False
        if reason in NO_EVIDENCE and self.kill_requested:
            status, reason = "killed", "killed"
        elif reason in NO_EVIDENCE and self.cancel_requested:
            status, reason = "cancelled", "cancelled"
        self.exit_code = exit_code
        self.go(status, reason)
        if again and status == "failed" and not (self.kill_requested or self.cancel_requested):
            self._again(reason)

    def _has_another(self, reason: str) -> bool:
        if reason == "worker_stopped":
            return True
        if reason == "worker_lost":
            return self.infra_retries < MAX_INFRA_RETRIES
        return self.retries < self.max_retries

    def _again(self, reason: str) -> None:
        self.path.append("retrying")
        self.due = not self.waits or reason == "worker_stopped"
        if reason == "worker_stopped":
            self.go("queued")
        elif reason == "worker_lost":
            self.infra_retries += 1
        else:
            self.retries += 1
            self.infra_retries = 0


def rows() -> tuple[dict[Any, Any], dict[Any, Any], dict[Any, list[str]]]:
    """Jobs, attempts and histories as the database has them."""
    jobs = {
        job.pk: (
            *(job.status, job.version, job.attempt, job.retry_count, job.infra_retry_count),
            *(job.max_retries, job.priority, job.kill_requested_at is not None),
            *(job.cancel_requested_at is not None, job.signalled_at is not None),
            *(job.reason, job.exit_code),
        )
        for job in ContainerJob.objects.all()
    }
    printed: dict[tuple[UUID, int], int] = {}
    for pk, attempt, data in JobLog.objects.values_list("job", "attempt", "data"):
        printed[pk, attempt] = printed.get((pk, attempt), 0) + len(bytes(data))
    starts = {
        (each.job_id, each.attempt): (
            *(each.worker_id, each.lease_epoch, each.phase, each.stop_kind, each.reason),
            *(each.exit_code, each.cleaned_up, each.unreachable_since is not None),
            printed.get((each.job_id, each.attempt), 0),
        )
        for each in JobAttempt.objects.all()
    }
    paths: dict[Any, list[str]] = {}
    told = StateHistory.objects.filter(entity_type="job").order_by("entity_id", "version")
    for pk, state in told.values_list("entity_id", "new_state"):
        paths.setdefault(pk, []).append(state)
    return jobs, starts, paths


def expectation(
    jobs: Iterable[Expected], remembered: dict[UUID, list[str]]
) -> tuple[dict[Any, Any], dict[Any, Any], dict[Any, list[str]]]:
    """The same of the model; `remembered`: histories of jobs that are gone."""
    jobs = list(jobs)
    return (
        {job.pk: job.seen() for job in jobs},
        {(job.pk, number): start.seen() for job in jobs for number, start in job.starts.items()},
        {**{job.pk: job.path for job in jobs}, **remembered},
    )
