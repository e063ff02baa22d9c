"""Schedulers and workers are killed while a run of 200 tasks is under way (N1, D1, rows 39, 40).

Whatever dies, and wherever: after a restart the run ends as it does without, and no attempt of a
task ran twice.
"""

from __future__ import annotations

import os
from collections import Counter
from typing import Any

import pytest
from django.utils import timezone

from container_manager.models import Dag, DagRun, TaskInstance
from container_manager.states import OVER
from container_manager.workflows import dags
from container_manager.workflows.spec import validate
from tests.support import inline_jobs
from tests.support.workers import WorkerProcess, Workers, wait_until
from tests.workflows.driving import task

pytestmark = [pytest.mark.processes, pytest.mark.django_db(transaction=True)]

WIDTH, DEPTH = 20, 10

SCHEDULER_POINTS = ["D1", "D1:4", "sql:150", "commit:6"]
WORKER_POINTS = ["C3:2", "T1"]
JOB_POINTS = ["R5:9"]
"""On the way of a job that is a process."""
if os.environ.get("EVERY_POINT"):  # make workflow-sweep
    SCHEDULER_POINTS = [
        *(f"D1:{n}" for n in range(1, 12)),
        *(f"sql:{n}" for n in range(10, 400, 13)),
        *(f"{moment}:{n}" for moment in ("commit", "committed") for n in range(1, 20)),
    ]
    WORKER_POINTS = [
        *(f"{point}:{n}" for point in ("C1", "C2", "C3", "T1") for n in (1, 2)),
        *(f"{moment}:{n}" for moment in ("commit", "committed") for n in range(2, 30, 3)),
    ]
    JOB_POINTS = [
        f"{point}:{n}"
        for point in ("R1", "R3", "R4", "R5", "U1", "U2", "X1", "X2", "X3", "X4")
        for n in (1, 40)
    ]


def layered(**fields):
    """Ten layers of twenty tasks; in each layer one is skipped by itself, and one fails at last."""
    tasks = {}
    for depth in range(DEPTH):
        before = [f"t{depth - 1}_{n}" for n in range(WIDTH)] if depth else []
        for n in range(WIDTH):
            tasks[f"t{depth}_{n}"] = task(
                *(before if n == 0 else before[n : n + 1]),
                trigger_rule="all_done" if n == 0 else "none_failed",
                **_how_it_ends(depth, n),
                **fields,
            )
    return tasks


def _how_it_ends(depth, n):
    if n == 5:
        return {"environment": {"EXIT": "99"}, "skip_exit_codes": [99]}
    if n == 7 and depth == 4:
        return {"environment": {"EXIT": "3"}}
    return {}


def expected(task_id):
    depth, n = map(int, task_id[1:].split("_"))
    if n == 7 and depth >= 4:
        return "failed" if depth == 4 else "upstream_failed"
    return "success"


@pytest.fixture
def inline_workers(workers: Workers) -> Workers:
    workers.use_inline()
    return workers


def a_run(tasks: dict[str, Any] | None = None, **fields: Any) -> DagRun:
    at_once = {"strategy": "fixed", "base_seconds": 0.1, "max_seconds": 0.1}
    defaults = {"image": "busybox", "max_retries": 0, "retry_policy": at_once}
    document = {"name": "flow", "defaults": defaults, "tasks": tasks or layered(), **fields}
    dag = dags.take_in(validate(document))[0]
    return dags.trigger(dag.pk, actor="tester")


def ended(run: DagRun) -> DagRun:
    wait_until(lambda: DagRun.objects.get(pk=run.pk).state in OVER, "the run's end")
    return DagRun.objects.get(pk=run.pk)


def await_its_death(victim: WorkerProcess, run: DagRun) -> None:
    """At its point; a high one may never be reached, when the run is over before."""
    wait_until(lambda: victim.has_ended or DagRun.objects.get(pk=run.pk).state in OVER, "its death")
    if os.environ.get("EVERY_POINT") and not victim.has_ended:
        pytest.skip("the run was over before that point")
    assert victim.ended() == -9


