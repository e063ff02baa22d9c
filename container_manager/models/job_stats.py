"""What the statistics of jobs consist of, and how they come from rows."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.db import models
from django.utils import timezone

from container_manager.conf import executors
from container_manager.states import Isolation, JobStatus

DIMENSIONS = ("status", "queue", "executor", "isolation")
"""By what jobs are counted."""

PERCENTILES = (50, 95)


@dataclass(frozen=True)
class Figures:
    """All that the statistics are made of; durations are of completed jobs, in milliseconds."""

    counts: Mapping[tuple[str, ...], int]
    """By the values of DIMENSIONS, in that order."""
    timed: int
    total_ms: int
    percentiles: Mapping[int, int]
    oldest: datetime | None
    """Since when the one that waits longest is queued."""

    def by(self, dimension: str) -> dict[str, int]:
        """The counts by one dimension."""
        place, found = DIMENSIONS.index(dimension), defaultdict[str, int](int)
        for values, jobs in self.counts.items():
            found[values[place]] += jobs
        return dict(found)

    def as_stats(self) -> dict[str, Any]:
        """The statistics as the API has them; words that are known are there with zeros, too."""
        by_status = _with_zeros(self.by("status"), JobStatus.values)
        by_executor = _with_zeros(self.by("executor"), ["", *sorted(executors())])
        return {
            "total": sum(by_status.values()),
            "by_status": by_status,
            "by_isolation": _with_zeros(self.by("isolation"), Isolation.values),
            "by_executor": {"any": by_executor.pop("")} | by_executor,
            "by_queue": dict(sorted(self.by("queue").items())),
            "avg_duration_ms": round(self.total_ms / self.timed) if self.timed else 0,
            **{f"p{share}_duration_ms": self.percentiles.get(share, 0) for share in PERCENTILES},
            "queue_depth": by_status[JobStatus.QUEUED],
            "oldest_queued_seconds": _seconds_since(self.oldest),
        }


def _with_zeros(found: dict[str, int], known: list[str]) -> dict[str, int]:
    return {str(word): found.pop(word, 0) for word in known} | found


def _seconds_since(moment: datetime | None) -> float:
    return max(0.0, (timezone.now() - moment).total_seconds()) if moment else 0.0


def stats_of_rows(jobs: models.QuerySet[Any]) -> dict[str, Any]:
    """The statistics of `jobs`, whatever they were chosen by."""
    jobs = jobs.order_by()
    counted = jobs.values_list(*DIMENSIONS).annotate(jobs=models.Count("pk"))
    completed = jobs.filter(status=JobStatus.COMPLETED, duration_ms__isnull=False)
    durations = completed.aggregate(timed=models.Count("pk"), total=models.Sum("duration_ms"))
    timed = durations["timed"]
    return Figures(
        counts={(*values,): found for *values, found in counted},
        timed=timed,
        total_ms=durations["total"] or 0,
        percentiles={share: _percentile(completed, timed, share) for share in PERCENTILES},
        oldest=jobs.filter(status=JobStatus.QUEUED).aggregate(at=models.Min("queued_at"))["at"],
    ).as_stats()


def _percentile(completed: models.QuerySet[Any], timed: int, share: int) -> int:
    """The smallest duration that at least `share` percent do not exceed (nearest rank)."""
    rank = (timed * share + 99) // 100
    durations = completed.order_by("duration_ms").values_list("duration_ms", flat=True)
    return next(iter(durations[rank - 1 : rank]), 0) if rank else 0
