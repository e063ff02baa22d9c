"""The example of the docs and what goes wrong in a run, with real workers, jobs and a scheduler."""

from __future__ import annotations

from pathlib import Path

import pytest

from container_manager.models import ContainerJob, DagRun, JobLog, TaskInstance
from container_manager.workflows import dags, runs
from container_manager.workflows.spec import read, validate
from tests.support.running import KINDS
from tests.support.workers import ROOT, Workers, wait_until
from tests.workflows.driving import job_of, states_of, task, task_of

pytestmark = [pytest.mark.processes, pytest.mark.django_db(transaction=True)]

EXAMPLE = Path(ROOT, "examples/etl_pipeline.yaml")


def over(run: DagRun) -> DagRun:
    wait_until(lambda: DagRun.objects.get(pk=run.pk).ended_at, "the run's end")
    return DagRun.objects.get(pk=run.pk)


@pytest.mark.parametrize("executor", KINDS)
def test_the_example_runs_from_its_first_task_to_its_last(workers: Workers, executor: str) -> None:
    if executor == "docker":
        workers.use_docker()
    document = read(EXAMPLE.read_text())
    document["defaults"]["executor"] = executor
    dag, _ = dags.take_in(validate(document))
    run = dags.trigger(dag.pk, actor="tester")
    workers.start("--executor", executor)
    workers.start_scheduler()
    assert over(run).state == "success"
    assert set(states_of(run).values()) == {"success"}
    printed = JobLog.objects.filter(job=job_of(run, "transform"), stream="stdout")
    assert b"".join(bytes(row.data) for row in printed) == b"got 42\n"
    ends = {each.task_id: each for each in TaskInstance.objects.list_by_dag_run(run)}
    assert ends["extract"].ended_at <= job_of(run, "transform").launched_at
    assert not ContainerJob.objects.exclude(executor=executor).exists()


def test_a_failed_run_is_mended_and_goes_on(workers: Workers, tmp_path: Path) -> None:
    """`extract` fails until its file is there; a person retries, and what is done is kept."""
    there = tmp_path / "there"
    script = f"test -e {there} && echo found"
    document = {
        "name": "mended",
        "defaults": {"executor": "process", "max_retries": 0},
        "tasks": {
            "done": task(),
            "extract": task(command=["/bin/sh", "-c", script]),
            "load": task("extract", "done"),
        },
    }
    dag, _ = dags.take_in(validate(document))
    run = dags.trigger(dag.pk, actor="tester")
    workers.start()
    workers.start_scheduler()
    assert over(run).state == "failed"
    assert states_of(run) == {"done": "success", "extract": "failed", "load": "upstream_failed"}
    there.touch()
    runs.retry(run.pk, actor="tester")
    wait_until(lambda: DagRun.objects.get(pk=run.pk).state == "success", "its success")
    assert task_of(run, "extract").try_number == 2
    assert task_of(run, "done").try_number == 1


def test_a_cancelled_run_stops_what_runs(workers: Workers) -> None:
    document = {
        "name": "long",
        "defaults": {"executor": "process"},
        "tasks": {"long": task(command=["/bin/sleep", "600"]), "after": task("long")},
    }
    dag, _ = dags.take_in(validate(document))
    run = dags.trigger(dag.pk, actor="tester")
    workers.start()
    workers.start_scheduler()
    wait_until(lambda: task_of(run, "long").state == "running", "its first task")
    assert runs.cancel(run.pk, actor="ann").state == "running"
    ended = over(run)
    assert (ended.state, ended.reason) == ("failed", "cancelled")
    assert states_of(run) == {"long": "failed", "after": "skipped"}
    job = job_of(run, "long")
    assert (job.status, job.cancel_requested_by) == ("cancelled", "ann")
    assert not workers.left_behind()
