"""How many jobs there are, by what they are counted by: exact, whatever the size of the table."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from container_manager.models.job import ContainerJob
from container_manager.models.job_stats import stats_of_rows

DIMENSIONS = ("status", "queue", "executor", "isolation")


def count_jobs(owner: Any = None, **among: Collection[str]) -> int:
    """How many jobs of `owner` (None: of everybody) have one of the given values in each dimension.

    `among`: status, queue, executor, isolation.
    """
    found = ContainerJob.objects.filter(**{f"{name}__in": words for name, words in among.items()})
    return (found.owned_by(owner) if owner is not None else found).count()


def job_stats(owner: Any = None) -> dict[str, Any]:
    """The statistics of the jobs of `owner` (None: of everybody); the keys are those of the API."""
    jobs = ContainerJob.objects.all()
    return stats_of_rows(jobs.owned_by(owner) if owner is not None else jobs)
