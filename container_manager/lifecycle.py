"""THE SPINE: who changes a job? Only the verbs of this module (and the model's own methods).

People and programs:   submit  submit_all  amend  revise  enqueue  stop  retry  move  bring  prune
                       steer_queue  once
Operators:             abandon  abandon_one  end_unheld
Workers:               claim  progress  signalled  keep_chunks  finish  requests  release
                       cleaned_up
Dead workers:          orphans  adopt  note_unreachable
Upkeep:                requeue_due  expire_waiting  give_up_unproven  forget_keys

Questions: changeable  prunable  abandonable  not_abandoned  refused  verdict

Every verb that writes is one transaction. What a worker writes is fenced by its lease: "somebody
else holds it now" is an outcome that each verb returns, never an exception. No engine is called
from here.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from enum import Enum, StrEnum
from functools import reduce, wraps
from operator import or_
from typing import Any, ParamSpec, TypeVar
from uuid import UUID

from django.core.exceptions import ValidationError
from django.db import OperationalError, models, transaction
from django.db.models.functions import Cast, Coalesce, Greatest, Length, Now

from container_manager import retries
from container_manager.conf import settings
from container_manager.exceptions import (
    InvalidTransition,
    KeyReused,
    ManagedByTask,
    NotChangeable,
    StaleState,
    StillReached,
    StopRequested,
)
from container_manager.executors.base import Outcome
from container_manager.faults import reached
from container_manager.models import (
    ContainerJob,
    IdempotencyKey,
    JobAttempt,
    JobLog,
    Queue,
    StateHistory,
    Worker,
    acting_as,
    claims,
    leases,
    move_counts,
    sequencing,
    validators,
)
from container_manager.models.base import database_now
from container_manager.models.job import wake_workers
from container_manager.models.leases import Claimant, Lease
from container_manager.models.move_lines import kept_until_done
from container_manager.models.outcomes import (
    Ending,
    LogChunk,
    Progress,
    drop_chunks,
    end_attempts,
    end_jobs,
    note_cleaned_up,
    note_progress,
    note_release,
    note_signal,
    retry_jobs,
)
from container_manager.models.outcomes import keep_chunks as write_chunks
from container_manager.models.sql import storable
from container_manager.reports.fleet import seen_workers
from container_manager.states import Blame, JobStatus, Phase, Reason, StopKind, Stream

__all__ = [
    "Stopped",
    "abandon",
    "abandon_one",
    "abandonable",
    "adopt",
    "amend",
    "bring",
    "changeable",
    "claim",
    "cleaned_up",
    "end_unheld",
    "enqueue",
    "expire_waiting",
    "finish",
    "forget_keys",
    "give_up_unproven",
    "keep_chunks",
    "move",
    "not_abandoned",
    "note_unreachable",
    "once",
    "orphans",
    "progress",
    "prunable",
    "prune",
    "release",
    "requests",
    "requeue_due",
    "retry",
    "revise",
    "signalled",
    "steer_queue",
    "stop",
    "submit",
    "submit_all",
    "verdict",
]

logger = logging.getLogger("container_manager")

P = ParamSpec("P")
R = TypeVar("R")

Place = tuple[str, str]
"""Where an attempt runs: the executor's alias, and the id of the engine behind it."""

USING = "default"
TRIES = 8


def verb(function: Callable[P, R]) -> Callable[P, R]:
    """One transaction; begun again when the database says that it only got in another's way.

    The lines of its moves are logged when it is done.
    """

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        tried = 0
        while True:
            try:
                with kept_until_done(), transaction.atomic(using=USING):
                    return function(*args, **kwargs)
            except OperationalError as error:
                tried += 1
                if tried == TRIES or not _was_in_the_way(error):
                    raise
                time.sleep(random.uniform(0, 0.025 * 2**tried))  # noqa: S311

    return run


def _was_in_the_way(error: OperationalError) -> bool:
    state = getattr(error.__cause__, "sqlstate", None)
    nested = transaction.get_connection(USING).in_atomic_block
    return not nested and (state in ("40001", "40P01") or "database is locked" in str(error))


# People and programs ------------------------------------------------------------------------------


def submit(*, queue_now: bool = False, **wanted: Any) -> ContainerJob:
    """A new job, `pending` or with `queue_now` already queued. Raises ValidationError by field."""
    unknown = sorted(set(wanted) - SUBMITTABLE)
    if unknown:
        allowed = ", ".join(sorted(SUBMITTABLE))
        raise ValidationError(dict.fromkeys(unknown, f"Unknown field; there are {allowed}."))
    job = ContainerJob(**wanted)
    job.full_clean()
    stored = _insert(job, queue_now)
    reached("S2")
    return stored


