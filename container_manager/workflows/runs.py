"""Runs: made, started, advanced, ended. Who moves a run or a task? The verbs of this module.

Making and moving:  create  start_next  advance
People:             cancel  retry  retry_task  cancel_task  skip_task  prune
Questions:          startable  behind  under_way

Each verb is one transaction that holds the run's row: of any number of schedulers one advances a
run at a time, and between "a task ended" and "those behind it are queued" nothing can be lost.
A task follows its job (`following`); finished jobs are read, they never call.
"""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping
from datetime import datetime
from itertools import count
from typing import Any
from uuid import UUID

from django.db import models
from django.db.models.functions import Coalesce

from container_manager import ids, lifecycle, states
from container_manager.exceptions import InvalidTransition, NothingToRetry, RunExists
from container_manager.faults import reached
from container_manager.lifecycle import USING, Stopped, verb
from container_manager.models import (
    ContainerJob,
    Dag,
    DagRun,
    StateHistory,
    TaskInstance,
    acting_as,
)
from container_manager.models.base import batched, database_now
from container_manager.models.job import wake_managers
from container_manager.models.workflow import BEHIND_THEIR_JOB, TASK
from container_manager.states import JobStatus, Reason, RunType, StopKind, WorkflowState
from container_manager.workflows import following, task_jobs
from container_manager.workflows.following import JobNow
from container_manager.workflows.graph import Decision, instance_id
from container_manager.workflows.plan import NEVER_RUNS, WAITING, WAITING_AGAIN, Plan, plan_of
from container_manager.workflows.spec import DagSpec

logger = logging.getLogger("container_manager")

_W = WorkflowState

BATCH = 1_000
"""Tasks that follow their jobs in one transaction."""

SCHEDULER = "scheduler"
"""The actor of what nobody asked for."""

UPSTREAM, CANCELLED, SKIPPED_BY_HAND, NO_JOB = (
    *("upstream", "cancelled", "skipped_by_hand", "not_runnable"),
)
"""Reasons of tasks that never ran: for those before them, the run, a person, their own job."""

UNREADABLE = "unreadable"
"""The reason of a run whose document cannot be read any more."""


# Making -------------------------------------------------------------------------------------------


@verb
def create(
    dag: Dag,
    execution_date: datetime,
    run_type: RunType,
    *,
    params: Mapping[str, str] | None = None,
    run_id: str = "",
    actor: str = SCHEDULER,
) -> DagRun:
    """A queued run with its tasks, of the DAG as it stands now. Raises RunExists."""
    same = models.Q(execution_date=execution_date) | models.Q(run_id=run_id)
    if (other := DagRun.objects.filter(same, dag=dag).first()) is not None:
        raise RunExists.of(dag, other)
    spec = DagSpec.stored(dag.spec)
    with acting_as(actor):
        run: DagRun = DagRun.objects.create(
            dag=dag,
            run_id=run_id or _free_name(dag, f"{run_type}__{execution_date.isoformat()}"),
            execution_date=execution_date,
            run_type=run_type,
            params={**spec.params, **(params or {})},
            spec=dag.spec,
        )
        TaskInstance.objects.bulk_create(_tasks(run, spec))
    wake_managers(USING)
    return run


def _free_name(dag: Dag, usual: str) -> str:
    """Somebody may have given a run of his the name that a slot's run usually has."""
    names = (usual if not number else f"{usual}~{number}" for number in count())
    return next(name for name in names if not DagRun.objects.filter(dag=dag, run_id=name).exists())


def _tasks(run: DagRun, spec: DagSpec) -> list[TaskInstance]:
    places = (
        (task, index)
        for task in spec.tasks.values()
        for index in (range(task.array) if task.array else [None])
    )
    return [
        TaskInstance(
            dag_run=run,
            task_id=instance_id(task.id, index),
            name=task.id,
            map_index=index,
            position=position,
            max_tries=1 + task.job.get("max_retries", _DEFAULT_RETRIES),
        )
        for position, (task, index) in enumerate(places)
    ]


_DEFAULT_RETRIES = ContainerJob._meta.get_field("max_retries").default


