"""Row 35: a worker's clock is an hour wrong, or jumps while jobs run: nothing depends on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from container_manager.models import ContainerJob, JobAttempt, Worker
from container_manager.worker.rescuer import Rescuer
from tests.support.fleet import worker_row
from tests.support.machine_faults import FakeClock
from tests.support.running import queue_job, stdout
from tests.support.spine import contradictions
from tests.support.workers import WorkerProcess, Workers, settled, wait_for, wait_until

pytestmark = pytest.mark.django_db(transaction=True)

HOUR = 3600


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    """Jobs run until this file is there."""
    return tmp_path / "gate"


def waiting_for(gate: Path) -> ContainerJob:
    script = f"echo here; while [ ! -e {gate} ]; do sleep 0.1; done"
    return queue_job("process", script, max_retries=0, timeout_seconds=600)


def start_with(workers: Workers, clock: FakeClock, *arguments: str) -> WorkerProcess:
    true_environment = workers.environment
    try:
        workers.environment = lambda **more: {  # type: ignore[method-assign]
            **true_environment(**more),
            **clock.environment,
        }
        return workers.start(*arguments)
    finally:
        workers.environment = true_environment  # type: ignore[method-assign]


def by_w2() -> Any:
    return JobAttempt.objects.filter(worker_name="w2")


@pytest.mark.postgres  # on SQLite there is one machine, and so one clock
@pytest.mark.processes
@pytest.mark.faketime
@pytest.mark.parametrize("wrong_by", [HOUR, -HOUR], ids=["ahead", "behind"])
def test_a_worker_whose_clock_is_wrong_adopts_nothing_early_and_times_nothing_out(
    workers: Workers, gate: Path, tmp_path: Path, wrong_by: int
) -> None:
    honest = workers.start("--concurrency", "2").wait_until_started()
    jobs = [waiting_for(gate) for _ in range(2)]
    for job in jobs:
        wait_for(job, "running")
    clock = FakeClock(tmp_path, wrong_by)
    start_with(workers, clock, "--concurrency", "4").wait_until_started()
    wait_until(lambda: Worker.objects.filter(name="w2", beat__gt=4), "the wrong one to look around")
    assert set(JobAttempt.objects.values_list("lease_epoch", flat=True)) == {1}
    honest.kill()
    jobs.append(waiting_for(gate))
    wait_until(lambda: by_w2().count() == 3, "it to adopt two and to claim one")
    gate.touch()
    assert {settled(job).status for job in jobs} == {"completed"}
    assert all(0 <= (settled(job).duration_ms or 0) < HOUR * 500 for job in jobs)
    wait_until(lambda: not workers.left_behind(), "the remains to be removed")
    assert contradictions() == []


@pytest.mark.processes
@pytest.mark.faketime
def test_a_clock_that_jumps_ends_no_job_early_and_none_late(
    workers: Workers, gate: Path, tmp_path: Path
) -> None:
    clock = FakeClock(tmp_path)
    start_with(workers, clock, "--concurrency", "4").wait_until_started()
    jobs = [waiting_for(gate)]
    wait_until(lambda: stdout(jobs[0]), "it to print")
    for ahead in (HOUR, -HOUR):
        limited = queue_job("process", "sleep 600", timeout_seconds=2, max_retries=0)
        wait_for(limited, "running")
        clock.move(ahead)
        limited = settled(limited)
        assert (limited.status, limited.reason) == ("failed", "timeout")
        jobs.append(waiting_for(gate))
        wait_until(lambda: stdout(jobs[-1]), "it to print")
    gate.touch()
    assert {settled(job).status for job in jobs} == {"completed"}
    for job in map(settled, jobs):
        assert (job.duration_ms or 0) >= 0
    assert set(JobAttempt.objects.values_list("lease_epoch", flat=True)) == {1}
    wait_until(lambda: not workers.left_behind(), "the remains to be removed")


def test_while_its_own_beats_are_not_taken_a_worker_takes_nobody_for_dead() -> None:
    """Row 9: the database may be the one that stands still; judged on the monotonic clock."""
    times = iter(range(0, 10_000, 5))
    me, other = worker_row("me"), worker_row("other")
    rescuer = Rescuer(me.pk, 30.0, clock=lambda: next(times))
    assert [rescuer.dead() for _ in range(6)] == [set()] * 6  # twice a lease
    for beat in range(10):
        Worker.objects.filter(pk=me.pk).update(beat=beat)
        dead = rescuer.dead()
    assert dead == {other.pk}
