"""List jobs, newest first."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from django.core.management.base import CommandParser
from django.utils import timezone

from container_manager.management import tables
from container_manager.management.base import JobCommand, nothing
from container_manager.management.selection import add_selection, select
from container_manager.models import ContainerJob

LIMIT = 20


class Command(JobCommand):
    help = (
        f"List jobs, newest first, the latest {LIMIT} unless --limit or --all says otherwise. "
        "In a pipe: tab-separated id, name, status, queue, created, seconds, exit code, reason."
    )
    only_reads = True

    def add_arguments(self, parser: CommandParser) -> None:
        add_selection(parser)
        parser.add_argument("--json", action="store_true", help="one JSON array")

    def handle(self, **options: Any) -> None:
        unlimited = options["all"] or options["ids"]
        limit = LIMIT if options["limit"] is None and not unlimited else options["limit"]
        selection = select({**options, "limit": limit}, anything=True)
        lines = not options["json"] and not self.out.isatty()
        shown = self._show(selection.newest(tables.LINE if lines else ()), options)
        if not shown:
            raise nothing(_empty(options))
        self._say_how_many_more(select({**options, "limit": None}, anything=True).count() - shown)

    def _show(self, jobs: Iterable[ContainerJob], options: dict[str, Any]) -> int:
        if options["json"]:
            return self._show_json(jobs)
        if self.out.isatty():
            return self._show_table(list(jobs), options["no_color"])
        count = 0
        for count, job in enumerate(jobs, start=1):  # noqa: B007
            self.say(tables.job_line(job))
        return count

    def _show_json(self, jobs: Iterable[ContainerJob]) -> int:
        count = -1
        for count, piece in enumerate(tables.array(map(tables.as_json, jobs))):  # noqa: B007
            self.write(piece)
        self.say()
        return count

    def _show_table(self, jobs: list[ContainerJob], no_color: bool) -> int:
        if jobs:
            console = tables.console(self.out, no_color=no_color)
            console.print(tables.jobs_table(jobs, timezone.now(), console.width))
        return len(jobs)

    def _say_how_many_more(self, more: int) -> None:
        if more > 0:
            self.note(f"{more} more; see them with --limit N or --all")


def _empty(options: dict[str, Any]) -> str:
    filters = ("ids", "status", "queue", "label", "older_than", "newer_than")
    if any(options[name] for name in filters):
        return "no job matches"
    return "there are no jobs yet; `manage.py submit_job --help` shows how to make one"
