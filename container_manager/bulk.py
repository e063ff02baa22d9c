"""One verb on many jobs: each gets its result, whatever comes of the others.

`lifecycle` moves jobs; this decides how a batch of them is asked, and says what came of each in the
same words to the API, the admin and the commands.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any
from uuid import UUID

from django.db import InterfaceError, OperationalError

from container_manager import lifecycle
from container_manager.exceptions import MoveRefused
from container_manager.lifecycle import Stopped
from container_manager.models import ContainerJob, access
from container_manager.models.base import batched
from container_manager.states import JobStatus, StopKind, Words

BATCH = 500
"""Jobs that one call of a verb is asked about."""


class Verb(Words):
    """What can be asked of many jobs at once."""

    QUEUE = "queue", "Put it into the queue."
    RETRY = "retry", "Queue a failed job again, now."
    CANCEL = "cancel", "Withdraw it; if it runs, it is asked to stop."
    KILL = "kill", "Stop it by force."
    ABANDON = "abandon", "Give it up: nobody can reach its engine. For operators."


@dataclass(frozen=True)
class Result:
    """What came of one verb on one job."""

    job_id: UUID
    word: str
    """What `lifecycle.Stopped` says; a rehearsal has a word of its own."""
    detail: str = ""
    good: bool = True

    def as_json(self) -> dict[str, str]:
        return {"id": str(self.job_id), "result": str(self.word), "detail": self.detail}


def act(verb: Verb, job_ids: Iterable[UUID], *, actor: str, user: Any = None) -> Iterator[Result]:
    """Do it to these jobs, and say what came of each, in their order; one named twice, once.

    `user`: the person who asks; jobs that he may not see do not exist. None: everything is allowed.
    A database that goes away half way is told for the jobs that it cost, not for those before.
    """
    batches = batched(list(dict.fromkeys(job_ids)), BATCH)
    for number, batch in enumerate(batches):
        try:
            came = _of_batch(verb, batch, actor, user)
        except (OperationalError, InterfaceError):
            if not number:
                raise
            yield from (_bad(pk, Stopped.NOT_TRIED, _SAYS[Stopped.NOT_TRIED]) for pk in batch)
        else:
            yield from (came[pk] for pk in batch)


def _of_batch(verb: Verb, batch: Sequence[UUID], actor: str, user: Any) -> dict[UUID, Result]:
    refused = _not_for(user, verb, batch) if user is not None else {}
    allowed = [pk for pk in batch if pk not in refused]
    asked = _ACTS[verb](allowed, actor) if allowed else ()
    return refused | {result.job_id: result for result in asked}


def _not_for(user: Any, verb: Verb, batch: Sequence[UUID]) -> dict[UUID, Result]:
    jobs = ContainerJob.objects.visible_to(user).only("created_by").in_bulk(batch)
    results = {}
    for pk in batch:
        if pk not in jobs:
            results[pk] = _bad(pk, Stopped.UNKNOWN, "there is no such job")
        elif not access.may_change(user, jobs[pk]):
            results[pk] = _bad(pk, Stopped.REFUSED, "you may see it, but not change it")
        elif verb == Verb.ABANDON and not access.operates(user):
            results[pk] = _bad(pk, Stopped.REFUSED, "only operators may abandon a job")
    return results


def _bad(pk: UUID, word: Stopped, detail: str) -> Result:
    return Result(pk, word, detail, good=False)


# Stopping -----------------------------------------------------------------------------------------


def _stop(kind: StopKind, job_ids: Sequence[UUID], actor: str) -> Iterator[Result]:
    came = lifecycle.stop(job_ids, kind, actor=actor)
    refused = [pk for pk, word in came.items() if word == Stopped.REFUSED]
    now = _states_of(refused) if refused else {}
    for pk, word in came.items():
        why = str(lifecycle.refused(now[pk], kind)) if pk in now else ""
        detail = _STOPPED_AS[kind] if word == Stopped.DONE else why or _SAYS.get(word, "")
        yield Result(pk, word, detail, word in (Stopped.DONE, Stopped.REQUESTED))


_STOPPED_AS = {StopKind.CANCEL: "cancelled", StopKind.KILL: "killed"}
_SAYS = {
    Stopped.REQUESTED: "its worker stops it",
    Stopped.REQUESTED_BEFORE: "asked to stop before, its worker stops it",
    Stopped.UNKNOWN: "it was deleted",
    Stopped.NOT_TRIED: "the database did not answer; ask again",
}


# Giving up ----------------------------------------------------------------------------------------


def _abandon(job_ids: Sequence[UUID], actor: str) -> Iterator[Result]:
    came = lifecycle.abandon(job_ids, actor=actor)
    refused = [pk for pk, word in came.items() if word == Stopped.REFUSED]
    now = _states_of(refused)
    for pk, word in came.items():
        if word == Stopped.DONE:
            yield Result(pk, word, "failed; what is left is killed when its engine is back")
        elif pk in now:
            yield _bad(pk, word, str(lifecycle.not_abandoned(now[pk])))
        else:
            yield _bad(pk, Stopped.UNKNOWN, _SAYS[Stopped.UNKNOWN])


# Queueing -----------------------------------------------------------------------------------------


def _queue(job_ids: Sequence[UUID], actor: str) -> Iterator[Result]:
    verb = partial(lifecycle.enqueue, actor=actor)
    return _where_it_can(job_ids, lifecycle.QUEUEABLE, JobStatus.QUEUED, verb)


def _retry(job_ids: Sequence[UUID], actor: str) -> Iterator[Result]:
    verb = partial(lifecycle.retry, actor=actor)
    return _where_it_can(job_ids, lifecycle.RETRYABLE, JobStatus.RETRYING, verb)


def _where_it_can(
    job_ids: Sequence[UUID],
    states: Collection[JobStatus],
    target: JobStatus,
    verb: Callable[[Sequence[UUID]], int],
) -> Iterator[Result]:
    """An all-or-nothing verb: on all at once, and where it refuses, on those that can."""
    try:
        moved = verb(job_ids)
    except MoveRefused as refused:
        if len(job_ids) == 1:
            yield _bad(job_ids[0], Stopped.REFUSED, str(refused))
        else:
            yield from _apart(job_ids, states, target, verb)
        return
    there = set(job_ids) if moved == len(job_ids) else set(_states_of(job_ids))
    for pk in job_ids:
        if pk in there:
            yield Result(pk, Stopped.DONE, "queued")
        else:
            yield _bad(pk, Stopped.UNKNOWN, _SAYS[Stopped.UNKNOWN])


def _apart(
    job_ids: Sequence[UUID],
    states: Collection[JobStatus],
    target: JobStatus,
    verb: Callable[[Sequence[UUID]], int],
) -> Iterator[Result]:
    """Refuse those whose state does not allow it; if all states do, they just moved: one by one."""
    jobs = _states_of(job_ids)
    able = [pk for pk in job_ids if pk not in jobs or jobs[pk].status in states]
    for pk in set(job_ids) - set(able):
        yield _bad(pk, Stopped.REFUSED, str(lifecycle.refused(jobs[pk], target)))
    for part in [able] if len(able) < len(job_ids) else [[pk] for pk in able]:
        if part:
            yield from _where_it_can(part, states, target, verb)


def _states_of(job_ids: Sequence[UUID]) -> dict[UUID, ContainerJob]:
    return ContainerJob.objects.only("status").in_bulk(job_ids)


_ACTS: dict[Verb, Callable[[Sequence[UUID], str], Iterator[Result]]] = {
    Verb.QUEUE: _queue,
    Verb.RETRY: _retry,
    Verb.CANCEL: partial(_stop, StopKind.CANCEL),
    Verb.KILL: partial(_stop, StopKind.KILL),
    Verb.ABANDON: _abandon,
}
