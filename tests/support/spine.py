"""Words for tests of the spine: a worker that claims, what it holds, how that ends."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

from django.db import connection

from container_manager import consistency, faults, ids, lifecycle
from container_manager.executors.base import Outcome
from container_manager.models import ContainerJob, StateHistory
from container_manager.models.leases import Claimant, Lease, Offer
from container_manager.models.outcomes import Ending
from container_manager.states import Reason, StopKind
from tests.factories import JobFactory

T = TypeVar("T")

ENGINE = "engine-1"
PLACE = ("process", ENGINE)
ANY = Offer("", "auto", "process", "process", ENGINE)


def a_worker(
    name: str = "w1", offers: Iterable[Offer] = (ANY,), queues: Sequence[str] = ()
) -> Claimant:
    """A worker that takes jobs which leave executor and isolation open."""
    return Claimant(ids.uuid7(), name, tuple(offers), tuple(queues))


def queued(**fields: Any) -> ContainerJob:
    return JobFactory(status="queued", **fields)


def held_by(worker: Claimant, **fields: Any) -> Lease:
    """The lease on a new job that this worker has claimed."""
    job = queued(**fields)
    (lease,) = (each for each in lifecycle.claim(worker, 1000) if each.job_id == job.pk)
    return lease


def failed(exit_code: int = 1, reason: Reason = Reason.EXIT_CODE, **evidence: Any) -> Outcome:
    return Outcome(exit_code=exit_code, reason=reason, **evidence)


LOST = Outcome(None, reason=Reason.WORKER_LOST, error="Gone.")


def ending(lease: Lease, outcome: Outcome | int = 0, stopped: StopKind | None = None) -> Ending:
    if isinstance(outcome, int):
        outcome = failed(outcome) if outcome else Outcome(exit_code=0)
    return lifecycle.ending(lease, outcome, stopped)


def finish(
    worker: Claimant,
    lease: Lease,
    outcome: Outcome | int = 0,
    stopped: StopKind | None = None,
) -> ContainerJob:
    """End what is held; returns the job as it stands then."""
    assert lifecycle.finish(worker, [ending(lease, outcome, stopped)]) == {lease.job_id}
    return ContainerJob.objects.get(pk=lease.job_id)


def path_of(job: Any) -> list[str]:
    """The states of a job from its birth on."""
    rows = StateHistory.objects.filter(entity_id=getattr(job, "pk", job)).order_by("version")
    return list(rows.values_list("new_state", flat=True))


def contradictions(job_ids: Sequence[Any] | None = None) -> list[str]:
    """What history, rows, attempts and logs say against each other."""
    found = consistency.findings(job_ids=job_ids)
    return [str(each) for each in found if each.level == consistency.FINDING]


def at_once(*actions: Callable[[], T]) -> list[T]:
    """Each action on a thread and connection of its own, begun together; their results."""
    barrier = threading.Barrier(len(actions))

    def run(action: Callable[[], T]) -> T:
        connection.ensure_connection()
        barrier.wait()
        try:
            return action()
        finally:
            connection.close()

    with ThreadPoolExecutor(len(actions)) as pool:
        return [each.result() for each in [pool.submit(run, action) for action in actions]]


@contextmanager
def reaching(hook: Callable[[str], None]) -> Iterator[None]:
    """Call `hook` at every crash point."""
    faults.on_reach = hook
    try:
        yield
    finally:
        faults.on_reach = None


class Crash(Exception):
    """The process ended here."""


def crash_at(*points: str) -> Callable[[str], None]:
    def hook(point: str) -> None:
        if point in points:
            raise Crash(point)

    return hook
