"""Does what should happen by itself happen? What is overdue, what piles up, what is told too much.

What is under way just now is never overdue: each question leaves a margin beyond what sound
machinery needs, and speaks only of jobs that a living worker could have looked after.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from django.db import connections
from django.db.models import Exists, F, OuterRef, Q

from container_manager.consistency.asking import NOTE, Finding, Records, found, of_all, question
from container_manager.db_guard import CHANGES_TABLE
from container_manager.models import IdempotencyKey, JobAttempt, StateHistory
from container_manager.states import SETTLED, JobStatus, Phase

MARGIN = timedelta(minutes=2)
"""Beyond its limit a job may take so long to be stopped and recorded."""

RESCUE_MARGIN = timedelta(minutes=10)
"""What nobody holds may wait so long for a worker that reaches its engine to go on with it."""

RETRY_MARGIN = timedelta(minutes=10)
"""So long the retries of very many jobs that failed together may take to be queued."""

MOST_CHANGES = 50_000
"""Changes that wait to be folded into the counters; a thousand and those of open transactions."""

MOST_EXPIRED_KEYS = 10_000
"""Keys that expired more than an hour ago."""

# Jobs that wait for something (I10, I12) ----------------------------------------------------------


@question
def attempts_have_living_workers(records: Records) -> Iterator[Finding]:
    """Whoever holds an attempt is alive; else the next worker on its engine goes on with it."""
    now = records.now()
    served = _places_served_since(records, now - RESCUE_MARGIN)
    heard_of = records.workers.filter(last_beat_at__gt=now - RESCUE_MARGIN)
    for each in _orphaned(records, now).annotate(recently=Exists(_holder(heard_of))).iterator():
        who = f"attempt {each.attempt} is held by no living worker (the last was {_last(each)})"
        quiet = each.updated_at < now - RESCUE_MARGIN and not each.recently
        if quiet and (each.executor, each.engine_id) in served:
            text = f"{who}, and nobody goes on with it, though engine {each.executor} is reached"
            yield found("rescue_overdue", text, each.job_id)
        else:
            place = each.executor or "of any name"
            text = f"{who}; the next one that reaches engine {place} goes on with it"
            yield found("attempt_orphaned", text, each.job_id, level=NOTE)


def _orphaned(records: Records, now: datetime) -> Any:
    held = records.attempts.exclude(phase=Phase.DONE)
    return held.exclude(worker_id__in=records.living(now).values("pk"))


def _holder(workers: Any) -> Any:
    return workers.filter(pk=OuterRef("worker_id"))


def _last(attempt: JobAttempt) -> str:
    return attempt.worker_name or "unknown"


def _places_served_since(records: Records, moment: datetime) -> set[tuple[str, str]]:
    """The engines that a living worker has reached since then, each by its alias."""
    working = records.living(records.now()).filter(started_at__lt=moment)
    return {
        (alias, offer["engine_id"])
        for offers in working.values_list("offers", flat=True)
        for alias, offer in offers.items()
        if offer.get("available")
    }


@question
def requests_are_answered(records: Records) -> Iterator[Finding]:
    """A kill or cancel of a job that a living worker reaches is carried out."""
    now = records.now()
    asked = Q(job__kill_requested_at__isnull=False) | Q(job__cancel_requested_at__isnull=False)
    columns = ("job__kill_requested_at", "job__cancel_requested_at", "job__stop_grace_seconds")
    for pk, seen, killed, cancelled, grace in (
        _held(records, now).filter(asked).values_list("job", "updated_at", *columns).iterator()
    ):
        since = max(seen, killed or cancelled)
        if since + timedelta(seconds=0 if killed else grace) + MARGIN < now:
            kind = "kill" if killed else "cancel"
            text = (
                f"a {kind} was asked for at {(killed or cancelled).isoformat()}, and it still runs"
            )
            yield found("stop_unanswered", text, pk)


@question
def timeouts_are_enforced(records: Records) -> Iterator[Finding]:
    """No job that a living worker reaches runs on beyond its limits."""
    now = records.now()
    limited = _held(records, now).filter(job__timeout_seconds__isnull=False)
    columns = ("job__start_timeout_seconds", "job__timeout_seconds", "job__stop_grace_seconds")
    for pk, seen, launched, start, most, grace in limited.values_list(
        "job", "updated_at", "job__launched_at", *columns
    ).iterator():
        ends = max(launched + timedelta(seconds=start + most), seen)
        if ends + timedelta(seconds=grace) + MARGIN < now:
            text = f"may run {most} s, was launched at {launched.isoformat()} and still runs"
            yield found("timeout_overdue", text, pk)


def _held(records: Records, now: datetime) -> Any:
    """Attempts of running jobs that a living worker reaches, and that did not change just now."""
    return records.attempts.exclude(phase=Phase.DONE).filter(
        job__status=JobStatus.RUNNING,
        attempt=F("job__attempt"),
        unreachable_since__isnull=True,
        updated_at__lt=now - MARGIN,
        worker_id__in=records.living(now).values("pk"),
    )


@question
def retries_come(records: Records) -> Iterator[Finding]:
    """While a worker lives, a retry whose backoff is over is queued."""
    now = records.now()
    working = records.living(now).filter(started_at__lt=now - RETRY_MARGIN)
    due = Q(scheduled_for__isnull=True) | Q(scheduled_for__lt=now - RETRY_MARGIN)
    late = records.jobs.filter(due, status=JobStatus.RETRYING, updated_at__lt=now - RETRY_MARGIN)
    for pk, when in late.filter(Exists(working)).values_list("pk", "scheduled_for").iterator():
        since = when.isoformat() if when else "long ago"
        yield found("retry_overdue", f"its retry was due {since}, and it is still `retrying`", pk)


# Keys (I9, I16) -----------------------------------------------------------------------------------


@of_all
def keys_name_jobs(records: Records) -> Iterator[Finding]:
    """The job that was answered to a request with an Idempotency-Key is there, or was pruned."""
    connection = connections[records.using]
    with connection.cursor() as cursor:
        cursor.execute(_KEYS_WITHOUT_JOB[connection.vendor])
        lost = cursor.fetchall()
    for scope, key, job_id in lost:
        yield from _key_without_job(records, f"{scope} {key}", UUID(str(job_id)))


def _key_without_job(records: Records, key: str, job_id: UUID) -> Iterator[Finding]:
    """Only settled jobs are pruned: one that was not is lost."""
    rows = StateHistory.objects.using(records.using).filter(entity_type="job", entity_id=job_id)
    last = rows.order_by("-version").values_list("new_state", flat=True).first()
    answered = f"key {key!r} was answered with job {job_id}, which is not there"
    if last is None:
        yield found("key_without_job", f"{answered}: it was pruned, or lost", level=NOTE)
    elif last not in SETTLED:
        yield found("key_without_job", f"{answered}, though it was {last}")


_KEYS_WITHOUT_JOB = {
    "postgresql": """
        WITH answered AS (
          SELECT scope, key, CASE jsonb_typeof(answer)
              WHEN 'string' THEN substring(answer #>> '{}' FROM '"id": ?"([0-9a-f-]{36})"')
              WHEN 'object' THEN substring(answer ->> 'id' FROM '^[0-9a-f-]{36}$') END AS job_id
          FROM idempotency_keys)
        SELECT scope, key, job_id FROM answered
        WHERE job_id IS NOT NULL
          AND NOT EXISTS (SELECT 1 FROM container_jobs j WHERE j.id = answered.job_id::uuid)""",
    "sqlite": """
        WITH answered AS (
          SELECT scope, key, json_extract(CASE json_type(answer)
              WHEN 'text' THEN json_extract(answer, '$') ELSE answer END, '$.id') AS job_id
          FROM idempotency_keys)
        SELECT scope, key, job_id FROM answered
        WHERE job_id IS NOT NULL AND NOT EXISTS (
          SELECT 1 FROM container_jobs j WHERE j.id = replace(answered.job_id, '-', ''))""",
}


@of_all
def keys_are_forgotten(records: Records) -> Iterator[Finding]:
    """What has expired does not pile up."""
    hour_ago = records.now() - timedelta(hours=1)
    late = IdempotencyKey.objects.using(records.using).filter(expires_at__lt=hour_ago)
    if late[MOST_EXPIRED_KEYS : MOST_EXPIRED_KEYS + 1].exists():
        text = f"more than {MOST_EXPIRED_KEYS} keys expired over an hour ago and are still there"
        yield found("keys_expired", text)


# Counters (I16) -----------------------------------------------------------------------------------


@of_all
def changes_are_folded(records: Records) -> Iterator[Finding]:
    """What is added up by every reader stays short."""
    with connections[records.using].cursor() as cursor:
        cursor.execute(
            f"SELECT count(*) FROM (SELECT 1 FROM {CHANGES_TABLE} LIMIT %s) AS first_of_them",  # noqa: S608
            [MOST_CHANGES + 1],
        )
        waiting = cursor.fetchone()[0]
    if waiting > MOST_CHANGES:
        text = f"more than {MOST_CHANGES} changes of jobs wait to be folded into the counters"
        yield found("changes_unfolded", text)


# Secrets (I15) ------------------------------------------------------------------------------------


@question
def histories_keep_secrets(records: Records) -> Iterator[Finding]:
    """No value of a job's environment, longer than eight characters, is told in its history."""
    connection = connections[records.using]
    which, ids = "", []
    if records.job_ids is not None:
        convert = str if connection.vendor == "postgresql" else lambda pk: pk.hex
        ids = [convert(pk) for pk in records.job_ids] or [convert(UUID(int=0))]
        which = f" AND j.id IN ({', '.join(['%s'] * len(ids))})"
    with connection.cursor() as cursor:
        cursor.execute(_SECRETS_TOLD[connection.vendor] + which, ids)
        told = cursor.fetchall()
    for pk, version, name in told:
        text = f"version {version} of its history tells the value of {name} of its environment"
        yield found("secret_in_history", text, pk if isinstance(pk, UUID) else UUID(pk))


_SECRETS_TOLD = {
    "postgresql": """
        SELECT DISTINCT j.id, h.version, e.key FROM container_jobs j
        JOIN state_history h ON h.entity_type = 'job' AND h.entity_id = j.id
        CROSS JOIN LATERAL jsonb_each_text(CASE jsonb_typeof(j.environment)
          WHEN 'object' THEN j.environment ELSE '{}'::jsonb END) AS e(key, value)
        CROSS JOIN LATERAL jsonb_each_text(CASE jsonb_typeof(h.metadata)
          WHEN 'object' THEN h.metadata ELSE '{}'::jsonb END) AS m(key, value)
        WHERE j.environment <> '{}' AND length(e.value) > 8 AND strpos(m.value, e.value) > 0""",
    "sqlite": """
        SELECT DISTINCT j.id, h.version, e.key FROM container_jobs j
        JOIN state_history h ON h.entity_type = 'job' AND h.entity_id = j.id
        JOIN json_each(CASE WHEN json_valid(j.environment) THEN j.environment ELSE '{}' END) AS e
        JOIN json_each(CASE WHEN json_valid(h.metadata) THEN h.metadata ELSE '{}' END) AS m
        WHERE j.environment <> '{}' AND e.type = 'text' AND m.type = 'text'
          AND length(e.value) > 8 AND instr(m.value, e.value) > 0""",
}