@verb
def submit_all(jobs: Sequence[ContainerJob]) -> None:
    """Queue jobs that were checked by whoever made them; all or none."""
    for job in jobs:
        job.status = JobStatus.QUEUED
    ContainerJob.objects.bulk_create(jobs)


SUBMITTABLE = {
    *("name", "created_by", "labels", "image", "command", "working_dir", "environment"),
    *("pull_policy", "isolation", "executor", "network", "cpu_limit", "memory_limit_mb"),
    *("pids_limit", "timeout_seconds", "start_timeout_seconds", "queue_timeout_seconds"),
    *("stop_grace_seconds", "queue", "priority", "scheduled_for", "max_retries", "retry_policy"),
}
"""What a person may say of a new job."""


@verb
def _insert(job: ContainerJob, queue_now: bool) -> ContainerJob:
    job.save()
    if queue_now:
        job.mark_as_queued()
    reached("S1")
    return job


BEFORE_A_START = (JobStatus.PENDING, JobStatus.QUEUED, JobStatus.RETRYING, JobStatus.FAILED)
"""The states in which a next attempt may still read what the job asks for."""

ALWAYS_CHANGEABLE = {"name", "labels"}


def changeable(status: str) -> set[str]:
    """What a person may change of a job in that state."""
    return SUBMITTABLE - {"created_by"} if status in BEFORE_A_START else ALWAYS_CHANGEABLE


@verb
def amend(job_id: UUID, changes: Mapping[str, Any], *, revision: str | None = None) -> ContainerJob:
    """Change what is wanted of a job that has not got that far; with `revision` only that one.

    Raises DoesNotExist, StaleState, NotChangeable, ValidationError by field.
    """
    job: ContainerJob = ContainerJob.objects.select_for_update().get(pk=job_id)
    if revision not in (None, job.revision):
        raise StaleState(f"Job {job.pk} is at revision {job.revision}", entity=job, old=job.status)
    refused = sorted(set(changes) - changeable(job.status))
    if refused:
        raise NotChangeable.of(job, refused, changeable(job.status))
    if not changes:
        return job
    for name, value in changes.items():
        setattr(job, name, _unmasked(job, value) if name == "environment" else value)
    job.clean_fields(exclude={field.name for field in job._meta.fields} - set(changes))
    if not RUNS_WHERE.isdisjoint(changes):
        job.clean()
    if "max_retries" in changes:
        _refuse_fewer_than_used(job)
    job.save(update_fields=list(changes))
    if job.status == JobStatus.QUEUED:
        wake_workers(USING)
    return job


RUNS_WHERE = {"image", "executor", "isolation"}
"""What `ContainerJob.clean` looks at together."""


def _refuse_fewer_than_used(job: ContainerJob) -> None:
    """No worker would ever claim it again, and it would wait in the queue for good."""
    if job.max_retries < job.retry_count:
        used = f"Must be at least {job.retry_count}: so many retries were used."
        raise ValidationError({"max_retries": used})


def _unmasked(job: ContainerJob, environment: Any) -> Any:
    """With the stored value wherever the mask came back that values are shown as."""
    if not isinstance(environment, dict):
        return environment
    return {
        name: job.environment.get(name, value) if value == validators.MASK else value
        for name, value in environment.items()
    }


QUEUEABLE = (JobStatus.PENDING, JobStatus.RETRYING)
"""Where `enqueue` finds jobs."""

RETRYABLE = (JobStatus.FAILED, JobStatus.RETRYING)
"""Where `retry` finds jobs."""


class Kept(Enum):
    """In the place of a moment: whatever the job says already."""

    KEPT = "kept"


KEPT = Kept.KEPT


@verb
def enqueue(
    job_ids: Collection[UUID],
    *,
    actor: str = "system",
    scheduled_for: datetime | Kept | None = KEPT,
) -> int:
    """Put pending jobs into the queue, all or none; one that waits out its backoff, at once.

    Not before `scheduled_for`; None: now. Raises InvalidTransition.
    """
    jobs = ContainerJob.objects.filter(pk__in=job_ids).order_by("pk").select_for_update()
    by_status: dict[str, list[UUID]] = {status: [] for status in QUEUEABLE}
    for job in jobs:
        if job.status not in by_status:
            raise job._invalid(job.status, JobStatus.QUEUED)
        by_status[job.status].append(job.pk)
    given = {} if scheduled_for is KEPT else {"scheduled_for": scheduled_for}
    with acting_as(actor):
        return _queue(by_status[JobStatus.PENDING], **given) + _queue(
            by_status[JobStatus.RETRYING], **{"scheduled_for": None, **given}
        )


def _queue(pks: list[UUID], **change: Any) -> int:
    if not pks:
        return 0
    return ContainerJob.objects.filter(pk__in=pks).update(status=JobStatus.QUEUED, **change)


