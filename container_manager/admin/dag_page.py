"""What the page of one DAG shows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Any
from uuid import UUID

from django.utils import timezone

from container_manager.admin import drawing
from container_manager.admin.dag_forms import as_yaml
from container_manager.admin.flow_pages import (
    LEGEND,
    graph,
    hash_of,
    in_words,
    on_the_wall,
    run_url,
    title_of_run,
    title_of_tasks,
    way_to,
)
from container_manager.models import Dag, DagRun, access
from container_manager.reports import workflows as reports
from container_manager.templatetags import cm as showing
from container_manager.workflows import dags
from container_manager.workflows.cron import BadSchedule
from container_manager.workflows.masking import masked
from container_manager.workflows.spec import DagSpec

RUNS_IN_GRID, ROWS_IN_GRID, NEXT_SLOTS = 25, 100, 5

OVERDUE = timedelta(minutes=1)
"""So late is no slot where a scheduler runs."""


def head(dag: Dag, user: Any) -> dict[str, Any]:
    """Everything that changes while runs come and go."""
    runs = _runs(dag)
    names, count = _names(dag.pk, dag.revision)
    slots = _next_slots(dag)
    return {
        "dag": dag,
        "explained": in_words(dag.schedule),
        "changeable": access.may_change(user, dag),
        "runs": [{"row": run, "url": run_url(run.pk), "title": title_of_run(run)} for run in runs],
        "rows": _grid(runs, names),
        "hidden": count - len(names),
        "overdue": is_overdue(dag),
        "next_slot": slots[0] if slots else None,
        "then": [on_the_wall(dag, slot) for slot in slots[1:]],
        "legend": LEGEND,
        "seen": _seen(dag, runs),
    }


def seen(dag: Dag) -> str:
    """Changes when the page does; costs less than that."""
    return _seen(dag, _runs(dag))


def _seen(dag: Dag, runs: Sequence[DagRun]) -> str:
    return hash_of(dag.revision, dag.next_slot_at, is_overdue(dag), reports.mark_of(runs))


def _runs(dag: Dag) -> list[DagRun]:
    return reports.latest_runs([dag.pk], RUNS_IN_GRID).get(dag.pk, [])


@lru_cache(maxsize=256)
def _names(dag: UUID, revision: str) -> tuple[tuple[str, ...], int]:
    """The names that the grid has rows for, and how many there are; read once for a revision."""
    names = tuple(Dag.objects.only("spec").get(pk=dag).spec["tasks"])
    return names[:ROWS_IN_GRID], len(names)


def _grid(runs: Sequence[DagRun], names: Sequence[str]) -> list[dict[str, Any]]:
    """A row for each task, in it a square for each run; None where a run had no such task."""
    known = reports.of_runs(runs, names)
    return [{"name": name, "cells": list(_cells(runs, known, name))} for name in names]


def _cells(
    runs: Sequence[DagRun], known: Mapping[UUID, Mapping[str, reports.OfName]], name: str
) -> Iterator[dict[str, str] | None]:
    for run in runs:
        tasks = known[run.pk].get(name)
        if tasks is None:
            yield None
            continue
        title = f"{title_of_tasks(tasks)} · {showing.exact(run.execution_date)}"
        yield {"state": tasks.state, "url": way_to(run.pk, name), "title": title}


def _next_slots(dag: Dag) -> list[datetime]:
    """No slots where its time zone is gone."""
    try:
        return dags.next_slots(dag, NEXT_SLOTS)
    except BadSchedule:
        return []


def made_of(dag: Dag) -> dict[str, Any]:
    """Its tasks as they would run now, and the document; of very many only how many."""
    spec = DagSpec.stored(dag.spec)
    if len(spec.tasks) > drawing.MOST_NAMES:
        return {"too_large": f"{len(spec.tasks):,}"}
    return {"drawn": _drawn(spec), "document": as_yaml(masked(dag.spec))}


def _drawn(spec: DagSpec) -> dict[str, Any]:
    """A box tells what is unusual of a task."""
    boxes = {
        name: {
            "told": " · ".join(
                ([f"array of {task.array:,}"] if task.array else [])
                + ([task.trigger_rule.value] if task.trigger_rule != "all_success" else [])
            ),
            "state": "",
            "title": showing.visible(name),
            "url": "",
        }
        for name, task in spec.tasks.items()
    }
    return graph(spec.graph(), boxes)


def is_overdue(dag: Dag) -> bool:
    """Has a slot come for which nobody has made the run?"""
    due = None if dag.is_paused else dag.next_slot_at
    return due is not None and due < timezone.now() - OVERDUE
