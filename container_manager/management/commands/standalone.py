"""Everything in one place: a migrated database and a worker that is started again if it dies."""

from __future__ import annotations

import signal
import threading
import time
from typing import Any

from django.core.management import call_command
from django.core.management.base import CommandParser

from container_manager.management.base import JobCommand
from container_manager.management.children import Child

LOOK_SECONDS = 0.5
PATIENCE_SECONDS = (1, 2, 5, 10, 30)
"""How long to wait before a worker that died is started again, longer each time in a row."""

CALM_SECONDS = 60
"""A worker that lived so long counts as healthy."""


class Command(JobCommand):
    help = (
        "Migrate the database and run a worker, which is started again if it dies. Ctrl-C or "
        "SIGTERM stops both in order. (The web server joins it with the REST API and the admin.)"
    )
    quiet = False

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--queues", metavar="A,B", help="only these queues")
        parser.add_argument("--concurrency", metavar="N", help="jobs at once")

    def handle(self, **options: Any) -> None:
        stopping = _stop_on_signals()
        call_command("migrate", interactive=False, verbosity=0, stdout=self.out)
        self.say("The database is migrated. A worker runs; Ctrl-C stops it.")
        self._flush()
        self._keep_running(_command(options), stopping)
        self.say("Stopped; nothing of it is left.")

    def _keep_running(self, command: list[str], stopping: threading.Event) -> None:
        deaths = 0
        while not stopping.is_set():
            began = time.monotonic()
            code = _run(command, stopping)
            if stopping.is_set():
                return
            deaths = 0 if time.monotonic() - began > CALM_SECONDS else deaths
            pause = PATIENCE_SECONDS[min(deaths, len(PATIENCE_SECONDS) - 1)]
            deaths += 1
            self.note(f"the worker ended with exit code {code}; another starts in {pause} s")
            stopping.wait(pause)


def _run(command: list[str], stopping: threading.Event) -> int | None:
    """One worker until it ends, or until we stop."""
    worker = Child(*command)
    try:
        while worker.code is None and not stopping.wait(LOOK_SECONDS):
            pass
    finally:
        worker.stop(seconds=40)
    return worker.code


def _command(options: dict[str, Any]) -> list[str]:
    given = [("--queues", options["queues"]), ("--concurrency", options["concurrency"])]
    return ["run_worker", *(word for name, value in given if value for word in (name, str(value)))]


def _stop_on_signals() -> threading.Event:
    stopping = threading.Event()

    def stop(_number: int, _frame: object) -> None:
        if stopping.is_set():
            raise KeyboardInterrupt
        stopping.set()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    return stopping
