"""Deterministic simulation: the worlds that are kept, the same seed twice, and fresh ones.

Each world is a run of the real worker loop, lifecycle, rescuer and recorder; see
`python -m tests.simulation --help` to look at one of them.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.support.workers import ROOT

pytestmark = pytest.mark.sqlite

KEPT = "2,3,399129318"
"""Played at every run: whatever was red once, and two worlds with many faults."""

SECONDS = int(os.environ.get("SIMULATE_SECONDS", "20"))


def simulate(*arguments: str) -> str:
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.simulation", *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONHASHSEED": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout[-20_000:] + ran.stderr[-5_000:]
    print(ran.stdout)
    return ran.stdout


def test_the_same_seed_is_the_same_world_and_those_that_are_kept_stay_green():
    assert " 0 red" in simulate("--seeds", KEPT, "--twice")


def test_fresh_worlds_with_whatever_faults_end_as_they_must():
    """The seed of each is printed; a red one belongs into KEPT."""
    assert " 0 red" in simulate("--for", str(SECONDS))