@verb
def move(job_id: UUID, status: JobStatus, *, actor: str = "system") -> ContainerJob:
    """Move by hand a job that no worker holds, as an import or a repair does.

    Raises DoesNotExist, InvalidTransition, HeldByWorker, ManagedByTask.
    """
    job: ContainerJob = ContainerJob.objects.select_for_update().get(pk=job_id)
    _refuse_managed(job, status)
    with acting_as(actor):
        job.transition_to(status)
    return job


def _refuse_managed(job: ContainerJob, status: JobStatus) -> None:
    """Whoever manages it has a record of its own, which must not be left behind."""
    if job.managed_by:
        raise ManagedByTask(entity=job, old=job.status, new=status)


@verb
def steer_queue(name: str, **decided: Any) -> Queue:
    """Pause, resume or limit a queue: `paused`, `max_running`. Raises ValidationError by field."""
    asked = Queue(name=name, **decided)
    asked.clean_fields()  # before a database is asked for a name that it cannot hold
    Queue.objects.bulk_create([Queue(name=name)], ignore_conflicts=True)
    queue = Queue.objects.select_for_update().get(name=name)
    for field, value in decided.items():
        setattr(queue, field, value)
    queue.full_clean()
    queue.save()
    wake_workers(USING)
    return queue


class Stopped(StrEnum):
    """What came of asking a job to stop."""

    DONE = "done"
    """It did not run: it is cancelled or killed now."""
    REQUESTED = "requested"
    """A worker holds it: the request is written down, and the worker acts on it."""
    REQUESTED_BEFORE = "requested_before"
    """The same or a stronger request was made before."""
    NOT_TRIED = "not_tried"
    """The database went away before it was asked; ask again."""
    REFUSED = "refused"
    """Its state does not allow it."""
    UNKNOWN = "unknown"
    """There is no such job."""


_STOPPED_STATUS = {StopKind.KILL: JobStatus.KILLED, StopKind.CANCEL: JobStatus.CANCELLED}


@verb
def stop(job_ids: Sequence[UUID], kind: StopKind, *, actor: str = "system") -> dict[UUID, Stopped]:
    """Kill or cancel: at once where nothing runs, else by a request that survives any crash."""
    jobs = ContainerJob.objects.filter(pk__in=job_ids).order_by("pk").select_for_update()
    found = {job.pk: job for job in jobs}
    active = JobAttempt.objects.active().filter(job__in=found.keys())
    held = set(active.values_list("job_id", flat=True))
    results = {pk: _way_to_stop(job, kind, pk in held) for pk, job in found.items()}
    with acting_as(actor):
        _those(results, Stopped.DONE).update(status=_STOPPED_STATUS[kind])
    if Stopped.REQUESTED in results.values():
        stamp = {_REQUESTED_AT[kind]: database_now(USING), _REQUESTED_BY[kind]: actor}
        _those(results, Stopped.REQUESTED).update(**stamp)
        wake_workers(USING)
    return {pk: results.get(pk, Stopped.UNKNOWN) for pk in job_ids}


_REQUESTED_AT = {StopKind.KILL: "kill_requested_at", StopKind.CANCEL: "cancel_requested_at"}
_REQUESTED_BY = {StopKind.KILL: "kill_requested_by", StopKind.CANCEL: "cancel_requested_by"}


def _way_to_stop(job: ContainerJob, kind: StopKind, held: bool) -> Stopped:
    if held and job.status == JobStatus.RUNNING:
        asked = job.kill_requested_at or (kind == StopKind.CANCEL and job.cancel_requested_at)
        return Stopped.REQUESTED_BEFORE if asked else Stopped.REQUESTED
    return Stopped.DONE if job.can_transition_to(_STOPPED_STATUS[kind]) else Stopped.REFUSED


def _those(results: dict[UUID, Stopped], word: Stopped) -> models.QuerySet[ContainerJob]:
    return ContainerJob.objects.filter(pk__in=[pk for pk, came in results.items() if came == word])


@verb
def retry(
    job_ids: Collection[UUID],
    *,
    actor: str = "system",
    scheduled_for: datetime | None = None,
    by_manager: bool = False,
) -> int:
    """Queue failed jobs again, all or none; a person's retry does not use up the job's own.

    A job that waits out its backoff is queued at once, or for `scheduled_for`. What is managed by
    something else only that may retry, `by_manager`. Raises InvalidTransition, ManagedByTask.
    """
    jobs = ContainerJob.objects.filter(pk__in=job_ids).order_by("pk").select_for_update()
    for job in jobs:
        if job.status not in RETRYABLE:
            raise job._invalid(job.status, JobStatus.RETRYING)
        if not by_manager:
            _refuse_managed(job, JobStatus.RETRYING)
    with acting_as(actor):
        ContainerJob.objects.filter(pk__in=job_ids, status=JobStatus.FAILED).update(
            status=JobStatus.RETRYING
        )
        return ContainerJob.objects.filter(pk__in=job_ids).update(
            status=JobStatus.QUEUED, scheduled_for=scheduled_for, infra_retry_count=0
        )


