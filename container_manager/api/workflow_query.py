"""Which DAGs, runs and tasks: the filters of the lists, and a page of what they select."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from django.db import models
from django.db.models import Q
from rest_framework.request import Request

from container_manager.api.base import Response, is_id
from container_manager.api.listing import (
    SEVERAL,
    dates,
    in_ranges,
    labels,
    order_terms,
    ordering,
    read_rows,
)
from container_manager.api.pagination import page
from container_manager.api.parameters import (
    Parameter,
    Unreadable,
    flag,
    names,
    text,
    words,
)
from container_manager.models import Dag, DagRun, TaskInstance
from container_manager.models.workflow import MAX_NAME
from container_manager.states import RunType, WorkflowState
from container_manager.workflows import spec

Query = Mapping[str, Any]

_CREATED = "Created"
_STATE = words("state", lambda: WorkflowState.values, f"In one of these states. {SEVERAL}")
_DAG = names("dag", spec.NAME, MAX_NAME, f"Of one of these DAGs: names or ids. {SEVERAL}")

# DAGs ---------------------------------------------------------------------------------------------

DAG_FILTERS: tuple[Parameter, ...] = (
    names("name", spec.NAME, MAX_NAME, f"With one of these names. {SEVERAL}"),
    flag("is_paused", "Paused, or not.", default=None),
    flag("has_schedule", "That run by themselves, or only by hand.", default=None),
    labels("tag", "With exactly this tag, as `key:value`; repeated: with all of them."),
    *dates({"created": _CREATED}),
    text("search", 200, "Name or description contain this text, literally."),
)
DAG_ORDERING = ordering(("created_at", "updated_at", "name", "next_slot_at"))


def select_dags(user: Any, query: Query) -> models.QuerySet[Dag]:
    """What `query`, read by DAG_FILTERS, means for this person. Raises Problem (400)."""
    dags = in_ranges(Dag.objects.visible_to(user), query, {"created": "created_at"})
    if query["name"]:
        dags = dags.filter(name__in=query["name"])
    if query["is_paused"] is not None:
        dags = dags.filter(is_paused=query["is_paused"])
    if query["has_schedule"] is not None:
        unscheduled = Q(schedule="")
        dags = dags.filter(~unscheduled if query["has_schedule"] else unscheduled)
    for key, value in query["tag"] or ():
        dags = dags.with_tag(key, value)
    if wanted := query["search"]:
        dags = dags.filter(Q(name__icontains=wanted) | Q(description__icontains=wanted))
    return dags  # type: ignore[no-any-return]


# Runs ---------------------------------------------------------------------------------------------

RUN_FILTERS: tuple[Parameter, ...] = (
    _DAG,
    _STATE,
    words("run_type", lambda: RunType.values, f"That are there for this. {SEVERAL}"),
    *dates({"execution_date": "Of an execution date", "created": _CREATED}),
)
RUN_ORDERING = ordering(
    (
        *("execution_date", "created_at", "started_at", "ended_at", "duration_ms", "state"),
        "run_id",
    ),
    "By the latest execution date unless given.",
)


def select_runs(user: Any, query: Query) -> models.QuerySet[DagRun]:
    """What `query`, read by RUN_FILTERS, means for this person. Raises Problem (400)."""
    ranges = {"execution_date": "execution_date", "created": "created_at"}
    runs = in_ranges(DagRun.objects.visible_to(user), query, ranges)
    if query["dag"]:
        runs = runs.filter(dag__in=_dags(user, query["dag"]))
    return _in_words(runs, query, "state", "run_type")  # type: ignore[no-any-return]


# Tasks --------------------------------------------------------------------------------------------


def _run(given: str) -> str:
    if not is_id(given):
        raise Unreadable("Must be the id of a run.")
    return given


TASK_FILTERS: tuple[Parameter, ...] = (
    _DAG,
    Parameter("dag_run", _run, {"type": "string", "format": "uuid"}, "Of this run."),
    names("task", spec.TASK_ID, MAX_NAME, f"Of one of these names. {SEVERAL}"),
    _STATE,
    *dates({"created": _CREATED, "started": "Started", "ended": "Ended"}),
)
TASK_ORDERING = ordering(
    (
        *("position", "created_at", "started_at", "ended_at", "duration_ms", "state", "name"),
        "try_number",
    ),
    "Newest first unless given; those of one run as in its document.",
)
IN_ORDER = ["position"]


def select_tasks(user: Any, query: Query) -> models.QuerySet[TaskInstance]:
    """What `query`, read by TASK_FILTERS, means for this person. Raises Problem (400)."""
    ranges = {"created": "created_at", "started": "started_at", "ended": "ended_at"}
    tasks = in_ranges(TaskInstance.objects.visible_to(user), query, ranges)
    if query["dag"]:
        tasks = tasks.filter(dag_run__dag__in=_dags(user, query["dag"]))
    if query["dag_run"]:
        tasks = tasks.filter(dag_run=query["dag_run"])
    if query["task"]:
        tasks = tasks.filter(name__in=query["task"])
    return _in_words(tasks, query, "state")  # type: ignore[no-any-return]


def _in_words(rows: Any, query: Query, *columns: str) -> Any:
    chosen = {f"{name}__in": query[name] for name in columns if query[name]}
    return rows.filter(**chosen)


def _dags(user: Any, named: list[str]) -> list[Any]:
    """The ids of DAGs that are given by name or id, of those that this person may see."""
    known = Q(name__in=named) | Q(pk__in=[text for text in named if is_id(text)])
    return list(Dag.objects.visible_to(user).filter(known).order_by().values_list("pk", flat=True))


# Pages --------------------------------------------------------------------------------------------


def page_of_selected(
    request: Request,
    query: Query,
    selected: models.QuerySet[Any],
    shown: Any,
    tell: Callable[[dict[str, Any]], dict[str, Any]],
    usual: list[str],
) -> Response:
    """The page that was asked for, in the order that was asked for, or in the usual one."""
    limit, offset, count = query["limit"], query["offset"], selected.count()
    order = order_terms(selected.model, query["ordering"] or usual)
    rows = read_rows(selected, shown, order, limit, offset) if offset < count else []
    return Response(page(request, count, limit, offset, [tell(row) for row in rows]))
