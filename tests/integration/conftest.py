"""Workers for the tests of this directory; they and all they started are gone afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.loops import configured, world
from tests.support.workers import Workers, some_workers

__all__ = ["configured", "world"]


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """What the workers said stands beside the failure."""
    result = yield
    report = result.get_result()
    workers = getattr(item, "funcargs", {}).get("workers")
    if report.when == "call" and report.failed and workers is not None:
        report.sections.append(("Logs of the workers", workers.said[-20_000:]))


@pytest.fixture
def workers(tmp_path: Path, transactional_db: None) -> Iterator[Workers]:
    with some_workers(tmp_path) as workers:
        yield workers


@pytest.fixture
def docker_workers(workers: Workers) -> Workers:
    workers.use_docker()
    return workers
