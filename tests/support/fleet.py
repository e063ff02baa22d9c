"""Worker rows as living workers write them, and the claims that those workers would make."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from django.utils import timezone

from container_manager import lifecycle
from container_manager.models import Process, Worker
from container_manager.models.leases import Claimant, Lease
from container_manager.models.offers import offers_of


def engine(*isolations: str, available: bool = True, **more: Any) -> dict[str, Any]:
    """What a worker says of one of its engines."""
    return {
        "engine_id": "engine-1",
        "engine": "",
        "isolations": list(isolations),
        "outlives_worker": True,
        "available": available,
        **more,
    }


LOCAL = {"process": engine("process", outlives_worker=False, engine="local")}


def worker_row(name: str = "w1", *, beat_ago: float = 0.0, **fields: Any) -> Worker:
    """A worker that beat so many seconds ago."""
    given: dict[str, Any] = {
        "name": name,
        "hostname": "here",
        "pid": 1,
        "concurrency": 2,
        "offers": LOCAL,
        "version": "1",
        "last_beat_at": timezone.now() - timedelta(seconds=beat_ago),
    }
    return Worker.objects.create(**{**given, **fields})


def claimant_of(row: Worker) -> Claimant:
    others = Worker.objects.exclude(pk=row.pk).values_list("offers", flat=True)
    return Claimant(row.pk, row.name, offers_of(row.offers, others), tuple(row.queues))


def claim(row: Worker, limit: int | None = None) -> list[Lease]:
    """What this worker takes now."""
    return lifecycle.claim(claimant_of(row), row.concurrency if limit is None else limit)


def process_row(kind: str, name: str = "", *, beat_ago: float = 0.0, **fields: Any) -> Process:
    """A scheduler or a relay that beat so many seconds ago."""
    given: dict[str, Any] = {
        "name": name or f"{kind}-1",
        "hostname": "here",
        "pid": 1,
        "version": "1",
        "last_beat_at": timezone.now() - timedelta(seconds=beat_ago),
    }
    return Process.objects.create(kind=kind, **{**given, **fields})
