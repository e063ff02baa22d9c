"""The job: what is wanted, how it stands, and the only moves it can make."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime, timedelta
from typing import Any

from django.conf import settings as django_settings
from django.core.exceptions import ValidationError
from django.db import connections, models, transaction
from django.db.models.functions import Now
from django.utils import timezone
from django_fsm import FSMField

from container_manager import db_guard, states
from container_manager.models import access, validators
from container_manager.models.attempt import JobAttempt
from container_manager.models.base import (
    PLUS_ONE,
    GuardedModel,
    GuardedQuerySet,
    moves,
    restored_on_error,
)
from container_manager.models.expressions import HasLabel
from container_manager.models.job_counts import job_stats
from container_manager.models.job_stats import stats_of_rows
from container_manager.models.validators import InRange
from container_manager.states import JOB, Isolation, JobStatus, PullPolicy, Reason

WAKE_CHANNEL = "container_manager"
"""PostgreSQL's NOTIFY channel on which workers are woken; a hint, never the truth."""

_SECONDS = InRange(1, validators.MAX_SECONDS)


MANAGERS_CHANNEL = "container_manager_managers"
"""The same for those who manage jobs: one of theirs has ended."""


def wake_workers(using: str) -> None:
    """Tell idle workers, when this transaction commits, that there is something to look at."""
    _notify(using, WAKE_CHANNEL)


def wake_managers(using: str) -> None:
    """Tell whoever manages jobs, when this transaction commits, that one of them has ended."""
    _notify(using, MANAGERS_CHANNEL)


def _notify(using: str, channel: str) -> None:
    connection = connections[using]
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_notify(%s, '')", [channel])


class ContainerJobQuerySet(GuardedQuerySet):
    """The questions everyone asks of jobs."""

    def ready(self) -> ContainerJobQuerySet:
        """Queued and due, with a start left."""
        return self.filter(
            models.Q(scheduled_for__isnull=True) | models.Q(scheduled_for__lte=Now()),
            status=JobStatus.QUEUED,
            retry_count__lte=models.F("max_retries"),
        ).order_by("-priority", "queued_at", "id")

    def running(self) -> ContainerJobQuerySet:
        return self.filter(status=JobStatus.RUNNING)

    def finished(self) -> ContainerJobQuerySet:
        """Their latest attempt has ended, or there never was one."""
        return self.filter(status__in=states.ENDED)

    def settled(self) -> ContainerJobQuerySet:
        """Nothing more happens to them by itself."""
        return self.filter(status__in=states.SETTLED)

    def owned_by(self, user: Any) -> ContainerJobQuerySet:
        return self.filter(created_by=user)

    def visible_to(self, user: Any) -> ContainerJobQuerySet:
        """What this person may see: operators all, others their own."""
        return self.all() if access.sees_all(user) else self.owned_by(user)

    def with_label(self, key: str, value: str) -> ContainerJobQuerySet:
        """With exactly this label."""
        return self.filter(HasLabel(key, value))

    def stats(self) -> dict[str, Any]:
        """Counts and durations of these jobs; the keys are those of the API."""
        return job_stats(using=self.db) if self._is_everything() else stats_of_rows(self)

    def _is_everything(self) -> bool:
        query = self.query
        narrowed = (query.where, query.is_sliced, query.combinator, query.extra_tables)
        return not (any(narrowed) or query.distinct)


