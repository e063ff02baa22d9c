"""The claim: several jobs in one statement, each by exactly one worker.

Queued jobs stand in *lanes*, one for each (queue, executor, isolation) in use. A claim

1. steps from lane to lane along the index, so that it costs one look per lane, not per job;
2. keeps the lanes that this worker serves and whose queue is neither paused nor full;
3. takes the first due jobs of each, skipping what another worker is taking just now;
4. makes the best of them `running` and writes their attempts.

A queue with a limit is taken from by one claim at a time: the claim locks the queue's row before
it counts what runs, in a statement of its own, because a statement that waits for a lock still
counts as of the moment it began.
"""

from __future__ import annotations

import json
from typing import Any
from uuid import UUID

from django.db import connections, transaction

from container_manager import ids
from container_manager.faults import reached
from container_manager.models.lanes import LANES, NEVER_TAKEN, sqlite_lanes
from container_manager.models.leases import JOB_COLUMNS, Claimant, Lease, lease_from
from container_manager.models.move_lines import JOB, MoveLine, log_move
from container_manager.models.queue import Queue
from container_manager.models.sql import clock
from container_manager.states import Phase


def claim(using: str, claimant: Claimant, limit: int) -> list[Lease]:
    """At most `limit` jobs, now `running` and held by this worker; empty when there is nothing."""
    if limit <= 0 or not claimant.offers:
        return []
    take = _claim_postgresql if connections[using].vendor == "postgresql" else _claim_sqlite
    leases = take(using, claimant, limit)
    reached("C3")
    for lease in leases:
        log_move(
            MoveLine(
                *("Job", JOB, lease.job_id, "queued", "running"),
                actor=claimant.actor,
                attempt=lease.attempt,
            )
        )
    return leases


def has_limits(using: str) -> bool:
    """Does any open queue have a limit?"""
    with connections[using].cursor() as cursor:  # asked at each claim: the ORM would take longer
        cursor.execute(
            "SELECT EXISTS (SELECT 1 FROM queues WHERE NOT paused AND max_running IS NOT NULL)"
        )
        return bool(cursor.fetchone()[0])


def _limited(using: str) -> Any:
    return Queue.objects.using(using).filter(paused=False, max_running__isnull=False)


# PostgreSQL ---------------------------------------------------------------------------------------

