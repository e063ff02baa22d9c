"""Workers for the tests of this directory, and a PostgreSQL that they may break."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from tests.support import machine_faults
from tests.support.loops import configured, world
from tests.support.postgres_server import PostgresServer, WorkersAt, postgres_server
from tests.support.workers import Workers, some_workers

__all__ = ["configured", "world"]

_numbers = count(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What needs a tool that is missing here is left out."""
    for item in items:
        for tool in machine_faults.TOOLS:
            if item.get_closest_marker(tool) and (why := machine_faults.why_not(tool)):
                item.add_marker(pytest.mark.skip(reason=why))


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """What the workers and the server said stands beside the failure."""
    result = yield
    report = result.get_result()
    if report.when == "call" and report.failed:
        for name in ("workers", "crew", "server"):
            if (given := getattr(item, "funcargs", {}).get(name)) is not None:
                report.sections.append((f"Logs of {name}", given.said[-20_000:]))


@pytest.fixture
def workers(tmp_path: Path, transactional_db: None) -> Iterator[Workers]:
    with some_workers(tmp_path) as workers:
        yield workers


@pytest.fixture(scope="session")
def own_postgres(django_db_setup: None, django_db_blocker: Any) -> Iterator[PostgresServer]:
    with django_db_blocker.unblock(), postgres_server() as server:
        yield server


@pytest.fixture
def server(own_postgres: PostgresServer, transactional_db: None) -> Iterator[PostgresServer]:
    """Running, with a fresh database on which Django works; whatever a test did to it before."""
    own_postgres.be_up()
    with own_postgres.serving_django(f"test_{next(_numbers)}"):
        yield own_postgres


@pytest.fixture
def crew(server: PostgresServer, tmp_path: Path) -> Iterator[WorkersAt]:
    """Workers on that database; none runs yet."""
    crew = WorkersAt(tmp_path, server.url())
    try:
        yield crew
    finally:
        server.be_up()
        crew.clean_up()
