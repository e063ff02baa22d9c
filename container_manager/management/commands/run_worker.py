"""Claim queued jobs and run them."""

from __future__ import annotations

import os
import signal
import sys
from argparse import SUPPRESS, ArgumentParser, ArgumentTypeError
from collections import deque
from typing import Any

from django.db import connection

from container_manager import conf, guarding, schema
from container_manager.management.base import JobCommand, failed, wrong_usage
from container_manager.management.children import obey_parent
from container_manager.worker.loop import WorkerLoop


def positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise ArgumentTypeError(f"{text!r} is not a whole number from 1")
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
        if differs := schema.problem("default"):
            raise failed(differs)
        if guarding.is_down("default"):
            raise failed("the database is not guarded: run `manage.py migrate`, which installs it")
        loop = WorkerLoop(
            queues=options["queues"],
            concurrency=options["concurrency"],
            executors=options["executor"],
            until_idle=options["until_idle"],
            name=options["name"],
        )
        drain_on_signals(loop)
        _keep_no_statements()
        if options["supervised"]:
            obey_parent(loop.drain)
        code = loop.run()
        sys.stdout.flush()
        sys.stderr.flush()
        # Threads that still read from an engine must not keep the process.
        os._exit(code)


def _keep_no_statements() -> None:
    """DEBUG remembers the last 9,000; those of a worker are as long as what its jobs print."""
    connection.queries_log = deque(maxlen=0)


def drain_on_signals(loop: WorkerLoop) -> None:
    """The first SIGTERM or SIGINT drains, the second one ends this process at once."""

    def on_signal(number: int, _frame: object) -> None:
        if on_signal.seen:  # type: ignore[attr-defined]
            os._exit(128 + number)
        on_signal.seen = True  # type: ignore[attr-defined]
        loop.drain()

    on_signal.seen = False  # type: ignore[attr-defined]
    signal.signal(signal.SIGTERM, on_signal)
    signal.signal(signal.SIGINT, on_signal)