class ContainerJob(GuardedModel):
    """One piece of work: an image or a program, its limits, its place in the queue, its life."""

    Status = JobStatus
    VALID_TRANSITIONS = states.VALID_TRANSITIONS

    machine = JOB
    state_field = "status"
    entity_type = "job"
    attempt_field = "attempt"
    timed = ("launched_at", "completed_at")
    counted = db_guard.Counted(
        owner="created_by_id", duration="duration_ms", timed_state=JobStatus.COMPLETED
    )

    # identity
    name = models.CharField(max_length=255, blank=True)
    created_by = models.ForeignKey(
        django_settings.AUTH_USER_MODEL,
        null=True,
        blank=True,
        on_delete=models.SET_NULL,
        related_name="container_jobs",
        db_index=False,  # jobs_by_owner begins with it
    )
    labels = models.JSONField(default=dict, blank=True, validators=[validators.labels])
    managed_by = models.CharField(
        max_length=100, blank=True, editable=False, help_text="The task it belongs to, if any."
    )

    # what to run
    image = models.CharField(max_length=255, blank=True, validators=[validators.image])
    command = models.JSONField(default=list, validators=[validators.command])
    working_dir = models.CharField(max_length=1024, blank=True, validators=[validators.working_dir])
    environment = models.JSONField(default=dict, blank=True, validators=[validators.environment])
    pull_policy = models.CharField(
        max_length=10, choices=PullPolicy.choices, default=PullPolicy.MISSING
    )
    isolation = models.CharField(max_length=20, choices=Isolation.choices, default=Isolation.AUTO)
    executor = models.CharField(
        max_length=64,
        blank=True,
        validators=[validators.executor],
        help_text="An alias of the settings; empty: any that offers the isolation.",
    )
    network = models.CharField(max_length=64, default="none", validators=[validators.network])

    # limits
    cpu_limit = models.FloatField(
        null=True, blank=True, validators=[InRange(0.01, validators.MAX_CPU)], help_text="Cores."
    )
    memory_limit_mb = models.PositiveIntegerField(
        null=True,
        blank=True,
        validators=[InRange(validators.MIN_MEMORY_MB, validators.MAX_MEMORY_MB)],
    )
    pids_limit = models.PositiveIntegerField(
        null=True, blank=True, validators=[InRange(1, validators.MAX_PIDS)]
    )
    timeout_seconds = models.PositiveIntegerField(null=True, blank=True, validators=[_SECONDS])
    start_timeout_seconds = models.PositiveIntegerField(default=600, validators=[_SECONDS])
    queue_timeout_seconds = models.PositiveIntegerField(
        null=True, blank=True, validators=[_SECONDS]
    )
    stop_grace_seconds = models.PositiveIntegerField(default=10, validators=[InRange(0, 3600)])

    # queue
    queue = models.CharField(max_length=100, default="default", validators=[validators.queue_name])
    priority = models.SmallIntegerField(
        default=50, validators=[InRange(0, 100)], help_text="0 to 100, higher first."
    )
    queued_at = models.DateTimeField(null=True, blank=True)
    scheduled_for = models.DateTimeField(
        null=True,
        blank=True,
        validators=[validators.moment],
        help_text="Not before; a retry's backoff also ends then.",
    )
    max_retries = models.PositiveIntegerField(default=3, validators=[InRange(0, 1000)])
    retry_count = models.IntegerField(default=0)
    infra_retry_count = models.IntegerField(default=0)
    retry_policy = models.JSONField(default=dict, blank=True, validators=[validators.retry_policy])

    # life
    status = FSMField(max_length=20, choices=JobStatus.choices, default=JobStatus.PENDING)
    attempt = models.PositiveIntegerField(default=0, help_text="How many times it was started.")
    reason = models.CharField(max_length=64, choices=Reason.choices, blank=True)
    launched_at = models.DateTimeField(null=True, blank=True)
    completed_at = models.DateTimeField(null=True, blank=True)
    duration_ms = models.BigIntegerField(null=True, blank=True)
    kill_requested_at = models.DateTimeField(null=True, blank=True)
    kill_requested_by = models.CharField(max_length=255, blank=True, default="", db_default="")
    cancel_requested_at = models.DateTimeField(null=True, blank=True)
    cancel_requested_by = models.CharField(max_length=255, blank=True, default="", db_default="")
    signalled_at = models.DateTimeField(null=True, blank=True)

    # result of the latest attempt
    exit_code = models.IntegerField(null=True, blank=True)
    output = models.TextField(blank=True, help_text="The last 64 KiB of stdout as text.")
    error = models.TextField(blank=True)
    oom_killed = models.BooleanField(default=False)

    objects = ContainerJobQuerySet.as_manager()

    class Meta:
        db_table = "container_jobs"
        verbose_name = "job"
        ordering = ("-created_at", "-id")
        constraints = [
            db_guard.state_is_known(JOB, "status", "status_is_known"),
            db_guard.null_follows_state(
                "launched_at",
                field="status",
                null_in=states.NOT_LAUNCHED,
                set_in=states.LAUNCHED,
                name="launched_at_matches_status",
            ),
            db_guard.null_follows_state(
                "completed_at",
                field="status",
                null_in=states.NOT_ENDED,
                set_in=states.ENDED,
                name="completed_jobs_have_timestamp",
            ),
            db_guard.null_follows_state(
                "queued_at",
                field="status",
                null_in=(),
                set_in=(JobStatus.QUEUED,),
                name="queued_jobs_have_queued_at",
            ),
            models.CheckConstraint(
                condition=~models.Q(status="completed")
                | models.Q(exit_code=0)
                | models.Q(exit_code__isnull=True),
                name="completed_jobs_have_exit_code_0",
            ),
            models.CheckConstraint(
                condition=models.Q(retry_count__gte=0, infra_retry_count__gte=0),
                name="retry_counts_not_negative",
            ),
            models.CheckConstraint(
                condition=models.Q(priority__gte=0, priority__lte=100),
                name="priority_from_0_to_100",
            ),
            models.CheckConstraint(
                condition=models.Q(duration_ms__isnull=True) | models.Q(duration_ms__gte=0),
                name="duration_not_negative",
            ),
            *(
                models.CheckConstraint(
                    condition=models.Q(**{f"{limit}__isnull": True})
                    | models.Q(**{f"{limit}__gt": 0}),
                    name=f"{limit}_positive",
                )
                for limit in (
                    "cpu_limit",
                    "memory_limit_mb",
                    "pids_limit",
                    "timeout_seconds",
                    "start_timeout_seconds",
                    "queue_timeout_seconds",
                )
            ),
        ]
        indexes = [
            # The claim: one short range scan per lane, whatever else waits.
            models.Index(
                models.F("queue"),
                models.F("executor"),
                models.F("isolation"),
                models.F("priority").desc(),
                models.F("queued_at"),
                models.F("id"),
                condition=models.Q(status="queued"),
                name="jobs_claim",
            ),
            models.Index(
                fields=["queue"], condition=models.Q(status="running"), name="jobs_running"
            ),
            models.Index(
                fields=["scheduled_for"],
                condition=models.Q(status="retrying"),
                name="jobs_retrying",
            ),
            models.Index(
                fields=["queued_at"],
                condition=models.Q(status="queued", queue_timeout_seconds__isnull=False),
                name="jobs_queue_timeout",
            ),
            # The oldest in the queue, of everybody and of one owner: the first entry.
            models.Index(
                fields=["queued_at"], condition=models.Q(status="queued"), name="jobs_oldest"
            ),
            models.Index(
                fields=["created_by", "queued_at"],
                condition=models.Q(status="queued"),
                name="jobs_oldest_of_owner",
            ),
            models.Index(fields=["-created_at", "-id"], name="jobs_newest"),
            models.Index(fields=["status", "-created_at", "-id"], name="jobs_by_status"),
            models.Index(fields=["created_by", "-created_at", "-id"], name="jobs_by_owner"),
            models.Index(fields=["completed_at"], name="jobs_completed_at"),
            models.Index(
                fields=["managed_by"], condition=~models.Q(managed_by=""), name="jobs_managed"
            ),
        ]
        permissions = [("operate_containerjob", "Can see and operate all jobs")]

    def __str__(self) -> str:
        return self.name or str(self.pk)

    # What the guard must know

    @classmethod
    def stamps(cls, old: str, new: str, now: datetime) -> dict[str, Any]:
        if new == JobStatus.QUEUED:
            return {"queued_at": now, **_fresh_attempt()}
        if new == JobStatus.RUNNING:
            return {"launched_at": now, "completed_at": None, "attempt": PLUS_ONE}
        ended = {"completed_at": now} if old in states.NOT_ENDED else {}
        if new in (JobStatus.CANCELLED, JobStatus.KILLED):
            return {**ended, "reason": Reason(new)}
        return ended

    @classmethod
    def birth_stamps(cls, state: str, now: datetime) -> dict[str, Any]:
        implied = {
            "queued_at": (JobStatus.QUEUED,),
            "launched_at": states.LAUNCHED,
            "completed_at": states.ENDED,
        }
        return {column: now for column, known_in in implied.items() if state in known_in}

    @classmethod
    def unheld(cls) -> models.Q:
        active = JobAttempt.objects.active().filter(job=models.OuterRef("pk"))
        return ~models.Q(status=JobStatus.RUNNING) | models.Q(~models.Exists(active))

    @classmethod
    def after_moves(cls, using: str, new_states: Collection[str]) -> None:
        if JobStatus.QUEUED in new_states:
            wake_workers(using)

    # The ways of travelling (django-fsm: they change the instance, save() stores it)

    @moves(JOB, "status", JobStatus.QUEUED, but=[JobStatus.RETRYING])
    def enqueue(self, scheduled_for: datetime | None = None) -> None:
        """Ask for it to be run, not before `scheduled_for`."""
        self.scheduled_for = scheduled_for or self.scheduled_for

    @moves(JOB, "status", JobStatus.RUNNING)
    def start(self) -> None:
        """It runs."""

    @moves(JOB, "status", JobStatus.COMPLETED)
    def complete(self) -> None:
        """It ended with exit code 0."""

    @moves(JOB, "status", JobStatus.FAILED)
    def fail(self) -> None:
        """It ended in any other way."""

    @moves(JOB, "status", JobStatus.RETRYING)
    def retry(self) -> None:
        """There will be another attempt."""

    @moves(JOB, "status", JobStatus.QUEUED, but=[JobStatus.PENDING])
    def requeue(self) -> None:
        """The backoff is over."""

    @moves(JOB, "status", JobStatus.CANCELLED)
    def cancel(self) -> None:
        """Withdrawn."""

    @moves(JOB, "status", JobStatus.KILLED)
    def kill(self) -> None:
        """Stopped by force."""

    # Moves that save

    def mark_as_queued(self, scheduled_for: datetime | None = None) -> None:
        """Put it into the queue, not before `scheduled_for`."""
        changes: dict[str, Any] = {"scheduled_for": scheduled_for} if scheduled_for else {}
        self.transition_to(JobStatus.QUEUED, **changes)

    def mark_as_running(self) -> None:
        """It runs, by hand: no worker holds it."""
        self.transition_to(JobStatus.RUNNING)

    def mark_as_completed(self) -> None:
        """It ended with exit code 0."""
        self.transition_to(JobStatus.COMPLETED)

    def mark_as_failed(self, should_retry: bool = False) -> None:
        """It failed; with `should_retry` and retries left it goes on to `retrying` at once."""
        again = should_retry and self.retry_count < self.max_retries
        with restored_on_error([self]), transaction.atomic(using=self._using()):
            self.transition_to(JobStatus.FAILED)
            if again:
                self.transition_to(JobStatus.RETRYING, retry_count=self.retry_count + 1)

    # Questions

    @property
    def is_queued(self) -> bool:
        return bool(self.status == JobStatus.QUEUED)

    @property
    def is_ready_to_launch(self) -> bool:
        """Queued, due, and a start left: the last retry starts when count equals maximum."""
        due = self.scheduled_for is None or self.scheduled_for <= timezone.now()
        return bool(self.is_queued and due and self.retry_count <= self.max_retries)

    @property
    def queue_status(self) -> str:
        """not_queued, queued, scheduled, launch_failed or launched."""
        if self.launched_at is not None:
            return "launched"
        if not self.is_queued:
            return "not_queued"
        if self.retry_count > self.max_retries:
            return "launch_failed"
        return "queued" if self.is_ready_to_launch else "scheduled"

    @property
    def is_terminal(self) -> bool:
        return JOB.is_terminal_state(self.status)

    @property
    def is_settled(self) -> bool:
        """Nothing more happens to it by itself."""
        return self.status in states.SETTLED

    @property
    def revision(self) -> str:
        """Changes whenever the row does; the API's ETag."""
        return f"{self.version}-{round(self.updated_at.timestamp() * 1_000_000)}"

    @property
    def duration(self) -> timedelta | None:
        """How long the latest attempt ran, so far or in all."""
        if self.duration_ms is not None:
            return timedelta(milliseconds=self.duration_ms)
        if self.launched_at is None or self.status != JobStatus.RUNNING:
            return None
        return max(timezone.now() - self.launched_at, timedelta(0))

    # Input

    def clean_fields(self, exclude: Collection[str] | None = None) -> None:
        problems = self._misread({*(exclude or ())})
        try:
            super().clean_fields(exclude={*(exclude or ()), *problems})
        except ValidationError as error:
            problems.update(error.error_dict)
        if problems:
            raise ValidationError(problems)

    def _misread(self, exclude: Collection[str]) -> dict[str, Any]:
        """What must be looked at before Django's fields make something else of it."""
        problems: dict[str, Any] = {}
        for field in self._meta.concrete_fields:
            if field.name not in exclude:
                try:
                    self._read(field, getattr(self, field.attname))
                except ValidationError as error:
                    problems[field.name] = error.error_list
        return problems

    def _read(self, field: Any, value: Any) -> None:
        if field.name == "command":
            self.command = validators.split_command(value)
        elif field.name == "name" and value:
            validators.name(value)
        elif isinstance(field, models.JSONField) and value in field.empty_values:
            for check in field.validators:  # Django takes every empty value for a blank one
                check(value)
        elif isinstance(field, models.IntegerField | models.FloatField):
            validators.number(value, whole=isinstance(field, models.IntegerField))
        elif isinstance(value, str):
            validators.plain_text(value)
            if field.choices and value:
                validators.one_of(value, dict(field.flatchoices))

    def clean(self) -> None:
        """What concerns several fields at once."""
        if not self.image and "process" not in (self.executor, self.isolation):
            message = "Needed, unless executor or isolation is `process`."
            raise ValidationError({"image": message})

    def save(self, **options: Any) -> None:
        if isinstance(self.__dict__.get("command"), str):
            self.command = validators.split_command(self.command)
        super().save(**options)


def _fresh_attempt() -> dict[str, Any]:
    """What starts anew when a job is queued: past attempts live in their own table."""
    return {
        "launched_at": None,
        "completed_at": None,
        "duration_ms": None,
        "exit_code": None,
        "reason": "",
        "error": "",
        "output": "",
        "oom_killed": False,
        "kill_requested_at": None,
        "kill_requested_by": "",
        "cancel_requested_at": None,
        "cancel_requested_by": "",
        "signalled_at": None,
    }
