"""Row 20: an attempt runs at most once, whatever its engine does while it is started."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from typing import Any

import pytest

from container_manager.executors.base import EngineUnavailable, Execution, JobSpec, LaunchFailed
from container_manager.executors.docker import DockerExecutor, _inside
from container_manager.states import Reason
from tests.executors.contract import create, read
from tests.support import docker_engine
from tests.support.running import DOCKER_MARKS
from tests.support.second_engine import SecondEngine, a_second_engine, why_not
from tests.support.workers import wait_until

pytestmark = [pytest.mark.processes, *DOCKER_MARKS]

JOBS = 16
TIMEOUT = 1.0


def spec() -> JobSpec:
    job_id = str(uuid.uuid4())
    return JobSpec(
        name=f"cm-{job_id}-1",
        instance="test-starts",
        job_id=job_id,
        attempt=1,
        command=("/bin/echo", "run"),
        image=docker_engine.IMAGE,
    )


Act = Callable[[], Any]


def thaw_while_they_ask_again(engine: SecondEngine, start: Act, start_again: Act) -> list[bool]:
    """It stands still from when they have looked until they have waited for the start."""
    engine.pause()
    start()
    with ThreadPoolExecutor(1) as pool:
        answers = pool.submit(start_again)
        time.sleep(TIMEOUT / 2)  # the engine comes to the old and the new requests together
        engine.go_on()
        return answers.result()


def kill_while_it_starts(engine: SecondEngine, start: Act, start_again: Act) -> list[bool]:
    with ThreadPoolExecutor(1) as pool:
        started = pool.submit(start)
        engine.kill()
        started.result()
    engine.start(live_restore=True)
    return start_again()


@pytest.mark.parametrize("trouble", [thaw_while_they_ask_again, kill_while_it_starts])
def test_a_start_whose_answer_is_missing_is_never_a_second_run(
    trouble: Callable[[SecondEngine, Act, Act], list[bool]],
) -> None:
    """A second request would restart what the first one started, once that has ended."""
    if why_not():
        pytest.skip(f"no second engine: {why_not()}")
    with a_second_engine() as engine:
        engine.start(live_restore=True)
        with closing(DockerExecutor(base_url=engine.url, timeout=TIMEOUT)) as executor:
            created = [create(executor, spec()) for _ in range(JOBS)]

            answers = trouble(
                engine,
                lambda: _all_at_once(lambda each: _ask_to_start(executor, each), created),
                lambda: _all_at_once(lambda each: _starts_at_last(executor, each), created),
            )

            started = [each for each, answer in zip(created, answers, strict=True) if answer]
            for each in started:
                wait_until(lambda each=each: not _is_running(executor, each), "its end")
                assert read(executor, each)["stdout"] in (b"", b"run\n")
            lost = [each for each in created if each not in started]
            assert [pid for each in lost for pid in _inside(each.execution_id)] == []
            left = executor.list_names("test-starts")
            assert sorted(left) == sorted(each.name for each in started)
            for each in started:
                executor.remove(each)


def _all_at_once(act: Callable[[Execution], Any], created: list[Execution]) -> list[Any]:
    with ThreadPoolExecutor(JOBS) as pool:
        return list(pool.map(act, created))


def _ask_to_start(executor: DockerExecutor, execution: Execution) -> None:
    with suppress(EngineUnavailable):
        executor._ask_to_start(execution.execution_id)  # what `start` does once it has looked


def _starts_at_last(executor: DockerExecutor, execution: Execution) -> bool:
    """Asked again, as a worker does, until there is an answer: it runs or ran, or it is lost."""
    answers = []

    def answered() -> bool:
        with suppress(EngineUnavailable):
            try:
                executor.start(execution)
                answers.append(None)
            except LaunchFailed as failure:
                answers.append(failure.reason)
        return bool(answers)

    wait_until(answered, "an answer")
    assert answers[0] in (None, Reason.EXECUTOR_UNAVAILABLE)
    return answers[0] is None


def _is_running(executor: DockerExecutor, execution: Execution) -> bool:
    try:
        found = executor.find(execution.name, "test-starts")
    except EngineUnavailable:
        return True
    return found is not None and found.running