@verb
def bring(
    job_id: UUID,
    status: JobStatus,
    *,
    actor: str = "system",
    scheduled_for: datetime | Kept | None = KEPT,
    revision: str | None = None,
) -> Stopped:
    """Ask one job to come to `status`, by the verb of that name; or say why it cannot.

    `retrying` ends in `queued`. DONE, or REQUESTED where its worker must stop it first. With
    `revision` only that one.
    Raises DoesNotExist, StaleState, InvalidTransition, HeldByWorker, StopRequested.
    """
    if revision is not None:
        amend(job_id, {}, revision=revision)
    if status in _STOPPED_BY:
        return _bring_to_a_stop(job_id, _STOPPED_BY[status], actor)
    if status == JobStatus.QUEUED:
        found = enqueue([job_id], actor=actor, scheduled_for=scheduled_for)
    elif status == JobStatus.RETRYING:
        when = None if scheduled_for is KEPT else scheduled_for
        found = retry([job_id], actor=actor, scheduled_for=when)
    else:
        found = len([move(job_id, status, actor=actor)])
    if not found:
        raise ContainerJob.DoesNotExist(f"Job {job_id} was deleted")
    return Stopped.DONE


_STOPPED_BY = {status: kind for kind, status in _STOPPED_STATUS.items()}


def _bring_to_a_stop(job_id: UUID, kind: StopKind, actor: str) -> Stopped:
    came = stop([job_id], kind, actor=actor)[job_id]
    if came in (Stopped.DONE, Stopped.REQUESTED):
        return came
    job: ContainerJob = ContainerJob.objects.get(pk=job_id)
    if came == Stopped.REQUESTED_BEFORE:
        raise StopRequested(entity=job, old=job.status, new=_STOPPED_STATUS[kind])
    raise refused(job, kind)


@verb
def revise(
    job_id: UUID,
    changes: Mapping[str, Any],
    status: JobStatus | None = None,
    *,
    revision: str | None = None,
    actor: str = "system",
) -> Stopped:
    """Change what is wanted of a job and bring it to `status`: both or neither.

    Raises what `amend` and `bring` raise.
    """
    when = changes.get("scheduled_for", KEPT)
    amend(job_id, changes, revision=revision)
    if status is None:
        return Stopped.DONE
    return bring(job_id, status, actor=actor, scheduled_for=when)


@verb
def once(scope: str, key: str, body_hash: str, act: Callable[[], Any]) -> tuple[Any, bool]:
    """Act for the first bearer of this key; the others get the answer that the first one got.

    Returns the answer, and whether it is the first. What `act` writes and the key are one
    transaction: where it fails, the key is free again. Raises KeyReused.
    """
    kept, first = IdempotencyKey.objects.take(
        scope,
        key,
        body_hash,
        database_now(USING),
        timedelta(seconds=settings.IDEMPOTENCY_SECONDS),
    )
    if first:
        kept.answer = act()
        kept.save(update_fields=["answer"])
    elif kept.body_hash != body_hash:
        raise KeyReused
    return kept.answer, first


def prunable(
    jobs: models.QuerySet[ContainerJob], *, by_manager: bool = False
) -> models.QuerySet[ContainerJob]:
    """Those of `jobs` that are settled and have left nothing behind on any engine.

    What is managed by something else goes with that, `by_manager`.
    """
    left = JobAttempt.objects.filter(job=models.OuterRef("pk"), cleaned_up=False)
    own = jobs if by_manager else jobs.filter(managed_by="")
    return own.settled().exclude(models.Exists(left))  # type: ignore[attr-defined, no-any-return]


def prune(
    job_ids: Collection[UUID], *, keep_history: bool = False, by_manager: bool = False
) -> set[UUID]:
    """Delete these jobs with attempts, logs and history, those that are prunable; returns which.

    What happened to them has its place among the events before, and is told all the same.
    """
    tell_what_happened()
    return _prune(job_ids, keep_history=keep_history, by_manager=by_manager)


def tell_what_happened() -> None:
    """Before histories are deleted: give moves their places, and count them.

    Outside of a transaction it takes as many short ones as it needs; only the rest is left for the
    one that deletes.
    """
    sequencing.take_all()
    move_counts.fold_all()


@verb
def _prune(job_ids: Collection[UUID], *, keep_history: bool, by_manager: bool) -> set[UUID]:
    jobs = prunable(ContainerJob.objects.filter(pk__in=job_ids), by_manager=by_manager)
    rows = jobs.order_by("pk").select_for_update(of=("self",))
    gone = set(rows.values_list("pk", flat=True))
    tell_what_happened()
    ContainerJob.objects.filter(pk__in=gone).delete()
    if not keep_history:
        StateHistory.objects.filter(
            entity_type=ContainerJob.entity_type, entity_id__in=gone
        ).delete()
    return gone


