"""Rows 1 and 5: the small version of `make crash-sweep`.

Each point of the table once for each executor, and a spread of the statements, commits and calls of
an executor in between: of local processes on SQLite, of containers on PostgreSQL. Rescuers are
killed while they rescue (A1, A2), and no other one lives; one worker stands still beyond its lease
and goes on (U4).
"""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.support.running import DOCKER_MARKS
from tests.support.workers import ROOT

pytestmark = pytest.mark.processes


@pytest.mark.parametrize(
    ("kind", "database"),
    [
        pytest.param("process", "sqlite", marks=pytest.mark.sqlite),
        pytest.param("docker", "postgres", marks=[*DOCKER_MARKS, pytest.mark.postgres]),
    ],
)
def test_wherever_a_worker_is_killed_the_next_one_mends_it(kind, database):
    options = ["--small", "--on", database, "--executor", kind]
    sweep = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.crash", *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert sweep.returncode == 0, sweep.stdout + sweep.stderr[-20_000:]
