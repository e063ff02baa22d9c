"""Finds attempts whose worker is dead and takes them over."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection
from uuid import UUID

from container_manager import journal, lifecycle
from container_manager.engines import Engines
from container_manager.faults import reached
from container_manager.models import JobAttempt, Worker
from container_manager.models.leases import Claimant, Lease

logger = logging.getLogger("container_manager")


class Rescuer:
    """Watches the other workers' beats on its own monotonic clock."""

    def __init__(
        self, worker_id: UUID, lease_seconds: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._worker_id = worker_id
        self._lease_seconds = lease_seconds
        self._clock = clock
        self._seen: dict[UUID, tuple[int, float]] = {}
        """Of each worker its beat, and for how long we have seen it stand still."""
        self._looked_at = clock()
        self.known_dead: set[UUID] = set()

    def dead(self) -> set[UUID]:
        """Workers whose beat stood still for a full lease while this one watched."""
        began = self._clock()
        beats = dict(Worker.objects.values_list("pk", "beat"))
        looked = self._clock()
        passed, blind = began - self._looked_at, looked - self._looked_at > self._lease_seconds / 2
        self._looked_at = looked
        own = self._stands_still(self._worker_id, beats.get(self._worker_id), passed)
        # A time in which we could not look is no sign of anybody's death; nor is one in which the
        # database takes no beats, ours among them. But it counts a little: where every look is
        # slow the dead must be found, too.
        if blind or own > self._lease_seconds / 2:
            passed = min(passed, self._lease_seconds / 10)
        seen = {pk: (beat, self._stands_still(pk, beat, passed)) for pk, beat in beats.items()}
        if self._worker_id in seen:
            seen[self._worker_id] = (beats[self._worker_id], own)
        self._seen = seen
        self.known_dead = {
            pk
            for pk, (_, still) in seen.items()
            if still >= self._lease_seconds and pk != self._worker_id
        }
        return self.known_dead

    def _stands_still(self, pk: UUID, beat: int | None, passed: float) -> float:
        before, still = self._seen.get(pk, (None, 0.0))
        return still + passed if before is not None and before == beat else 0.0

    def rescue(
        self,
        claimant: Claimant,
        engines: Engines,
        most: int,
        under_way: Collection[UUID] = (),
    ) -> list[Lease]:
        """Take over orphaned attempts that an engine of ours can speak about.

        `under_way`: the jobs that this worker itself is at, whatever others take it for.
        """
        dead = self.dead()
        ours = self._our_places(engines)
        found = lifecycle.orphans(dead, ours, most, own=self._worker_id, under_way=under_way)
        found = self._without_those_of_the_living(found)
        adopted = _adopt(claimant, found) if found else []
        lifecycle.note_unreachable(dead)
        self._prune(dead)
        return adopted

    def _without_those_of_the_living(self, found: list[JobAttempt]) -> list[JobAttempt]:
        """Who was dead a moment ago may have woken up, beaten, and claimed them only then."""
        holders = {attempt.worker_id for attempt in found}
        held_by = [pk for pk in self.known_dead if pk in holders]
        if not held_by:
            return found
        beats = dict(Worker.objects.filter(pk__in=held_by).values_list("pk", "beat"))
        alive = {pk for pk, beat in beats.items() if beat != self._seen[pk][0]}
        return [attempt for attempt in found if attempt.worker_id not in alive]

    def _our_places(self, engines: Engines) -> list[tuple[str, str]]:
        """Where attempts are held that we may speak about."""
        held = JobAttempt.objects.active().order_by()
        places = held.values_list("executor", "engine_id").distinct()
        return [place for place in places if engines.for_id(*place)]

    def _prune(self, dead: set[UUID]) -> None:
        """A dead worker that holds nothing any more needs no row; one that beat since then does."""
        held = JobAttempt.objects.active().filter(worker_id__in=dead).values("worker_id")
        for pk in dead:
            silent = Worker.objects.filter(pk=pk, beat=self._seen[pk][0])
            silent.exclude(pk__in=held).delete()


def _adopt(claimant: Claimant, found: list[JobAttempt]) -> list[Lease]:
    reached("A2")
    adopted = lifecycle.adopt(claimant, found)
    reached("A1")
    _tell(adopted, found)
    return adopted


def _tell(adopted: Collection[Lease], found: Collection[JobAttempt]) -> None:
    before = {attempt.job_id: attempt for attempt in found}
    for lease in adopted:
        former = before[lease.job_id]
        fate = "is gone" if former.worker_id else "let it go"
        with journal.about(job=lease.job_id, attempt=lease.attempt):
            logger.warning("Job %s: adopted, worker %s %s", lease.job_id, former.worker_name, fate)
