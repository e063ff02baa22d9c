"""Tests that need Docker are left out where no engine answers, and that is said loudly.

With REQUIRE_DOCKER set (as in CI) a missing engine is a failure.
"""

from __future__ import annotations

import os

import pytest

_left_out = pytest.StashKey[str]()


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not any(item.get_closest_marker("docker") for item in items):
        return
    from tests.support import docker_engine

    why = docker_engine.why_not()
    if why and os.environ.get("REQUIRE_DOCKER"):
        raise pytest.UsageError(f"REQUIRE_DOCKER is set: {why}")
    config.stash[_left_out] = why


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if why := terminalreporter.config.stash.get(_left_out, ""):
        terminalreporter.section("THE DOCKER TESTS WERE LEFT OUT", sep="!", red=True, bold=True)
        terminalreporter.line(why, red=True, bold=True)
