"""One start of a job and its evidence. Everything that ticks stands here, not on the job."""

from __future__ import annotations

import re
from collections.abc import Collection
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from django.db import models
from django.utils import timezone

from container_manager import ids
from container_manager.states import Blame, Isolation, Phase, Reason

BARRED_FOR = timedelta(hours=1)
"""How long the name of an attempt stays taken that was proven absent."""


class JobAttemptQuerySet(models.QuerySet["JobAttempt"]):
    """Who holds what."""

    def active(self) -> JobAttemptQuerySet:
        """Attempts that some worker holds, or held when it died."""
        return self.exclude(phase=Phase.DONE)

    def held_by(self, worker_id: Any) -> JobAttemptQuerySet:
        """Active attempts of one worker."""
        return self.active().filter(worker_id=worker_id)

    def named(self, names: Collection[str]) -> JobAttemptQuerySet:
        """Those with one of these names, and perhaps others of the same jobs."""
        keys = [key for key in map(attempt_of_name, names) if key]
        return self.filter(job__in={job_id for job_id, _ in keys})

    def over_since(
        self, now: datetime, after: timedelta, barred_for: timedelta = BARRED_FOR
    ) -> JobAttemptQuerySet:
        """Ended so long before `now` that nothing of them should be on an engine any more.

        The name of one whose worker was lost stays taken for longer, against a late create.
        """
        over = self.filter(phase=Phase.DONE, updated_at__lt=now - after)
        return over.exclude(reason=Reason.WORKER_LOST, updated_at__gt=now - after - barred_for)


class JobAttempt(models.Model):
    """One start of a job: who runs it where, how far it came, how it ended."""

    id = models.UUIDField(primary_key=True, default=ids.uuid7, editable=False)
    job = models.ForeignKey(
        "container_manager.ContainerJob",
        on_delete=models.CASCADE,
        related_name="attempts",
        db_index=False,  # the unique constraint below begins with it
    )
    attempt = models.PositiveIntegerField()
    worker_id = models.UUIDField(
        null=True,
        blank=True,
        help_text="No foreign key: a pruned worker's attempts must still be found.",
    )
    worker_name = models.CharField(max_length=255, blank=True)
    lease_epoch = models.PositiveIntegerField(
        default=1, help_text="Rises at claim and adoption; guards every write of a worker."
    )
    phase = models.CharField(max_length=20, choices=Phase.choices, default=Phase.CLAIMED)
    executor = models.CharField(max_length=64, blank=True)
    isolation = models.CharField(max_length=20, choices=Isolation.choices, blank=True)
    engine_id = models.CharField(max_length=255, blank=True)
    execution_id = models.CharField(max_length=255, blank=True)
    image_digest = models.CharField(max_length=255, blank=True)
    resolved = models.JSONField(default=dict, blank=True, help_text="Limits as they were applied.")
    unreachable_since = models.DateTimeField(null=True, blank=True)
    stop_kind = models.CharField(
        max_length=20, blank=True, help_text="The strongest stop that was begun."
    )
    started_at = models.DateTimeField(null=True, blank=True)
    ended_at = models.DateTimeField(null=True, blank=True)
    exit_code = models.IntegerField(null=True, blank=True)
    signal = models.PositiveIntegerField(null=True, blank=True)
    oom_killed = models.BooleanField(default=False)
    reason = models.CharField(max_length=64, choices=Reason.choices, blank=True)
    blame = models.CharField(max_length=20, choices=Blame.choices, blank=True)
    error = models.TextField(blank=True)
    peak_memory_bytes = models.BigIntegerField(null=True, blank=True)
    cpu_seconds = models.FloatField(null=True, blank=True)
    stdout_bytes = models.BigIntegerField(default=0, help_text="Emitted, kept or not.")
    stderr_bytes = models.BigIntegerField(default=0)
    stdout_omitted = models.BigIntegerField(default=0, help_text="Left out by the cap.")
    stderr_omitted = models.BigIntegerField(default=0)
    cleaned_up = models.BooleanField(default=False)
    created_at = models.DateTimeField(default=timezone.now, editable=False)
    updated_at = models.DateTimeField(default=timezone.now, editable=False)

    objects = JobAttemptQuerySet.as_manager()

    class Meta:
        db_table = "job_attempts"
        ordering = ("-created_at",)
        constraints = [
            models.UniqueConstraint(fields=["job", "attempt"], name="one_row_per_attempt"),
            models.UniqueConstraint(
                fields=["job"], condition=~models.Q(phase="done"), name="one_live_attempt_per_job"
            ),
        ]
        indexes = [
            models.Index(
                fields=["worker_id"], condition=~models.Q(phase="done"), name="attempts_held"
            ),
            models.Index(
                fields=["executor", "engine_id"],
                condition=models.Q(phase="done", cleaned_up=False),
                name="attempts_to_clean_up",
            ),
        ]

    def __str__(self) -> str:
        return self.name

    @property
    def name(self) -> str:
        """The deterministic name of its container or process."""
        return attempt_name(self.job_id, self.attempt)


def attempt_name(job_id: Any, attempt: int) -> str:
    """cm-<job id>-<attempt>: known before anything is created, the same after any crash."""
    return f"cm-{job_id}-{attempt}"


_NAME = re.compile(r"cm-([0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12})-([1-9][0-9]{0,8})")


def attempt_of_name(name: str) -> tuple[UUID, int] | None:
    """Job and number of the attempt with that name; None when no attempt is named so.

    >>> attempt_of_name("cm-01890a5d-ac96-774b-bcce-b302099a8057-2")
    (UUID('01890a5d-ac96-774b-bcce-b302099a8057'), 2)
    """
    found = _NAME.fullmatch(name)
    return (UUID(found[1]), int(found[2])) if found else None
