"""What a worker holds: one attempt of one job, with its epoch and all that is needed to run it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

from django.db import connections

from container_manager.models.attempt import JobAttempt, attempt_name
from container_manager.models.base import database_now

JOB_COLUMNS = (
    *("image", "command", "working_dir", "environment", "pull_policy", "network"),
    *("cpu_limit", "memory_limit_mb", "pids_limit"),
    *("timeout_seconds", "start_timeout_seconds", "stop_grace_seconds"),
    *("max_retries", "retry_count", "infra_retry_count", "retry_policy"),
)
"""Columns of the job that a lease carries."""


@dataclass(frozen=True, slots=True)
class Offer:
    """Jobs that ask for `executor` and `isolation` run here on `alias`, as `runs_as`."""

    executor: str
    isolation: str
    alias: str
    runs_as: str
    engine_id: str


@dataclass(frozen=True, slots=True)
class Claimant:
    """A worker as the claim sees it."""

    worker_id: UUID
    worker_name: str
    offers: tuple[Offer, ...]
    queues: tuple[str, ...] = ()
    """Empty: all queues."""

    @property
    def actor(self) -> str:
        return f"worker:{self.worker_name}"


@dataclass(slots=True)
class Lease:
    """One attempt that a worker holds, as long as its epoch is the row's."""

    job_id: UUID
    attempt: int
    epoch: int
    executor: str
    isolation: str
    engine_id: str
    image: str
    command: list[str]
    working_dir: str
    environment: dict[str, str]
    pull_policy: str
    network: str
    cpu_limit: float | None
    memory_limit_mb: int | None
    pids_limit: int | None
    timeout_seconds: int | None
    start_timeout_seconds: int
    stop_grace_seconds: int
    max_retries: int
    retry_count: int
    infra_retry_count: int
    retry_policy: Any
    adopted: bool = False
    applied: dict[str, float] = field(default_factory=dict)
    """The limits that it runs under, once they are known."""
    stop_kind: str = ""

    @property
    def name(self) -> str:
        return attempt_name(self.job_id, self.attempt)

    @property
    def key(self) -> dict[str, Any]:
        """What every fenced write names."""
        return {"job_id": self.job_id, "attempt": self.attempt, "epoch": self.epoch}


def lease_from(row: Sequence[Any], **more: Any) -> Lease:
    """A lease from the columns `job_id, attempt, epoch, alias, isolation, engine, *JOB_COLUMNS`."""
    values = list(row)
    values[0] = values[0] if isinstance(values[0], UUID) else UUID(values[0])
    for index in (7, 9, 21):
        values[index] = json.loads(values[index])
    return Lease(*values, **more)


def take_over(using: str, claimant: Claimant, attempts: Iterable[JobAttempt]) -> list[Lease]:
    """Make `attempts` this worker's, those that nobody took meanwhile: the epoch rises.

    Their engine answers it: for how long nobody reached them before is over.
    """
    now = database_now(using)
    taken = [attempt for attempt in attempts if _take(using, claimant, attempt, now)]
    return adopted_leases(using, claimant, [attempt.pk for attempt in taken])


def _take(using: str, claimant: Claimant, seen: JobAttempt, now: datetime) -> bool:
    mine = JobAttempt.objects.using(using).active()
    return bool(
        mine.filter(pk=seen.pk, lease_epoch=seen.lease_epoch, worker_id=seen.worker_id).update(
            worker_id=claimant.worker_id,
            worker_name=claimant.worker_name,
            lease_epoch=seen.lease_epoch + 1,
            unreachable_since=None,
            updated_at=now,
        )
    )


def adopted_leases(using: str, claimant: Claimant, pks: Sequence[Any]) -> list[Lease]:
    """The leases on attempts that this worker has taken over."""
    if not pks:
        return []
    marks = ", ".join(["%s"] * len(pks))
    columns = ", ".join(f"j.{name}" for name in JOB_COLUMNS)
    connection = connections[using]
    convert = connection.ops.adapt_unknown_value if connection.vendor == "postgresql" else _hex
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT a.stop_kind, a.job_id, a.attempt, a.lease_epoch, a.executor, a.isolation,"
            f" a.engine_id, {columns} FROM job_attempts a JOIN container_jobs j ON j.id = a.job_id"
            f" WHERE a.id IN ({marks}) AND a.worker_id = %s",
            [*map(convert, pks), convert(claimant.worker_id)],
        )
        rows = cursor.fetchall()
    return [lease_from(row[1:], adopted=True, stop_kind=row[0]) for row in rows]


def _hex(value: UUID) -> str:
    return value.hex
