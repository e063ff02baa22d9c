"""Row 37: workers are replaced: SIGTERM, a second one, SIGKILL when the time is over.

tests/integration/test_adoption.py has the plain drain and the second SIGTERM; here are the rest.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from container_manager import lifecycle
from container_manager.models import ContainerJob, JobAttempt, Worker
from container_manager.states import StopKind
from tests.support.running import KINDS, lives, queue_job, stdout
from tests.support.spine import contradictions, path_of
from tests.support.workers import Workers, settled, status_of, wait_until

pytestmark = [pytest.mark.processes, pytest.mark.django_db(transaction=True)]

COUNT = "i=0; while [ $i -lt 50 ]; do i=$((i+1)); echo line $i; sleep 0.1; done"
STUBBORN = "trap '' TERM; echo here; while :; do sleep 0.2; done"


@pytest.fixture(autouse=True)
def _nothing_is_left(workers: Workers) -> Iterator[None]:
    yield
    wait_until(lambda: not workers.left_behind(), "the remains to be removed")
    assert contradictions() == []


def whole() -> bytes:
    return "".join(f"line {number + 1}\n" for number in range(50)).encode()


def test_a_draining_worker_claims_nothing_and_ends_when_its_time_is_over(workers: Workers) -> None:
    """A job that will not die keeps it, but no longer than DRAIN_SECONDS."""
    stubborn = queue_job("process", STUBBORN, stop_grace_seconds=300)
    worker = workers.start("--concurrency", "4", DRAIN_SECONDS=3)
    wait_until(lambda: stdout(stubborn), "it to print")
    worker.terminate()
    wait_until(lambda: Worker.objects.filter(draining=True).exists(), "the drain to begin")
    late = queue_job("process", "true")
    assert worker.ended() == 0
    assert status_of(late) == "queued"
    assert lives(stubborn)
    assert not Worker.objects.exists()
    lifecycle.stop([stubborn.pk], StopKind.KILL)
    workers.start()
    assert settled(stubborn).status == "killed"
    assert settled(late).status == "completed"
    assert not lives(stubborn)


@pytest.mark.postgres  # the database has no part in it: once is enough
@pytest.mark.parametrize("kind", KINDS[1:])
def test_containers_survive_a_deploy_that_runs_out_of_patience(workers: Workers, kind: str) -> None:
    """SIGTERM, and SIGKILL right behind it, wherever in its drain the worker is."""
    workers.use_docker()
    jobs = [queue_job(kind, COUNT, max_retries=0) for _ in range(2)]
    for _ in range(3):
        worker = workers.start("--concurrency", "2")
        epochs = sum(JobAttempt.objects.values_list("lease_epoch", flat=True))
        wait_until(lambda epochs=epochs: _all_held(epochs), "it to have them")
        worker.terminate()
        worker.kill()
    workers.start()
    assert {settled(job).status for job in jobs} == {"completed"}
    assert [stdout(job) for job in jobs] == [whole()] * 2
    assert JobAttempt.objects.count() == 2


def _all_held(before: int) -> bool:
    """Two attempts that run, and that came to a worker since their epochs added up to that."""
    epochs = JobAttempt.objects.filter(phase="started").values_list("lease_epoch", flat=True)
    return len(epochs) == 2 and sum(epochs) >= before + 2


def test_replacing_all_workers_one_by_one_under_load_loses_nothing(
    workers: Workers, tmp_path: Path
) -> None:
    """What a worker stops when it leaves runs again, from its beginning; what ended stays ended."""
    runs = tmp_path / "ended"
    script = f"sleep 0.5; echo $CM_JOB_ID >> {runs}"
    living = [workers.start("--concurrency", "3").wait_until_started() for _ in range(2)]
    jobs: list[ContainerJob] = []
    for _ in range(2):
        for old in list(living):
            jobs += [queue_job("process", script) for _ in range(6)]
            living.append(workers.start("--concurrency", "3").wait_until_started())
            living.remove(old)
            old.terminate()
            assert old.ended() == 0
    assert {settled(job).status for job in jobs} == {"completed"}
    assert sorted(runs.read_text().split()) == sorted(str(job.pk) for job in jobs)
    reasons = set(JobAttempt.objects.values_list("reason", flat=True))
    assert reasons <= {"", "worker_stopped"}
    for job in jobs:
        assert path_of(job)[-2:] == ["running", "completed"]
    assert Worker.objects.count() == len(living)
