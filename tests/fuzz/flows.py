"""DAGs, runs and tasks for the fuzzed server: of each kind some that the request may be done to."""

from __future__ import annotations

from itertools import count
from typing import Any

from container_manager.models import Dag, DagRun, TaskInstance
from container_manager.states import WorkflowState
from container_manager.workflows import dags, runs
from container_manager.workflows.spec import validate
from tests.support.web import Person
from tests.workflows.driving import play

Ids = list[str]

TASK = {"command": "true", "image": "busybox:latest"}
DOCUMENT: dict[str, Any] = {
    "schedule": "0 0 * * *",
    "params": {"DAY": "monday"},
    "tags": {"team": "data"},
    "max_active_runs": 1000,
    "defaults": {"max_retries": 0, "environment": {"TOKEN": "secret"}},
    "tasks": {"first": TASK, "many": {**TASK, "array": 2, "depends_on": "first"}},
}

_numbers = count()


def make(owner: Person, wanted: int) -> dict[str, dict[str, Ids]]:
    """By collection and kind of request; so many of what a request uses up."""
    of_runs, of_tasks = _runs_and_tasks(owner, wanted)
    kinds = ("change", "delete", "pause", "unpause", "trigger", "backfill")
    of_dags = {kind: _ids([_dag(owner) for _ in range(wanted)]) for kind in kinds}
    read = _ids(Dag.objects.filter(pk__in=DagRun.objects.values("dag")))
    return {
        "dags": {**of_dags, "read": read},
        "dag-runs": of_runs,
        "task-instances": of_tasks,
    }


def _runs_and_tasks(owner: Person, wanted: int) -> tuple[dict[str, Ids], dict[str, Ids]]:
    dag = _dag(owner)
    failed = _ids([play(run, fails=["first"]) for run in _begun(dag, wanted)])
    for_tasks = _ids([play(run, fails=["first"]) for run in _begun(dag, wanted)])
    to_cancel, to_skip = (_ids(_begun(dag, wanted)) for _ in range(2))
    to_cancel_tasks = _ids(_begun(dag, wanted))
    shown = _ids([play(_begun(_dag(owner), 1)[0]), *_begun(dag, 2)])
    return (
        {"read": shown, "retry": failed, "cancel": to_cancel},
        {
            "read": _tasks(shown),
            "retry": _tasks(for_tasks, state=WorkflowState.FAILED),
            "cancel": _tasks(to_cancel_tasks, name="first"),
            "skip": _tasks(to_skip, name="many"),
        },
    )


def _dag(owner: Person) -> Dag:
    document = {**DOCUMENT, "name": f"flow-{next(_numbers)}"}
    return dags.create(validate(document), owner=owner.user)


def _begun(dag: Dag, wanted: int) -> list[DagRun]:
    """Runs whose first tasks have a job that waits; nobody here runs it."""
    made = [dags.trigger(dag.pk, actor="fuzz").pk for _ in range(wanted)]
    while runs.start_next(dag.pk):
        pass
    return list(DagRun.objects.filter(pk__in=made))


def _tasks(of_runs: Ids, **which: Any) -> Ids:
    return _ids(TaskInstance.objects.filter(dag_run__in=of_runs, **which))


def _ids(rows: Any) -> Ids:
    return [str(row.pk) for row in rows]
