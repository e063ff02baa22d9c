"""A second Docker engine, and workers that run their containers on it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.second_engine import SecondEngine, a_second_engine, why_not
from tests.support.spine import contradictions
from tests.support.workers import Workers, wait_until


@pytest.fixture(scope="session")
def second_engine() -> Iterator[SecondEngine]:
    if why_not():
        pytest.skip(f"no second engine: {why_not()}")
    with a_second_engine() as engine:
        yield engine


@pytest.fixture
def engine(second_engine: SecondEngine, workers: Workers) -> Iterator[SecondEngine]:
    """It is down; the workers, which do not run yet, will use it and a process executor."""
    if not second_engine.has_ended:
        second_engine.go_on()
        second_engine.kill()
    workers.use_docker(base_url=second_engine.url, timeout=3)
    yield second_engine
    if workers.started and not workers.started[-1].has_ended:
        wait_until(lambda: not workers.left_behind(), "the remains to be removed")
    assert contradictions() == []