# Starting -----------------------------------------------------------------------------------------


def startable() -> list[UUID]:
    """DAGs that have queued runs, and room for one."""
    active = DagRun.objects.active().filter(dag=models.OuterRef("pk")).order_by().values("dag")
    count = active.annotate(n=models.Count("pk")).values("n")
    waiting = DagRun.objects.filter(dag=models.OuterRef("pk"), state=_W.QUEUED)
    dags = Dag.objects.filter(models.Exists(waiting), is_paused=False)
    room = dags.filter(max_active_runs__gt=Coalesce(models.Subquery(count), 0))
    return list(room.order_by("pk").values_list("pk", flat=True))


@verb
def start_next(dag_id: UUID) -> UUID | None:
    """Start the earliest queued run of this DAG, if one more may be active; returns it."""
    dag = _locked(Dag.objects.filter(pk=dag_id, is_paused=False).defer("spec"))
    if dag is None or DagRun.objects.active().filter(dag=dag).count() >= dag.max_active_runs:
        return None
    queued = DagRun.objects.filter(dag=dag, state=_W.QUEUED).defer("spec")
    run: DagRun | None = _locked(queued.order_by("execution_date", "pk"))
    if run is None:
        return None
    run.dag = dag
    with acting_as(SCHEDULER):
        try:
            plan = plan_of(run)
        except (KeyError, TypeError, ValueError):
            return _give_up(run)
        run.transition_to(_W.RUNNING)
        _go_on(run, plan, plan.tasks, ended=True)
    return run.pk


def _give_up(run: DagRun) -> UUID:
    """Its document cannot be read: it never runs, and must not keep those after it waiting."""
    logger.error("Run %s: its document cannot be read", run.pk)
    _move(TaskInstance.objects.filter(dag_run=run).waiting(), _W.SKIPPED, reason=UNREADABLE)
    run.transition_to(_W.FAILED, reason=UNREADABLE)
    return run.pk


def _locked(rows: models.QuerySet[Any]) -> Any:
    """The row, if nobody else is at work on it."""
    return rows.select_for_update(skip_locked=True, of=("self",)).first()


# Advancing ----------------------------------------------------------------------------------------


def behind() -> dict[UUID, bool]:
    """Active runs in which a task has to follow its job; True: of those begun none goes on."""
    begun = TaskInstance.objects.begun().filter(dag_run__state__in=states.RUN_ACTIVE)
    late = models.Count("pk", filter=BEHIND_THEIR_JOB)
    going_on = models.Count("pk", filter=models.Q(job__status__in=states.UNSETTLED))
    runs = begun.order_by().values("dag_run").annotate(late=late, going_on=going_on)
    return {run["dag_run"]: not run["going_on"] for run in runs if run["late"]}


def under_way() -> list[UUID]:
    """All active runs."""
    return list(DagRun.objects.active().order_by("pk").values_list("pk", flat=True))


@verb
def advance(run_id: UUID, *, thoroughly: bool = False) -> bool:
    """Let tasks follow their jobs, and those behind them follow from that. True: there is more.

    `thoroughly` looks at every task, also where nothing seems to have changed.
    """
    run: DagRun | None = _locked(_without_spec(run_id))
    if run is None or run.state not in states.RUN_ACTIVE:
        return False
    plan = plan_of(run)
    with acting_as(SCHEDULER):
        ended, more = _follow(run, plan)
        reached("D1")
        names = set(plan.tasks) if thoroughly else plan.graph.after(ended)
        _go_on(run, plan, names, ended=bool(ended) or thoroughly)
    return more


def _without_spec(run_id: UUID) -> models.QuerySet[Any]:
    """The document of a large run is read once, not each time."""
    return DagRun.objects.filter(pk=run_id).select_related("dag").defer("spec", "dag__spec")