# Giving up ----------------------------------------------------------------------------------------


@verb
def abandon(job_ids: Collection[UUID], *, actor: str = "system") -> dict[UUID, Stopped]:
    """Fail as `unproven` those of these jobs that nobody can reach; no retry follows by itself.

    REFUSED where the engine answers or no worker ever held it: `not_abandoned` says why. What is
    left of them is killed when their engine is back.
    """
    active = _running_attempts().filter(job__in=job_ids).order_by("pk")
    lost = _unreached(list(active.select_for_update(of=("self",))))
    _give_up(lost, actor, {"abandoned": True})
    results = dict.fromkeys(_existing(job_ids), Stopped.REFUSED)
    results |= dict.fromkeys((attempt.job_id for attempt in lost), Stopped.DONE)
    return {pk: results.get(pk, Stopped.UNKNOWN) for pk in job_ids}


@verb
def abandon_one(job_id: UUID, *, revision: str | None = None, actor: str = "system") -> None:
    """The same of one job; with `revision` only that one.

    Raises DoesNotExist, StaleState, InvalidTransition, StillReached.
    """
    job = amend(job_id, {}, revision=revision)
    if abandon([job_id], actor=actor)[job_id] != Stopped.DONE:
        raise not_abandoned(job)


def abandonable(job_ids: Collection[UUID]) -> set[UUID]:
    """Those of these jobs that `abandon` would give up now."""
    active = _running_attempts().filter(job__in=job_ids)
    return {attempt.job_id for attempt in _unreached(list(active))}


def not_abandoned(job: ContainerJob) -> InvalidTransition | StillReached:
    """The error for a job that cannot be abandoned: what to do instead."""
    if job.status != JobStatus.RUNNING:
        return refused(job, JobStatus.FAILED)
    attempt = _running_attempts().filter(job=job.pk).first()
    if attempt is None:
        return StillReached("No worker holds it: cancel and kill act at once", entity=job)
    where = f"engine {attempt.executor}" if attempt.executor else "engine"
    message = f"Its {where} answers (worker {attempt.worker_name}): cancel or kill it instead"
    return StillReached(message, entity=job, old=job.status, new=JobStatus.FAILED)


def _running_attempts() -> models.QuerySet[JobAttempt]:
    return JobAttempt.objects.active().filter(job__status=JobStatus.RUNNING)


def _existing(job_ids: Collection[UUID]) -> list[UUID]:
    return list(ContainerJob.objects.filter(pk__in=job_ids).values_list("pk", flat=True))


def _unreached(attempts: list[JobAttempt]) -> list[JobAttempt]:
    """Those whose engine is away; and those of no living worker that none can go on with."""
    living = _living_workers() if attempts else []
    holders = {worker.pk for worker in living}
    reached = _reached_by(living)
    return [
        attempt
        for attempt in attempts
        if attempt.unreachable_since is not None
        or (
            attempt.worker_id not in holders
            and (attempt.executor, attempt.engine_id) not in reached
        )
    ]


def _living_workers() -> list[Worker]:
    return [seen.row for seen in seen_workers() if seen.alive]


def _reached_by(workers: Iterable[Worker]) -> set[Place]:
    return {
        (alias, offer["engine_id"])
        for worker in workers
        for alias, offer in worker.offers.items()
        if offer.get("available")
    }


def _at(places: Iterable[Place]) -> models.Q:
    """Attempts on these engines, each under its alias; on none when there are none."""
    return reduce(or_, (models.Q(executor=a, engine_id=e) for a, e in places), models.Q(pk__in=[]))


def _give_up(attempts: Collection[JobAttempt], actor: str, told: dict[str, Any]) -> int:
    """End these locked attempts, whose workers are fenced from now on, and fail their jobs."""
    why = {"reason": Reason.UNPROVEN, "error": Reason.UNPROVEN.meaning}
    _end_unproven([attempt.pk for attempt in attempts], **why)
    pks = [attempt.job_id for attempt in attempts]
    info = {"metadata": told}
    return _moved_by(actor, pks, JobStatus.FAILED, transition_info=info, **why)


def _end_unproven(attempt_ids: Collection[UUID], **evidence: Any) -> int:
    """Nobody holds them any more; of their output there is what was stored."""
    stored = _stored_of(Stream.STDOUT) | _stored_of(Stream.STDERR)
    return JobAttempt.objects.filter(pk__in=attempt_ids).update(
        phase=Phase.DONE,
        lease_epoch=models.F("lease_epoch") + 1,
        updated_at=database_now(USING),
        **{"blame": Blame.INFRA, **stored, **evidence},
    )


