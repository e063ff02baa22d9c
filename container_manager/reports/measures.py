"""What the metrics are at this moment: read from the database, so every process tells the same.

A scrape asks a fixed number of questions, whatever the size of the tables, and tells a bounded
number of series: names of queues and engines are data, and of too many the rest is one.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from datetime import datetime, timedelta
from typing import Any

from django.db import connections
from django.db.models import Count, Min, Q

from container_manager import __version__
from container_manager.escapes import visible
from container_manager.models import (
    ContainerJob,
    Dag,
    DagRun,
    Event,
    JobAttempt,
    ProcessKind,
    Queue,
    TaskInstance,
    move_counts,
    sequencing,
)
from container_manager.models.base import database_now
from container_manager.models.job_counts import counts_by_queue
from container_manager.models.lanes import oldest_by_queue
from container_manager.reports import machinery, metrics, publishers
from container_manager.reports.metrics import Told
from container_manager.states import JobStatus, WorkflowState

USING = "default"

MOST_NAMES = 100
"""Queues, engines and publishers that are told by name; the others are one, REST."""

REST = "(other)"
LONGEST_NAME = 100

OVERDUE_AFTER = timedelta(minutes=1)
"""A slot that came longer ago and has no run is overdue."""

MOST_UNFOLDED = 10_000
"""Events that a scrape counts again each time; of more it folds some."""

PASSES = 5


def as_text() -> bytes:
    """All metrics in Prometheus' text format."""
    return metrics.as_text(read())


def read() -> Told:
    """All metrics as they are now."""
    told, now = Told(), database_now(USING)
    told.set(metrics.BUILD, 1, __version__, connections[USING].vendor)
    for tell in (_queues, _workers, _executors, _processes, _moves, _workflows, _publishers):
        tell(told, now)
    return told


# Names are data -----------------------------------------------------------------------------------


def _shown(names: Collection[str]) -> Callable[[str], str]:
    """How each of these names is told: itself, if it is among the first of them."""
    first = set(list(dict.fromkeys(_label(name) for name in names))[:MOST_NAMES])
    return lambda name: found if (found := _label(name)) in first else REST


def _label(name: str) -> str:
    return visible(name)[:LONGEST_NAME]


# What is asked ------------------------------------------------------------------------------------

UNDER_WAY = (JobStatus.PENDING, JobStatus.QUEUED, JobStatus.RUNNING, JobStatus.RETRYING)


def _queues(told: Told, now: datetime) -> None:
    counts = counts_by_queue()
    decided = {row.name: row for row in Queue.objects.order_by("name")}
    shown = _shown(_the_busiest_first(counts, decided))
    for name in {**counts, **decided}:
        queue = shown(name)
        for state in JobStatus.values:
            told.add(metrics.JOBS, counts.get(name, {}).get(state, 0), state, queue)
        told.raise_to(metrics.OLDEST, 0, queue)
        if row := decided.get(name):
            told.raise_to(metrics.PAUSED, int(row.paused), queue)
            if row.max_running is not None:
                told.add(metrics.LIMIT, row.max_running, queue)
        else:
            told.raise_to(metrics.PAUSED, 0, queue)
    for name, since in oldest_by_queue(USING).items():
        told.raise_to(metrics.OLDEST, _seconds(since, now), shown(name))


def _the_busiest_first(
    counts: Mapping[str, Mapping[str, int]], decided: Collection[str]
) -> list[str]:
    """What an operator decided about, then by the jobs under way."""

    def place(name: str) -> tuple[bool, int, str]:
        of_it = counts.get(name, {})
        return name not in decided, -sum(of_it.get(state, 0) for state in UNDER_WAY), name

    return sorted({*counts, *decided}, key=place)


def _seconds(since: datetime | None, now: datetime) -> float:
    return 0.0 if since is None else max(0.0, (now - since).total_seconds())


def _workers(told: Told, _now: datetime) -> None:
    states = dict.fromkeys(("alive", "draining", "silent"), 0)
    living = []
    for worker in machinery.workers():
        states[_state(worker)] += 1
        if worker.alive:
            living.append(worker)
    for state, count in states.items():
        told.set(metrics.WORKERS, count, state)
    told.set(metrics.SLOTS, sum(worker.concurrency for worker in living))
    told.set(metrics.USED, sum(worker.running for worker in living))


