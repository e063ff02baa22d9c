"""What cancel_jobs and kill_jobs share: asking jobs to stop, and waiting until they are gone."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from uuid import UUID

from django.core.management.base import CommandParser

from container_manager.bulk import BATCH, Result
from container_manager.lifecycle import Stopped
from container_manager.management.base import wrong_usage
from container_manager.management.selection import Selection
from container_manager.management.verbs import VerbCommand
from container_manager.models import ContainerJob
from container_manager.models.base import batched
from container_manager.states import JobStatus

LOOK_SECONDS = 0.2


class StopCommand(VerbCommand):
    """Stops jobs: at once where nothing runs, else by a request that their worker acts on."""

    meant = (JobStatus.PENDING, JobStatus.QUEUED, JobStatus.RUNNING, JobStatus.RETRYING)

    def add_arguments(self, parser: CommandParser) -> None:
        super().add_arguments(parser)
        parser.add_argument(
            "--wait", type=float, metavar="SECONDS", help="until they are gone, but no longer"
        )

    def handle(self, **options: Any) -> None:
        self.wait: float | None = options["wait"]
        self.asked: list[UUID] = []
        if self.wait is not None and not self.wait >= 0:
            raise wrong_usage("--wait: must be a number of seconds, 0 or more")
        super().handle(**options)

    def act(self, jobs: list[ContainerJob]) -> Iterable[Result]:
        for result in super().act(jobs):
            if result.word == Stopped.REQUESTED and self.wait is not None:
                self.asked.append(result.job_id)
            else:
                yield result

    def _results(
        self,
        selection: Selection,
        act: Callable[[list[ContainerJob]], Iterable[Result]],
        total: int,
    ) -> Iterator[Result]:
        yield from super()._results(selection, act, total)
        if self.asked and self.wait is not None:
            yield from _gone(self.asked, self.wait)


def _gone(asked: Iterable[UUID], seconds: float) -> Iterator[Result]:
    """Each job when it is proven gone, then those that are not yet."""
    left = set(asked)
    deadline = time.monotonic() + seconds
    while True:
        for part in batched(sorted(left), BATCH):
            jobs = ContainerJob.objects.filter(pk__in=part).exclude(status=JobStatus.RUNNING)
            for pk, status in jobs.values_list("pk", "status"):
                left.discard(pk)
                yield Result(pk, Stopped.DONE, status)
        if not left or time.monotonic() >= deadline:
            break
        time.sleep(LOOK_SECONDS)
    for pk in sorted(left):
        yield Result(pk, Stopped.REQUESTED, f"not gone after {seconds:g} s", good=False)
