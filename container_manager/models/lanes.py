"""The lanes in which queued jobs stand: one for each (queue, executor, isolation) in use.

The claim steps from lane to lane; so does who wants to know how long a line is, without reading
the jobs that stand behind.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from datetime import datetime
from typing import Any

from django.db import connections

from container_manager.models.sql import clock

Lane = tuple[str, str, str]
"""Queue, executor, isolation."""

COUNTED = 1_000
"""So many jobs of a lane are looked at, at most, to say how many stand in front."""

LANES_COUNTED = 100
"""SQLite takes at most 500 SELECTs in one statement."""

LANES = """
  lane AS (
    (SELECT queue, executor, isolation FROM container_jobs WHERE status = 'queued'
      ORDER BY queue, executor, isolation LIMIT 1)
    UNION ALL
    SELECT following.* FROM lane CROSS JOIN LATERAL (
      SELECT j.queue, j.executor, j.isolation FROM container_jobs j WHERE j.status = 'queued'
        AND (j.queue, j.executor, j.isolation) > (lane.queue, lane.executor, lane.isolation)
      ORDER BY j.queue, j.executor, j.isolation LIMIT 1) following
  )"""
"""A recursive part of a statement, PostgreSQL only."""

NEVER_TAKEN = """NOT EXISTS (SELECT 1 FROM job_attempts a WHERE a.job_id = j.id
          AND (a.phase <> 'done' OR a.attempt > j.attempt))"""
"""A row that was moved past its own attempts must not stop the claim of all others."""


def lanes_about(using: str, queue: str, others: int = LANES_COUNTED) -> tuple[list[Lane], bool]:
    """LANES_COUNTED lanes of this queue at most, and then so many others; were any left out?"""
    own = _walk(using, "=", queue, LANES_COUNTED + 1)
    rest = _walk(using, "<", queue, others + 1) if others else []
    if others and len(rest) <= others:
        rest += _walk(using, ">", queue, others + 1 - len(rest))
    left_out = len(own) > LANES_COUNTED or len(rest) > others
    return own[:LANES_COUNTED] + rest[:others], left_out


def _walk(using: str, side: str, queue: str, most: int) -> list[Lane]:
    """The first lanes before (<), of (=) or after (>) this queue: one look at the index for each.

    Without LATERAL, which SQLite does not have: a step finds a job, the next one reads its lane.
    """
    lane = "n.queue, n.executor, n.isolation"
    first = f"""SELECT n.id FROM container_jobs n {_by_lanes(using)}
      WHERE n.status = 'queued' AND n.queue {side} %(queue)s"""
    statement = f"""
WITH RECURSIVE lane (number, id) AS (
  SELECT 1, ({first} ORDER BY {lane} LIMIT 1)
  UNION ALL
  SELECT lane.number + 1, ({first} AND ({lane}) > (j.queue, j.executor, j.isolation)
    ORDER BY {lane} LIMIT 1)
  FROM lane JOIN container_jobs j ON j.id = lane.id WHERE lane.number < %(most)s)
SELECT j.queue, j.executor, j.isolation
FROM lane JOIN container_jobs j ON j.id = lane.id ORDER BY lane.number"""
    with connections[using].cursor() as cursor:
        cursor.execute(statement, {"queue": queue, "most": most})
        return [tuple(row) for row in cursor.fetchall()]


def _by_lanes(using: str) -> str:
    """SQLite would read all that wait, by another index, and sort them."""
    return "INDEXED BY jobs_claim" if connections[using].vendor == "sqlite" else ""


def oldest_by_queue(using: str, queue: str | None = None) -> dict[str, datetime]:
    """By queue (or of this one), since when its oldest job waits."""
    connection: Any = connections[using]
    with connection.cursor() as cursor:
        cursor.execute(oldest_of_lanes(using, queue), {"queue": queue})
        found = dict(cursor.fetchall())
    if connection.vendor == "postgresql":
        return found
    read = connection.ops.convert_datetimefield_value
    return {name: read(moment, None, connection) for name, moment in found.items()}


def oldest_of_lanes(using: str, queue: str | None) -> str:
    """The oldest job of each lane and priority is the first in the index: one look for each."""
    only = "" if queue is None else "AND n.queue = %(queue)s"
    lane, place = "n.queue, n.executor, n.isolation", "n.priority DESC, n.queued_at, n.id"
    first = f"SELECT n.id FROM container_jobs n {_by_lanes(using)} WHERE n.status = 'queued' {only}"
    return f"""
WITH RECURSIVE oldest (id) AS (
  SELECT ({first} ORDER BY {lane}, {place} LIMIT 1)
  UNION ALL
  SELECT coalesce(
    ({first} AND n.queue = j.queue AND n.executor = j.executor AND n.isolation = j.isolation
      AND n.priority < j.priority ORDER BY {place} LIMIT 1),
    ({first} AND ({lane}) > (j.queue, j.executor, j.isolation) ORDER BY {lane}, {place} LIMIT 1))
  FROM oldest JOIN container_jobs j ON j.id = oldest.id)
SELECT j.queue, min(j.queued_at) FROM oldest JOIN container_jobs j ON j.id = oldest.id
GROUP BY j.queue"""


def sqlite_lanes(using: str) -> list[Lane]:
    """All lanes in which jobs wait, step by step."""
    found: list[Lane] = []
    last = ("", "", "")
    with connections[using].cursor() as cursor:
        while True:
            cursor.execute(
                "SELECT queue, executor, isolation FROM container_jobs WHERE status = 'queued'"
                " AND (queue, executor, isolation) > (%s, %s, %s)"
                " ORDER BY queue, executor, isolation LIMIT 1",
                last,
            )
            row = cursor.fetchone()
            if row is None:
                return found
            found.append(row)
            last = row


def ahead_of(using: str, job: Any, among: Iterable[Lane]) -> dict[str, int]:
    """By queue, how many due jobs of these lanes a claim takes before `job`: a bounded count."""
    connection = connections[using]
    chosen = list(among)[:LANES_COUNTED]
    if not chosen:
        return {}
    moment = connection.ops.adapt_datetimefield_value(job.queued_at)
    place = (moment, job.pk if connection.vendor == "postgresql" else job.pk.hex)
    in_front = [
        ("j.priority > %s", (job.priority,)),
        ("j.priority = %s AND (j.queued_at, j.id) < (%s, %s)", (job.priority, *place)),
    ]
    parts = [(lane, *condition) for lane in chosen for condition in in_front]
    counts = " UNION ALL ".join(_count(connection, condition) for _, condition, _ in parts)
    with connection.cursor() as cursor:
        cursor.execute(
            counts, [value for lane, _, values in parts for value in (lane[0], *lane, *values)]
        )
        found: dict[str, int] = defaultdict(int)
        for queue, number in cursor.fetchall():
            found[queue] += number
    return dict(found)


def _count(connection: Any, in_front: str) -> str:
    """Looks at the first rows of the lane only, due or not."""
    text = "%s::text" if connection.vendor == "postgresql" else "%s"
    return f"""
      SELECT {text}, count(*) FROM (
        SELECT j.id, j.attempt, j.scheduled_for, j.retry_count, j.max_retries
        FROM container_jobs j WHERE j.status = 'queued' AND j.queue = %s AND j.executor = %s
          AND j.isolation = %s AND {in_front}
        ORDER BY j.priority DESC, j.queued_at, j.id LIMIT {COUNTED}) j
      WHERE (j.scheduled_for IS NULL OR j.scheduled_for <= {clock(connection)})
        AND j.retry_count <= j.max_retries AND {NEVER_TAKEN}"""
