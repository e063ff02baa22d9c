"""Rows 1 and 5: the small version of `make crash-sweep`.

Each point of the table once, and a spread of the statements, commits and calls of an executor in
between. Rescuers are killed while they rescue (A1, A2), and no other one lives; one worker stands
still beyond its lease and goes on (U4).
"""

from __future__ import annotations

import subprocess
import sys

import pytest
from django.db import connection

from tests.support.running import KINDS
from tests.support.workers import ROOT

pytestmark = pytest.mark.processes


@pytest.mark.parametrize("kind", KINDS)
def test_wherever_a_worker_is_killed_the_next_one_mends_it(kind):
    database = "sqlite" if connection.vendor == "sqlite" else "postgres"
    options = ["--small", "--on", database, "--executor", kind]
    sweep = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.crash", *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert sweep.returncode == 0, sweep.stdout + sweep.stderr[-20_000:]
