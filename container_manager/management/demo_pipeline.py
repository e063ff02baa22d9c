"""The small DAG of `manage.py demo`, and its run.

The demo advances this run itself, with the verbs of any scheduler: one of its own would begin the
runs of whatever other DAGs the database has.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any
from uuid import UUID

from rich.table import Table
from rich.text import Text

from container_manager.exceptions import InvalidTransition
from container_manager.management import tables
from container_manager.management.demonstration import QUEUE, Place
from container_manager.management.workflows import state_text, task_result
from container_manager.models import DagRun, TaskInstance
from container_manager.states import OVER, WorkflowState
from container_manager.workflows import dags, runs, spec

NAME = "demo_pipeline"
TASKS: dict[str, Any] = {
    "extract": {"command": ["/bin/sh", "-c", "echo 42"]},
    "transform": {
        "command": ["/bin/sh", "-c", "echo got $ROWS"],
        "depends_on": ["extract"],
        "environment_from": {"ROWS": "extract.output"},
    },
    "load": {"command": ["/bin/true"], "depends_on": ["transform"]},
    "notify": {"command": ["/bin/true"], "depends_on": ["load"], "trigger_rule": "all_done"},
}
"""Those of examples/etl_pipeline.yaml."""


class Pipeline:
    """One run of the DAG, made now; each of its tasks should succeed."""

    def __init__(self, place: Place, label: str) -> None:
        dag, _ = dags.take_in(spec.validate(_document(place, label)))
        dags.pause(dag.pk, paused=False)
        self._dag_id = dag.pk
        self._run = dags.trigger(dag.pk, actor="demo")
        self._tasks = self._look()

    def advance(self) -> None:
        """Go on as far as its jobs are, and look at it."""
        if not self.is_over:
            runs.start_next(self._dag_id)
            runs.advance(self._run.pk)
            self._run.refresh_from_db(fields=["state", "version", "reason"])
        self._tasks = self._look()

    def cancel(self) -> None:
        """Nothing more of it begins."""
        with suppress(InvalidTransition, DagRun.DoesNotExist):
            runs.cancel(self._run.pk, actor="demo")

    @property
    def is_over(self) -> bool:
        return self._run.state in OVER

    @property
    def job_ids(self) -> list[UUID]:
        """Of the tasks whose turn has come."""
        return [task.job_id for task in self._tasks if task.queued_at and task.job_id]

    @property
    def names(self) -> dict[UUID, str]:
        """What its run and its tasks are called, by id."""
        return {
            self._run.pk: NAME,
            **{task.pk: f"{NAME}.{task.task_id}" for task in self._tasks},
        }

    def wrong(self) -> list[str]:
        """The tasks that did not succeed."""
        tasks = [task for task in self._tasks if task.state != WorkflowState.SUCCESS]
        return [f"{NAME}.{task.task_id}" for task in tasks]

    def table(self) -> Table:
        """Where its tasks stand, and whether that is where they should be."""
        made = tables.table(f"TASK OF {NAME}", "STATE", "STARTS", "TOOK", "RESULT", "LAST LINE", "")
        for task in self._tasks:
            made.add_row(
                task.task_id,
                state_text(task.state),
                str(task.try_number),
                tables.span(task.duration),
                task_result(task),
                tables.visible(task.output.rstrip().rpartition("\n")[2]),  # type: ignore[attr-defined]
                _mark(task),
            )
        return made

    def _look(self) -> list[TaskInstance]:
        tasks = list(TaskInstance.objects.list_by_dag_run(self._run).select_related("job"))
        for task in tasks:
            task.output = task.job.output if task.queued_at and task.job else ""
        return tasks


def _document(place: Place, label: str) -> dict[str, Any]:
    return {
        "name": NAME,
        "description": "The small DAG of `manage.py demo`.",
        "tags": {"demo": "yes"},
        "defaults": {**place.fields, "queue": QUEUE, "labels": {"demo": label}, "max_retries": 1},
        "tasks": TASKS,
    }


def _mark(task: TaskInstance) -> Text:
    if task.state not in OVER:
        return Text("")
    good = task.state == WorkflowState.SUCCESS
    return Text("as it should" if good else "WRONG", style="green" if good else "bold red")
