"""What became of jobs lately: for charts."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.db.models import Count, QuerySet
from django.db.models.functions import TruncMinute

from container_manager import states
from container_manager.models import ContainerJob
from container_manager.models.base import database_now
from container_manager.states import JobStatus

BY_HAND = "by_hand"
"""A failure that has no reason: somebody moved the job."""


@dataclass(frozen=True)
class Slot:
    """The ends of jobs within one stretch of time."""

    start: datetime
    completed: int
    failed: int
    other: int
    """Cancelled and killed."""

    def as_json(self) -> dict[str, Any]:
        return {
            "start": self.start.isoformat(),
            "completed": self.completed,
            "failed": self.failed,
            "other": self.other,
        }


def throughput(owner: Any = None, minutes: int = 60, bucket_minutes: int = 5) -> list[Slot]:
    """How many jobs settled in each stretch of the last `minutes`, oldest first, none left out."""
    length = timedelta(minutes=bucket_minutes)
    last = _floor(database_now("default"), length)
    starts = [last - length * number for number in reversed(range(-(-minutes // bucket_minutes)))]
    ended = _settled_since(owner, starts[0], [*states.SETTLED])
    rows = ended.annotate(minute=TruncMinute("completed_at")).values_list("minute", "status")
    counts: Counter[tuple[datetime, str]] = Counter()
    for minute, status, count in rows.annotate(count=Count("pk")):
        counts[_floor(minute, length), status] += count
    return [_slot(start, counts) for start in starts]


def _slot(start: datetime, counts: Counter[tuple[datetime, str]]) -> Slot:
    return Slot(
        start=start,
        completed=counts[start, JobStatus.COMPLETED],
        failed=counts[start, JobStatus.FAILED],
        other=counts[start, JobStatus.CANCELLED] + counts[start, JobStatus.KILLED],
    )


def failures_by_reason(owner: Any = None, hours: int = 24) -> dict[str, int]:
    """How many jobs failed lately, by reason, the most frequent first."""
    since = database_now("default") - timedelta(hours=hours)
    failed = _settled_since(owner, since, [JobStatus.FAILED])
    counts = failed.values_list("reason").annotate(count=Count("pk")).order_by("-count", "reason")
    return {reason or BY_HAND: count for reason, count in counts}


def _settled_since(owner: Any, since: datetime, statuses: list[JobStatus]) -> QuerySet[Any]:
    jobs = ContainerJob.objects.filter(status__in=statuses, completed_at__gte=since).order_by()
    return jobs if owner is None else jobs.owned_by(owner)


def _floor(moment: datetime, length: timedelta) -> datetime:
    """
    >>> from datetime import UTC
    >>> _floor(datetime(2026, 1, 1, 10, 13, 5, tzinfo=UTC), timedelta(minutes=5)).isoformat()
    '2026-01-01T10:10:00+00:00'
    """
    seconds = length.total_seconds()
    return datetime.fromtimestamp(moment.timestamp() // seconds * seconds, tz=moment.tzinfo)
