"""Drives runs without workers: jobs are moved by hand to where a test wants them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from django.utils import timezone

from container_manager.models import ContainerJob, Dag, DagRun, TaskInstance
from container_manager.states import JobStatus, WorkflowState
from container_manager.workflows import dags, runs
from container_manager.workflows.spec import validate

_J = JobStatus


def task(*depends_on: str, **fields: Any) -> dict[str, Any]:
    """The lines of one task that does nothing."""
    return {"command": ["/bin/true"], "depends_on": list(depends_on), **fields}


def made(tasks: Mapping[str, Any], name: str = "flow", **fields: Any) -> Dag:
    """A DAG of these tasks."""
    defaults = {"executor": "process", "max_retries": 0}
    document = {"name": name, "defaults": defaults, "tasks": tasks, **fields}
    return dags.take_in(validate(document))[0]


def started(dag: Dag, **options: Any) -> DagRun:
    """A run of it whose first tasks are queued."""
    run = dags.trigger(dag.pk, actor="tester", **options)
    while runs.start_next(dag.pk):
        pass
    return fresh(run)


def begun(tasks: Mapping[str, Any], **fields: Any) -> DagRun:
    return started(made(tasks, **fields))


def fresh(run: DagRun) -> DagRun:
    return DagRun.objects.get(pk=run.pk)


def states_of(run: DagRun) -> dict[str, str]:
    tasks = TaskInstance.objects.list_by_dag_run(run)
    return {task_id: str(state) for task_id, state in tasks.values_list("task_id", "state")}


def task_of(run: DagRun, task_id: str) -> TaskInstance:
    return TaskInstance.objects.get_by_task_id(run, task_id)


def job_of(run: DagRun, task_id: str) -> ContainerJob:
    return ContainerJob.objects.get(pk=task_of(run, task_id).job_id)


def queued_jobs(run: DagRun) -> list[str]:
    """The tasks whose jobs wait in the queue, in the order of the document."""
    tasks = TaskInstance.objects.list_by_dag_run(run).filter(job__status=_J.QUEUED)
    return list(tasks.values_list("task_id", flat=True))


def advance(run: DagRun, **options: Any) -> None:
    while runs.advance(run.pk, **options):
        pass


def end(run: DagRun, task_id: str, exit_code: int = 0, output: str = "") -> None:
    """Its job runs and ends so, with no retry; nobody looks yet."""
    job = job_of(run, task_id)
    job.mark_as_running()
    result = {"exit_code": exit_code, "output": output}
    if exit_code == 0:
        job.transition_to(_J.COMPLETED, **result)
    else:
        job.transition_to(_J.FAILED, reason="exit_code", error="said no", **result)


def play(run: DagRun, fails: Mapping[str, int] | Iterable[str] = ()) -> DagRun:
    """Run whatever is queued until nothing is; `fails` gives tasks other exit codes than 0."""
    codes = dict(fails) if isinstance(fails, Mapping) else dict.fromkeys(fails, 1)
    while waiting := queued_jobs(run):
        for task_id in waiting:
            end(run, task_id, codes.get(task_id, 0))
        advance(run)
    return fresh(run)


def ended(run: DagRun) -> bool:
    return run.state not in (WorkflowState.QUEUED, WorkflowState.RUNNING, WorkflowState.RETRYING)


def moment(text: str) -> Any:
    return timezone.datetime.fromisoformat(text)
