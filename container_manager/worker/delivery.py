"""Delivers events to one publisher, in order, each at least once, in a thread of its own.

The publisher's row says how far it has come and which relay serves it: one at a time, by a lease
whose epoch guards every write, as that of an attempt. So a relay that slept too long, and whose
publisher another one serves by now, changes nothing; what it may still have sent twice bears the
same sequence.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any
from uuid import UUID

from django.db import Error, InterfaceError, connection, transaction
from django.db.models import F
from django.db.models.functions import Coalesce, Now

from container_manager.conf import settings
from container_manager.events.base import (
    NotDelivered,
    OutOfStep,
    Publisher,
    Refused,
    Standing,
    TransitionEvent,
    Unavailable,
)
from container_manager.models import DeadLetter, Event, PublisherState
from container_manager.models.base import database_now
from container_manager.outbox import Outbox
from container_manager.worker.letters import deliver_wanted, note_refusal, told

logger = logging.getLogger("container_manager")

BATCH, LETTERS = 500, 20
"""So many events are read at once; so many dead letters are tried again between two batches."""
FIRST_PAUSE, LONGEST_PAUSE = 0.2, 30.0
LOOK_SECONDS = 1.0
"""How often it looks for events, or whether its publisher is free, without being woken."""

_WELL: dict[str, Any] = {
    **{"failures": 0, "failing_since": None, "last_error": "", "next_try_at": None},
    **{"refused": None, "tries": 0},
}


class Fenced(Exception):
    """Another relay serves this publisher by now."""


def pause_after(failures: int) -> float:
    """Seconds to wait after so many failures in a row."""
    longest = min(FIRST_PAUSE * 2.0 ** min(failures - 1, 16), LONGEST_PAUSE)
    return random.uniform(longest / 2, longest)  # noqa: S311


class Lease:
    """The right to serve one publisher, as long as its row says so.

    Whoever has it is dead when his beat stood still for a lease while we looked.
    """

    def __init__(
        self, alias: str, relay: UUID, seconds: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.alias = alias
        self._relay = relay
        self._seconds = seconds
        self._clock = clock
        self._seen: tuple[Any, ...] = ()
        self._still = 0.0
        self._looked_at = clock()
        self.epoch: int | None = None
        """None: not ours."""

    def take(self) -> PublisherState | None:
        """The publisher's row, if nobody serves it, or who did so is dead; else None."""
        newest = Event.objects.newest()
        row, _ = PublisherState.objects.get_or_create(
            alias=self.alias, defaults={"position": newest}
        )
        if row.holder is not None and self._stands_still(row) < self._seconds:
            return None
        rows = PublisherState.objects.filter(alias=self.alias, epoch=row.epoch, beat=row.beat)
        if not rows.update(holder=self._relay, epoch=F("epoch") + 1, updated_at=Now()):
            return None
        self.epoch = row.epoch + 1
        return row

    def _stands_still(self, row: PublisherState) -> float:
        """For how long; a time in which we could not look counts little."""
        now, seen = self._clock(), (row.holder, row.epoch, row.beat)
        passed = min(now - self._looked_at, self._seconds / 3)
        self._still = self._still + passed if seen == self._seen else 0.0
        self._seen, self._looked_at = seen, now
        return self._still

    def write(self, **values: Any) -> None:
        """Change the row while it is ours. Raises Fenced."""
        mine = PublisherState.objects.filter(alias=self.alias, holder=self._relay)
        if self.epoch is None or not mine.filter(epoch=self.epoch).update(
            **values, updated_at=Now()
        ):
            self.epoch = None
            raise Fenced

    def let_go(self) -> None:
        """Anybody may have it at once."""
        if self.epoch is not None:
            self.write(holder=None)
            self.epoch = None


