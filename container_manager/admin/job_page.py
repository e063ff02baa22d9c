"""What the page of one job shows."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any
from uuid import UUID

from django.urls import reverse

from container_manager import lifecycle
from container_manager.admin import logs
from container_manager.bulk import Verb
from container_manager.models import ContainerJob, JobAttempt, StateHistory, TaskInstance, access
from container_manager.models.base import GuardedModel
from container_manager.reports.explain import Code, Explanation, explain
from container_manager.states import JobStatus, Phase, Reason, Stream
from container_manager.templatetags import cm as showing

MOVES_SHOWN, ATTEMPTS_SHOWN = 100, 50

DANGEROUS = (Verb.CANCEL, Verb.KILL, Verb.ABANDON)
"""What is asked about before it is done."""

DONE = {
    Verb.QUEUE: "queued",
    Verb.RETRY: "retried",
    Verb.CANCEL: "cancelled",
    Verb.KILL: "killed",
    Verb.ABANDON: "abandoned",
}


# What may be done ---------------------------------------------------------------------------------


def possible(job: ContainerJob, verb: Verb) -> bool:
    """Does the job's state allow it, and was it not asked for already?"""
    if verb == Verb.ABANDON:
        return job.status == JobStatus.RUNNING and bool(able([job], verb))
    if verb == Verb.QUEUE:
        return job.status in lifecycle.QUEUEABLE and job.status not in lifecycle.RETRYABLE
    if verb == Verb.RETRY:
        return job.status in lifecycle.RETRYABLE and not job.managed_by
    if verb == Verb.KILL:
        return job.can_transition_to(JobStatus.KILLED) and job.kill_requested_at is None
    asked = job.kill_requested_at or job.cancel_requested_at
    return job.can_transition_to(JobStatus.CANCELLED) and asked is None


def able(jobs: Sequence[ContainerJob], verb: Verb) -> set[UUID]:
    """Those of these jobs for which it is possible, asked about together."""
    if verb == Verb.ABANDON:
        return lifecycle.abandonable([job.pk for job in jobs])
    return {job.pk for job in jobs if possible(job, verb)}


def buttons(job: ContainerJob, user: Any) -> list[dict[str, Any]]:
    """The verbs that this state and this person's rights allow."""
    if not access.may_change(user, job):
        return []
    return [
        {
            "verb": str(verb),
            "label": verb.label,
            "meaning": verb.meaning,
            "asks": verb in DANGEROUS,
            "url": reverse("admin:container_manager_containerjob_do", args=[verb]),
        }
        for verb in Verb
        if (verb != Verb.ABANDON or access.operates(user)) and possible(job, verb)
    ]


# How it stands ------------------------------------------------------------------------------------


def head(job: ContainerJob, user: Any) -> dict[str, Any]:
    """Everything that changes while the job lives, but its log."""
    attempts = list(job.attempts.order_by("-attempt")[:ATTEMPTS_SHOWN])
    explanation = explain(job)
    return {
        "job": job,
        "task": task_of(job) if job.managed_by else None,
        "explanation": explanation,
        "buttons": buttons(job, user),
        "changeable": access.may_change(user, job),
        "submits": access.operates(user),
        "attempts": [_attempt(each) for each in attempts],
        "history": history(job),
        "resources": list(resources(job, attempts[0] if attempts else None)),
        "live": not job.is_settled,
        "stopping": explanation.code == Code.STOPPING,
        "seen": seen(job, attempts, explanation),
    }


def task_of(job: ContainerJob) -> TaskInstance | None:
    """The task that a job belongs to."""
    kind, _, pk = job.managed_by.partition(":")
    try:
        task = UUID(pk)
    except ValueError:
        return None
    if kind != "task":
        return None
    tasks = TaskInstance.objects.filter(pk=task).select_related("dag_run__dag")
    return tasks.defer("dag_run__spec", "dag_run__dag__spec").first()


def seen(job: ContainerJob, attempts: Sequence[JobAttempt], explanation: Explanation) -> str:
    """Changes when what is shown does."""
    shown = [job.revision, explanation.as_json(), [str(each.updated_at) for each in attempts]]
    return hashlib.sha256(json.dumps(shown, default=str).encode()).hexdigest()[:16]


def _attempt(attempt: JobAttempt) -> dict[str, Any]:
    ended = attempt.ended_at or (attempt.updated_at if attempt.phase == Phase.DONE else None)
    length = ended - attempt.started_at if ended and attempt.started_at else None
    return {
        "row": attempt,
        "over": attempt.phase == Phase.DONE,
        "took": showing.span(max(length, timedelta(0))) if length is not None else "",
        "phase": Phase(attempt.phase) if attempt.phase in Phase.values else attempt.phase,
    }


