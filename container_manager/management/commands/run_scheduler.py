"""Begin the runs of DAGs that are due, and advance those under way."""

from __future__ import annotations

import os
import sys
from argparse import SUPPRESS, ArgumentParser
from typing import Any

from container_manager import journal
from container_manager.management.base import JobCommand
from container_manager.management.children import obey_parent
from container_manager.management.processes import (
    no_statements_kept,
    refuse_unfit_database,
    stop_on_signals,
)
from container_manager.workflows.scheduler import Scheduler


class Command(JobCommand):
    help = (
        "Begin the runs of DAGs that are due, and advance those under way. Any number of "
        "schedulers, on any number of machines that share the database. SIGTERM or Ctrl-C ends "
        "it after what it is doing, a second one at once."
    )
    quiet = False

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "--until-idle", action="store_true", help="end when no run is left to advance"
        )
        parser.add_argument("--name", default="", help="name in lists and logs (host-pid)")
        parser.add_argument("--supervised", action="store_true", help=SUPPRESS)

    def handle(self, **options: Any) -> None:
        refuse_unfit_database()
        scheduler = Scheduler(until_idle=options["until_idle"], name=options["name"])
        journal.of_process(scheduler=scheduler.name)
        stop_on_signals(scheduler.stop)
        if options["supervised"]:
            obey_parent(scheduler.stop)
        with no_statements_kept():
            code = scheduler.run()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
