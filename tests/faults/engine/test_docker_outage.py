"""Row 19: the Docker daemon is stopped, killed or stands still while jobs run on it.

What Docker 20.10 says of its containers when it is back, as seen here:

- live-restore, SIGTERM or SIGKILL: they went on. Running; or their own exit code. What they printed
  meanwhile is whole if they still run when it is back, and lost if they ended before.
- no live-restore, SIGTERM: it ended them before itself, by SIGTERM and then SIGKILL. 143 or
  137, or what they made of the SIGTERM.
- no live-restore, SIGKILL: they went on until it was back, and then it ended them. The same.
- a crash of the machine, or of containerd and the shims as well: 255, ended when it came back; also
  of some that had ended by themselves just before.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest

from container_manager import lifecycle
from container_manager.models import ContainerJob, Worker
from container_manager.models.attempt import attempt_name
from container_manager.states import StopKind
from tests.support.running import DOCKER_MARKS, attempt_of, processes_of, queue_job, stdout
from tests.support.second_engine import SecondEngine
from tests.support.spine import path_of
from tests.support.workers import Workers, settled, status_of, wait_for, wait_until

pytestmark = [pytest.mark.processes, *DOCKER_MARKS, pytest.mark.django_db(transaction=True)]

Break = Callable[[SecondEngine], None]
STOPPED_OR_KILLED = pytest.mark.parametrize("go", [SecondEngine.stop, SecondEngine.kill])

PRINTING = (
    "i=0; while [ $i -lt {lines} ]; do i=$((i+1)); echo line $i; sleep 0.1; done; exit {code}"
)
UNTIL_TOLD = (
    "trap over=1 USR1; i=0; while [ -z $over ]; do"
    " i=$((i+1)); echo line $i; sleep 0.1; done; echo $i lines; exit {code}"
)
AT_ONCE = {"base_seconds": 0, "jitter": 0}
UNFOLLOWED = "the last of its output may be missing"

AWAY_SECONDS = float(os.environ.get("AWAY_SECONDS", "0"))
"""That an engine stays away at the least; AWAY_SECONDS=30 is a long time for a test."""


def printing(lines: int, code: int = 0, **fields: Any) -> ContainerJob:
    return queue_job("docker", PRINTING.format(lines=lines, code=code), **fields)


def lines(number: int) -> bytes:
    return "".join(f"line {each + 1}\n" for each in range(number)).encode()


def until_told(code: int, **fields: Any) -> ContainerJob:
    return queue_job("docker", UNTIL_TOLD.format(code=code), **fields)


def tell(job: ContainerJob) -> None:
    """To end; without the engine."""
    for pid in processes_of(job):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGUSR1)


def assert_log_is_whole(job: ContainerJob) -> None:
    *_, last = stdout(job).splitlines()
    number = int(last.split()[0])
    assert stdout(job) == lines(number) + f"{number} lines\n".encode()


def all_print(*jobs: ContainerJob) -> None:
    wait_until(lambda: all(stdout(job) for job in jobs), "all to print")


def until_offered(workers: Workers, *, available: bool) -> None:
    """The worker's row says whether its engine answers."""
    wait_until(
        lambda: Worker.objects.get().offers["docker"]["available"] is available,
        f"docker to be {'' if available else 'un'}available",
    )


def beats() -> int:
    return int(Worker.objects.values_list("beat", flat=True).get())


def container_of(engine: SecondEngine, job: ContainerJob) -> str:
    (found,) = (
        each["Id"]
        for each in engine.containers()
        if each["Names"] == [f"/{attempt_name(job.pk, 1)}"]
    )
    return str(found)