def _follow(run: DagRun, plan: Plan) -> tuple[set[str], bool]:
    """Tasks come to where their jobs stand. Returns the names that ended, and if there is more."""
    tasks = TaskInstance.objects.filter(dag_run=run).behind_their_job()
    of_job = ("job__status", "job__attempt", "job__exit_code", "job__reason")
    rows = list(tasks.values("pk", "name", "state", "try_number", *of_job)[:BATCH])
    alike: dict[tuple[tuple[str, ...], str], list[UUID]] = defaultdict(list)
    ended = set()
    for row in rows:
        job = _job_of(row)
        path = following.moves(
            row["state"], row["try_number"], job, plan.tasks[row["name"]].skip_exit_codes
        )
        alike[path, _why(job, path)].append(row["pk"])
        if path and path[-1] in states.OVER:
            ended.add(row["name"])
    for (path, reason), pks in alike.items():
        for state in path:
            _move_with_job(pks, state, reason)
    return ended, len(rows) == BATCH


def _job_of(row: dict[str, Any]) -> JobNow | None:
    if row["job__status"] is None:
        return None
    return JobNow(*(row[f"job__{name}"] for name in ("status", "attempt", "exit_code", "reason")))


def _why(job: JobNow | None, path: tuple[str, ...]) -> str:
    """The reason that the job does not give itself."""
    if job is None:
        return following.JOB_GONE
    skipped = path[-1:] == (_W.SUCCESS,) and job.status == JobStatus.FAILED
    return following.SKIPPED_ITSELF if skipped else ""


def _move_with_job(pks: Collection[UUID], state: str, reason: str) -> None:
    """One step of tasks whose jobs know when it was and how it went."""
    change: dict[str, Any] = {}
    if state == _W.RUNNING:
        change = {
            "started_at": Coalesce(_of_job("launched_at"), database_now(USING)),
            "try_number": _of_job("attempt"),
        }
    elif state in states.OVER:
        change = {
            "ended_at": Coalesce(_of_job("completed_at"), database_now(USING)),
            "exit_code": _of_job("exit_code"),
            "error": Coalesce(_of_job("error"), models.Value("")),
            "reason": models.Value(reason) if reason else _of_job("reason"),
        }
    TaskInstance.objects.filter(pk__in=pks).update(state=state, **change)


def _of_job(column: str) -> models.Subquery:
    job = ContainerJob.objects.filter(pk=models.OuterRef("job_id")).order_by()
    return models.Subquery(job.values(column)[:1])


def _go_on(run: DagRun, plan: Plan, names: Collection[str], *, ended: bool = False) -> None:
    """Decide about these names, queue what may run, and end the run when nothing is left."""
    names = set(names)
    while names:
        decisions = _decisions(run, plan, names)
        ended |= not NEVER_RUNS.keys().isdisjoint(decisions.values())
        refused = _carry_out(run, plan, decisions)
        ended |= bool(refused)
        names = plan.graph.after(refused)
    if ended:
        _end_if_over(run)


def _carry_out(run: DagRun, plan: Plan, decisions: Mapping[str, Decision]) -> set[str]:
    """Move what never runs and queue what may; returns the names of which no job could be made."""
    waiting = TaskInstance.objects.filter(dag_run=run).waiting()
    for decision, state in NEVER_RUNS.items():
        never = waiting.filter(name__in=_those(decisions, decision))
        _move(never.filter(state=_W.QUEUED), state, reason=UPSTREAM)
        _move(never.filter(state=_W.RETRYING), _W.FAILED, reason=UPSTREAM)
    running = _those(decisions, Decision.RUN)
    tasks = list(waiting.filter(name__in=running).order_by("position")) if running else []
    return _refuse(task_jobs.queue(run, plan.tasks, tasks))


def _refuse(refused: Mapping[str, list[TaskInstance]]) -> set[str]:
    """Fail the tasks of which no job could be made, for these reasons."""
    for error, tasks in refused.items():
        pks = [task.pk for task in tasks]
        for batch in batched(pks):
            TaskInstance.objects.filter(pk__in=batch).update(
                state=_W.FAILED, reason=NO_JOB, error=error
            )
    return {task.name for tasks in refused.values() for task in tasks}