def assert_whole(run: DagRun, workers: Workers) -> None:
    """Each task ended as it must, by one job, and no attempt ran twice."""
    tasks = list(TaskInstance.objects.list_by_dag_run(run).select_related("job"))
    assert {each.task_id: each.state for each in tasks} == {
        each.task_id: expected(each.task_id) for each in tasks
    }
    assert len(tasks) == WIDTH * DEPTH
    ran = inline_jobs.runs(workers.runs)
    assert set(ran.values()) == {1}
    by_job = Counter(job_id for job_id, _ in ran)
    for each in tasks:
        lived = each.state in ("success", "failed")
        assert (by_job[str(each.job_id)] > 0) == lived, each.task_id
        if lived:
            assert each.job.managed_by == each.managed_by
    assert run.state == "failed"


@pytest.mark.parametrize("point", SCHEDULER_POINTS)
def test_a_scheduler_that_is_killed_anywhere_loses_and_doubles_nothing(
    inline_workers: Workers, point: str
) -> None:
    run = a_run()
    inline_workers.start("--concurrency", "40", "--executor", "inline")
    victim = inline_workers.start_scheduler(CRASH_AT=point)
    await_its_death(victim, run)
    inline_workers.start_scheduler()
    assert_whole(ended(run), inline_workers)


@pytest.mark.parametrize("point", WORKER_POINTS)
def test_a_worker_that_is_killed_anywhere_loses_and_doubles_nothing(
    inline_workers: Workers, point: str
) -> None:
    run = a_run()
    inline_workers.start_scheduler()
    victim = inline_workers.start("--concurrency", "40", "--executor", "inline", CRASH_AT=point)
    await_its_death(victim, run)
    inline_workers.start("--concurrency", "40", "--executor", "inline")
    assert_whole(ended(run), inline_workers)


@pytest.mark.parametrize("point", JOB_POINTS)
def test_a_worker_that_is_killed_on_the_way_of_a_job_loses_and_doubles_nothing(
    workers: Workers, point: str
) -> None:
    """Each process leaves its own line, as the inline jobs do."""
    script = f'echo "$CM_JOB_ID $CM_ATTEMPT" >>{workers.runs}; exit ${{EXIT:-0}}'
    run = a_run(layered(executor="process", command=["/bin/sh", "-c", script]))
    workers.start_scheduler()
    victim = workers.start("--concurrency", "8", CRASH_AT=point)
    await_its_death(victim, run)
    workers.start("--concurrency", "8")
    assert_whole(ended(run), workers)


def test_a_slot_whose_scheduler_died_before_the_first_job_gets_its_jobs(
    inline_workers: Workers,
) -> None:
    """N1: the run is there, its jobs are not."""
    a_run(schedule="* * * * *", start_date=timezone.now().date().isoformat())
    DagRun.objects.all().delete()
    Dag.objects.update(slots_until=timezone.now() - timezone.timedelta(minutes=1, seconds=1))
    Dag.objects.update(next_slot_at=timezone.now() - timezone.timedelta(seconds=1))
    victim = inline_workers.start_scheduler(CRASH_AT="N1")
    assert victim.ended() == -9
    run = DagRun.objects.get()
    assert (run.state, run.run_type) == ("queued", "scheduled")
    inline_workers.start("--concurrency", "40", "--executor", "inline")
    inline_workers.start_scheduler()
    assert_whole(ended(run), inline_workers)


def test_two_schedulers_and_two_workers_share_the_work_without_doubling_it(
    inline_workers: Workers,
) -> None:
    run = a_run()
    for _ in range(2):
        inline_workers.start("--concurrency", "20", "--executor", "inline")
        inline_workers.start_scheduler()
    assert_whole(ended(run), inline_workers)
