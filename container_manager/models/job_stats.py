"""Counts and durations of jobs, exact, every state present."""

from __future__ import annotations

import math
from typing import Any

from django.db import models
from django.utils import timezone

from container_manager.conf import executors
from container_manager.states import Isolation, JobStatus


def stats_of_rows(jobs: models.QuerySet[Any]) -> dict[str, Any]:
    """The statistics of `jobs`; durations in milliseconds, of completed jobs only."""
    jobs = jobs.order_by()
    by_status = _counts(jobs, "status", JobStatus.values)
    completed = jobs.filter(status=JobStatus.COMPLETED, duration_ms__isnull=False)
    average = completed.aggregate(average=models.Avg("duration_ms"))["average"]
    oldest = jobs.filter(status=JobStatus.QUEUED).aggregate(at=models.Min("queued_at"))["at"]
    return {
        "total": sum(by_status.values()),
        "by_status": by_status,
        "by_isolation": _counts(jobs, "isolation", Isolation.values),
        "by_executor": _by_executor(jobs),
        "by_queue": _counts(jobs, "queue", []),
        "avg_duration_ms": round(average or 0),
        "p50_duration_ms": _percentile(completed, 0.50),
        "p95_duration_ms": _percentile(completed, 0.95),
        "queue_depth": by_status[JobStatus.QUEUED],
        "oldest_queued_seconds": _seconds_since(oldest),
    }


def _counts(jobs: models.QuerySet[Any], field: str, known: list[str]) -> dict[str, int]:
    found = dict(jobs.values_list(field).annotate(count=models.Count("pk")))
    return {str(word): found.pop(word, 0) for word in known} | found


def _by_executor(jobs: models.QuerySet[Any]) -> dict[str, int]:
    """By what the jobs ask for; `any` for those that leave the executor open."""
    counts = _counts(jobs, "executor", ["", *sorted(executors())])
    return {"any": counts.pop("")} | counts


def _percentile(completed: models.QuerySet[Any], share: float) -> int:
    """The smallest duration that at least `share` of them do not exceed (nearest rank)."""
    rank = math.ceil(completed.count() * share)
    durations = completed.order_by("duration_ms").values_list("duration_ms", flat=True)
    return int(durations[rank - 1]) if rank else 0


def _seconds_since(moment: Any) -> float:
    return max(0.0, (timezone.now() - moment).total_seconds()) if moment else 0.0