def _stored_of(stream: Stream) -> dict[str, Any]:
    """The counts of an attempt's stream, as far as its stored output tells them."""
    chunks = JobLog.objects.filter(
        job=models.OuterRef("job"), attempt=models.OuterRef("attempt"), stream=stream
    )
    per_attempt = chunks.order_by().values("job")
    size = Length("data")
    end = per_attempt.annotate(n=models.Max(models.F("offset") + size)).values("n")
    kept = per_attempt.annotate(n=models.Sum(size)).values("n")
    emitted, whole = _or_zero(end), _or_zero(kept)
    return {f"{stream}_bytes": emitted, f"{stream}_omitted": emitted - whole}


def _or_zero(query: models.QuerySet[Any, Any]) -> Coalesce:
    return Coalesce(models.Subquery(query), 0, output_field=models.BigIntegerField())


@verb
def end_unheld(job_ids: Collection[UUID]) -> int:
    """End attempts that are held though their job has moved on: a repair of contradicting rows.

    The latest attempt of an ended job gets that job's result, of the others nothing is known.
    """
    wrong = ~models.Q(job__status=JobStatus.RUNNING) | ~models.Q(attempt=models.F("job__attempt"))
    held = JobAttempt.objects.active().filter(wrong, job__in=job_ids).order_by("pk")
    ended = 0
    for attempt in held.select_for_update(of=("self",)).select_related("job"):
        ended += _end_unproven([attempt.pk], **_result_of(attempt))
    return ended


def _result_of(attempt: JobAttempt) -> dict[str, Any]:
    job = attempt.job
    if attempt.attempt != job.attempt or job.launched_at is None or job.completed_at is None:
        return {"reason": Reason.UNPROVEN, "error": Reason.UNPROVEN.meaning}
    proven = job.exit_code is not None or bool(job.reason)
    reason = Reason(job.reason) if job.reason else (None if proven else Reason.UNPROVEN)
    return {
        "exit_code": job.exit_code,
        "oom_killed": job.oom_killed,
        "reason": reason or "",
        "error": job.error,
        "blame": reason.blame if reason else "",
    }


# Workers ------------------------------------------------------------------------------------------


def claim(claimant: Claimant, limit: int) -> list[Lease]:
    """At most `limit` jobs that are this worker's now."""
    return claims.claim(USING, claimant, limit)


@verb
def progress(claimant: Claimant, steps: Sequence[Progress]) -> set[UUID]:
    """Write how far attempts have come; returns the jobs that are still held."""
    return note_progress(USING, claimant, steps)


@verb
def signalled(claimant: Claimant, held: Sequence[Lease], kind: StopKind) -> set[UUID]:
    """Write that attempts are about to be signalled; returns those that may be."""
    steps = [Progress(**lease.key, phase=Phase.STOPPING, stop_kind=kind) for lease in held]
    mine = note_progress(USING, claimant, steps)
    return mine & note_signal(USING, claimant, [lease.key for lease in held])


@verb
def keep_chunks(
    claimant: Claimant,
    chunks: Sequence[LogChunk],
    fallen: Iterable[tuple[Lease, str, int, int]] = (),
) -> None:
    """Store output of held attempts, and forget what fell out of the kept tail."""
    write_chunks(USING, claimant, chunks)
    for lease, stream, start, end in fallen:
        drop_chunks(USING, claimant, lease, stream, start, end)


@verb
def release(claimant: Claimant, held: Sequence[Lease | Ending]) -> set[UUID]:
    """Let go of attempts without ending them: they are orphans at once."""
    return note_release(USING, claimant, [lease.key for lease in held])


def requests(job_ids: Collection[UUID]) -> dict[UUID, StopKind]:
    """The strongest stop that people asked for, of those jobs that were asked to stop."""
    asked = ContainerJob.objects.filter(pk__in=job_ids).filter(
        models.Q(kill_requested_at__isnull=False) | models.Q(cancel_requested_at__isnull=False)
    )
    return {
        pk: StopKind.KILL if killed else StopKind.CANCEL
        for pk, killed in asked.values_list("pk", "kill_requested_at")
    }


@verb
def finish(claimant: Claimant, endings: Sequence[Ending]) -> set[UUID]:
    """Write ends, as many as there are: evidence, the job's move, its retry. One statement each.

    Returns the jobs whose attempt was this worker's; of the others nothing was written.
    """
    mine = end_attempts(USING, claimant, endings)
    held = [ending for ending in endings if ending.job_id in mine]
    ended = end_jobs(USING, claimant, held)
    reached("T1")
    retried = retry_jobs(
        USING, claimant, [ending for ending in held if ending.retry and ending.job_id in ended]
    )
    at_once = [each.job_id for each in held if each.retry_at_once and each.job_id in retried]
    _queue_at_once(claimant, at_once)
    return mine


