"""Tests that need Docker, Chromium or a tool are left out where it is missing, and say so loudly.

With REQUIRE_DOCKER, REQUIRE_BROWSER, REQUIRE_STRACE … set (as in CI) it is a failure.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial

import pytest

_left_out = pytest.StashKey[dict[str, str]]()


def _no_docker() -> str:
    from tests.support import docker_engine

    return docker_engine.why_not()


def _no_browser() -> str:
    from tests.support import chromium

    return chromium.why_not()


def _no_tool(name: str) -> str:
    from tests.support import machine_faults

    return machine_faults.why_not(name)


NEEDS: dict[str, Callable[[], str]] = {
    "docker": _no_docker,
    "browser": _no_browser,
    **{name: partial(_no_tool, name) for name in ("faketime", "strace", "mount")},
}
"""Marker to a function that says what is missing for it here."""


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    config.stash[_left_out] = {
        marker: why
        for marker, why_not in NEEDS.items()
        if any(item.get_closest_marker(marker) for item in items) and (why := why_not())
    }
    for marker, why in config.stash[_left_out].items():
        if os.environ.get(variable := f"REQUIRE_{marker.upper()}"):
            raise pytest.UsageError(f"{variable} is set: {why}")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for marker, why in terminalreporter.config.stash.get(_left_out, {}).items():
        title = f"THE {marker.upper()} TESTS WERE LEFT OUT"
        terminalreporter.section(title, sep="!", red=True, bold=True)
        terminalreporter.line(why, red=True, bold=True)
