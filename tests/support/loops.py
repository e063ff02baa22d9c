"""A whole worker inside the test's process, with executors that do as the test says."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from django.db import connection

from container_manager import conf
from container_manager.worker import runner
from container_manager.worker.loop import WorkerLoop
from tests.support.fake_executor import FakeExecutor, World

FAKE = "tests.support.fake_executor.FakeExecutor"


@pytest.fixture
def configured(settings: Any) -> Iterator[Callable[..., None]]:
    """Sets keys of CONTAINER_MANAGER for one test."""

    def configure(**keys: Any) -> None:
        settings.CONTAINER_MANAGER = {**settings.CONTAINER_MANAGER, **keys}
        conf.settings.reload()

    yield configure
    settings.CONTAINER_MANAGER = {}
    conf.settings.reload()


@pytest.fixture
def world(configured: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> World:
    """One fake engine that offers containers, and nothing else."""
    world = World()
    monkeypatch.setattr(FakeExecutor, "world", world)
    monkeypatch.setattr(runner, "FIRST_WAIT", 0.01)
    configured(
        EXECUTORS={"fake": {"class": FAKE}},
        LEASE_SECONDS=3,
        REQUEST_POLL_SECONDS=0.05,
        LOG_FLUSH_SECONDS=0.05,
        POLL_SECONDS=0.05,
        SQLITE_POLL_SECONDS=0.05,
        UPKEEP_SECONDS=0.05,
    )
    return world


def work(**options: Any) -> int:
    """Run a worker until it is idle; its threads have ended then."""
    try:
        return WorkerLoop(until_idle=True, concurrency=4, **options).run()
    finally:
        _wait_for_threads()


@contextmanager
def working(**options: Any) -> Iterator[WorkerLoop]:
    """A worker on a thread beside the test; drained at the end."""
    loop = WorkerLoop(concurrency=4, **options)
    thread = threading.Thread(target=_run, args=[loop])
    thread.start()
    try:
        yield loop
    finally:
        loop.drain()
        thread.join(60)
        _wait_for_threads()


def _run(loop: WorkerLoop) -> None:
    try:
        loop.run()
    finally:
        connection.close()


def _wait_for_threads() -> None:
    for thread in threading.enumerate():
        if thread.name in ("listener", "heartbeat"):
            thread.join(10)