def _queue_at_once(claimant: Claimant, job_ids: list[UUID]) -> None:
    if job_ids:
        with acting_as(claimant.actor):
            ContainerJob.objects.filter(pk__in=job_ids).update(status=JobStatus.QUEUED)


@verb
def cleaned_up(ended: Sequence[dict[str, Any]]) -> None:
    """Write that the ended attempts of these keys left nothing behind on their engines."""
    note_cleaned_up(USING, ended)


def verdict(outcome: Outcome, stopped: StopKind | None) -> tuple[JobStatus, Reason | None]:
    """The state and reason of an end; `stopped` is the strongest stop that reached it alive.

    >>> from container_manager.states import StopKind
    >>> verdict(Outcome(exit_code=0), StopKind.CANCEL)[0].value
    'cancelled'
    >>> verdict(Outcome(exit_code=0), None)[0].value
    'completed'
    """
    if stopped is not None:
        return _STOPPED_AS[stopped]
    if outcome.reason is None and outcome.exit_code == 0:
        return JobStatus.COMPLETED, None
    return JobStatus.FAILED, outcome.reason or Reason.EXIT_CODE


_STOPPED_AS: dict[StopKind, tuple[JobStatus, Reason | None]] = {
    StopKind.KILL: (JobStatus.KILLED, Reason.KILLED),
    StopKind.CANCEL: (JobStatus.CANCELLED, Reason.CANCELLED),
    StopKind.TIMEOUT: (JobStatus.FAILED, Reason.TIMEOUT),
    StopKind.DRAIN: (JobStatus.FAILED, Reason.WORKER_STOPPED),
}


def ending(lease: Lease, outcome: Outcome, stopped: StopKind | None, **evidence: Any) -> Ending:
    """What `finish` writes for such an outcome: the verdict, and the retry that follows from it."""
    status, reason = verdict(outcome, stopped)
    again = _next_attempt(lease, outcome, reason) if status == JobStatus.FAILED else None
    if status == JobStatus.FAILED and again is None and reason is not None:
        most = settings.MAX_INFRA_RETRIES
        poisoned = retries.is_poison(reason, lease.infra_retry_count, most)
        reason = Reason.POISON if poisoned else reason
    return Ending(
        **lease.key,
        status=status,
        reason=reason or "",
        exit_code=outcome.exit_code,
        signal=outcome.signal,
        oom_killed=outcome.oom_killed,
        error=_error(outcome, reason),
        started_at=outcome.started_at,
        ended_at=outcome.ended_at,
        peak_memory_bytes=outcome.peak_memory_bytes,
        cpu_seconds=outcome.cpu_seconds,
        retry=again is not None,
        retry_infra=again is not None and again.infra,
        retry_delay=again.delay_seconds if again else 0.0,
        memory_limit_mb=_memory_of_next(lease, again),
        retry_at_once=stopped == StopKind.DRAIN,
        **evidence,
    )


def _memory_of_next(lease: Lease, again: retries.Retry | None) -> int | None:
    """What the next attempt may use; None leaves it as it is."""
    applied = lease.applied.get("memory_limit_mb", lease.memory_limit_mb)
    if again is None or again.memory_factor == 1.0 or applied is None:
        return None
    wanted = int(applied * again.memory_factor)
    return min(max(wanted, validators.MIN_MEMORY_MB), validators.MAX_MEMORY_MB)


def _policy_of(lease: Lease) -> retries.RetryPolicy:
    """A policy that nobody can read any more must not keep a job from ending."""
    try:
        return retries.read_policy(lease.retry_policy, settings.RETRY_POLICIES)
    except retries.PolicyError as error:
        logger.warning("Job %s: retry_policy: %s; the default is used", lease.job_id, error)
        return retries.BUILT_IN["default"]


_chances = retries.Chances(random.random())  # noqa: S311


def _next_attempt(lease: Lease, outcome: Outcome, reason: Reason | None) -> retries.Retry | None:
    return retries.decide(
        _policy_of(lease),
        reason=reason or Reason.EXIT_CODE,
        exit_code=outcome.exit_code,
        retries_left=lease.retry_count < lease.max_retries,
        retry_count=lease.retry_count,
        infra_retry_count=lease.infra_retry_count,
        max_infra_retries=settings.MAX_INFRA_RETRIES,
        chance=_chances.next(),
    )


def _error(outcome: Outcome, reason: Reason | None) -> str:
    """What there is to say, also of a good end: that some of its output may be missing."""
    said = reason.meaning if reason not in (None, Reason.EXIT_CODE) else ""
    return storable(outcome.error) or said


# Dead workers -------------------------------------------------------------------------------------


