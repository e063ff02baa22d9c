"""Mutation testing of the modules that the promise stands on.

    python -m tests.mutation                 all of them
    python -m tests.mutation retries states  these, by their names
    python -m tests.mutation --sample 200    so many mutants, chosen by --seed

The tests run in one process, which first learns (by coverage.py) which test comes to which line.
Then each mutant gets a fork of that process: the changed code is put into the function, and the
tests that come to the line run until one fails. Exit code 1 when less than `--at-least` percent
are killed, 2 when tests fail although nothing was changed: then no kill means anything.
"""

from __future__ import annotations

import argparse
import sys

import pytest

from tests.mutation.mutants import ROOT
from tests.mutation.plugin import MutationRun

MODULES = {
    "states": "container_manager/states.py",
    "guard": "container_manager/models/base.py",
    "triggers": "container_manager/db_guard.py",
    "lifecycle": "container_manager/lifecycle.py",
    "retries": "container_manager/retries.py",
    "rescuer": "container_manager/worker/rescuer.py",
    "leases": "container_manager/models/leases.py",
}
TESTS = (
    *("tests/models", "tests/guard", "tests/worker", "tests/integration", "tests/model"),
    *("tests/test_states.py", "tests/test_retries.py", "tests/test_lifecycle.py"),
    *("tests/test_amend.py", "tests/test_bring.py", "tests/test_abandon.py"),
    *("tests/test_requesters.py", "tests/test_checks.py", "tests/api/test_job_submit.py"),
    *("tests/test_journal.py", "tests/workflows/test_runs.py"),
    *("tests/consistency", "tests/commands", "tests/faults"),
)
NEAREST = {
    "guard": ("tests/models", "tests/guard", "tests/test_journal.py"),
    "triggers": ("tests/guard", "tests/models"),
    "lifecycle": (
        *("tests/test_lifecycle.py", "tests/test_amend.py", "tests/test_bring.py"),
        *("tests/test_abandon.py", "tests/test_requesters.py", "tests/test_journal.py"),
        *("tests/worker", "tests/consistency", "tests/commands", "tests/api/test_job_submit.py"),
        *("tests/workflows/test_runs.py", "tests/faults/test_races.py"),
        "tests/faults/test_database.py",
    ),
}
"""All tests come to these modules; what survives the nearest ones may still die elsewhere."""

QUICK = "not processes and not docker and not web and not browser"


def main() -> int:
    given = _arguments()
    modules = given.modules or list(MODULES)
    run = MutationRun([MODULES[name] for name in modules], given)
    asked = given.tests or {each for name in modules for each in NEAREST.get(name, TESTS)}
    tests = sorted(each for each in asked if (ROOT / each).exists())
    code = pytest.main(
        ["-q", "-p", "no:randomly", "-p", "no:cacheprovider", "-m", QUICK, *tests], plugins=[run]
    )
    return run.verdict() if code == 0 else int(code)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("modules", nargs="*", choices=[*MODULES, []], metavar="MODULE")
    parser.add_argument("--sample", type=int, help="so many mutants of each module; all if absent")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--at-once", type=int, default=2)
    parser.add_argument("--at-least", type=float, default=90.0, help="percent")
    parser.add_argument("--tests", nargs="+", help="what pytest collects")
    parser.add_argument("--survivors", help="a file for what was not killed")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