@STOPPED_OR_KILLED
def test_an_engine_that_goes_away_fails_no_job_whose_container_goes_on(
    engine: SecondEngine, workers: Workers, go: Break
) -> None:
    """With live-restore; and kill and cancel that were asked for meanwhile are done afterwards."""
    engine.start(live_restore=True)
    goes_on, ends = until_told(7), until_told(9)
    killed, cancelled = printing(10**6), printing(10**6)
    workers.start("--concurrency", "8")
    all_print(goes_on, ends, killed, cancelled)
    container = container_of(engine, goes_on)

    go(engine)
    until_offered(workers, available=False)
    tell(ends)
    lifecycle.stop([killed.pk], StopKind.KILL)
    lifecycle.stop([cancelled.pk], StopKind.CANCEL)
    waits = queue_job("docker", "echo at last")
    elsewhere = queue_job("process", "echo unmoved")
    beat = beats()
    assert settled(elsewhere).status == "completed"
    wait_until(lambda: attempt_of(goes_on).unreachable_since, "the attempt to say so")
    wait_until(lambda: not processes_of(ends), "one of them to end unseen")
    wait_until(lambda: beats() > beat + 1, "the heartbeat to go on")
    time.sleep(AWAY_SECONDS)
    assert {status_of(job) for job in (goes_on, ends, killed, cancelled)} == {"running"}
    assert path_of(waits) == ["queued"]

    engine.start(live_restore=True)
    ends = settled(ends)
    assert (ends.exit_code, ends.reason, UNFOLLOWED in ends.error) == (9, "exit_code", True)
    assert lines(1000).startswith(stdout(ends))
    wait_until(lambda: attempt_of(goes_on).unreachable_since is None, "it to be followed again")
    tell(goes_on)
    goes_on = settled(goes_on)
    assert (goes_on.exit_code, goes_on.attempt, goes_on.error) == (
        *(7, 1),
        "It ended with exit code 7.",
    )
    assert_log_is_whole(goes_on)
    assert attempt_of(goes_on).execution_id == container
    assert (settled(killed).status, settled(cancelled).status) == ("killed", "cancelled")
    assert settled(waits).attempt == 1
    assert path_of(waits) == ["queued", "running", "completed"]
    assert workers.said.count("does not answer, its jobs wait") == 1
    assert workers.said.count("answers again") == 1


@STOPPED_OR_KILLED
def test_what_an_engine_takes_along_was_not_the_jobs_fault_and_runs_again(
    engine: SecondEngine, workers: Workers, go: Break
) -> None:
    """Without live-restore a job that dies of the daemon's SIGTERM has lost no retry of its own."""
    engine.start(live_restore=False)
    script = 'echo "attempt $CM_ATTEMPT"; [ "$CM_ATTEMPT" = 2 ] || sleep 300'
    dies = queue_job("docker", script, retry_policy=AT_ONCE)
    obeys = queue_job("docker", "trap 'echo bye; exit 0' TERM; echo ready; sleep 300 & wait")
    asked = queue_job("docker", "echo ready; sleep 300")
    workers.start()
    all_print(dies, obeys, asked)

    go(engine)
    until_offered(workers, available=False)
    lifecycle.stop([asked.pk], StopKind.KILL)
    engine.start(live_restore=False)

    dies = settled(dies)
    taken = attempt_of(dies)
    assert (taken.reason, taken.blame, taken.signal) == ("executor_unavailable", "infra", 15)
    assert taken.error == "It was ended by signal 15 when its engine went away."
    assert (dies.status, dies.attempt) == ("completed", 2)
    assert (dies.infra_retry_count, dies.retry_count) == (1, 0)
    assert (stdout(dies, 1), stdout(dies, 2)) == (b"attempt 1\n", b"attempt 2\n")
    obeys = settled(obeys)
    assert (obeys.status, obeys.exit_code, stdout(obeys)) == ("completed", 0, b"ready\nbye\n")
    assert settled(asked).status == "killed"


def test_what_nothing_is_left_of_is_lost_and_has_no_exit_code(
    engine: SecondEngine, workers: Workers
) -> None:
    """The daemon, its containerd and the shim die at once: Docker invents an exit code 255."""
    engine.start(live_restore=True)
    script = 'echo "attempt $CM_ATTEMPT"; [ "$CM_ATTEMPT" = 2 ] || sleep 300'
    job = queue_job("docker", script, retry_policy=AT_ONCE)
    workers.start()
    all_print(job)
    engine.crash()
    until_offered(workers, available=False)
    engine.start(live_restore=True)
    job = settled(job)
    lost = attempt_of(job)
    assert (lost.exit_code, lost.signal, lost.reason) == (None, None, "executor_unavailable")
    assert lost.error == "It was lost when its engine went away; how it ended is not known."
    assert (job.status, job.attempt, job.infra_retry_count) == ("completed", 2, 1)


