"""The workers as the database shows them: who lives, what each holds, what each would take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from django.db.models import Count

from container_manager.conf import settings
from container_manager.models import JobAttempt, Process, Worker
from container_manager.models.base import database_now
from container_manager.models.offers import offers_of


@dataclass(frozen=True)
class Seen:
    """One worker: its row, how long ago it beat, how many jobs it holds."""

    row: Worker
    seconds_since_beat: float
    held: int

    @property
    def alive(self) -> bool:
        """For people: whoever takes over its jobs judges by its own clock."""
        return bool(self.seconds_since_beat <= settings.LEASE_SECONDS)

    @property
    def free(self) -> int:
        return max(0, self.row.concurrency - self.held)

    def serves_queue(self, name: str) -> bool:
        return not self.row.queues or name in self.row.queues


def seen_workers(**among: Any) -> list[Seen]:
    """The workers that have a row with these fields (none given: all), newest first."""
    rows = Worker.objects.filter(**among).order_by("-started_at", "-pk")
    active = JobAttempt.objects.active().filter(worker_id__in=rows.values("pk")).order_by()
    held = dict(active.values_list("worker_id").annotate(jobs=Count("pk")))
    now = database_now("default")
    return [
        Seen(row, max(0.0, (now - row.last_beat_at).total_seconds()), held.get(row.pk, 0))
        for row in rows
    ]


@dataclass(frozen=True)
class SeenProcess:
    """A scheduler or a relay: its row, and how long ago it beat."""

    row: Process
    seconds_since_beat: float

    @property
    def alive(self) -> bool:
        return bool(self.seconds_since_beat <= settings.LEASE_SECONDS)


def seen_processes() -> list[SeenProcess]:
    """The schedulers and relays that have a row, newest first."""
    rows = list(Process.objects.all())
    now = database_now("default")
    return [SeenProcess(row, max(0.0, (now - row.last_beat_at).total_seconds())) for row in rows]


def lanes_served(worker: Seen, workers: Sequence[Seen]) -> set[tuple[str, str]]:
    """Each (executor, isolation) that this worker takes, given what the other living ones offer."""
    elsewhere: list[Any] = [
        other.row.offers for other in workers if other.alive and other is not worker
    ]
    offers = offers_of(worker.row.offers, elsewhere)
    return {(offer.executor, str(offer.isolation)) for offer in offers}