def history(job: GuardedModel) -> list[dict[str, Any]]:
    """Its moves, the latest first, each with what came before it and how long that lasted."""
    rows = StateHistory.objects.get_history(job.entity_type, job.pk, MOVES_SHOWN + 1)
    return [
        {
            "row": row,
            "after": showing.span(row.changed_at - before.changed_at) if before else "",
            "reason": "" if row.reason in (row.new_state, Reason.EXIT_CODE) else row.reason,
            "told": list(_told(row)),
            "details": "\n".join(f"{name}: {value}" for name, value in _metadata(row).items()),
        }
        for row, before in zip(rows, [*rows[1:], None], strict=True)
    ][:MOVES_SHOWN]


def _metadata(row: StateHistory) -> dict[str, str]:
    """What a move's metadata says; all of it is told when pointed at."""
    known = row.metadata if isinstance(row.metadata, dict) else {}
    return {
        name.replace("_", " "): showing.visible(str(value)[:300])
        for name, value in known.items()
        if value not in (None, "")
    }


def _told(row: StateHistory) -> Iterator[str]:
    """What is written beside a move: how it ended, and what went wrong."""
    metadata = _metadata(row)
    yield from (f"{name} {metadata[name]}" for name in ("exit code", "signal") if name in metadata)
    if "requested by" in metadata:
        yield f"asked by {metadata['requested by']}"
    if "abandoned" in metadata:
        yield "abandoned"
    if "error" in metadata and row.reason != Reason.EXIT_CODE:
        yield metadata["error"]


def resources(job: ContainerJob, attempt: JobAttempt | None) -> Iterator[dict[str, str]]:
    """What was asked for, what was applied in the latest attempt, what it used."""
    applied = attempt.resolved if attempt else {}
    used_memory = showing.size(attempt.peak_memory_bytes) if attempt else ""
    used_cpu = f"{attempt.cpu_seconds:.2f} s" if attempt and attempt.cpu_seconds is not None else ""
    rows = (
        ("CPU", "cpu_limit", "{:g} cores", used_cpu),
        ("Memory", "memory_limit_mb", "{:g} MiB", used_memory),
        ("Processes", "pids_limit", "{:g}", ""),
    )
    for label, name, unit, used in rows:
        yield _resource(label, getattr(job, name), applied.get(name), unit, used)
    ran = showing.span(job.duration) if job.duration is not None else ""
    most = showing.span(job.timeout_seconds) or None
    yield _resource("Run time", most, None, "{}", ran)


def _resource(label: str, asked: Any, applied: Any, unit: str, used: str) -> dict[str, str]:
    return {
        "label": label,
        "asked": unit.format(asked) if asked is not None else "",
        "applied": unit.format(applied) if isinstance(applied, int | float) else "",
        "used": used,
    }


# Its log ------------------------------------------------------------------------------------------


def log(job: ContainerJob, attempt: int | None) -> dict[str, Any]:
    """The end of an attempt's log; without a number the latest, and the next when it comes."""
    number = job.attempt if attempt is None else attempt
    start = logs.start_of_tail(job.pk, number)
    shown = more_log(job, number, start, follows=attempt is None)
    emitted, omitted = _printed(job, number)
    return shown | {
        "skipped": sum(start.values()),
        "omitted": omitted,
        "emitted": emitted,
        "kept": emitted - omitted,
        "streams": list(Stream),
    }


def _printed(job: ContainerJob, attempt: int) -> tuple[int, int]:
    """Bytes that were printed, and those of them that were not kept."""
    row = JobAttempt.objects.filter(job=job, attempt=attempt).first()
    if row is None:
        return 0, 0
    return row.stdout_bytes + row.stderr_bytes, row.stdout_omitted + row.stderr_omitted


def more_log(
    job: ContainerJob, attempt: int, position: dict[str, int], *, follows: bool
) -> dict[str, Any]:
    """What was printed since, and whether to ask again."""
    over = logs.is_over(job, attempt)
    piece = logs.read(job.pk, attempt, position, ended=over)
    read_nothing = not piece.bits and not any(position.values())
    return {
        "job": job,
        "attempt": attempt,
        "piece": piece,
        "follows": follows,
        "over": over,
        "silent": over and read_nothing and _printed(job, attempt)[0] == 0,
        "polls": piece.more or not over or (follows and not job.is_settled),
    }