def test_an_engine_that_is_killed_while_it_creates_starts_and_stops_loses_no_job(
    engine: SecondEngine, workers: Workers
) -> None:
    """Killed at three moments of a crowd's life: each attempt has one container and one end."""
    engine.start(live_restore=True)
    crowd = [
        queue_job("docker", "echo first; sleep 0.7; echo last", retry_policy=AT_ONCE)
        for _ in range(12)
    ]
    stopped = [
        queue_job("docker", "trap '' TERM; echo ready; while :; do sleep 0.1; done")
        for _ in range(2)
    ]
    workers.start("--concurrency", "6")
    for phases in (("pulling", "created"), ("created",), ("stopping",)):
        if "stopping" in phases:
            all_print(*stopped)
            lifecycle.stop([job.pk for job in stopped], StopKind.CANCEL)
        _wait_for_phase(*phases)
        engine.kill()
        engine.start(live_restore=True)
    for job in crowd:
        job = settled(job)
        assert job.status == "completed", (job.reason, job.error)
        whole = stdout(job, job.attempt) == b"first\nlast\n"
        assert whole or UNFOLLOWED in job.error
    assert {settled(job).status for job in stopped} == {"cancelled"}


def _wait_for_phase(*phases: str) -> None:
    """Some attempt is at one of them; a short one is not always written down."""
    left = ContainerJob.objects.exclude(status__in=("completed", "cancelled"))
    wait_until(lambda: left.filter(attempts__phase__in=phases).exists(), " or ".join(phases))


def test_an_engine_that_stands_still_holds_up_nothing_else(
    engine: SecondEngine, workers: Workers
) -> None:
    """Row 21, too: SIGSTOP. It is connected to and never answers; every call has its timeout."""
    engine.start(live_restore=True)
    job = printing(30, code=4)
    workers.start()
    all_print(job)
    engine.pause()
    until_offered(workers, available=False)
    beat = beats()
    waits = queue_job("docker", "echo at last")
    assert settled(queue_job("process", "true")).status == "completed"
    wait_until(lambda: beats() > beat + 1, "the heartbeat to go on")
    assert path_of(waits) == ["queued"]
    engine.go_on()
    job = settled(job)
    assert (job.exit_code, job.attempt, stdout(job)) == (4, 1, lines(30))
    assert settled(waits).status == "completed"


def test_a_worker_starts_although_an_engine_stands_still(
    engine: SecondEngine, workers: Workers
) -> None:
    engine.start(live_restore=True).pause()
    worker = workers.start().wait_until_started()
    assert settled(queue_job("process", "true")).status == "completed"
    waits = queue_job("docker", "true")
    engine.go_on()
    assert settled(waits).status == "completed"
    os.kill(worker.pid, signal.SIGTERM)
    assert worker.ended() == 0
    wait_until(lambda: not workers.left_behind(), "the remains to be removed")


def test_a_worker_that_dies_while_its_engine_is_away_leaves_it_to_the_next(
    engine: SecondEngine, workers: Workers
) -> None:
    engine.start(live_restore=True)
    job = until_told(3)
    first = workers.start()
    all_print(job)
    engine.kill()
    until_offered(workers, available=False)
    first.kill()
    workers.start().wait_until_started()
    wait_until(lambda: attempt_of(job).unreachable_since, "the orphan to say so")
    assert status_of(job) == "running"
    engine.start(live_restore=True)
    wait_until(lambda: attempt_of(job).lease_epoch == 2, "its adoption")
    tell(job)
    job = settled(job)
    assert (job.exit_code, job.attempt) == (3, 1)
    assert_log_is_whole(job)


def test_the_time_limit_of_a_job_ends_it_when_its_engine_is_back(
    engine: SecondEngine, workers: Workers
) -> None:
    engine.start(live_restore=True)
    job = printing(10**6, timeout_seconds=2)
    workers.start()
    all_print(job)
    engine.kill()
    until_offered(workers, available=False)
    wait_until(lambda: ContainerJob.objects.get().signalled_at, "its time to be over")
    engine.start(live_restore=True)
    job = wait_for(job, "failed")
    assert job.reason == "timeout"