def _decisions(run: DagRun, plan: Plan, names: Collection[str]) -> dict[str, Decision]:
    """What becomes of the waiting tasks of these names, and of those behind them that never run.

    Mostly a look at those right before them is enough.
    """
    if not names:
        return {}
    near = plan.decide(_counts(run, {*names, *plan.graph.before(names)}), names)
    if NEVER_RUNS.keys().isdisjoint(near.values()):
        return near
    return plan.spread(_counts(run), names)


def _those(decisions: Mapping[str, Decision], wanted: Decision) -> list[str]:
    return [name for name, decision in decisions.items() if decision == wanted]


def _move(tasks: models.QuerySet[Any], state: str, **change: Any) -> None:
    for batch in batched(list(tasks.values_list("pk", flat=True))):
        TaskInstance.objects.filter(pk__in=batch).update(state=state, **change)


def _counts(run: DagRun, names: Collection[str] = ()) -> dict[str, Counter[str]]:
    """By name how many of its tasks stand where, as trigger rules see it; no names: of all."""
    tasks = TaskInstance.objects.filter(dag_run=run)
    near = tasks.filter(name__in=names) if names else tasks
    has_job = models.Q(queued_at__isnull=False)
    groups = near.order_by().annotate(has_job=has_job).values("name", "state", "reason", "has_job")
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for group in groups.annotate(n=models.Count("pk")):
        seen = following.counts_as(group["state"], group["reason"])
        if not group["has_job"]:
            seen = _WITHOUT_JOB.get(seen, seen)
        counts[group["name"]][seen] += group["n"]
    return counts


_WITHOUT_JOB: dict[str, str] = {_W.QUEUED: WAITING, _W.RETRYING: WAITING_AGAIN}


def _end_if_over(run: DagRun) -> None:
    tasks = TaskInstance.objects.filter(dag_run=run)
    if tasks.unfinished().exists():
        return
    rows = tasks.order_by().values_list("state").annotate(n=models.Count("pk"))
    state, reason = following.outcome_of_run(dict(rows), cancelled=_was_cut_short(run, tasks))
    run.transition_to(state, reason=reason)


def _was_cut_short(run: DagRun, tasks: models.QuerySet[Any]) -> bool:
    """Did a cancel of the run, now or before a retry, cost it a task?"""
    skipped = models.Q(state=_W.SKIPPED, reason=CANCELLED)
    stopped = models.Q(reason__in=(Reason.CANCELLED, Reason.KILLED))
    cost = skipped | stopped if run.cancel_requested_at else skipped
    return tasks.filter(cost).exists()


# People -------------------------------------------------------------------------------------------


@verb
def cancel(run_id: UUID, *, actor: str) -> DagRun:
    """Withdraw a run: what waits is skipped, what runs is asked to stop, then it is `failed`.

    Raises DoesNotExist, InvalidTransition where it is over.
    """
    run = _held(run_id)
    if run.state in states.OVER:
        raise run._invalid(run.state, _W.FAILED)
    _read_ends(run)
    with acting_as(actor):
        if run.cancel_requested_at is None:
            run.cancel_requested_at, run.cancel_requested_by = database_now(USING), actor
            run.save(update_fields=["cancel_requested_at", "cancel_requested_by"])
        tasks = TaskInstance.objects.filter(dag_run=run)
        _move(tasks.waiting(), _W.SKIPPED, reason=CANCELLED)
        jobs = list(tasks.unfinished().values_list("job_id", flat=True))
        for batch in batched(jobs, task_jobs.BATCH):
            lifecycle.stop(batch, StopKind.CANCEL, actor=actor)
        _follow_all(run)
        _end_if_over(run)
    return run


def _follow_all(run: DagRun) -> None:
    more = True
    while more:
        _, more = _follow(run, plan_of(run))


def _read_ends(run: DagRun) -> None:
    """What ended by itself before somebody asked for something is told as it was."""
    with acting_as(SCHEDULER):
        _follow_all(run)


def _of_run(task_pk: UUID) -> tuple[DagRun, TaskInstance]:
    """A task and its run, held; the task has come to where its job stands."""
    run = _held(_task(task_pk).dag_run_id)
    _read_ends(run)
    return run, _task(task_pk)


