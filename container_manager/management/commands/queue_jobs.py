"""Put pending jobs into the queue."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

from container_manager import lifecycle
from container_manager.management.base import actor
from container_manager.management.verbs import Result, VerbCommand, one_by_one
from container_manager.models import ContainerJob
from container_manager.states import JobStatus


class Command(VerbCommand):
    help = "Put pending jobs into the queue; workers run them by priority."
    meant = (JobStatus.PENDING,)
    participle = "queued"

    def act(self, jobs: list[ContainerJob]) -> Iterable[Result]:
        return one_by_one(jobs, partial(lifecycle.enqueue, actor=actor()), "queued")
