"""What is asked of the records, and what is answered: findings, each with a code.

Every question is one statement that the database answers over all jobs at once, and one statement
sees one moment: what workers write meanwhile cannot look like a contradiction. Rows are read one
after the other, never all at once. Nothing is changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from django.db import models
from django.db.models import OuterRef

from container_manager.conf import settings
from container_manager.models import ContainerJob, JobAttempt, JobLog, StateHistory, Worker
from container_manager.models.base import database_now

FINDING, NOTE = "finding", "note"

CODES = {
    "guard": "I4",
    "counter": "I17",
    "history_count": "I3",
    "history_state": "I4",
    "history_gap": "I3",
    "history_begin": "I3",
    "history_edge": "I1",
    "history_time": "I3",
    "attempt_held": "I1",
    "running_alone": "I10",
    "attempt_missing": "I5",
    "attempt_unknown": "I5",
    "retries_exceeded": "I5",
    "retries_uncounted": "I5",
    "attempt_evidence": "I7",
    "result_differs": "I7",
    "log_overlap": "I6",
    "log_incomplete": "I6",
    "log_stray": "I6",
    "attempt_orphaned": "I10",
    "rescue_overdue": "I10",
    "stop_unanswered": "I12",
    "timeout_overdue": "I10",
    "retry_overdue": "I10",
    "key_without_job": "I9",
    "keys_expired": "I16",
    "changes_unfolded": "I16",
    "secret_in_history": "I15",
    "task_early": "I14",
    "task_astray": "I14",
    "run_ended_early": "I14",
    "run_not_ended": "I14",
    "job_of_no_task": "I14",
    "slot_overdue": "I14",
    "process_silent": "I10",
    "two_executions": "I2",
    "execution_left": "I8",
    "execution_of_abandoned": "I2",
    "execution_unknown": "I8",
    "execution_missing": "I7",
    "engine_not_looked_at": "I8",
}
"""Every code with the invariant (docs/architecture.md) that it speaks of."""


@dataclass(frozen=True)
class Finding:
    """One contradiction, or with level `note` something that a person may want to know."""

    code: str
    invariant: str
    text: str
    job_id: UUID | None = None
    level: str = FINDING
    engine: str = ""
    """Alias of the engine that has `execution`."""
    execution: str = ""

    def __str__(self) -> str:
        about = f"job {self.job_id}: " if self.job_id else ""
        return f"{self.level} {self.code}: {about}{self.text}"


def found(code: str, text: str, job_id: UUID | None = None, **more: str) -> Finding:
    """What was found, with the invariant that its code speaks of."""
    return Finding(code, CODES[code], text, job_id, **more)


class Records:
    """The rows that are compared: those of some jobs, or all."""

    def __init__(self, using: str, job_ids: Sequence[UUID] | None = None) -> None:
        self.using = using
        self.job_ids = job_ids
        self.workers = Worker.objects.using(using).order_by()
        self.jobs = ContainerJob.objects.using(using).order_by()
        self.attempts = JobAttempt.objects.using(using).order_by()
        self.logs = JobLog.objects.using(using).order_by()
        self.history = StateHistory.objects.using(using).filter(entity_type="job").order_by()
        if job_ids is not None:
            self.jobs = self.jobs.filter(pk__in=job_ids)
            self.attempts = self.attempts.filter(job__in=job_ids)
            self.logs = self.logs.filter(job__in=job_ids)
            self.history = self.history.filter(entity_id__in=job_ids)

    def history_of_job(self) -> Any:
        """The history of the job that the outer query looks at."""
        rows = StateHistory.objects.using(self.using).filter(entity_type="job")
        return rows.filter(entity_id=OuterRef("pk")).order_by()

    def now(self) -> datetime:
        return database_now(self.using)

    def living(self, now: datetime) -> models.QuerySet[Worker]:
        """The workers that were heard of within three leases."""
        return self.workers.filter(last_beat_at__gt=now - self.silence())

    @staticmethod
    def silence() -> timedelta:
        """After so long without a sign of life somebody is taken for dead here."""
        return 3 * timedelta(seconds=settings.LEASE_SECONDS)


Question = Callable[[Records], Iterator[Finding]]
questions: list[Question] = []
questions_of_all: list[Question] = []


def question(function: Question) -> Question:
    """Ask this, too."""
    questions.append(function)
    return function


def of_all(function: Question) -> Question:
    """Ask this, too, where all jobs are compared."""
    questions_of_all.append(function)
    return function
