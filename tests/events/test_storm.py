"""A small storm on a database of its own; `make events-storm` is the large one."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.support.workers import ROOT

pytestmark = pytest.mark.processes

SMALL = ("--moves", "1500", "--processes", "3", "--fault-every", "0.7")
LONGEST_SECONDS = 900


def survives(*arguments: str) -> None:
    command = [sys.executable, "-W", "ignore", "-m", "tests.storm", *SMALL, *arguments]
    ran = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=LONGEST_SECONDS, check=False
    )
    print(ran.stdout, ran.stderr)
    assert ran.returncode == 0, ran.stdout[-5_000:]


@pytest.mark.sqlite
def test_who_comes_back_with_his_last_number_misses_nothing_on_sqlite():
    survives("--on", "sqlite")


@pytest.mark.postgres
def test_who_comes_back_with_his_last_number_misses_nothing_on_postgresql():
    survives("--on", "postgres")