class Delivery:
    """One publisher of the settings and what it has been told; `run` is its thread's work."""

    def __init__(
        self, alias: str, publisher: Publisher, outbox: Outbox, relay: UUID, source: str
    ) -> None:
        self.alias = alias
        self._publisher = publisher
        self._outbox = outbox
        self._source = source
        self._lease = Lease(alias, relay, settings.LEASE_SECONDS)
        self._woken = threading.Event()
        self._ending = False
        self._position = 0
        self._in_step = False
        self._failures = 0
        self._refused: int | None = None
        self._tries = 0
        self._not_before = 0.0
        self._letters_at = 0.0
        self._thread = threading.Thread(target=self.run, name=f"to {alias}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def wake(self) -> None:
        """There may be more."""
        self._woken.set()

    def end(self) -> None:
        """After the batch that is under way."""
        self._ending = True
        self._woken.set()

    def join(self, seconds: float) -> bool:
        """False: it is still at it after so long."""
        self._thread.join(max(0.0, seconds))
        return not self._thread.is_alive()

    # The thread

    def run(self) -> None:
        try:
            while not self._ending:
                self._woken.clear()
                pause = self._kept(self._step)
                if pause and not self._ending:
                    self._outbox.rest()
                    self._wait(pause)
            self._kept(self._leave)
        finally:
            connection.close()

    def _wait(self, seconds: float) -> None:
        """News does not shorten the pause after a failure."""
        if self._not_before > time.monotonic():
            ends_at = min(self._not_before, time.monotonic() + seconds)
            while not self._ending and (left := ends_at - time.monotonic()) > 0:
                time.sleep(min(left, 0.1))
        else:
            self._woken.wait(seconds)

    def _kept(self, do: Callable[[], float]) -> float:
        """Whatever goes wrong: it is tried again, for nobody else serves this publisher."""
        try:
            return do()
        except Fenced:
            logger.warning("Publisher %s: another relay serves it by now", self.alias)
            self._publisher.close()
        except (Error, InterfaceError) as error:
            logger.warning("Publisher %s: database: %s", self.alias, str(error).strip())
            connection.close()
        except Exception:
            logger.exception("Publisher %s failed, and is tried again", self.alias)
        return LOOK_SECONDS

    def _leave(self) -> float:
        self._publisher.close()
        self._lease.let_go()
        return 0.0

    def _step(self) -> float:
        """Deliver what there is; returns for how long to wait then."""
        if (left := self._not_before - time.monotonic()) > 0:
            return left
        if self._lease.epoch is None and not self._takes_over():
            return LOOK_SECONDS
        try:
            return self._deliver()
        except (Fenced, Error, InterfaceError):
            raise
        except NotDelivered as error:
            self._in_step = self._in_step and not isinstance(error, OutOfStep)
            return self._failed(error)
        except Exception as error:
            logger.exception("Publisher %s failed", self.alias)
            return self._failed(error)

    def _takes_over(self) -> bool:
        row = self._lease.take()
        if row is None:
            return False
        logger.info("Publisher %s: served from event %d on", self.alias, row.position + 1)
        self._position, self._in_step = row.position, False
        self._failures, self._refused, self._tries = row.failures, row.refused, row.tries
        return True

    def _deliver(self) -> float:
        """What is no fault of one event is raised."""
        self._be_in_step()
        self._look_for_letters()
        events = self._read()
        if not events:
            self._be_well()
            return LOOK_SECONDS
        try:
            delivered = self._publisher.publish(events)
        except Refused as error:
            self._advance(events[: error.delivered])
            return self._was_refused(events[error.delivered], error, error.tries)
        except NotDelivered as error:
            self._advance(events[: error.delivered])
            raise
        except Exception as error:
            logger.exception("Publisher %s failed", self.alias)
            return self._was_refused(events[0], error)
        self._advance(events[:delivered])
        return 0.0

    def _be_in_step(self) -> None:
        """From what the receiver has, and from what is still kept, comes where to go on."""
        if self._in_step:
            return
        oldest, newest = Event.objects.oldest_kept(), Event.objects.newest()
        position = self._publisher.begin(Standing(self._position, oldest, newest, self._source))
        if position != self._position:
            logger.warning("Publisher %s: goes on behind event %d", self.alias, position)
            self._position = position
            self._lease.write(position=position)
        self._in_step = True

    def _be_well(self) -> None:
        """It answers again, and there is nothing to tell it."""
        if self._failures:
            self._lease.write(**_WELL)
            self._is_well_at(self._position)

    def _look_for_letters(self) -> None:
        """Dead letters that are wanted again, a few between two batches of what is new.

        While nothing goes through they wait, too.
        """
        now = time.monotonic()
        if self._failures or now < self._letters_at:
            return
        self._letters_at = now + LOOK_SECONDS
        if DeadLetter.objects.of(self.alias).wanted().exists():
            self._lease.write()  # it is still ours
            if deliver_wanted(self.alias, LETTERS):
                self._letters_at = 0.0
                self.wake()

    def _read(self) -> list[TransitionEvent]:
        limit = 1 if self._refused is not None else BATCH
        events = self._outbox.after(self._position, limit)
        if events and events[0].sequence > self._position + 1:
            missing = events[0].sequence - self._position - 1
            logger.error(
                "Publisher %s: %d events were forgotten before they were delivered",
                *(self.alias, missing),
            )
        return events

    # What came of it

    def _advance(self, events: Sequence[TransitionEvent]) -> None:
        if events:
            self._lease.write(position=events[-1].sequence, delivered_at=Now(), **_WELL)
            self._is_well_at(events[-1].sequence)

    def _is_well_at(self, position: int) -> None:
        """After it was written: else what comes next would be written over a gap."""
        self._position = position
        self._failures, self._refused, self._tries = 0, None, 0

    def _failed(self, error: Exception, **more: Any) -> float:
        self._failures += 1
        asked = error.retry_after if isinstance(error, Unavailable) else None
        pause = max(pause_after(self._failures), asked or 0.0)
        self._not_before = time.monotonic() + pause
        if self._failures == 1 or self._failures % 20 == 0:
            logger.warning("Publisher %s: %s", self.alias, told(error))
        self._lease.write(
            failures=self._failures,
            failing_since=Coalesce("failing_since", Now()),
            last_error=told(error),
            next_try_at=database_now("default") + timedelta(seconds=pause),
            **more,
        )
        return pause

    def _was_refused(self, event: TransitionEvent, error: Exception, tries: int = 1) -> float:
        self._tries = self._tries + tries if self._refused == event.sequence else tries
        self._refused = event.sequence
        if self._tries < self._publisher.max_tries:
            return self._failed(error, refused=self._refused, tries=self._tries)
        logger.error(
            "Publisher %s: event %d is a dead letter: %s", self.alias, event.sequence, told(error)
        )
        with transaction.atomic():
            note_refusal(self.alias, event, self._tries, error)
            self._lease.write(position=event.sequence, **_WELL)
        self._is_well_at(event.sequence)
        return 0.0
