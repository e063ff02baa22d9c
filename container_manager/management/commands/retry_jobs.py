"""Queue failed jobs again."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

from container_manager import lifecycle
from container_manager.management.base import actor
from container_manager.management.verbs import Result, VerbCommand, one_by_one
from container_manager.models import ContainerJob
from container_manager.states import JobStatus


class Command(VerbCommand):
    help = (
        "Queue failed jobs again, now; this does not use up their own retries. "
        "A job that waits out its backoff may be named too."
    )
    meant = (JobStatus.FAILED,)
    participle = "queued again"

    def act(self, jobs: list[ContainerJob]) -> Iterable[Result]:
        return one_by_one(jobs, partial(lifecycle.retry, actor=actor()), "queued")
