"""Queues, executors, workers and other processes: each list in a fixed number of queries."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from django.db.models import Min

from container_manager import conf
from container_manager.models import ContainerJob, Queue
from container_manager.models.base import database_now
from container_manager.models.job_counts import counts_by_queue
from container_manager.models.lanes import oldest_by_queue
from container_manager.models.offers import STRENGTH
from container_manager.reports.fleet import Seen, seen_processes, seen_workers
from container_manager.states import JobStatus

USING = "default"


@dataclass(frozen=True)
class QueueReport:
    """What an operator decided about a queue, and what stands in it."""

    name: str
    paused: bool
    max_running: int | None
    pending: int
    queued: int
    running: int
    retrying: int
    oldest_queued_seconds: float

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def queues(owner: Any = None) -> list[QueueReport]:
    """Every queue that was decided about or has jobs of `owner` (None: of anybody), by name.

    Counts are of what `owner` has in it.
    """
    rows = Queue.objects.in_bulk(field_name="name")
    counts = counts_by_queue(owner)
    oldest = _seconds_waited(owner)
    names = sorted({*rows, *counts})
    return [_queue(rows.get(name) or Queue(name=name), counts, oldest) for name in names]


def queue(name: str, owner: Any = None) -> QueueReport | None:
    """One of them; None when there is no such queue."""
    row = Queue.objects.filter(name=name).first()
    counts = counts_by_queue(owner, name)
    if row is None and not counts:
        return None
    return _queue(row or Queue(name=name), counts, _seconds_waited(owner, name))


def _queue(
    row: Queue, counts: Mapping[str, Mapping[str, int]], oldest: Mapping[str, float]
) -> QueueReport:
    count = counts.get(row.name, {})
    return QueueReport(
        name=row.name,
        paused=row.paused,
        max_running=row.max_running,
        pending=count.get(JobStatus.PENDING, 0),
        queued=count.get(JobStatus.QUEUED, 0),
        running=count.get(JobStatus.RUNNING, 0),
        retrying=count.get(JobStatus.RETRYING, 0),
        oldest_queued_seconds=oldest.get(row.name, 0.0),
    )


def _seconds_waited(owner: Any, queue: str | None = None) -> dict[str, float]:
    since = oldest_by_queue(USING, queue) if owner is None else _oldest_of(owner, queue)
    now = database_now(USING)
    return {name: max(0.0, (now - moment).total_seconds()) for name, moment in since.items()}


def _oldest_of(owner: Any, queue: str | None) -> dict[str, datetime]:
    waiting = ContainerJob.objects.filter(status=JobStatus.QUEUED).owned_by(owner).order_by()
    asked = waiting if queue is None else waiting.filter(queue=queue)
    return dict(asked.values_list("queue").annotate(oldest=Min("queued_at")))


@dataclass(frozen=True)
class ExecutorReport:
    """Where jobs can run: from the settings, and as the living workers find it."""

    alias: str
    path: str
    available: bool
    isolations: list[str]
    engine: str
    outlives_worker: bool | None
    """Do its executions go on when their worker stops? None: no living worker knows it."""
    workers: int
    """Living workers on which it answers."""
    unavailable_since: str | None
    """Since when it answers no living worker; None while it answers, or never did."""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def executors() -> list[ExecutorReport]:
    """The executors of the settings, and those that only workers know."""
    configured = conf.executors()
    offered: dict[str, list[Any]] = {alias: [] for alias in configured}
    for worker in seen_workers():
        if worker.alive:
            for alias, engine in worker.row.offers.items():
                offered.setdefault(alias, []).append(engine)
    return [
        _executor(alias, configured.get(alias, {}).get("class", ""), offered[alias])
        for alias in sorted(offered)
    ]


def _executor(alias: str, path: str, engines: list[Any]) -> ExecutorReport:
    ready = [engine for engine in engines if engine["available"]]
    isolations = {word for engine in ready for word in engine["isolations"]}
    outlives = [engine.get("outlives_worker") for engine in engines]
    return ExecutorReport(
        alias=alias,
        path=path,
        available=bool(ready),
        isolations=sorted(isolations, key=lambda word: STRENGTH.get(word, -1)),
        engine=", ".join(sorted({engine["engine"] for engine in ready} - {""})),
        outlives_worker=outlives[0] if outlives else None,
        workers=len(ready),
        unavailable_since=None if ready else _latest(engines, "unavailable_since"),
    )


def _latest(engines: list[Any], key: str) -> str | None:
    """Of moments in UTC as workers tell them: whoever saw it last."""
    return max(filter(None, (engine.get(key) for engine in engines)), default=None)


@dataclass(frozen=True)
class WorkerReport:
    """One worker process and its last sign of life."""

    id: str
    name: str
    hostname: str
    pid: int
    alive: bool
    draining: bool
    seconds_since_beat: float
    concurrency: int
    running: int
    queues: list[str]
    """Empty: all."""
    executors: list[str]
    version: str
    started_at: datetime

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {"started_at": self.started_at.isoformat()}


def workers() -> list[WorkerReport]:
    """All workers that have a row, newest first."""
    return [_worker(seen) for seen in seen_workers()]


def worker(worker_id: Any) -> WorkerReport | None:
    """One of them; None when it has no row."""
    return next((_worker(seen) for seen in seen_workers(pk=worker_id)), None)


def _worker(seen: Seen) -> WorkerReport:
    row = seen.row
    return WorkerReport(
        id=str(row.pk),
        name=row.name,
        hostname=row.hostname,
        pid=row.pid,
        alive=seen.alive,
        draining=row.draining,
        seconds_since_beat=round(seen.seconds_since_beat, 1),
        concurrency=row.concurrency,
        running=seen.held,
        queues=list(row.queues),
        executors=sorted(row.offers),
        version=row.version,
        started_at=row.started_at,
    )


@dataclass(frozen=True)
class ProcessReport:
    """One scheduler or relay and its last sign of life."""

    kind: str
    name: str
    hostname: str
    pid: int
    alive: bool
    seconds_since_beat: float
    version: str
    started_at: datetime


def processes() -> list[ProcessReport]:
    """All schedulers and relays that have a row, newest first."""
    return [
        ProcessReport(
            kind=seen.row.kind,
            name=seen.row.name,
            hostname=seen.row.hostname,
            pid=seen.row.pid,
            alive=seen.alive,
            seconds_since_beat=round(seen.seconds_since_beat, 1),
            version=seen.row.version,
            started_at=seen.row.started_at,
        )
        for seen in seen_processes()
    ]
