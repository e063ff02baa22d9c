"""Workflows: a DAG, its runs, and one row for each task of a run.

A task's work is a job. The task's row follows the job's (`workflows.runs` reads it); nothing of a
job knows what a task is.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any, Self

from django.conf import settings as django_settings
from django.db import models
from django.db.models import Q
from django.utils.timezone import now as moment_now
from django_fsm import FSMField

from container_manager import db_guard, ids, states
from container_manager.models import access, validators
from container_manager.models.base import GuardedModel, GuardedQuerySet
from container_manager.models.expressions import HasLabel
from container_manager.models.fields import OrderedJSONField
from container_manager.models.job import ContainerJob
from container_manager.models.validators import InRange
from container_manager.states import WORKFLOW, JobStatus, MissedRuns, RunType, WorkflowState

MAX_NAME = 200
MAX_RUN_ID = 250

TASK = "task:"
"""How `managed_by` of a job begins that is a task's; then comes the task's id."""

_W = WorkflowState


class DagQuerySet(models.QuerySet[Any]):
    """The questions everyone asks of DAGs."""

    def get_by_name(self, name: str) -> Dag:
        """Raises DoesNotExist."""
        return self.get(name=name)  # type: ignore[no-any-return]

    def visible_to(self, user: Any) -> Self:
        """What this person may see: operators all, others their own."""
        return self.all() if access.sees_all(user) else self.filter(created_by=user)

    def due(self, now: datetime) -> Self:
        """Those of which a slot has come."""
        return self.filter(is_paused=False, next_slot_at__lte=now)

    def with_tag(self, key: str, value: str) -> Self:
        """With exactly this tag."""
        return self.filter(HasLabel(key, value, column="tags"))


class Dag(models.Model):
    """A workflow: its tasks, what they wait for, and when it runs by itself."""

    id = models.UUIDField(primary_key=True, default=ids.uuid7, editable=False)
    name = models.CharField(max_length=MAX_NAME, unique=True)
    description = models.TextField(blank=True)
    created_by = models.ForeignKey(
        django_settings.AUTH_USER_MODEL,
        null=True,
        blank=True,
        on_delete=models.SET_NULL,
        related_name="dags",
    )
    tags = models.JSONField(default=dict, blank=True, validators=[validators.labels])
    is_paused = models.BooleanField(default=False)
    schedule = models.CharField(max_length=200, blank=True, help_text="Cron; empty: by hand only.")
    timezone = models.CharField(max_length=64, default="UTC")
    start_date = models.DateTimeField(null=True, blank=True)
    end_date = models.DateTimeField(null=True, blank=True)
    missed_runs = models.CharField(
        max_length=10, choices=MissedRuns.choices, default=MissedRuns.LATEST
    )
    max_active_runs = models.PositiveIntegerField(default=16, validators=[InRange(1, 1000)])
    spec = OrderedJSONField(help_text="The document it was made of, normalized.")
    slots_until = models.DateTimeField(
        default=moment_now,
        editable=False,
        help_text="All slots up to this instant are dealt with.",
    )
    next_slot_at = models.DateTimeField(null=True, blank=True, editable=False)
    created_at = models.DateTimeField(default=moment_now, editable=False)
    updated_at = models.DateTimeField(default=moment_now, editable=False)

    objects = DagQuerySet.as_manager()

    class Meta:
        db_table = "dags"
        verbose_name = "DAG"
        verbose_name_plural = "DAGs"
        ordering = ("-created_at", "-id")
        indexes = [
            models.Index(fields=["-created_at", "-id"], name="dags_newest"),
            models.Index(
                fields=["next_slot_at"], condition=Q(is_paused=False), name="dags_next_slot"
            ),
        ]

    def __str__(self) -> str:
        return self.name

    def pause(self) -> None:
        """No run begins until it is unpaused; those that run go on."""
        self._set_paused(True)

    def unpause(self) -> None:
        """Runs begin again; of the slots that passed, those that `missed_runs` says."""
        self._set_paused(False)

    def _set_paused(self, paused: bool) -> None:
        self.is_paused = paused
        self.updated_at = moment_now()
        self.save(update_fields=["is_paused", "updated_at"])

    @property
    def revision(self) -> str:
        """Changes with every change of the row."""
        return f"{self.updated_at.timestamp():.6f}"


class DagRunQuerySet(GuardedQuerySet):
    """The questions everyone asks of runs."""

    def get_latest_run(self, dag: Dag) -> DagRun | None:
        """The run of the latest execution date; None when there is none."""
        return self.filter(dag=dag).order_by("-execution_date").first()

    def active(self) -> DagRunQuerySet:
        """Under way."""
        return self.filter(state__in=states.RUN_ACTIVE)

    def visible_to(self, user: Any) -> DagRunQuerySet:
        return self.all() if access.sees_all(user) else self.filter(dag__created_by=user)


class _WorkflowRow(GuardedModel):
    """What a run and a task share: their states, and when they began and ended."""

    machine = WORKFLOW
    state_field = "state"
    timed = ("started_at", "ended_at")

    state = FSMField(max_length=20, choices=WorkflowState.choices, default=WorkflowState.QUEUED)
    reason = models.CharField(max_length=64, blank=True)
    started_at = models.DateTimeField(null=True, blank=True)
    ended_at = models.DateTimeField(null=True, blank=True)
    duration_ms = models.BigIntegerField(null=True, blank=True)

    class Meta:
        abstract = True

    @classmethod
    def stamps(cls, old: str, new: str, now: datetime) -> dict[str, Any]:
        open_again = {"ended_at": None, "duration_ms": None, "reason": ""}
        if new == _W.QUEUED:
            return {"started_at": None, **open_again}
        if new == _W.RUNNING:
            return {"started_at": now, **open_again}
        if new == _W.RETRYING:
            return open_again if old in states.NOT_OVER else {"started_at": now, **open_again}
        return {"ended_at": now}

    @classmethod
    def birth_stamps(cls, state: str, now: datetime) -> dict[str, Any]:
        implied = {"started_at": states.STARTED, "ended_at": states.OVER}
        return {column: now for column, known_in in implied.items() if state in known_in}

    @property
    def duration(self) -> timedelta | None:
        """From start to end; None while one of them is missing."""
        return None if self.duration_ms is None else timedelta(milliseconds=self.duration_ms)


def _constraints(prefix: str) -> list[models.CheckConstraint]:
    return [
        db_guard.state_is_known(WORKFLOW, "state", f"{prefix}_state_is_known"),
        db_guard.null_follows_state(
            "started_at",
            field="state",
            null_in=(_W.QUEUED,),
            set_in=states.STARTED,
            name=f"{prefix}_started_at_matches_state",
        ),
        db_guard.null_follows_state(
            "ended_at",
            field="state",
            null_in=states.NOT_OVER,
            set_in=states.OVER,
            name=f"{prefix}_ended_at_matches_state",
        ),
        models.CheckConstraint(
            condition=Q(duration_ms__isnull=True) | Q(duration_ms__gte=0),
            name=f"{prefix}_duration_not_negative",
        ),
    ]


class DagRun(_WorkflowRow):
    """One run of a DAG: of one slot of its schedule, or of one trigger."""

    entity_type = "dag_run"
    identity = (("dag", "run_id"), ("dag", "execution_date"))

    dag = models.ForeignKey(Dag, on_delete=models.CASCADE, related_name="runs", db_index=False)
    run_id = models.CharField(max_length=MAX_RUN_ID)
    execution_date = models.DateTimeField(
        help_text="The instant that its slot stands for, or of its trigger."
    )
    run_type = models.CharField(max_length=20, choices=RunType.choices, default=RunType.MANUAL)
    params = models.JSONField(default=dict, blank=True)
    spec = OrderedJSONField(help_text="The DAG's document as it was when the run was made.")
    cancel_requested_at = models.DateTimeField(null=True, blank=True)
    cancel_requested_by = models.CharField(max_length=255, blank=True, default="")

    objects = DagRunQuerySet.as_manager()

    class Meta:
        db_table = "dag_runs"
        verbose_name = "DAG run"
        ordering = ("-execution_date", "-id")
        constraints = [
            *_constraints("dag_runs"),
            models.UniqueConstraint(fields=["dag", "run_id"], name="one_run_id_per_dag"),
            models.UniqueConstraint(fields=["dag", "execution_date"], name="one_run_per_slot"),
        ]
        indexes = [
            models.Index(fields=["-execution_date", "-id"], name="dag_runs_newest"),
            models.Index(fields=["state", "-execution_date"], name="dag_runs_by_state"),
            models.Index(fields=["-created_at"], name="dag_runs_created"),
            models.Index(
                fields=["dag", "created_at"],
                condition=Q(state__in=[_W.QUEUED.value, _W.RUNNING.value, _W.RETRYING.value]),
                name="dag_runs_unfinished",
            ),
        ]

    def __str__(self) -> str:
        return self.run_id


class TaskInstanceQuerySet(GuardedQuerySet):
    """The questions everyone asks of tasks."""

    def get_by_task_id(self, run: DagRun, task_id: str) -> TaskInstance:
        """Raises DoesNotExist."""
        return self.get(dag_run=run, task_id=task_id)  # type: ignore[no-any-return]

    def list_by_dag_run(self, run: DagRun) -> TaskInstanceQuerySet:
        """In the order of the document, arrays by their index."""
        return self.filter(dag_run=run).order_by("position")

    def visible_to(self, user: Any) -> TaskInstanceQuerySet:
        return self.all() if access.sees_all(user) else self.filter(dag_run__dag__created_by=user)

    def unfinished(self) -> TaskInstanceQuerySet:
        return self.filter(state__in=states.NOT_OVER)

    def waiting(self) -> TaskInstanceQuerySet:
        """For their upstream: they have no job yet, or wait for their turn to be tried again."""
        return self.filter(state__in=(_W.QUEUED, _W.RETRYING), queued_at__isnull=True)

    def behind_their_job(self) -> TaskInstanceQuerySet:
        """Their job has moved on, or is gone, and they have not followed yet."""
        return self.begun().filter(BEHIND_THEIR_JOB)

    def begun(self) -> TaskInstanceQuerySet:
        """They have a job, and have not come to their end."""
        return self.filter(state__in=states.NOT_OVER, queued_at__isnull=False)


# A job that is gone has no status. (Of `job__id` Django would read the task's own column.)
BEHIND_THEIR_JOB = (
    Q(job__status__isnull=True)
    | Q(job__status__in=states.SETTLED)
    | (Q(job__status=JobStatus.RUNNING) & ~Q(state=_W.RUNNING))
    | (Q(job__status=JobStatus.RETRYING) & ~Q(state=_W.RETRYING))
    | Q(state=_W.RUNNING, job__status=JobStatus.QUEUED)
    | Q(state=_W.RUNNING, try_number__lt=models.F("job__attempt"))
)


class TaskInstance(_WorkflowRow):
    """One task of one run; its work, its tries and its log are those of its job."""

    entity_type = "task_instance"
    attempt_field = "try_number"
    identity = (("dag_run", "task_id"),)

    dag_run = models.ForeignKey(
        DagRun, on_delete=models.CASCADE, related_name="tasks", db_index=False
    )
    task_id = models.CharField(max_length=MAX_NAME + 10, help_text="`name`, or `name[3]`.")
    name = models.CharField(max_length=MAX_NAME, help_text="The task's name in the document.")
    map_index = models.IntegerField(null=True, blank=True, help_text="Its place in its array.")
    position = models.IntegerField(help_text="Its place in the document.")
    # Chosen with the task and not with the job, so that no task ever gets two jobs. It stays when
    # the job is deleted: who looks for it then sees that it is gone.
    job = models.ForeignKey(
        ContainerJob,
        null=True,
        default=ids.uuid7,
        on_delete=models.DO_NOTHING,
        db_constraint=False,
        db_index=False,
        related_name="+",
    )
    queued_at = models.DateTimeField(
        null=True, blank=True, help_text="When its job was queued; until then there is none."
    )
    try_number = models.PositiveIntegerField(default=0, help_text="The attempt of its job.")
    max_tries = models.PositiveIntegerField(default=1)
    exit_code = models.IntegerField(null=True, blank=True)
    error = models.TextField(blank=True)

    objects = TaskInstanceQuerySet.as_manager()

    class Meta:
        db_table = "task_instances"
        ordering = ("-created_at", "-id")
        constraints = [
            *_constraints("task_instances"),
            models.UniqueConstraint(fields=["dag_run", "task_id"], name="one_task_per_run"),
        ]
        indexes = [
            models.Index(fields=["dag_run", "name", "state"], name="tasks_by_name"),
            models.Index(fields=["dag_run", "position"], name="tasks_in_order"),
            models.Index(
                fields=["dag_run"],
                condition=Q(state__in=[_W.QUEUED.value, _W.RUNNING.value, _W.RETRYING.value]),
                name="tasks_unfinished",
            ),
            models.Index(
                fields=["job"],
                condition=Q(
                    state__in=[_W.QUEUED.value, _W.RUNNING.value, _W.RETRYING.value],
                    queued_at__isnull=False,
                ),
                name="tasks_following",
            ),
            models.Index(fields=["state", "-created_at"], name="tasks_by_state"),
            models.Index(fields=["-created_at", "-id"], name="tasks_newest"),
        ]

    def __str__(self) -> str:
        return self.task_id

    @classmethod
    def stamps(cls, old: str, new: str, now: datetime) -> dict[str, Any]:
        stamps = super().stamps(old, new, now)
        if new == _W.QUEUED:
            stamps["queued_at"] = None
        return {**stamps, "exit_code": None, "error": ""} if new in states.NOT_OVER else stamps

    @property
    def managed_by(self) -> str:
        """What its job says of whose it is."""
        return f"{TASK}{self.pk}"
