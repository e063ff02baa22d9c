"""Finds attempts whose worker is dead and takes them over."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection
from uuid import UUID

from container_manager import lifecycle
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
        self._looked_at = clock()
        self.known_dead: set[UUID] = set()

    def dead(self) -> set[UUID]:
        """Workers whose beat stood still for a full lease while this one watched."""
        now = self._clock()
        if now - self._looked_at > self._lease_seconds / 2:
            self._seen = {}  # a time in which we could not look is no sign of anybody's death
        self._looked_at = now
        beats = dict(Worker.objects.exclude(pk=self._worker_id).values_list("pk", "beat"))
        seen = {}
        for pk, beat in beats.items():
            before = self._seen.get(pk)
            seen[pk] = before if before is not None and before[0] == beat else (beat, now)
        self._seen = seen
        stood_still = {pk for pk, (_, since) in seen.items() if now - since >= self._lease_seconds}
        self.known_dead = stood_still
        return stood_still

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
        known = self._known_engines(engines)
        found = lifecycle.orphans(dead, known, most, own=self._worker_id, under_way=under_way)
        speakable = [each for each in found if engines.for_id(each.executor, each.engine_id)]
        reached("A2")
        adopted = lifecycle.adopt(claimant, speakable) if speakable else []
        reached("A1")
        for lease in adopted:
            logger.warning("Job %s: adopted, its worker is gone", lease.job_id)
        lifecycle.note_unreachable(dead)
        self._prune(dead)
        return adopted

    def _known_engines(self, engines: Engines) -> list[str]:
        ids = JobAttempt.objects.active().order_by().values_list("executor", "engine_id").distinct()
        return [engine_id for alias, engine_id in ids if engines.for_id(alias, engine_id)]

    def _prune(self, dead: set[UUID]) -> None:
        """A dead worker that holds nothing any more needs no row."""
        held = JobAttempt.objects.active().filter(worker_id__in=dead).values("worker_id")
        Worker.objects.filter(pk__in=dead).exclude(pk__in=held).delete()
