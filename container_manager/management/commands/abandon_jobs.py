"""Give up running jobs whose engine nobody can reach."""

from __future__ import annotations

from collections.abc import Iterable

from container_manager import lifecycle
from container_manager.bulk import Result, Verb
from container_manager.management.verbs import VerbCommand
from container_manager.models import ContainerJob
from container_manager.states import JobStatus


class Command(VerbCommand):
    help = (
        "Give up running jobs whose engine nobody can reach: they are failed, as `unproven`, and"
        " not retried by themselves. What is left of them is killed when their engine is back. A"
        " job whose engine answers is refused: cancel or kill it."
    )
    verb = Verb.ABANDON
    meant = (JobStatus.RUNNING,)
    participle = "abandoned"

    def rehearse(self, jobs: list[ContainerJob]) -> Iterable[Result]:
        lost = lifecycle.abandonable([job.pk for job in jobs])
        for job in jobs:
            would = "would be abandoned" if job.pk in lost else "would be refused"
            yield Result(job.pk, "dry_run", f"is {job.status}, {would}")
