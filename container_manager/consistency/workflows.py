"""Do runs and tasks agree with their histories, with each other, and with the tasks' jobs? (I14)

Whoever moved a job or a task leaves the rest to the schedulers: what is only a moment behind is
theirs to do, and no contradiction.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

from django.db.models import Count, Exists, F, OuterRef, Q, Subquery
from django.db.models.functions import Coalesce

from container_manager.consistency.asking import NOTE, Finding, Records, found, of_all
from container_manager.models import (
    ContainerJob,
    Dag,
    DagRun,
    Process,
    ProcessKind,
    StateHistory,
    TaskInstance,
)
from container_manager.states import NOT_OVER, OVER, RUN_ACTIVE, SETTLED, WorkflowState

LATELY = timedelta(days=1)
"""Runs that ended earlier are not looked into any more."""

MARGIN = timedelta(minutes=2)
"""So long the schedulers may take to look at what has changed."""


@of_all
def histories_of_workflows_are_whole(records: Records) -> Iterator[Finding]:
    """As many history rows as the version counts, and the last says the state."""
    for model in (DagRun, TaskInstance):
        rows = StateHistory.objects.using(records.using).filter(
            entity_type=model.entity_type, entity_id=OuterRef("pk")
        )
        counted = rows.order_by().values("entity_id").annotate(n=Count("pk")).values("n")
        latest = rows.filter(version=OuterRef("version")).values("new_state")[:1]
        told = _rows(model, records).annotate(
            told=Coalesce(Subquery(counted), 0), latest=Subquery(latest)
        )
        for row in told.exclude(told=F("version")).iterator():
            text = f"{_name(row)} is at version {row.version}, its history has {row.told} rows"
            yield found("history_count", text)
        for row in told.filter(~Q(latest=F("state")) | Q(latest__isnull=True)).iterator():
            text = f"{_name(row)} is {row.state}, its history says {row.latest or 'nothing'}"
            yield found("history_state", text)


@of_all
def tasks_follow_their_jobs(records: Records) -> Iterator[Finding]:
    """A task is not over before its job, nor long after it."""
    since = records.now() - MARGIN
    behind = Q(state__in=NOT_OVER, job__status__in=SETTLED, job__updated_at__lt=since)
    ahead = Q(state__in=OVER) & Q(job__status__isnull=False) & ~Q(job__status__in=SETTLED)
    tasks = _rows(TaskInstance, records).filter(queued_at__isnull=False).filter(behind | ahead)
    for task in tasks.select_related("job").iterator():
        text = f"{_name(task)} is {task.state}, its job is {task.job.status}: no scheduler looks"
        yield found("task_astray", text, task.job_id)


@of_all
def runs_end_with_their_tasks(records: Records) -> Iterator[Finding]:
    """A run is not over before its tasks, nor long after them."""
    unfinished = TaskInstance.objects.using(records.using).filter(
        dag_run=OuterRef("pk"), state__in=NOT_OVER
    )
    runs = _rows(DagRun, records).annotate(unfinished=Exists(unfinished))
    for run in runs.filter(state__in=OVER, unfinished=True).iterator():
        yield found("run_ended_early", f"{_name(run)} is {run.state}, and tasks of it are not over")
    late = runs.filter(state__in=RUN_ACTIVE, unfinished=False)
    for run in late.filter(updated_at__lt=records.now() - MARGIN).iterator():
        if not _moved_lately(run, records):
            text = f"{_name(run)} is {run.state}, and all its tasks are over: no scheduler looks"
            yield found("run_not_ended", text)


def _moved_lately(run: DagRun, records: Records) -> bool:
    tasks = TaskInstance.objects.using(records.using).filter(dag_run=run)
    return tasks.filter(updated_at__gte=records.now() - MARGIN).exists()


@of_all
def tasks_begin_after_those_before_them(records: Records) -> Iterator[Finding]:
    """A task that needs the success of those before it begins after it; of runs of late only."""
    lately = Q(state__in=RUN_ACTIVE) | Q(ended_at__gt=records.now() - LATELY)
    tasks = TaskInstance.objects.using(records.using).order_by()
    for run in DagRun.objects.using(records.using).order_by().filter(lately).iterator():
        needed = _needs_success(run.spec)
        unsuccessful = set(
            tasks.filter(dag_run=run).exclude(state="success").values_list("name", flat=True)
        )
        begun = tasks.filter(dag_run=run, queued_at__isnull=False)
        for name in sorted(set(begun.values_list("name", flat=True)) & needed.keys()):
            if early := unsuccessful & needed[name]:
                text = f"task {name} of run {run.run_id} has begun before {min(early)} succeeded"
                yield found("task_early", text)


def _needs_success(document: Any) -> dict[str, set[str]]:
    """By name those before it, of tasks that ask for the success of all of them."""
    usual = (document.get("defaults") or {}).get("trigger_rule", "all_success")
    return {
        name: set(task.get("depends_on", ()))
        for name, task in (document.get("tasks") or {}).items()
        if task.get("trigger_rule", usual) == "all_success"
    }


@of_all
def slots_get_their_runs(records: Records) -> Iterator[Finding]:
    """A slot that has come has its run soon, while its DAG is not paused."""
    now = records.now()
    runs = DagRun.objects.using(records.using).order_by()
    late = Dag.objects.using(records.using).due(now - MARGIN).order_by("next_slot_at")
    schedulers = Process.objects.using(records.using).filter(kind=ProcessKind.SCHEDULER)
    lives = schedulers.filter(last_beat_at__gt=now - records.silence()).exists()
    for pk, name, slot in late.values_list("pk", "name", "next_slot_at"):
        text = f"DAG {name} has no run for its slot of {slot.isoformat()}: "
        waiting = runs.filter(dag=pk, state=WorkflowState.QUEUED)[:1].exists()
        if lives and waiting:
            yield found("slot_overdue", f"{text}others of its runs wait to begin", level=NOTE)
        else:
            why = "though a scheduler lives" if lives else "no scheduler gives a sign of life"
            yield found("slot_overdue", text + why)


@of_all
def silent_processes_are_told(records: Records) -> Iterator[Finding]:
    """A scheduler or relay that did not end in order is dead, or it stands still."""
    silent = Process.objects.using(records.using).filter(
        last_beat_at__lte=records.now() - records.silence()
    )
    for row in silent.iterator():
        who = f"{row.kind} {row.name} (process {row.pid} on {row.hostname})"
        text = f"{who} gave its last sign of life at {row.last_beat_at.isoformat()}"
        yield found("process_silent", text, level=NOTE)


@of_all
def jobs_of_tasks_have_their_task(records: Records) -> Iterator[Finding]:
    """What a job says of whose it is is so: a task names no job that says otherwise."""
    managed = ContainerJob.objects.using(records.using).exclude(managed_by="")
    own = TaskInstance.objects.using(records.using).filter(job_id=OuterRef("pk"))
    unknown = managed.exclude(status__in=SETTLED).exclude(Exists(own))
    for pk, whose in unknown.order_by().values_list("pk", "managed_by").iterator():
        yield found("job_of_no_task", f"is of {whose}, which does not know it", pk)


def _rows(model: Any, records: Records) -> Any:
    rows = model.objects.using(records.using).order_by()
    return rows.select_related("dag_run") if model is TaskInstance else rows.defer("spec")


def _name(row: Any) -> str:
    if isinstance(row, TaskInstance):
        return f"task {row.task_id} of run {row.dag_run.run_id}"
    return f"run {row.run_id}"