@verb
def retry(run_id: UUID, *, actor: str) -> DagRun:
    """Go on with a failed run from its failed tasks; what is done is kept.

    Raises DoesNotExist, InvalidTransition, NothingToRetry.
    """
    run = _held(run_id)
    if run.state != _W.FAILED:
        raise run._invalid(run.state, _W.RETRYING)
    return _again(run, TaskInstance.objects.filter(dag_run=run), actor)


@verb
def retry_task(task_pk: UUID, *, actor: str) -> TaskInstance:
    """Run one failed task again, and those behind it that never ran for its failure.

    Raises DoesNotExist, InvalidTransition.
    """
    run, task = _of_run(task_pk)
    if task.state != _W.FAILED:
        raise task._invalid(task.state, _W.RETRYING)
    if run.cancel_requested_at and run.state in states.RUN_ACTIVE:
        message = "Its run is being cancelled: retry it when that is done"
        raise InvalidTransition(message, entity=task, old=task.state, new=_W.RETRYING)
    behind_it = models.Q(name__in=plan_of(run).graph.below([task.name]), state=_W.UPSTREAM_FAILED)
    again = TaskInstance.objects.filter(models.Q(pk=task.pk) | behind_it, dag_run=run)
    _again(run, again, actor)
    return _task(task_pk)


def _again(run: DagRun, tasks: models.QuerySet[Any], actor: str) -> DagRun:
    """Start the failed ones of these tasks again, and let those that never ran wait again.

    What depends on another that is tried again waits for that, and is decided and made anew.
    """
    failed = list(tasks.filter(state=_W.FAILED))
    unrun = tasks.filter(state=_W.UPSTREAM_FAILED)
    names = set(unrun.values_list("name", flat=True))
    if not failed and not names:
        raise NothingToRetry(entity=run)
    plan = plan_of(run)
    with acting_as(actor):
        if run.state == _W.FAILED:
            run.transition_to(_W.RUNNING, cancel_requested_at=None, cancel_requested_by="")
        _move(unrun, _W.QUEUED)
        _move(TaskInstance.objects.filter(pk__in=[task.pk for task in failed]), _W.RETRYING)
        wake_managers(USING)
        later = plan.graph.below({*names, *(task.name for task in failed)})
        _renew([task for task in failed if task.name in later])
        refused = _start_again(run, plan, [t for t in failed if t.name not in later], actor)
        _go_on(run, plan, names | later | plan.graph.after(refused), ended=bool(refused))
    return run


def _renew(tasks: list[TaskInstance]) -> None:
    """They wait as if they had never run; their next job is another one."""
    for task in tasks:
        task.job_id, task.try_number, task.queued_at = ids.uuid7(), 0, None
        task.state = _W.RETRYING
    TaskInstance.objects.bulk_update(tasks, ["job_id", "try_number", "queued_at"], BATCH)


def _start_again(run: DagRun, plan: Plan, failed: list[TaskInstance], actor: str) -> set[str]:
    """A job that failed is retried; one that is gone, cancelled or killed gets a successor.

    Returns the names of which no job could be made.
    """
    jobs = [task.job_id for task in failed if task.job_id and task.queued_at]
    still = ContainerJob.objects.filter(pk__in=jobs, status__in=lifecycle.RETRYABLE)
    retried = set(still.values_list("pk", flat=True))
    lifecycle.retry(retried, actor=actor, by_manager=True)
    anew = [task for task in failed if task.job_id not in retried]
    _renew(anew)
    return _refuse(task_jobs.queue(run, plan.tasks, anew))


@verb
def cancel_task(task_pk: UUID, *, actor: str) -> TaskInstance:
    """Withdraw the job of a task, which is `failed` then; one that runs is asked to stop first.

    Raises DoesNotExist, StopRequested, InvalidTransition where it has no job or is over.
    """
    run, task = _of_run(task_pk)
    if task.state in states.OVER:
        raise task._invalid(task.state, _W.FAILED)
    if task.queued_at is None:
        message = "It has no job yet that could be cancelled: skip it"
        raise InvalidTransition(message, entity=task, old=task.state, new=_W.FAILED)
    with acting_as(actor):
        lifecycle.bring(task.job_id, JobStatus.CANCELLED, actor=actor)  # type: ignore[arg-type]
        _follow_all(run)
        plan = plan_of(run)
        _go_on(run, plan, plan.tasks, ended=True)
    return _task(task_pk)


