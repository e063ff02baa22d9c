"""Tell the publishers of the settings what happens, or how they are."""

from __future__ import annotations

import os
import sys
from argparse import SUPPRESS, ArgumentParser
from datetime import timedelta
from typing import Any

from rich.text import Text

from container_manager import journal
from container_manager.events.base import Unavailable
from container_manager.management import tables
from container_manager.management.base import JobCommand, failed, nothing, wrong_usage
from container_manager.management.children import obey_parent
from container_manager.management.processes import (
    no_statements_kept,
    refuse_unfit_database,
    stop_on_signals,
)
from container_manager.models import Event, sequencing
from container_manager.reports.publishers import PublisherReport, publishers
from container_manager.worker.letters import redeliver
from container_manager.worker.relay import Relay

NICE = 10
"""Events wait, jobs do not."""


class Command(JobCommand):
    help = (
        "Tell the publishers of the settings what happens: each in order, each event at least "
        "once, none waiting for another. Any number of relays. SIGTERM or Ctrl-C ends it after "
        "the batch under way, a second one at once."
    )
    examples = """examples:
  manage.py relay_events
  manage.py relay_events --status
  manage.py relay_events --redeliver hook
"""
    quiet = False

    def add_arguments(self, parser: ArgumentParser) -> None:
        what = parser.add_mutually_exclusive_group()
        what.add_argument("--until-idle", action="store_true", help="end when all is delivered")
        what.add_argument(
            "--status", action="store_true", help="how far each publisher has come, and leave"
        )
        what.add_argument(
            "--redeliver", metavar="ALIAS", help="try this publisher's dead letters again"
        )
        parser.add_argument("--name", default="", help="name in lists and logs (host-pid)")
        parser.add_argument("--json", action="store_true", help="with --status: one JSON object")
        parser.add_argument("--supervised", action="store_true", help=SUPPRESS)

    def handle(self, **options: Any) -> None:
        if options["json"] and not options["status"]:
            raise wrong_usage("--json goes with --status")
        if options["status"]:
            self._show_status(options)
        elif options["redeliver"] is not None:
            self._redeliver(options["redeliver"])
        else:
            self._relay(options)

    # The process

    def _relay(self, options: dict[str, Any]) -> None:
        refuse_unfit_database()
        try:
            relay = Relay(until_idle=options["until_idle"], name=options["name"])
        except ValueError as error:
            raise wrong_usage(f"PUBLISHERS: {error}") from error
        journal.of_process(relay=relay.name)
        stop_on_signals(relay.stop)
        os.nice(NICE)
        if options["supervised"]:
            obey_parent(relay.stop)
        with no_statements_kept():
            code = relay.run()
        sys.stdout.flush()
        sys.stderr.flush()
        # A receiver that does not answer must not keep the process.
        os._exit(code)

    # Questions

    def _show_status(self, options: dict[str, Any]) -> None:
        self.only_reads = True
        found = publishers()
        if options["json"]:
            told = {
                "newest": Event.objects.newest(),
                "oldest": Event.objects.oldest_kept(),
                "is_behind": sequencing.is_behind(),
                "publishers": [each.as_json() for each in found],
            }
            self.say(tables.dumps(told))
        elif self.out.isatty():
            self._show_table(found, options["no_color"])
        else:
            for each in found:
                cells = (each.alias, each.state, each.position, each.lag, f"{each.lag_seconds:.3f}")
                more = (each.dead_letters, each.failures, tables.visible(each.last_error))
                self.say("\t".join(map(str, (*cells, *more))))
        if not found:
            self.note("no publishers: name some in PUBLISHERS, or set REDIS_URL")

    def _show_table(self, found: list[PublisherReport], no_color: bool) -> None:
        rows = tables.table("PUBLISHER", "STATE", "POSITION", "LAG", "FOR", "DEAD", "ERROR")
        for column in (2, 3, 4, 5):
            rows.columns[column].justify = "right"
        rows.columns[0].max_width, rows.columns[6].max_width = 20, 30
        for each in found:
            for_seconds = tables.span(timedelta(seconds=each.lag_seconds)) if each.lag else ""
            numbers = (f"{each.position}", f"{each.lag}", for_seconds, f"{each.dead_letters}")
            state = Text(each.state, style=COLOURS.get(each.state, ""))
            error = tables.visible(each.last_error)
            rows.add_row(tables.visible(each.alias), state, *numbers, error)
        tables.console(self.out, no_color=no_color).print(rows)

    # Dead letters

    def _redeliver(self, alias: str) -> None:
        try:
            went, left = redeliver(alias)
        except LookupError:
            raise wrong_usage(f"--redeliver: there is no publisher {alias!r}") from None
        except ValueError as error:
            raise wrong_usage(f"PUBLISHERS: {error}") from error
        except Unavailable as error:
            raise failed(f"{alias}: {error}") from error
        if not went and not left:
            raise nothing(f"{alias} has no dead letters")
        self.say(f"{went} delivered, {left} refused again")
        if left:
            raise failed(f"{left} are still dead letters")


COLOURS = {
    **dict.fromkeys(("behind", "waiting"), "yellow"),
    **dict.fromkeys(("failing", "refused"), "red"),
    "ok": "green",
}
