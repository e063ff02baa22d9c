"""What those who follow jobs ask again and again: one question each, for all of them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from django.db import connection
from django.db.models import F, OuterRef, Subquery
from django.db.models.functions import Length

from container_manager.models.attempt import JobAttempt
from container_manager.models.job import ContainerJob
from container_manager.models.logs import JobLog
from container_manager.models.sql import given_rows
from container_manager.states import Stream


@dataclass(frozen=True)
class Standing:
    """How a job stands, and how far the output of its latest attempt goes, at one moment."""

    status: str
    attempt: int
    reason: str
    exit_code: int | None
    phase: str
    """Of the latest attempt; empty when there is none."""
    ends: Mapping[str, int]
    """For each stream the offset behind its last byte."""


def standings(job_ids: Collection[UUID]) -> dict[UUID, Standing]:
    """Those of these jobs that there are."""
    rows = ContainerJob.objects.filter(pk__in=job_ids).order_by()
    told = rows.annotate(
        phase=Subquery(_of_latest_attempt(JobAttempt).values("phase")[:1]),
        **{f"{stream}_end": Subquery(_end(stream)) for stream in Stream},
    ).values_list(
        *("pk", "status", "attempt", "reason", "exit_code", "phase"),
        *(f"{stream}_end" for stream in Stream),
    )
    return {
        pk: Standing(
            status=status,
            attempt=attempt,
            reason=reason,
            exit_code=exit_code,
            phase=phase or "",
            ends={str(stream): end or 0 for stream, end in zip(Stream, ends, strict=True)},
        )
        for pk, status, attempt, reason, exit_code, phase, *ends in told
    }


def _of_latest_attempt(model: Any) -> Any:
    return model.objects.filter(job=OuterRef("pk"), attempt=OuterRef("attempt")).order_by()


def _end(stream: str) -> Any:
    """One step along the index, however long the output is."""
    chunks = _of_latest_attempt(JobLog).filter(stream=stream).order_by("-offset")
    return chunks.annotate(end=F("offset") + Length("data")).values("end")[:1]


_PLACE = {"job_id": "uuid", "attempt": "integer", "stream": "text", "start": "bigint"}


def chunks_behind(places: Iterable[tuple[UUID, int, Mapping[str, int]]], most: int) -> list[JobLog]:
    """What was printed at or behind these offsets, job and attempt by job and attempt.

    In the order it was written, so many chunks at most.
    """
    rows = [
        {"job_id": job_id, "attempt": attempt, "stream": stream, "start": start}
        for job_id, attempt, starts in places
        for stream, start in starts.items()
    ]
    given, parameter = given_rows(connection, rows, _PLACE)
    return list(
        JobLog.objects.raw(
            f"""
            SELECT l.* FROM {given} JOIN job_logs l ON l.job_id = g.job_id
              AND l.attempt = g.attempt AND l.stream = g.stream AND l."offset" >= g.start
            ORDER BY l.created_at, l.id LIMIT %s""",
            [parameter, most],
        )
    )
