"""What a worker writes about the attempts it holds: many at once, one statement per step.

Every statement is fenced: it touches an attempt only while the worker and the epoch that it names
are still the row's. What was not touched is held by somebody else now, and that is an outcome, not
an error: each function returns the job ids of what was.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from django.db import connections

from container_manager import ids
from container_manager.models.job import wake_managers
from container_manager.models.leases import Claimant
from container_manager.models.move_lines import JOB, MoveLine, log_move
from container_manager.models.sql import (
    clock,
    given_rows,
    json_object,
    milliseconds_since,
    seconds_later,
)
from container_manager.states import SETTLED, JobStatus, Reason

FENCE = (
    "a.job_id = g.job_id AND a.attempt = g.attempt AND a.lease_epoch = g.epoch"
    " AND a.worker_id = %s AND a.phase <> 'done'"
)
ERROR_IN_HISTORY = 500
"""Characters of an error that its history row keeps."""

_KEY = {"job_id": "uuid", "attempt": "integer", "epoch": "integer"}

FACTS = {"execution_id": "text", "image_digest": "text", "resolved": "jsonb"}
"""What is learned of an attempt on its way, with its type; None where it is not, or was told."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far an attempt has come; None leaves a column as it is."""

    job_id: UUID
    attempt: int
    epoch: int
    phase: str
    execution_id: str | None = None
    image_digest: str | None = None
    started_at: datetime | None = None
    stop_kind: str | None = None
    resolved: dict[str, float] | None = None
    unreachable: bool | None = None


@dataclass(frozen=True, slots=True)
class LogChunk:
    """Bytes of one stream of an attempt that is held."""

    job_id: UUID
    attempt: int
    epoch: int
    stream: str
    offset: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Ending:
    """How a held attempt ended, what becomes of its job, and whether there is another attempt."""

    job_id: UUID
    attempt: int
    epoch: int
    status: str
    reason: str = ""
    exit_code: int | None = None
    signal: int | None = None
    oom_killed: bool = False
    error: str = ""
    output: str = ""
    started_at: datetime | None = None
    ended_at: datetime | None = None
    peak_memory_bytes: int | None = None
    cpu_seconds: float | None = None
    stdout_bytes: int = 0
    stderr_bytes: int = 0
    stdout_omitted: int = 0
    stderr_omitted: int = 0
    cleaned_up: bool = False
    retry: bool = False
    retry_infra: bool = False
    retry_delay: float = 0.0
    memory_limit_mb: int | None = None
    """Of the next attempt; None leaves it as it is."""
    retry_at_once: bool = False
    """Back into the queue in the same transaction, without a backoff."""
    actor: str | None = None
    execution_id: str | None = None
    image_digest: str | None = None
    resolved: dict[str, float] | None = None

    @property
    def key(self) -> dict[str, Any]:
        """What every fenced write names."""
        return {"job_id": self.job_id, "attempt": self.attempt, "epoch": self.epoch}

    @property
    def blame(self) -> str:
        return str(Reason(self.reason).blame) if self.reason else ""


def note_progress(using: str, claimant: Claimant, progress: Sequence[Progress]) -> set[UUID]:
    """Write how far attempts have come; returns the jobs whose attempt is still held."""
    connection = connections[using]
    columns = {
        **_KEY,
        **FACTS,
        "phase": "text",
        "started_at": "timestamptz",
        "stop_kind": "text",
        "unreachable": "boolean",
    }
    rows, given = given_rows(connection, [_only(step, columns) for step in progress], columns)
    now = clock(connection)
    return _touched(
        connection,
        f"""
        UPDATE job_attempts AS a SET phase = g.phase, updated_at = {now},
          {_where_told(*FACTS, "started_at", "stop_kind")},
          unreachable_since = CASE WHEN g.unreachable IS NULL THEN a.unreachable_since
            WHEN g.unreachable THEN coalesce(a.unreachable_since, {now}) ELSE NULL END
        FROM {rows} WHERE {FENCE}""",
        [given, _id(connection, claimant.worker_id)],
        returning="a.job_id",
    )


