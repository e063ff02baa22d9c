"""Removes what ended attempts left on this worker's engines, whoever ran them.

From time to time each engine that answers is asked, beside the worker's main thread, for all that
it has of this installation; then the records are asked about those names. The engine is read
first: what the records say to be over for half a minute was over when the engine was read.

- Of an attempt that has been over for half a minute (a barred name: an hour longer) nothing may be
  there. It is ended and removed, also where the attempt already says `cleaned_up`; what could not
  be removed is met again the next time.
- What belongs to an active attempt is left alone.
- So is what belongs to no attempt of this database: a copy of a database may bear the same label.
  `check_jobs` tells of it.
- Objects without our label are never listed.
"""

from __future__ import annotations

import logging
import queue
import time
from collections.abc import Iterable
from datetime import timedelta
from functools import partial
from typing import Any

from container_manager import journal, lifecycle
from container_manager.engines import Engine, Engines, Listing
from container_manager.models import JobAttempt
from container_manager.models.attempt import BARRED_FOR, JobAttemptQuerySet
from container_manager.models.base import batched, database_now
from container_manager.worker.sweeper import Sweeper

logger = logging.getLogger("container_manager")

BATCH = 500


class Reaper:
    """Compares what the engines have with what the records say."""

    EVERY_SECONDS = 15.0
    AFTER = timedelta(seconds=30)
    BARRED_FOR = BARRED_FOR

    def __init__(self, engines: Engines, instance: str, sweeper: Sweeper) -> None:
        self._engines = engines
        self._instance = instance
        self._sweeper = sweeper
        self._listings: queue.SimpleQueue[tuple[float, Listing]] = queue.SimpleQueue()

    def look(self) -> None:
        """Ask every engine that answers what it has, on a thread of the sweeper."""
        for engine in self._engines:
            if engine.available and not engine.capabilities.in_process:
                ask = partial(engine.call, partial(self._list, engine))
                self._sweeper.do(f"list of {engine.alias}", None, ask)

    def _list(self, engine: Engine) -> None:
        asked_at = time.monotonic()
        if listing := engine.listing(self._instance):
            self._listings.put((asked_at, listing))

    def reap(self) -> None:
        """Have removed what should not be there, of what the engines answered meanwhile."""
        while not self._listings.empty():
            asked_at, listing = self._listings.get_nowait()
            if time.monotonic() - asked_at > self.AFTER.total_seconds():
                continue  # we stood still: since then attempts began and ended
            for names in batched(sorted(listing.names), BATCH):
                self._remove(listing, names)
            self._note_absent(listing)

    def _remove(self, listing: Listing, names: Iterable[str]) -> None:
        for attempt in self._over().named([*names]):
            if attempt.name in listing.names:
                told = journal.told(job=attempt.job_id, attempt=attempt.attempt)
                logger.info("%s: is over and still there; it is removed", attempt.name, extra=told)
                key = _key(attempt) if _speaks_of(listing, attempt) else None
                removal = partial(listing.engine.remove, attempt.name, self._instance)
                self._sweeper.do(attempt.name, key, partial(listing.engine.call, removal))

    def _note_absent(self, listing: Listing) -> None:
        """Those of which nothing is left on their engine."""
        alias = listing.engine.alias
        left = self._over().filter(cleaned_up=False, executor=alias)
        there = left.order_by().values_list("engine_id", flat=True).distinct()
        ours = [engine_id for engine_id in there if listing.speaks_of(alias, engine_id)]
        gone = [
            _key(attempt)
            for attempt in left.filter(engine_id__in=ours).order_by("updated_at").iterator(BATCH)
            if attempt.name not in listing.names
        ]
        for batch in batched(gone, BATCH):
            lifecycle.cleaned_up(batch)

    def _over(self) -> JobAttemptQuerySet:
        now = database_now("default")
        return JobAttempt.objects.over_since(now, self.AFTER, self.BARRED_FOR)


def _speaks_of(listing: Listing, attempt: JobAttempt) -> bool:
    return listing.speaks_of(attempt.executor, attempt.engine_id)


def _key(attempt: JobAttempt) -> dict[str, Any]:
    return {"job_id": attempt.job_id, "attempt": attempt.attempt, "epoch": 0}
