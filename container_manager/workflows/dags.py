"""DAGs: taken in, paused, triggered, deleted. Who changes a DAG? The verbs of this module.

People and programs:  take_in  create  replace  amend  pause  delete  trigger  backfill
The scheduler:        fire
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from django.core.exceptions import ValidationError
from django.db import IntegrityError, transaction

from container_manager import states
from container_manager.exceptions import DagActive, DagPaused, NameTaken, RunExists, StaleState
from container_manager.lifecycle import USING, verb
from container_manager.models import (
    Dag,
    DagRun,
    validators,
)
from container_manager.models.base import batched, database_now
from container_manager.states import RunType, WorkflowState
from container_manager.workflows import cron, runs
from container_manager.workflows.cron import BadSchedule, Schedule
from container_manager.workflows.spec import DagSpec

AT_ONCE = 100
"""Slots that get their run in one turn of the scheduler."""

TASKS_AT_ONCE = 10_000
"""Tasks of all these runs together, unless one alone has more."""

MOST_WAITING = 1_000
"""Queued runs of a DAG from which on no more are made for its slots."""

MOST_IN_BACKFILL, MOST_TASKS_IN_BACKFILL = 1_000, 20_000
"""Slots of one backfill, and tasks of all its runs."""

JUST_NOW = timedelta(seconds=60)
"""A slot that came within this time was not missed."""

RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:+~-]{0,249}")


@verb
def take_in(spec: DagSpec, *, owner: Any = None) -> tuple[Dag, bool]:
    """Create the DAG of that name, or replace what it is made of; True: it is new."""
    if (dag := _named(spec)) is not None:
        return _replace(dag, spec), False
    try:
        return create(spec, owner=owner), True
    except NameTaken:
        if (dag := _named(spec)) is None:
            raise
        return _replace(dag, spec), False  # somebody took it in at the same time


def _named(spec: DagSpec) -> Dag | None:
    return Dag.objects.select_for_update().filter(name=spec.name).first()


@verb
def create(spec: DagSpec, *, owner: Any = None) -> Dag:
    """A new DAG. Raises NameTaken."""
    now = database_now(USING)
    dag = Dag(created_by=owner, slots_until=_first_moment(spec, now), created_at=now)
    return _write(dag, spec, now)


@verb
def replace(
    dag_id: UUID, spec: DagSpec, *, paused: bool | None = None, revision: str | None = None
) -> Dag:
    """Make it of another document; runs under way keep theirs. With `revision` only that one.

    `paused`: whether it is paused then; None: as it was.
    Raises DoesNotExist, StaleState, ValidationError.
    """
    dag = Dag.objects.select_for_update().get(pk=dag_id)
    _refuse_other(dag, revision)
    if paused is not None:
        dag.is_paused = paused
    return _replace(dag, spec)


def amend(
    dag_id: UUID,
    remake: Callable[[Mapping[str, Any]], DagSpec],
    *,
    paused: bool | None = None,
    revision: str | None = None,
) -> Dag:
    """Replace its document by what `remake` makes of it; begun again where another was faster.

    Raises what `remake` and `replace` raise.
    """
    while True:
        dag = Dag.objects.get(pk=dag_id)
        _refuse_other(dag, revision)
        spec = remake(dag.spec)
        try:
            return replace(dag_id, spec, paused=paused, revision=dag.revision)
        except StaleState:
            if revision is not None:
                raise


def _refuse_other(dag: Dag, revision: str | None) -> None:
    if revision not in (None, dag.revision):
        raise StaleState(f"{dag.name} is at revision {dag.revision}", entity=dag)


def _replace(dag: Dag, spec: DagSpec) -> Dag:
    """A changed schedule begins now: what was due by the old one is made, and no slot of before.

    While it is paused nothing is made: then the slots of the pause are forgotten with it.
    """
    now = database_now(USING)
    rhythm = _rhythm(dag)
    if rhythm is None or rhythm != _rhythm(spec):
        if rhythm is not None and not dag.is_paused:
            _make_due(dag, now)
        dag.slots_until = now
    return _write(dag, spec, now)


def _rhythm(given: Dag | DagSpec) -> tuple[Any, ...] | None:
    """When slots come, but for the last of them; None: never, or the zone is not known here."""
    try:
        schedule = Schedule.parse(given.schedule, given.timezone) if given.schedule else None
    except BadSchedule:
        schedule = None
    return None if schedule is None else (schedule, given.start_date)


def _first_moment(spec: DagSpec, now: datetime) -> datetime:
    """Slots after it may get a run: a start in the past counts as missed since then."""
    if spec.start_date is None or spec.start_date > now:
        return now
    return spec.start_date - timedelta(microseconds=1)


def _write(dag: Dag, spec: DagSpec, now: datetime) -> Dag:
    for name in (
        *("name", "description", "timezone", "start_date", "end_date", "tags"),
        *("missed_runs", "max_active_runs"),
    ):
        setattr(dag, name, getattr(spec, name))
    dag.schedule = spec.schedule or ""
    dag.spec, dag.updated_at = spec.document(), now
    dag.next_slot_at = _next_slot(dag)
    try:
        with transaction.atomic(using=USING):
            dag.save()
    except IntegrityError as error:
        raise NameTaken(spec.name) from error
    return dag


def schedule_of(dag: Dag) -> Schedule | None:
    """When it runs by itself; None: never. Raises BadSchedule where its zone is not known."""
    if not dag.schedule:
        return None
    return Schedule.parse(dag.schedule, dag.timezone, dag.start_date, dag.end_date)


def _next_slot(dag: Dag) -> datetime | None:
    schedule = schedule_of(dag)
    return schedule.after(dag.slots_until) if schedule else None


def next_slots(dag: Dag, count: int) -> list[datetime]:
    """When it will run next, by its schedule; none while it has none that can be read here."""
    try:
        schedule = schedule_of(dag)
    except BadSchedule:
        return []
    return schedule.next(count, database_now(USING)) if schedule else []


@verb
def pause(dag_id: UUID, *, paused: bool = True, revision: str | None = None) -> Dag:
    """No run begins while it is paused; those under way go on. Raises DoesNotExist, StaleState."""
    dag: Dag = Dag.objects.select_for_update().get(pk=dag_id)
    _refuse_other(dag, revision)
    if dag.is_paused != paused:
        (dag.pause if paused else dag.unpause)()
    return dag


@verb
def delete(dag_id: UUID, *, revision: str | None = None) -> None:
    """Delete it with runs, tasks, their jobs, logs and history.

    Raises DoesNotExist, StaleState, DagActive while a run, or one of its jobs, is under way.
    """
    dag = Dag.objects.select_for_update().get(pk=dag_id)
    _refuse_other(dag, revision)
    dag_runs = DagRun.objects.filter(dag=dag).order_by("pk")
    states_of = dict(dag_runs.select_for_update().values_list("pk", "state"))
    if not set(states.RUN_ACTIVE).isdisjoint(states_of.values()):
        raise DagActive
    gone = [runs.prune(some, also_queued=True) for some in batched(list(states_of), AT_ONCE)]
    if sum(map(len, gone)) < len(states_of):
        raise DagActive("A job of this DAG is not cleaned up from its engine yet; try again")
    dag.delete()


@verb
def trigger(
    dag_id: UUID,
    *,
    params: Mapping[str, str] | None = None,
    execution_date: datetime | None = None,
    run_id: str = "",
    actor: str,
) -> DagRun:
    """A run by hand. Raises DoesNotExist, DagPaused, RunExists, ValidationError by argument."""
    dag = Dag.objects.select_for_update().get(pk=dag_id)
    if dag.is_paused:
        raise DagPaused
    _refuse_bad_run_id(run_id)
    _refuse_odd_moments(execution_date=execution_date)
    _refuse_bad_params(dag, params or {})
    return runs.create(
        dag,
        execution_date or database_now(USING),
        RunType.MANUAL,
        params=params,
        run_id=run_id,
        actor=actor,
    )


def _refuse_bad_run_id(run_id: str) -> None:
    if run_id and not RUN_ID.fullmatch(run_id):
        message = "Must be up to 250 letters, digits and _ . : + ~ -, the first a letter or digit."
        raise ValidationError({"run_id": message})


def _refuse_odd_moments(**given: datetime | None) -> None:
    for name, moment in given.items():
        try:
            if moment is not None:
                validators.moment(moment)
        except ValidationError as error:
            raise ValidationError({name: error.messages}) from error


def _refuse_bad_params(dag: Dag, params: Mapping[str, str]) -> None:
    """They become variables of every task, and of tasks that begin much later."""
    known = DagSpec.stored(dag.spec).params
    try:
        validators.environment({**known, **params})
    except ValidationError as error:
        raise ValidationError({"params": error.messages}) from error
    if unknown := sorted(set(params) - set(known)):
        names = ", ".join(sorted(known)) or "none"
        raise ValidationError({"params": f"Unknown: {', '.join(unknown)}. There are: {names}."})


@dataclass(frozen=True)
class Slot:
    """One slot of a backfill, and the run that it has or gets."""

    execution_date: datetime
    run: DagRun | None
    created: bool
    """Made now; False: it was there, or this is a rehearsal."""


@verb
def backfill(
    dag_id: UUID, first: datetime, last: datetime, *, actor: str, dry_run: bool = False
) -> list[Slot]:
    """Runs for the slots from `first` to `last`, or to now, that have none.

    `dry_run` only tells which.

    Raises DoesNotExist, DagPaused, ValidationError.
    """
    dag = Dag.objects.select_for_update().get(pk=dag_id)
    if dag.is_paused and not dry_run:
        raise DagPaused
    _refuse_odd_moments(first=first, last=last)
    slots = _slots(dag, first, min(last, database_now(USING)))
    runs_there = DagRun.objects.filter(dag=dag, execution_date__range=(first, last)).defer("spec")
    there = {run.execution_date: run for run in runs_there}
    return [_slot(dag, slot, there.get(slot), actor, dry_run) for slot in slots]


def _slots(dag: Dag, first: datetime, last: datetime) -> list[datetime]:
    try:
        schedule = schedule_of(dag)
    except BadSchedule as error:
        raise ValidationError(str(error)) from error
    if schedule is None:
        raise ValidationError("It has no schedule: there are no slots to fill.")
    if first > last:
        raise ValidationError({"first": "Must not be after `last`, nor in the future."})
    just_before = first - timedelta(microseconds=1)
    slots = schedule.between(just_before, last, MOST_IN_BACKFILL + 1)
    if len(slots) > MOST_IN_BACKFILL:
        raise ValidationError(f"More than {MOST_IN_BACKFILL} slots: take a shorter stretch.")
    if len(slots) * DagSpec.stored(dag.spec).size > MOST_TASKS_IN_BACKFILL:
        raise ValidationError(f"More than {MOST_TASKS_IN_BACKFILL} tasks: take a shorter stretch.")
    return slots


def _slot(dag: Dag, slot: datetime, run: DagRun | None, actor: str, dry_run: bool) -> Slot:
    if run is not None or dry_run:
        return Slot(slot, run, created=False)
    return Slot(slot, runs.create(dag, slot, RunType.BACKFILL, actor=actor), created=True)


@verb
def fire(dag_id: UUID) -> list[UUID]:
    """Make the runs of the slots that have come; returns them. Nothing while another does it."""
    now = database_now(USING)
    dag = Dag.objects.due(now).filter(pk=dag_id).select_for_update(skip_locked=True).first()
    if dag is None or _enough_wait(dag):
        return []
    made = _make_due(dag, now)
    dag.save(update_fields=["slots_until", "next_slot_at"])
    return made


def _make_due(dag: Dag, now: datetime) -> list[UUID]:
    """Make the runs of the slots that have come, and move its cursor; without saving that."""
    schedule = schedule_of(dag)
    if schedule is None:
        dag.next_slot_at = None
        return []
    due = cron.slots_to_run(
        schedule,
        dag.slots_until,
        now,
        states.MissedRuns(dag.missed_runs),
        tolerance=JUST_NOW,
        limit=_at_once(dag),
    )
    made = [run.pk for slot in due.slots if (run := _unless_there(dag, slot)) is not None]
    dag.slots_until = due.until
    dag.next_slot_at = schedule.after(due.until)
    return made


def _enough_wait(dag: Dag) -> bool:
    """Years of missed slots are made up for as fast as their runs begin."""
    queued = DagRun.objects.filter(dag=dag, state=WorkflowState.QUEUED)
    return queued[MOST_WAITING - 1 : MOST_WAITING].exists()


def _at_once(dag: Dag) -> int:
    """Of large DAGs fewer, so that no transaction is too long."""
    return max(1, min(AT_ONCE, TASKS_AT_ONCE // DagSpec.stored(dag.spec).size))


def _unless_there(dag: Dag, slot: datetime) -> DagRun | None:
    """By hand somebody may have made the run of a slot before it came."""
    try:
        return runs.create(dag, slot, RunType.SCHEDULED)
    except RunExists:
        return None