def note_signal(using: str, claimant: Claimant, keys: Sequence[dict[str, Any]]) -> set[UUID]:
    """Stamp `signalled_at` on the jobs of held attempts; returns those that were stamped."""
    connection = connections[using]
    rows, given = given_rows(connection, keys, _KEY)
    now = clock(connection)
    return _touched(
        connection,
        f"""
        UPDATE container_jobs AS j SET signalled_at = coalesce(j.signalled_at, {now}),
          updated_at = {now}
        FROM {rows} JOIN job_attempts a ON a.job_id = g.job_id
        WHERE j.id = g.job_id AND j.status = 'running' AND {FENCE}""",
        [given, _id(connection, claimant.worker_id)],
        returning="j.id",
    )


def note_release(using: str, claimant: Claimant, keys: Sequence[dict[str, Any]]) -> set[UUID]:
    """Let go of held attempts without ending them; returns the jobs whose attempt was held."""
    connection = connections[using]
    rows, given = given_rows(connection, keys, _KEY)
    return _touched(
        connection,
        f"""
        UPDATE job_attempts AS a SET worker_id = NULL, updated_at = {clock(connection)}
        FROM {rows} WHERE {FENCE}""",
        [given, _id(connection, claimant.worker_id)],
        returning="a.job_id",
    )


def keep_chunks(using: str, claimant: Claimant, chunks: Sequence[LogChunk]) -> None:
    """Store log chunks of held attempts; a chunk that is there already is left alone."""
    if not chunks:
        return
    connection = connections[using]
    keep = _keep_postgresql if connection.vendor == "postgresql" else _keep_sqlite
    with connection.cursor() as cursor:
        keep(cursor, claimant, chunks)


def _keep_postgresql(cursor: Any, claimant: Claimant, chunks: Sequence[LogChunk]) -> None:
    """The lock makes an adopter wait: it goes on from where the stored output ends."""
    columns = list(zip(*map(_as_tuple, chunks), strict=True))
    cursor.execute(
        f"""
        INSERT INTO job_logs (id, job_id, attempt, stream, "offset", data, created_at)
        SELECT g.id, g.job_id, g.attempt, g.stream, g.start, g.data, clock_timestamp()
        FROM unnest(%s::uuid[], %s::uuid[], %s::integer[], %s::integer[], %s::text[],
          %s::bigint[], %s::bytea[]) AS g(id, job_id, attempt, epoch, stream, start, data)
        JOIN job_attempts a ON {FENCE} FOR SHARE OF a
        ON CONFLICT DO NOTHING""",
        [*map(list, columns), claimant.worker_id],
    )


def _keep_sqlite(cursor: Any, claimant: Claimant, chunks: Sequence[LogChunk]) -> None:
    now = clock(cursor.db)
    cursor.executemany(
        f"""
        INSERT OR IGNORE INTO job_logs (id, job_id, attempt, stream, "offset", data, created_at)
        SELECT g.id, g.job_id, g.attempt, g.stream, g.start, g.data, {now}
        FROM (SELECT %s AS id, %s AS job_id, %s AS attempt, %s AS epoch, %s AS stream,
          %s AS start, %s AS data) AS g JOIN job_attempts a ON {FENCE}""",
        [
            (row[0].hex, row[1].hex, *row[2:], claimant.worker_id.hex)
            for row in map(_as_tuple, chunks)
        ],
    )


def _as_tuple(chunk: LogChunk) -> tuple[Any, ...]:
    key = (chunk.job_id, chunk.attempt, chunk.epoch)
    return (ids.uuid7(), *key, str(chunk.stream), chunk.offset, chunk.data)


def drop_chunks(
    using: str, claimant: Claimant, lease: Any, stream: str, start: int, end: int
) -> None:
    """Forget the chunks of one stream that begin in [start, end): they fell out of the tail."""
    connection = connections[using]
    with connection.cursor() as cursor:
        cursor.execute(
            'DELETE FROM job_logs WHERE job_id = %s AND attempt = %s AND stream = %s AND "offset"'
            ' >= %s AND "offset" < %s AND EXISTS (SELECT 1 FROM job_attempts a WHERE'
            " a.job_id = job_logs.job_id AND a.attempt = job_logs.attempt AND a.lease_epoch = %s"
            " AND a.worker_id = %s AND a.phase <> 'done')",
            [
                *(_id(connection, lease.job_id), lease.attempt, stream, start, end, lease.epoch),
                _id(connection, claimant.worker_id),
            ],
        )


