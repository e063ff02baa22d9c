"""Which fields DAGs, runs and tasks have in the API."""

from __future__ import annotations

from typing import Any

from django.contrib.auth import get_user_model
from django.db.models import Count, F

from container_manager.models import Dag, DagRun, TaskInstance
from container_manager.reports.workflows import OfName, by_name
from container_manager.states import WORKFLOW, WorkflowState
from container_manager.workflows import dags
from container_manager.workflows.dags import Slot
from container_manager.workflows.masking import masked
from container_manager.workflows.plan import plan_of

NEXT_RUNS = 5

Told = dict[str, Any]

_ALLOWED = {str(state): list(WORKFLOW.get_next_states(state)) for state in WorkflowState}

# DAGs ---------------------------------------------------------------------------------------------

DAG_COLUMNS = (
    *("id", "name", "description", "created_by", "tags", "is_paused", "schedule", "timezone"),
    *("start_date", "end_date", "missed_runs", "max_active_runs", "next_slot_at", "created_at"),
    "updated_at",
)
"""What the list reads of each DAG."""

DAGS = Dag.objects.order_by().values(
    *DAG_COLUMNS, owner=F(f"created_by__{get_user_model().USERNAME_FIELD}")
)


def tell_dag_row(row: Told) -> Told:
    """A DAG in a list."""
    return {**row, "schedule": row["schedule"] or None}


def tell_dag(dag: Dag) -> Told:
    """A DAG by itself, with its document."""
    row = {name: getattr(dag, Dag._meta.get_field(name).attname) for name in DAG_COLUMNS}  # type: ignore[union-attr]
    owner = dag.created_by.get_username() if dag.created_by else None
    return tell_dag_row({**row, "owner": owner}) | {
        "document": masked(dag.spec),
        "next_runs": dags.next_slots(dag, NEXT_RUNS),
        "revision": dag.revision,
    }


def tell_slot(slot: Slot) -> Told:
    """One slot of a backfill, and what came of it."""
    result = "created" if slot.created else "exists" if slot.run else "would_create"
    return {
        "execution_date": slot.execution_date,
        "result": result,
        "run": slot.run and slot.run.pk,
    }


# Runs ---------------------------------------------------------------------------------------------

RUN_COLUMNS = (
    *("id", "dag", "run_id", "run_type", "state", "version", "reason", "execution_date", "params"),
    *("started_at", "ended_at", "duration_ms", "cancel_requested_at", "cancel_requested_by"),
    *("created_at", "updated_at"),
)
RUNS = DagRun.objects.order_by().values(*RUN_COLUMNS, dag_name=F("dag__name"))


def tell_row(row: Told) -> Told:
    """A run in a list."""
    return {**row, "allowed_transitions": _ALLOWED[row["state"]]}


def tell_run(row: Told) -> Told:
    """A run by itself, with how many of its tasks stand where."""
    tasks = TaskInstance.objects.filter(dag_run=row["id"]).order_by()
    counts = dict(tasks.values_list("state").annotate(n=Count("pk")))
    return tell_row(row) | {"tasks": _all_states(counts)}


def tell_graph(run: DagRun) -> Told:
    """Its tasks by name, as they wait for each other."""
    plan = plan_of(run)
    found = {each.name: each for each in by_name(run)}
    graph = plan.graph
    return {
        "run": run.pk,
        "nodes": [
            _node(found.get(name) or OfName(name), spec.trigger_rule, spec.array)
            for name, spec in plan.tasks.items()
        ],
        "edges": [
            {"from": before, "to": name}
            for name, needed in graph.upstream.items()
            for before in needed
        ],
        "layers": graph.layers(),
    }


def _node(tasks: OfName, rule: str, array: int | None) -> Told:
    return {
        "task": tasks.name,
        "trigger_rule": rule,
        "array": array,
        "state": tasks.state,
        "counts": _all_states(tasks.counts),
        "started_at": tasks.started_at,
        "ended_at": tasks.ended_at,
    }


def _all_states(counts: dict[str, int]) -> dict[str, int]:
    return {state.value: counts.get(state, 0) for state in WorkflowState}


# Tasks --------------------------------------------------------------------------------------------

TASK_COLUMNS = (
    *("id", "dag_run", "task_id", "name", "map_index", "position", "state", "version", "reason"),
    *("job", "queued_at", "try_number", "max_tries", "exit_code", "error", "started_at"),
    *("ended_at", "duration_ms", "created_at", "updated_at"),
)
TASKS = TaskInstance.objects.order_by().values(
    *TASK_COLUMNS,
    dag=F("dag_run__dag_id"),
    dag_name=F("dag_run__dag__name"),
    run_id=F("dag_run__run_id"),
)


def tell_task(row: Told) -> Told:
    """A task, in a list and by itself; its job has an id before there is one."""
    return tell_row({**row, "job": row["job"] if row["queued_at"] else None})
