"""Delete jobs that ended long ago."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from django.core.management.base import CommandParser

from container_manager.bulk import Result
from container_manager.lifecycle import Stopped, prunable, prune
from container_manager.management.base import wrong_usage
from container_manager.management.selection import Selection, add_selection, select
from container_manager.management.verbs import VerbCommand
from container_manager.models import ContainerJob
from container_manager.states import SETTLED


class Command(VerbCommand):
    help = (
        "Delete settled jobs with their attempts, output and history. The age counts from their "
        "end; jobs that wait or run, or left something on an engine, are never touched."
    )
    meant = SETTLED
    participle = "deleted"

    def add_arguments(self, parser: CommandParser) -> None:
        super().add_arguments(parser)
        parser.add_argument("--keep-history", action="store_true", help="keep the history rows")

    def add_selection(self, parser: CommandParser) -> None:
        add_selection(parser, age="ended")

    def select(self, options: dict[str, Any]) -> Selection:
        if not options["older_than"]:
            raise wrong_usage("--older-than is needed: how long ago they must have ended, e.g. 30d")
        self.keep_history = options["keep_history"]
        selection = select(options, default=self.meant, age_of="completed_at")
        return replace(selection, jobs=prunable(selection.jobs))

    def act(self, jobs: list[ContainerJob]) -> Iterable[Result]:
        gone = prune([job.pk for job in jobs], keep_history=self.keep_history)
        for job in jobs:
            if job.pk in gone:
                yield Result(job.pk, Stopped.DONE, "deleted")
            else:
                yield Result(job.pk, Stopped.REFUSED, "it moved meanwhile", good=False)

    def rehearse(self, jobs: list[ContainerJob]) -> Iterable[Result]:
        return (Result(job.pk, "dry_run", f"is {job.status}, would be deleted") for job in jobs)
