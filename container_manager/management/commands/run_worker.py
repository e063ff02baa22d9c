"""Claim queued jobs and run them."""

from __future__ import annotations

import os
import sys
from argparse import SUPPRESS, ArgumentParser, ArgumentTypeError
from typing import Any

from container_manager import conf, journal
from container_manager.management.base import JobCommand, wrong_usage
from container_manager.management.children import obey_parent
from container_manager.management.processes import (
    no_statements_kept,
    refuse_unfit_database,
    stop_on_signals,
)
from container_manager.worker.loop import WorkerLoop

MOST = 2**31 - 1


def positive(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text[:20]) <= MOST:
        raise ArgumentTypeError(f"{text!r} is not a whole number from 1 to {MOST}")
    return int(text)


def _names(text: str) -> list[str]:
    return [name for name in text.split(",") if name]


class Command(JobCommand):
    help = (
        "Claim queued jobs and run them. Any number of workers, on any number of machines that "
        "share the database. SIGTERM or Ctrl-C drains; a second one ends the worker at once."
    )
    quiet = False

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--queues", type=_names, default=[], help="a,b: only these (all)")
        parser.add_argument("--concurrency", type=positive, help="jobs at once")
        parser.add_argument(
            "--executor", action="append", default=[], help="only this alias; may be repeated"
        )
        parser.add_argument("--name", default="", help="name in history and lists (host-pid)")
        parser.add_argument(
            "--until-idle", action="store_true", help="end when nothing is left to run"
        )
        parser.add_argument("--supervised", action="store_true", help=SUPPRESS)

    def handle(self, **options: Any) -> None:
        known = conf.executors()
        for alias in options["executor"]:
            if alias not in known:
                names = ", ".join(sorted(known)) or "none"
                raise wrong_usage(f"--executor: {alias!r} is not one of {names}")
        refuse_unfit_database()
        loop = WorkerLoop(
            queues=options["queues"],
            concurrency=options["concurrency"],
            executors=options["executor"],
            until_idle=options["until_idle"],
            name=options["name"],
        )
        journal.of_process(worker=loop.name)
        stop_on_signals(loop.drain)
        if options["supervised"]:
            obey_parent(loop.drain)
        with no_statements_kept():
            code = loop.run()
        sys.stdout.flush()
        sys.stderr.flush()
        # Threads that still read from an engine must not keep the process.
        os._exit(code)
