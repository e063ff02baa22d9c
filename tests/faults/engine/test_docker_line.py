"""Rows 20, 21 and 22: answers of the Docker engine that are lost, late or 500; and people who
remove, stop or pause a container behind our back.

A container that is removed: `tests/integration/test_adoption.py`, under a living worker and under
none. What the executor alone makes of lost answers: `tests/executors/test_docker.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from container_manager import lifecycle
from container_manager.executors.docker_http import Address, address_from_environment
from container_manager.models import Worker
from container_manager.states import StopKind
from tests.support import docker_engine
from tests.support.fault_proxy import FaultProxy, answer, holds, lose_reply
from tests.support.running import DOCKER_MARKS, attempt_of, lives, queue_job, stdout
from tests.support.spine import contradictions, path_of
from tests.support.workers import Workers, settled, wait_for, wait_until

pytestmark = [pytest.mark.processes, *DOCKER_MARKS, pytest.mark.django_db(transaction=True)]

PRINTING = (
    "i=0; while [ $i -lt {lines} ]; do i=$((i+1)); echo line $i; sleep 0.1; done; exit {code}"
)
DEAF = "trap '' TERM; echo ready; while :; do sleep 0.1; done"
BROKEN = b"HTTP/1.1 500 Broken\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


@pytest.fixture
def line(tmp_path: Path, workers: Workers) -> Iterator[FaultProxy]:
    """The workers' executor reaches the engine over this line; we look past it."""
    socket = Address.parse(address_from_environment()).path
    with FaultProxy(at=str(tmp_path / "line.sock"), to=socket) as line:
        workers.use_docker(base_url=f"unix://{line.address}", timeout=2)
        yield line
        line.heal()
        if workers.started:
            wait_until(lambda: not workers.left_behind(), "the remains to be removed")
        assert contradictions() == []


def containers_of(workers: Workers) -> list[str]:
    """As the engine itself knows them."""
    return sorted(workers.container_ids().values())


# Row 20


@pytest.mark.parametrize("request_line", ["/containers/create", "/start HTTP", "/attach"])
def test_a_launch_whose_answer_was_lost_is_adopted_and_never_done_twice(
    workers: Workers, line: FaultProxy, request_line: str
) -> None:
    job = queue_job("docker", PRINTING.format(lines=10, code=6))
    line.next(holds(request_line), lose_reply)
    workers.start()
    wait_until(lambda: stdout(job), "it to print")
    assert line.hits == 1
    (only,) = containers_of(workers)
    job = settled(job)
    assert (job.exit_code, job.attempt) == (6, 1)
    assert attempt_of(job).execution_id == only
    assert stdout(job) == "".join(f"line {number + 1}\n" for number in range(10)).encode()


@pytest.mark.parametrize(
    ("kind", "script", "signal"),
    [
        (StopKind.KILL, DEAF, "signal=SIGKILL"),
        (StopKind.CANCEL, DEAF, "signal=SIGKILL"),
        (StopKind.CANCEL, "echo ready; sleep 300", "signal=SIGTERM"),
    ],
)
def test_a_signal_whose_answer_was_lost_still_names_the_end(
    workers: Workers, line: FaultProxy, kind: StopKind, script: str, signal: str
) -> None:
    job = queue_job("docker", script)
    workers.start()
    wait_until(lambda: stdout(job), "it to run")
    line.next(holds(signal), lose_reply)
    lifecycle.stop([job.pk], kind)
    job = settled(job)
    assert line.hits == 1
    assert not lives(job)
    assert job.status == {"kill": "killed", "cancel": "cancelled"}[kind]


# Row 21


def black_hole(line: FaultProxy) -> None:
    line.black_hole()


def slow(line: FaultProxy) -> None:
    line.delay(back=60)


def broken(line: FaultProxy) -> None:
    line.cut()
    line.next(holds("HTTP/1."), answer(BROKEN), times=10_000)


@pytest.mark.parametrize("goes_wrong", [black_hole, slow, broken])
def test_an_engine_that_answers_nothing_late_or_500_holds_up_nothing_else(
    workers: Workers, line: FaultProxy, goes_wrong
) -> None:
    goes_on = queue_job("docker", PRINTING.format(lines=60, code=5))
    asked = queue_job("docker", DEAF)
    workers.start()
    wait_until(lambda: stdout(goes_on) and stdout(asked), "both to run")
    goes_wrong(line)
    wait_until(lambda: not Worker.objects.get().offers["docker"]["available"], "it to be missed")
    beat = Worker.objects.get().beat
    waits = queue_job("docker", "echo at last")
    lifecycle.stop([asked.pk], StopKind.KILL)
    assert settled(queue_job("process", "echo unmoved")).status == "completed"
    wait_until(lambda: Worker.objects.get().beat > beat + 1, "the heartbeat to go on")
    wait_until(lambda: attempt_of(goes_on).unreachable_since, "the attempt to say so")
    assert path_of(waits) == ["queued"]
    line.heal()
    line.cut()
    goes_on = settled(goes_on)
    assert (goes_on.exit_code, goes_on.attempt) == (5, 1)
    assert stdout(goes_on) == "".join(f"line {each + 1}\n" for each in range(60)).encode()
    assert attempt_of(goes_on).unreachable_since is None
    assert settled(asked).status == "killed"
    assert settled(waits).attempt == 1


# Row 22


@pytest.fixture
def docker_workers(workers: Workers) -> Iterator[Workers]:
    workers.use_docker()
    yield workers
    wait_until(lambda: not workers.left_behind(), "the remains to be removed")
    assert contradictions() == []


def behind_our_back(job, what: str, **query: str) -> None:
    with docker_engine.engine() as http:
        assert http.call("POST", f"/containers/cm-{job.pk}-1/{what}", query).ok


def test_a_container_that_somebody_stops_is_told_by_its_exit(docker_workers: Workers) -> None:
    job = queue_job("docker", "echo ready; sleep 300")
    docker_workers.start()
    wait_until(lambda: stdout(job), "it to run")
    behind_our_back(job, "stop")
    job = settled(job)
    assert (job.status, job.reason, job.exit_code) == ("failed", "signal", 143)
    assert attempt_of(job).blame == "user"


def test_the_time_limit_ends_a_container_that_somebody_paused(docker_workers: Workers) -> None:
    job = queue_job("docker", "echo ready; sleep 300", timeout_seconds=2)
    docker_workers.start()
    wait_until(lambda: stdout(job), "it to run")
    behind_our_back(job, "pause")
    job = settled(job)
    assert (job.status, job.reason) == ("failed", "timeout")
    assert not lives(job)


def test_a_container_that_somebody_paused_and_let_go_on_is_followed_to_its_end(
    docker_workers: Workers,
) -> None:
    job = queue_job("docker", PRINTING.format(lines=15, code=0))
    docker_workers.start()
    wait_until(lambda: stdout(job), "it to run")
    behind_our_back(job, "pause")
    docker_workers.started[0].kill()
    docker_workers.start()
    wait_until(lambda: attempt_of(job).lease_epoch == 2, "the next worker to adopt it")
    behind_our_back(job, "unpause")
    job = wait_for(job, "completed")
    assert stdout(job).count(b"line") == 15