def orphans(
    dead: Collection[UUID],
    places: Collection[Place],
    limit: int,
    *,
    own: UUID | None = None,
    under_way: Collection[UUID] = (),
) -> list[JobAttempt]:
    """Attempts on these engines whose worker is dead, has no row any more, or let them go.

    Of the worker `own` those that it does not have `under_way`: the answer to a claim was lost.
    """
    others = Worker.objects.exclude(pk__in=[*dead, own] if own else dead)
    active = JobAttempt.objects.active().filter(_at(places))
    abandoned = active.exclude(worker_id__in=others.values("pk"))
    unknown = abandoned.exclude(worker_id=own, job_id__in=under_way) if own else abandoned
    return list(unknown.order_by("created_at")[:limit])


@verb
def adopt(claimant: Claimant, attempts: Iterable[JobAttempt]) -> list[Lease]:
    """Make orphaned attempts this worker's; of each, one adopter wins, the others get nothing."""
    return leases.take_over(USING, claimant, attempts)


@verb
def note_unreachable(dead: Collection[UUID]) -> int:
    """Write on orphans whose engine no living worker reaches since when that is so."""
    living = Worker.objects.exclude(pk__in=dead)
    orphaned = JobAttempt.objects.active().exclude(worker_id__in=living.values("pk"))
    alone = orphaned.filter(~_at(_reached_by(living)), unreachable_since__isnull=True)
    return alone.update(unreachable_since=database_now(USING))


# Upkeep -------------------------------------------------------------------------------------------


@verb
def requeue_due(limit: int = 500) -> int:
    """Queue the retries whose backoff is over."""
    due = models.Q(scheduled_for__isnull=True) | models.Q(scheduled_for__lte=Now())
    rows = ContainerJob.objects.filter(due, status=JobStatus.RETRYING).order_by("pk")
    pks = list(rows.select_for_update(skip_locked=True).values_list("pk", flat=True)[:limit])
    return _as_upkeep(pks, JobStatus.QUEUED)


@verb
def expire_waiting(limit: int = 500) -> int:
    """Cancel jobs that have waited in the queue longer than they may."""
    limited = models.Q(status=JobStatus.QUEUED, queue_timeout_seconds__isnull=False)
    late = ContainerJob.objects.filter(limited).alias(patient_until=_PATIENT_UNTIL)
    rows = late.filter(patient_until__lt=Now()).order_by("pk")
    pks = list(rows.select_for_update(skip_locked=True).values_list("pk", flat=True)[:limit])
    return _as_upkeep(pks, JobStatus.CANCELLED, reason=Reason.QUEUE_TIMEOUT)


_WAITS_SINCE = Greatest("queued_at", Coalesce("scheduled_for", "queued_at"))
_SECONDS = Cast("queue_timeout_seconds", models.IntegerField())
_PATIENCE = models.ExpressionWrapper(
    _SECONDS * models.Value(timedelta(seconds=1)), models.DurationField()
)
_PATIENT_UNTIL = models.ExpressionWrapper(_WAITS_SINCE + _PATIENCE, models.DateTimeField())


@verb
def forget_keys(limit: int = 500) -> int:
    """Delete Idempotency-Keys that have expired."""
    late = IdempotencyKey.objects.filter(expires_at__lte=database_now(USING)).order_by("pk")
    pks = list(late.select_for_update(skip_locked=True).values_list("pk", flat=True)[:limit])
    return IdempotencyKey.objects.filter(pk__in=pks).delete()[0]


@verb
def give_up_unproven(seconds: float, limit: int = 500) -> int:
    """Fail as `unproven` what nobody could reach for so long.

    Not orphans whose engine answers a living worker by now: it will adopt them. Its worker, should
    it still live, is fenced; what is left of it is removed when its engine is back.
    """
    since = database_now(USING) - timedelta(seconds=seconds)
    late = _running_attempts().filter(unreachable_since__lt=since)
    if not late.exists():
        return 0
    living = _living_workers()
    held = models.Q(worker_id__in=[worker.pk for worker in living])
    lost = late.filter(held | ~_at(_reached_by(living))).order_by("pk")
    rows = list(lost.select_for_update(of=("self",), skip_locked=True)[:limit])
    return _give_up(rows, "upkeep", {"lost_after_seconds": seconds})


def _as_upkeep(pks: list[UUID], status: JobStatus, **change: Any) -> int:
    return _moved_by("upkeep", pks, status, **change)


def _moved_by(actor: str, pks: list[UUID], status: JobStatus, **change: Any) -> int:
    if not pks:
        return 0
    with acting_as(actor):
        return ContainerJob.objects.filter(pk__in=pks).update(status=status, **change)


def refused(job: ContainerJob, asked: StopKind | JobStatus) -> InvalidTransition:
    """The error for a stop or a move that the job's state does not allow."""
    target = _STOPPED_STATUS[asked] if isinstance(asked, StopKind) else asked
    return job._invalid(job.status, target)
