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

import django

from tests import storm as package
from tests.chaos.database import DATABASES

MOST_SHOWN = 20


def main(arguments: Sequence[str] | None = None) -> int:
    given = _parser().parse_args(arguments)
    again = (
        f"python -m tests.storm --on {given.on} --moves {given.moves}"
        f" --processes {given.processes} --fault-every {given.fault_every:g} --seed {given.seed}"
    )
    print(f"storm: {again}", flush=True)
    directory = Path(tempfile.mkdtemp(prefix="cm-storm-"))
    with DATABASES[given.on](directory) as database:
        os.environ |= {
            "DATABASE_URL": database.url,
            "DATABASE_POOL": "off",
            "DEBUG": "on",
            "DJANGO_SETTINGS_MODULE": "config.settings",
            "LOG_LEVEL": "ERROR",
        }
        django.setup()
        from tests.storm.run import run

        report = run(given.moves, given.processes, given.seed, given.fault_every, directory)
    print(report)
    if report.contradictions:
        for line in report.contradictions[:MOST_SHOWN]:
            print(f"storm: NOT TRUE: {line}")
        print(f"storm: FAILED; logs: {directory}; again: {again}")
        return 1
    print("storm: all is well")
    shutil.rmtree(directory)
    return 0


def _parser() -> argparse.ArgumentParser:
    told = (package.__doc__ or "").splitlines()[0]
    parser = argparse.ArgumentParser("python -m tests.storm", description=told)
    parser.add_argument("--moves", type=int, default=20_000, help="of all processes together")
    parser.add_argument("--processes", type=int, default=8)
    parser.add_argument("--fault-every", type=float, default=1.5, help="seconds, on average")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--on", choices=sorted(DATABASES), default="postgres")
    return parser


if __name__ == "__main__":
    sys.exit(main())