def end_attempts(using: str, claimant: Claimant, endings: Sequence[Ending]) -> set[UUID]:
    """Write the evidence and let go of the attempts; returns the jobs whose attempt was held."""
    connection = connections[using]
    columns = {
        **_KEY,
        **dict.fromkeys(("reason", "blame", "error"), "text"),
        **dict.fromkeys(("exit_code", "signal"), "integer"),
        **dict.fromkeys(("oom_killed", "cleaned_up"), "boolean"),
        **dict.fromkeys(("started_at", "ended_at"), "timestamptz"),
        **dict.fromkeys(("peak_memory_bytes", "stdout_bytes", "stderr_bytes"), "bigint"),
        **dict.fromkeys(("stdout_omitted", "stderr_omitted"), "bigint"),
        "cpu_seconds": "double precision",
        **FACTS,
    }
    kept = set(columns) - set(_KEY) - set(FACTS) - {"started_at"}
    rows, given = given_rows(connection, [_only(ending, columns) for ending in endings], columns)
    sets = ", ".join(f"{name} = g.{name}" for name in sorted(kept))
    return _touched(
        connection,
        f"""
        UPDATE job_attempts AS a SET phase = 'done', {sets}, unreachable_since = NULL,
          {_where_told(*FACTS, "started_at")}, updated_at = {clock(connection)}
        FROM {rows} WHERE {FENCE}""",
        [given, _id(connection, claimant.worker_id)],
        returning="a.job_id",
    )


def note_cleaned_up(using: str, keys: Sequence[dict[str, Any]]) -> set[UUID]:
    """Mark ended attempts as cleaned up."""
    connection = connections[using]
    rows, given = given_rows(connection, keys, _KEY)
    return _touched(
        connection,
        f"""
        UPDATE job_attempts AS a SET cleaned_up = TRUE, updated_at = {clock(connection)}
        FROM {rows} WHERE a.job_id = g.job_id AND a.attempt = g.attempt AND a.phase = 'done'""",
        [given],
        returning="a.job_id",
    )


_NO_EVIDENCE = (
    f"('{Reason.WORKER_LOST}', '{Reason.WORKER_STOPPED}', '{Reason.EXECUTOR_UNAVAILABLE}',"
    f" '{Reason.POISON}')"
)
"""Reasons of ends that say nothing of what the job itself did; too many of them are poison."""

_AS_ASKED = f"""CASE
  WHEN g.reason IN {_NO_EVIDENCE} AND j.kill_requested_at IS NOT NULL THEN 'killed'
  WHEN g.reason IN {_NO_EVIDENCE} AND j.cancel_requested_at IS NOT NULL THEN 'cancelled' """


_NEW_STATUS = f"{_AS_ASKED} ELSE g.status END"

_REQUESTED_BY = f"""CASE {_NEW_STATUS} WHEN 'killed' THEN nullif(j.kill_requested_by, '')
  WHEN 'cancelled' THEN nullif(j.cancel_requested_by, '') END"""


def end_jobs(using: str, claimant: Claimant, endings: Iterable[Ending]) -> dict[UUID, str]:
    """Move the jobs of attempts that just ended out of `running`; returns where they went.

    A job that is gone without having ended by itself is told as what people asked for, if they did.
    """
    columns = {
        "job_id": "uuid",
        **dict.fromkeys(("status", "reason", "error", "output", "actor"), "text"),
        "exit_code": "integer",
        "oom_killed": "boolean",
        "attempt": "integer",
    }
    return _move(
        using,
        claimant,
        endings,
        columns,
        old=JobStatus.RUNNING,
        moving="j.status = 'running'",
        sets=f"""status = {_NEW_STATUS}, reason = {_AS_ASKED} ELSE g.reason END,
          error = g.error, output = g.output, exit_code = g.exit_code,
          oom_killed = g.oom_killed, completed_at = {{now}}, duration_ms = {{milliseconds}}""",
        told={"requested_by": _REQUESTED_BY},
    )


