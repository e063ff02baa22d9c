"""Whose fault an end was: what is made of an engine's answers, without an engine."""

from __future__ import annotations

import time
from typing import Any, cast

import pytest

from container_manager.engines import Engine
from container_manager.executors.base import (
    LABEL_INSTANCE,
    EngineRefused,
    EngineUnavailable,
    Execution,
)
from container_manager.executors.breaker import FAILURES_TO_OPEN
from container_manager.executors.docker import DockerExecutor, _Container
from container_manager.executors.docker_http import EngineStream, Reply
from container_manager.states import Reason

PRINTS = Execution("cm-1", "id-1", running=True, started=True)


def container(executor: DockerExecutor, **state: Any) -> _Container:
    times = {"StartedAt": "2100-01-01T00:00:00Z", "FinishedAt": "2100-01-01T00:01:00Z"}
    facts = {
        "Id": PRINTS.execution_id,
        "Name": f"/{PRINTS.name}",
        "Config": {"Labels": {LABEL_INSTANCE: "here"}},
        "State": {"Running": True, "ExitCode": 0, "OOMKilled": False, **times, **state},
    }
    return _Container(facts, executor._http.losses)


class Prints:
    """A stream that is never silent."""

    def __init__(self, executor: DockerExecutor) -> None:
        self._pieces = iter([b"line\n"] * 5)
        self._lost = executor._http._count_loss

    def read(self, _seconds: float) -> bytes:
        time.sleep(0.02)
        piece = next(self._pieces, b"")
        if piece:
            self._lost()  # one idle connection after the other
        return piece


@pytest.fixture
def executor() -> DockerExecutor:
    return DockerExecutor(base_url="unix:///nowhere", timeout=0.01)


def follow(executor: DockerExecutor) -> int:
    stream = cast(EngineStream, Prints(executor))
    return len(list(executor._read_while_running(PRINTS, stream)))


def test_a_lost_connection_long_before_the_end_is_no_doubt_about_the_end(
    executor: DockerExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job may print without a pause for days; 255 may be its own exit code."""
    executor._alive_at[PRINTS.execution_id] = executor._http.losses
    monkeypatch.setattr(executor, "_inspect", lambda _: container(executor))
    assert follow(executor) == 5
    assert executor._unseen_end(container(executor, Running=False, ExitCode=255)) is None


def test_a_connection_that_was_lost_since_it_was_seen_alive_is(executor: DockerExecutor) -> None:
    executor._alive_at[PRINTS.execution_id] = executor._http.losses
    executor._http._count_loss()
    lost = executor._unseen_end(container(executor, Running=False, ExitCode=255))
    assert lost is not None
    assert (lost.exit_code, lost.reason) == (None, Reason.EXECUTOR_UNAVAILABLE)


def test_what_cannot_be_removed_does_not_make_its_engine_one_that_is_away(
    executor: DockerExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine("docker", executor)
    monkeypatch.setattr(executor, "_inspect", lambda _: container(executor, Running=False))
    busy = Reply(500, b'{"message": "device or resource busy"}')
    monkeypatch.setattr(executor._http, "call", lambda *_, **__: busy)
    for _ in range(FAILURES_TO_OPEN):
        with pytest.raises(EngineRefused, match="resource busy"):
            engine.call(lambda: executor.remove(PRINTS))
    assert engine.breaker.is_closed


def test_output_goes_on_while_the_engine_does_not_tell_more(
    executor: DockerExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(_: str) -> None:
        raise EngineUnavailable("The engine is away.")

    monkeypatch.setattr(executor, "_inspect", away)
    assert follow(executor) == 5
