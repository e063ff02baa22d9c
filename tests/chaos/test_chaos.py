"""A small run in a process of its own, on a database of its own; `make chaos` is the large one."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.support.workers import ROOT

pytestmark = pytest.mark.processes

SMALL = ("--jobs", "300", "--workers", "4", "--lease", "3")
HASTY = ("--fault-every", "0.7", "--reap-every", "2")
LONGEST_SECONDS = 900
SECONDS_TO_CLEAN_UP = 120


def survives(*arguments: str) -> None:
    command = [sys.executable, "-W", "ignore", "-m", "tests.chaos", *SMALL, *HASTY, *arguments]
    code, said = ended(command)
    print(said)
    assert code == 0, said[-5_000:]


def ended(command: list[str]) -> tuple[int, str]:
    """One that takes too long is asked to end: only it can clean up what it started."""
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as running:
        try:
            said, _ = running.communicate(timeout=LONGEST_SECONDS)
        except BaseException:
            end(running)
            raise
    return running.returncode, said


def end(running: subprocess.Popen[str]) -> None:
    running.terminate()
    try:
        print(running.communicate(timeout=SECONDS_TO_CLEAN_UP)[0])
    except subprocess.TimeoutExpired:
        running.kill()


@pytest.mark.sqlite
def test_chaos_on_sqlite_loses_nothing_and_runs_nothing_twice():
    """Engines that fail are `tests/faults/engine`, and `make chaos ENGINE=own`."""
    survives("--on", "sqlite")


@pytest.mark.postgres
def test_chaos_on_postgresql_loses_nothing_and_runs_nothing_twice():
    """Rows 1, 2, 7, 10, 14, 32, 37: all at once, as the seed has it."""
    survives("--on", "postgres")