@verb
def skip_task(task_pk: UUID, *, actor: str) -> TaskInstance:
    """Mark a task that has not begun as skipped; those behind it see it so.

    Raises DoesNotExist, InvalidTransition.
    """
    run, task = _of_run(task_pk)
    if task.state != _W.QUEUED:
        raise task._invalid(task.state, _W.SKIPPED)
    with acting_as(actor):
        if task.queued_at is not None:
            _withdraw(task, actor)
        task.transition_to(_W.SKIPPED, reason=SKIPPED_BY_HAND)
        if run.state in states.RUN_ACTIVE:
            plan = plan_of(run)
            _go_on(run, plan, plan.tasks, ended=True)
    return task


def _withdraw(task: TaskInstance, actor: str) -> None:
    """Cancel its job, which has not begun; raises InvalidTransition where it has."""
    came = lifecycle.stop([task.job_id], StopKind.CANCEL, actor=actor)[task.job_id]  # type: ignore[list-item, index]
    if came not in (Stopped.DONE, Stopped.UNKNOWN):
        raise InvalidTransition.between(task, _W.RUNNING, _W.SKIPPED, ())


def prune(
    run_ids: Iterable[UUID], *, keep_history: bool = False, also_queued: bool = False
) -> set[UUID]:
    """Delete those of these runs that are over, with tasks, jobs, logs and history; returns which.

    One of which a job is not yet cleaned up from its engine stays.
    """
    lifecycle.tell_what_happened()
    return _prune(run_ids, keep_history=keep_history, also_queued=also_queued)


@verb
def _prune(run_ids: Iterable[UUID], *, keep_history: bool, also_queued: bool) -> set[UUID]:
    deletable = [*states.OVER, _W.QUEUED] if also_queued else states.OVER
    rows = DagRun.objects.filter(pk__in=list(run_ids), state__in=deletable).order_by("pk")
    gone = set(rows.select_for_update().values_list("pk", flat=True))
    tasks = TaskInstance.objects.filter(dag_run__in=gone)
    run_of = {f"{TASK}{pk}": run for pk, run in tasks.values_list("pk", "dag_run")}
    for batch in batched(list(run_of)):
        jobs = ContainerJob.objects.filter(managed_by__in=batch)  # also those before a successor
        ready = lifecycle.prunable(jobs, by_manager=True).values("pk")
        kept = jobs.exclude(pk__in=ready).values_list("managed_by", flat=True)
        gone -= {run_of[managed_by] for managed_by in kept}
    for batch in batched([managed_by for managed_by, run in run_of.items() if run in gone]):
        jobs = ContainerJob.objects.filter(managed_by__in=batch)
        pks = list(jobs.values_list("pk", flat=True))
        lifecycle.prune(pks, keep_history=keep_history, by_manager=True)
    _delete(gone, keep_history=keep_history)
    return gone


def _delete(run_ids: Collection[UUID], *, keep_history: bool) -> None:
    tasks = TaskInstance.objects.filter(dag_run__in=run_ids)
    task_ids = list(tasks.values_list("pk", flat=True))
    lifecycle.tell_what_happened()
    DagRun.objects.filter(pk__in=run_ids).delete()
    for model, pks in () if keep_history else ((DagRun, run_ids), (TaskInstance, task_ids)):
        for batch in batched(list(pks)):
            StateHistory.objects.filter(entity_type=model.entity_type, entity_id__in=batch).delete()


def _held(run_id: UUID) -> DagRun:
    """The run, locked; waits for whoever is at work on it. Raises DoesNotExist."""
    return _without_spec(run_id).select_for_update(of=("self",)).get()  # type: ignore[no-any-return]


def _task(pk: UUID) -> TaskInstance:
    return TaskInstance.objects.get(pk=pk)