_CLAIM = f"""
WITH RECURSIVE {LANES},
  offer AS (
    SELECT * FROM jsonb_to_recordset(%(offers)s::jsonb)
      AS o(executor text, isolation text, alias text, runs_as text, engine_id text)
  ),
  room AS (
    SELECT * FROM jsonb_to_recordset(%(room)s::jsonb) AS r(queue text, free integer)
  ),
  open_lane AS MATERIALIZED (
    SELECT lane.*, offer.alias, offer.runs_as, offer.engine_id, coalesce(room.free, %(limit)s) free
    FROM lane JOIN offer USING (executor, isolation) LEFT JOIN room USING (queue)
    WHERE (%(all_queues)s OR lane.queue = ANY(%(queues)s)) AND coalesce(room.free, 1) > 0
      AND NOT EXISTS (SELECT 1 FROM queues q WHERE q.name = lane.queue
        AND (q.paused OR (q.max_running IS NOT NULL AND room.queue IS NULL)))
  ),
  candidate AS MATERIALIZED (
    SELECT due.*, lane.queue, lane.free, lane.alias, lane.runs_as, lane.engine_id
    FROM open_lane lane CROSS JOIN LATERAL (
      SELECT j.id, j.priority, j.queued_at FROM container_jobs j
      WHERE j.status = 'queued' AND j.queue = lane.queue AND j.executor = lane.executor
        AND j.isolation = lane.isolation
        AND (j.scheduled_for IS NULL OR j.scheduled_for <= clock_timestamp())
        AND j.retry_count <= j.max_retries AND {NEVER_TAKEN}
      ORDER BY j.priority DESC, j.queued_at, j.id
      LIMIT least(%(limit)s, lane.free) FOR UPDATE SKIP LOCKED) due
  ),
  placed AS (
    SELECT *, row_number() OVER (PARTITION BY queue ORDER BY priority DESC, queued_at, id) AS place
    FROM candidate
  ),
  chosen AS MATERIALIZED (
    SELECT *, row_number() OVER (ORDER BY priority DESC, queued_at, id) AS number
    FROM placed WHERE place <= free
    ORDER BY priority DESC, queued_at, id LIMIT %(limit)s
  ),
  claimed AS (
    UPDATE container_jobs j SET status = 'running', version = j.version + 1,
      attempt = j.attempt + 1, launched_at = clock_timestamp(), updated_at = clock_timestamp(),
      completed_at = NULL,
      transition_info = jsonb_build_object('version', j.version + 1, 'actor', %(actor)s::text,
        'metadata', jsonb_build_object('worker', %(worker)s::text, 'engine', chosen.engine_id))
    FROM chosen WHERE j.id = chosen.id  -- still queued: it was locked above
    RETURNING j.*, chosen.number, chosen.alias, chosen.runs_as, chosen.engine_id
  ),
  held AS (
    INSERT INTO job_attempts (id, job_id, attempt, worker_id, worker_name, lease_epoch, phase,
      executor, isolation, engine_id, execution_id, image_digest, resolved, stop_kind, oom_killed,
      reason, blame, error, stdout_bytes, stderr_bytes, stdout_omitted, stderr_omitted, cleaned_up,
      created_at, updated_at)
    SELECT (%(ids)s::uuid[])[number], id, attempt, %(worker)s, %(worker_name)s, 1, 'claimed',
      alias, runs_as, engine_id, '', '', '{{}}', '', false,
      '', '', '', 0, 0, 0, 0, false, clock_timestamp(), clock_timestamp()
    FROM claimed
  )
SELECT id, attempt, 1, alias, runs_as, engine_id, {", ".join(JOB_COLUMNS)}
FROM claimed ORDER BY number
"""


def _claim_postgresql(using: str, claimant: Claimant, limit: int) -> list[Lease]:
    if not has_limits(using):
        return _run_claim(using, claimant, limit, {})
    with transaction.atomic(using=using):
        return _run_claim(using, claimant, limit, _lock_room(using))


def _lock_room(using: str) -> dict[str, int]:
    """Free places of each limited queue that no other claim is taking from just now."""
    locked = _limited(using).order_by("name").select_for_update(skip_locked=True)
    return _room(using, {queue.name: queue.max_running for queue in locked})


def _room(using: str, limits: dict[str, int]) -> dict[str, int]:
    if not limits:
        return {}
    with connections[using].cursor() as cursor:
        marks = ", ".join(["%s"] * len(limits))
        cursor.execute(
            "SELECT queue, count(*) FROM container_jobs WHERE status = 'running'"
            f" AND queue IN ({marks}) GROUP BY queue",
            list(limits),
        )
        running = dict(cursor.fetchall())
    return {name: top - running.get(name, 0) for name, top in limits.items()}


def _run_claim(using: str, claimant: Claimant, limit: int, room: dict[str, int]) -> list[Lease]:
    reached("C1")
    with connections[using].cursor() as cursor:
        cursor.execute(
            _CLAIM,
            {
                "offers": _offers(claimant),
                "room": json.dumps([{"queue": name, "free": free} for name, free in room.items()]),
                "queues": list(claimant.queues),
                "all_queues": not claimant.queues,
                "limit": limit,
                "actor": claimant.actor,
                "worker": claimant.worker_id,
                "worker_name": claimant.worker_name,
                "ids": [ids.uuid7() for _ in range(limit)],
            },
        )
        rows = cursor.fetchall()
    reached("C2")
    return [lease_from(row) for row in rows]


def _offers(claimant: Claimant) -> str:
    return json.dumps(
        [
            {
                "executor": offer.executor,
                "isolation": offer.isolation,
                "alias": offer.alias,
                "runs_as": offer.runs_as,
                "engine_id": offer.engine_id,
            }
            for offer in claimant.offers
        ]
    )


# SQLite: one writer at a time, so the steps stand in one IMMEDIATE transaction --------------------