def _state(process: Any) -> str:
    if not process.alive:
        return "silent"
    return "draining" if getattr(process, "draining", False) else "alive"


def _executors(told: Told, _now: datetime) -> None:
    executors = machinery.executors()
    active = JobAttempt.objects.active().order_by().values("executor")
    unreachable = Count("pk", filter=Q(unreachable_since__isnull=False))
    attempts = list(active.annotate(running=Count("pk"), unreachable=unreachable))
    names = [each.alias for each in executors] + sorted(row["executor"] for row in attempts)
    shown = _shown(names)
    for each in executors:
        told.raise_to(metrics.UP, int(each.available), shown(each.alias))
        told.add(metrics.REACHED_BY, each.workers, shown(each.alias))
    for name in names:
        told.add(metrics.ATTEMPTS, 0, shown(name))
        told.add(metrics.UNREACHABLE, 0, shown(name))
    for row in attempts:
        told.add(metrics.ATTEMPTS, row["running"], shown(row["executor"]))
        told.add(metrics.UNREACHABLE, row["unreachable"], shown(row["executor"]))


def _processes(told: Told, _now: datetime) -> None:
    processes = machinery.processes()
    for name, kind in (
        (metrics.SCHEDULERS, ProcessKind.SCHEDULER),
        (metrics.RELAYS, ProcessKind.RELAY),
    ):
        for state in ("alive", "silent"):
            of_kind = [each for each in processes if each.kind == kind and _state(each) == state]
            told.set(name, len(of_kind), state)
    if not any(each.kind == ProcessKind.RELAY and each.alive for each in processes):
        _do_what_a_relay_does()


def _do_what_a_relay_does() -> None:
    """Where none runs, a scrape gives moves their place, so that they are counted at all."""
    for _ in range(PASSES):
        if sequencing.take(using=USING) < sequencing.LIMIT:
            break


def _moves(told: Told, _now: datetime) -> None:
    for _ in range(PASSES):
        if move_counts.behind() <= MOST_UNFOLDED or not move_counts.fold():
            break
    moves = move_counts.count_moves()
    for edge, count in {**dict.fromkeys(_possible_moves(), 0), **moves.by_edge}.items():
        told.set(metrics.MOVES, count, *edge)
    told.durations(metrics.WAITED, moves.waited)
    for state, durations in moves.ran.items():
        told.durations(metrics.RAN, durations, state)


def _possible_moves() -> Iterator[tuple[str, str, str]]:
    """Told from the beginning: a rate is seen only of what was 0 before."""
    for model in (ContainerJob, DagRun, TaskInstance):
        for old, new in model.machine.edges:
            yield model.entity_type, str(old), str(new)


def _workflows(told: Told, now: datetime) -> None:
    unfinished = (WorkflowState.QUEUED, WorkflowState.RUNNING, WorkflowState.RETRYING)
    rows = DagRun.objects.filter(state__in=unfinished).order_by().values_list("state")
    found = dict(rows.annotate(runs=Count("pk")))
    for state in unfinished:
        told.set(metrics.RUNS, found.get(state, 0), state)
    late = Dag.objects.due(now - OVERDUE_AFTER).order_by()
    overdue = late.aggregate(dags=Count("pk"), oldest=Min("next_slot_at"))
    told.set(metrics.OVERDUE, overdue["dags"])
    told.set(metrics.OVERDUE_FOR, _seconds(overdue["oldest"], now))


def _publishers(told: Told, _now: datetime) -> None:
    told.set(metrics.EVENTS, Event.objects.newest())
    found = [each for each in publishers.publishers() if each.path]
    shown = _shown([each.alias for each in found])
    for each in found:
        alias = shown(each.alias)
        told.raise_to(metrics.LAG, each.lag, alias)
        told.raise_to(metrics.LAG_FOR, each.lag_seconds, alias)
        told.raise_to(metrics.FAILURES, each.failures, alias)
        told.raise_to(metrics.FAILING_FOR, each.failing_seconds, alias)
        told.add(metrics.LETTERS, each.dead_letters, alias)
