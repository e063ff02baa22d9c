"""The entry point: a database first, then Django, then everything that needs it."""

from __future__ import annotations

import argparse
import os
import random
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import django

from tests import chaos as package
from tests.chaos import leaving
from tests.chaos.database import DATABASES
from tests.chaos.faults import NoSuchFault

ROOT = Path(__file__).resolve().parents[2]
NOT_RUN = 2
"""The exit code of a run that would not have been what was asked for."""
MOST_SHOWN = 20
"""Violations of one rule that are printed; the JSON has them all."""


def main(arguments: Sequence[str] | None = None) -> int:
    given = _parser().parse_args(arguments)
    again = (
        f"python -m tests.chaos --on {given.on} --jobs {given.jobs} --workers {given.workers}"
        f" --lease {given.lease:g} --docker-share {given.docker_share:g}"
        f" --fault-every {given.fault_every:g} --reap-every {given.reap_every:g}"
        f" --engine {given.engine}{''.join(f' --first {name!r}' for name in given.first)}"
        f" --seed {given.seed}"
    )
    print(f"chaos: {again}", flush=True)
    leaving.when_asked()
    directory = Path(tempfile.mkdtemp(prefix="cm-chaos-"))
    try:
        results = _results(given, directory)
    except NoSuchFault as impossible:
        shutil.rmtree(directory)
        print(f"chaos: NOT RUN: {impossible}", flush=True)
        return NOT_RUN
    from tests.chaos.run import table, write

    write(results, given.json or ROOT / f"var/chaos/{given.on}-{given.seed}.json")
    print(table(results))
    return _verdict(results["violations"], directory, again, keep=given.keep)


def _results(given: argparse.Namespace, directory: Path) -> dict[str, Any]:
    with DATABASES[given.on](directory) as database:
        os.environ |= _environment(database.url)
        django.setup()
        from tests.chaos.run import run

        return run(given, database, directory)


def _verdict(found: dict[str, list[str]], directory: Path, again: str, *, keep: bool) -> int:
    for name, violations in found.items():
        for told in violations[:MOST_SHOWN]:
            print(f"chaos: NOT TRUE: {name}: {told}")
    if any(found.values()):
        print(f"chaos: FAILED; logs: {directory}; again: {again}")
        return 1
    print("chaos: all is well")
    if not keep:
        shutil.rmtree(directory)
    return 0


def _environment(database_url: str) -> dict[str, str]:
    return {
        "DATABASE_URL": database_url,
        "DATABASE_POOL": "off",
        "DEBUG": "on",
        "DJANGO_SETTINGS_MODULE": "config.settings",
        "LOG_LEVEL": "ERROR",
        "CONTAINER_MANAGER_PROCESS_EXECUTOR": "on",
    }


def _parser() -> argparse.ArgumentParser:
    told = (package.__doc__ or "").splitlines()[0]
    parser = argparse.ArgumentParser("python -m tests.chaos", description=told)
    parser.add_argument("--jobs", type=int, default=10_000)
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--concurrency", type=int, default=8, help="jobs at once, of each worker")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--on", choices=sorted(DATABASES), default="postgres")
    parser.add_argument("--lease", type=float, default=4.0, help="seconds")
    parser.add_argument(
        "--docker-share", type=float, default=0.05, help="jobs in containers, if an engine answers"
    )
    parser.add_argument("--fault-every", type=float, default=1.5, help="seconds, on average")
    parser.add_argument(
        "--reap-every", type=float, default=0.0, help="seconds; 0: as workers do by themselves"
    )
    parser.add_argument(
        "--engine",
        choices=("own", "shared", "none"),
        default="shared",
        help="of the containers: one of its own that fails, or else the machine's, which does not",
    )
    parser.add_argument(
        "--first",
        action="append",
        default=[],
        metavar="FAULT",
        help="of the database or the engine, as the table names it: comes in any case;"
        " if it cannot, nothing is run and the exit code is 2",
    )
    parser.add_argument("--json", type=Path, help="default: var/chaos/<on>-<seed>.json")
    parser.add_argument("--keep", action="store_true", help="keep the directory of the run")
    return parser


if __name__ == "__main__":
    sys.exit(main())