def _claim_sqlite(using: str, claimant: Claimant, limit: int) -> list[Lease]:
    if not sqlite_lanes(using):
        return []
    with transaction.atomic(using=using):
        lanes = _sqlite_open_lanes(using, claimant)
        room = _room(using, dict(_limited(using).values_list("name", "max_running")))
        chosen = _sqlite_choose(using, lanes, room, limit)
        reached("C1")
        leases = _sqlite_take(using, claimant, chosen)
        reached("C2")
    return leases


def _sqlite_open_lanes(using: str, claimant: Claimant) -> list[tuple[str, str, str]]:
    offered = {(offer.executor, offer.isolation) for offer in claimant.offers}
    paused = set(Queue.objects.using(using).filter(paused=True).values_list("name", flat=True))
    return [
        lane
        for lane in sqlite_lanes(using)
        if lane[1:] in offered
        and lane[0] not in paused
        and (not claimant.queues or lane[0] in claimant.queues)
    ]


def _sqlite_choose(
    using: str, lanes: list[tuple[str, str, str]], room: dict[str, int], limit: int
) -> list[tuple[str, str, str]]:
    """Id, executor and isolation of the jobs to take, best first."""
    candidates = []
    with connections[using].cursor() as cursor:
        for lane in lanes:
            cursor.execute(
                "SELECT priority, queued_at, id FROM container_jobs j WHERE status = 'queued'"
                " AND queue = %s AND executor = %s AND isolation = %s"
                f" AND (scheduled_for IS NULL OR scheduled_for <= {clock(connections[using])})"
                f" AND retry_count <= max_retries AND {NEVER_TAKEN}"
                " ORDER BY priority DESC, queued_at, id LIMIT %s",
                [*lane, limit],
            )
            candidates += [((-row[0], *row[1:]), lane) for row in cursor.fetchall()]
    chosen: list[tuple[str, str, str]] = []
    for (_priority, _queued_at, job_id), (queue, executor, isolation) in sorted(candidates):
        if room.get(queue, 1) > 0 and len(chosen) < limit:
            chosen.append((job_id, executor, isolation))
            if queue in room:
                room[queue] -= 1
    return chosen


def _sqlite_take(using: str, claimant: Claimant, chosen: list[tuple[str, str, str]]) -> list[Lease]:
    offers = {(offer.executor, offer.isolation): offer for offer in claimant.offers}
    now = clock(connections[using])
    update = f"""
        UPDATE container_jobs SET status = 'running', version = version + 1,
          attempt = attempt + 1, launched_at = {now}, updated_at = {now}, completed_at = NULL,
          transition_info = json_object('version', version + 1, 'actor', %s,
            'metadata', json_object('worker', %s, 'engine', %s))
        WHERE id = %s AND status = 'queued' RETURNING id, attempt, {", ".join(JOB_COLUMNS)}"""
    insert = f"""
        INSERT INTO job_attempts (id, job_id, attempt, worker_id, worker_name, lease_epoch, phase,
          executor, isolation, engine_id, execution_id, image_digest, resolved, stop_kind,
          oom_killed, reason, blame, error, stdout_bytes, stderr_bytes, stdout_omitted,
          stderr_omitted, cleaned_up, created_at, updated_at)
        VALUES (%s, %s, %s, %s, %s, 1, '{Phase.CLAIMED}', %s, %s, %s, '', '', '{{}}', '', 0,
          '', '', '', 0, 0, 0, 0, 0, {now}, {now})"""
    leases = []
    with connections[using].cursor() as cursor:
        for job_id, executor, isolation in chosen:
            offer = offers[executor, isolation]
            worker = str(claimant.worker_id)
            cursor.execute(update, [claimant.actor, worker, offer.engine_id, job_id])
            found = cursor.fetchone()
            runs_on = [offer.alias, offer.runs_as, offer.engine_id]
            who = [claimant.worker_id.hex, claimant.worker_name]
            cursor.execute(insert, [ids.uuid7().hex, job_id, found[1], *who, *runs_on])
            leases.append(lease_from([UUID(found[0]), found[1], 1, *runs_on, *found[2:]]))
    return leases