def retry_jobs(using: str, claimant: Claimant, endings: Iterable[Ending]) -> dict[UUID, str]:
    """Move failed jobs on to `retrying`, due after their backoff, and count the retry.

    Not those that people asked to stop; and a worker's orderly end is no failure to be counted.
    """
    columns = {
        "job_id": "uuid",
        **dict.fromkeys(("reason", "error", "actor"), "text"),
        **dict.fromkeys(("attempt", "exit_code", "memory_limit_mb"), "integer"),
        **dict.fromkeys(("retry_infra", "retry_at_once"), "boolean"),
        "retry_delay": "double precision",
    }
    return _move(
        using,
        claimant,
        endings,
        columns,
        old=JobStatus.FAILED,
        moving="j.status = 'failed' AND j.kill_requested_at IS NULL"
        " AND j.cancel_requested_at IS NULL",
        sets="""status = 'retrying', scheduled_for = {later},
          retry_count = j.retry_count + CASE WHEN g.retry_infra THEN 0 ELSE 1 END,
          infra_retry_count = CASE WHEN g.retry_at_once THEN j.infra_retry_count
            WHEN g.retry_infra THEN j.infra_retry_count + 1 ELSE 0 END,
          memory_limit_mb = coalesce(g.memory_limit_mb, j.memory_limit_mb)""",
    )


def _move(
    using: str,
    claimant: Claimant,
    endings: Iterable[Ending],
    columns: dict[str, str],
    *,
    old: JobStatus,
    moving: str,
    sets: str,
    told: Mapping[str, str] = {},
) -> dict[UUID, str]:
    connection = connections[using]
    values = [
        {**_only(ending, columns), "actor": ending.actor or claimant.actor} for ending in endings
    ]
    if not values:
        return {}
    rows, given = given_rows(connection, values, columns)
    now = clock(connection)
    changes = sets.format(
        now=now,
        milliseconds=milliseconds_since(connection, "j.launched_at"),
        later=seconds_later(connection, "g.retry_delay"),
    )
    moved = _returned(
        connection,
        f"""
        UPDATE container_jobs AS j SET version = j.version + 1, updated_at = {now}, {changes},
          transition_info = {_what_the_history_tells(connection, told)}
        FROM {rows} WHERE j.id = g.job_id AND ({moving}) IS TRUE""",
        [str(claimant.worker_id), given],
        returning=("j.id", "j.status", "j.managed_by", "j.reason"),
    )
    if any(status in SETTLED and manager for _, status, manager, _ in moved):
        wake_managers(using)
    by_job = {row["job_id"]: row for row in values}
    for job_id, status, _, reason in moved:
        row = by_job[_uuid(job_id)]
        ends = (_uuid(job_id), old, status, reason, row["actor"], row["attempt"])
        log_move(MoveLine("Job", JOB, *ends))
    return {_uuid(job_id): status for job_id, status, *_ in moved}


def _what_the_history_tells(connection: Any, told: Mapping[str, str]) -> str:
    """The move's `transition_info`; its one parameter is the worker's id."""
    metadata = {
        "worker": "%s" if connection.vendor == "sqlite" else "%s::text",
        "attempt": "g.attempt",
        "exit_code": "g.exit_code",
        "error": f"substr(g.error, 1, {ERROR_IN_HISTORY})",
        **told,
    }
    info = {
        "version": "j.version + 1",
        "actor": "g.actor",
        "reason": "g.reason",
        "metadata": json_object(connection, metadata),
    }
    return json_object(connection, info)


def _only(row: Progress | Ending, columns: Iterable[str]) -> dict[str, Any]:
    """What the statement reads. Not `asdict`: its deep copies cost more than the statement."""
    return {name: getattr(row, name) for name in columns}


def _touched(
    connection: Any, update: str, parameters: Collection[Any], *, returning: str
) -> set[UUID]:
    rows = _returned(connection, update, parameters, returning=(returning,))
    return {_uuid(row[0]) for row in rows}


def _returned(
    connection: Any, update: str, parameters: Collection[Any], *, returning: Sequence[str]
) -> list[tuple[Any, ...]]:
    if connection.vendor == "sqlite":  # which knows no alias there
        returning = [column.partition(".")[2] for column in returning]
    with connection.cursor() as cursor:
        cursor.execute(f"{update} RETURNING {', '.join(returning)}", parameters)
        return cursor.fetchall()  # type: ignore[no-any-return]


def _where_told(*names: str) -> str:
    """NULL leaves a column as it is."""
    return ", ".join(f"{name} = coalesce(g.{name}, a.{name})" for name in names)


def _uuid(value: Any) -> UUID:
    return value if isinstance(value, UUID) else UUID(value)


def _id(connection: Any, value: UUID) -> Any:
    return value if connection.vendor == "postgresql" else value.hex
