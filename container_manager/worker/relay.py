"""The relay process: gives moves their places, delivers them to every publisher, forgets old ones.

Any number of them may run. One at a time gives places, each publisher is served by one at a time,
and nothing is kept in memory that a crash could lose. Events wait here; jobs never do.
"""

from __future__ import annotations

import logging
import time
import uuid

from django.db import connection
from django.db.models import F
from django.db.models.functions import Now

from container_manager import schema
from container_manager.conf import settings
from container_manager.duties import Duty, Turns
from container_manager.events.base import Publisher, make
from container_manager.models import (
    DeadLetter,
    Event,
    Installation,
    ProcessKind,
    PublisherState,
    move_counts,
    sequencing,
)
from container_manager.outbox import Outbox, forget_old
from container_manager.signs import SignOfLife
from container_manager.worker.delivery import Delivery

logger = logging.getLogger("container_manager")

SOON = (0.05, 0.1, 0.2)
"""Seconds between looks while much happens: it is delivered in batches."""

PIECE_SECONDS = 0.25
"""For so long the main thread waits at most: the signal that says `stop` cannot wake it."""

COUNT_SECONDS = 2.0
FORGET_SECONDS = 60.0
AT_ONCE, MOST = 1_000, 100_000


def publishers() -> dict[str, Publisher]:
    """Those of the settings, by alias. Raises ValueError."""
    return {
        alias: make(entry["class"], entry.get("options"))
        for alias, entry in settings.PUBLISHERS.items()
    }


class Relay:
    """One relay from its start to its orderly end."""

    def __init__(self, *, until_idle: bool = False, name: str = "") -> None:
        """Raises ValueError for a publisher that cannot be made."""
        self.id = uuid.uuid4()
        self._sign = SignOfLife(ProcessKind.RELAY, name)
        self._publishers = publishers()
        self._until_idle = until_idle
        self._stopping = self._idle = self._outdated = False
        self._deliveries: list[Delivery] = []
        self._outbox = Outbox(soon=SOON)
        self._schema: frozenset[str] = frozenset()
        self._turns = Turns("Relay")
        self._duties = [
            Duty("giving events their places", self._sequence),
            Duty("beating", self._beat, settings.LEASE_SECONDS / 3),
            Duty("giving a sign of life", self._sign),
            Duty("counting moves", self._count, COUNT_SECONDS),
            Duty("forgetting old events", self._forget, FORGET_SECONDS),
            Duty("comparing the schema", self._compare_schema, 5.0),
            Duty("looking for an end", self._look_for_an_end),
        ]

    @property
    def name(self) -> str:
        """What the lists of processes call it."""
        return self._sign.name

    def stop(self) -> None:
        """End after what is being done; only a flag, so that a signal handler may say it."""
        self._stopping = True

    def run(self) -> int:
        """Work until stopped or, with `until_idle`, until all is delivered. Exit code."""
        self._schema = schema.applied("default")
        self._begin()
        logger.info("Relay: started, %s", ", ".join(self._publishers) or "no publishers")
        while not (self._stopping or self._idle):
            self._turns.take(self._duties)
        self._end()
        self._turns.insist("counting moves", self._count)
        self._turns.insist("taking back the sign of life", self._sign.end)
        connection.close()
        logger.info("Relay: ended")
        return 1 if self._outdated else 0

    def _begin(self) -> None:
        """A publisher that is new begins with what has no place yet."""
        source, newest = Installation.instance(), Event.objects.newest()
        for alias, publisher in self._publishers.items():
            PublisherState.objects.get_or_create(alias=alias, defaults={"position": newest})
            delivery = Delivery(alias, publisher, self._outbox, self.id, source)
            self._deliveries.append(delivery)
            delivery.start()

    def _end(self) -> None:
        self._outbox.close()
        for delivery in self._deliveries:
            delivery.end()
        ends_at = time.monotonic() + settings.DRAIN_SECONDS
        for delivery in self._deliveries:
            if not delivery.join(ends_at - time.monotonic()):
                logger.warning("Publisher %s: still at a batch, left alone", delivery.alias)

    # Duties

    def _sequence(self) -> None:
        if self._outbox.wait(PIECE_SECONDS):
            for delivery in self._deliveries:
                delivery.wake()

    def _beat(self) -> None:
        PublisherState.objects.filter(holder=self.id).update(beat=F("beat") + 1, updated_at=Now())

    def _count(self) -> None:
        """In pieces: events are waited for, their counts are not."""
        move_counts.fold()

    def _forget(self) -> None:
        move_counts.fold_all()
        for _ in range(MOST // AT_ONCE):
            if self._stopping or forget_old(AT_ONCE) < AT_ONCE:
                break

    def _compare_schema(self) -> None:
        if schema.applied("default") != self._schema:
            self._outdated = self._stopping = True
            logger.error("Relay: the database was migrated; ending, start the code that fits")

    def _look_for_an_end(self) -> None:
        if self._until_idle and not sequencing.is_behind():
            served = PublisherState.objects.filter(alias__in=self._publishers)
            wanted = DeadLetter.objects.wanted().filter(publisher__in=self._publishers)
            behind = served.filter(position__lt=Event.objects.newest())
            self._idle = not (behind.exists() or wanted.exists())
