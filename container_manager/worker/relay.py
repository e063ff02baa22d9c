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

from container_manager import schema
from container_manager.conf import settings
from container_manager.duties import Duty, Turns
from container_manager.events.base import Publisher, Refused, TransitionEvent, make
from container_manager.models import DeadLetter, Event, Installation, PublisherState, sequencing
from container_manager.outbox import Outbox, forget_old
from container_manager.worker.delivery import Delivery, note_refusal

logger = logging.getLogger("container_manager")

SOON = (0.05, 0.1, 0.2)
"""Seconds between looks while much happens: it is delivered in batches."""

PIECE_SECONDS = 0.25
"""For so long the main thread waits at most: the signal that says `stop` cannot wake it."""

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

    def __init__(self, *, until_idle: bool = False) -> None:
        """Raises ValueError for a publisher that cannot be made."""
        self.id = uuid.uuid4()
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
            Duty("forgetting old events", self._forget, FORGET_SECONDS),
            Duty("comparing the schema", self._compare_schema, 5.0),
            Duty("looking for an end", self._look_for_an_end),
        ]

    def stop(self) -> None:
        """End after what is being done; only a flag, so that a signal handler may say it."""
        self._stopping = True

    def run(self) -> int:
        """Work until stopped or, with `until_idle`, until all is delivered. Exit code."""
        self._schema = schema.applied("default")
        self._begin()
        logger.info("Relay: started; publishers: %s", ", ".join(self._publishers) or "none")
        while not (self._stopping or self._idle):
            self._turns.take(self._duties)
        self._end()
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
        connection.close()

    # Duties

    def _sequence(self) -> None:
        if self._outbox.wait(PIECE_SECONDS):
            for delivery in self._deliveries:
                delivery.wake()

    def _beat(self) -> None:
        PublisherState.objects.filter(holder=self.id).update(beat=F("beat") + 1)

    def _forget(self) -> None:
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
            self._idle = not served.filter(position__lt=Event.objects.newest()).exists()


# Dead letters -------------------------------------------------------------------------------------


def redeliver(alias: str) -> tuple[int, int]:
    """Try the dead letters of a publisher again, in order; how many went, and how many are left.

    They come late: whoever gets them knows by `version` what they are worth. Raises LookupError for
    a publisher that is not in the settings, ValueError for one that cannot be made, Unavailable.
    """
    if alias not in settings.PUBLISHERS:
        raise LookupError(alias)
    entry = settings.PUBLISHERS[alias]
    publisher = make(entry["class"], entry.get("options"))
    letters, went = DeadLetter.objects.filter(publisher=alias), 0
    try:
        for letter in letters.order_by("sequence"):
            went += _went(publisher, letter)
    finally:
        publisher.close()
    return went, letters.count()


def _went(publisher: Publisher, letter: DeadLetter) -> bool:
    event = TransitionEvent.from_json(letter.event, letter.sequence)
    try:
        publisher.publish([event])
    except Refused as error:
        note_refusal(letter.publisher, event, letter.tries + 1, error)
        return False
    letter.delete()
    return True
