"""Reads the events from the database as they come, and waits for more without asking all the time.

Whoever waits also gives moves their place where nobody else does: no other process is needed. On
PostgreSQL a move wakes who waits. Shortly after something happened more is likely to, so it is
looked for a few times before that is asked for again; a wake that was missed costs a second at
most. SQLite says cheaply whether anybody wrote.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from django.db import Error, InterfaceError, connections
from django.db.models import Min, Q

from container_manager.conf import settings
from container_manager.db_guard import MOVES_CHANNEL
from container_manager.events.base import TransitionEvent, Unavailable
from container_manager.listener import Listener
from container_manager.models import Event, PublisherState, move_counts, sequencing
from container_manager.models.base import database_now
from container_manager.models.connections import give_back_connection

P = ParamSpec("P")
R = TypeVar("R")

SOON = (0.005, 0.01)
"""Seconds between looks after something happened, before the next move is asked to say so."""

MANY, BREATH = 10, 0.02
"""Moves that were found at once; then so many seconds until the next look, that it finds more."""

SQLITE_SECONDS = 0.02
"""Between two questions whether anybody wrote."""

_FIELDS = (
    *("event_id", "entity_type", "entity_id", "old_state", "new_state", "version", "attempt"),
    *("actor", "reason", "metadata", "changed_at", "sequence", "owner_id"),
)


def as_told(row: Sequence[Any]) -> TransitionEvent:
    """The event of a row that has the columns of `_FIELDS`."""
    return TransitionEvent(*row)


def forget_old(limit: int = 1_000) -> int:
    """Delete at most so many events that were kept long enough; returns how many.

    What a publisher is still behind with is kept for it, unless it has delivered nothing for as
    long as events are kept. Only what is in the counts of moves is deleted,
    and nobody is waited for.
    """
    first = Event.objects.order_by("sequence").values_list("created_at", flat=True).first()
    if first is None:
        return 0
    since = database_now("default") - timedelta(seconds=settings.EVENTS_KEEP_SECONDS)
    if first >= since:
        return 0
    served = PublisherState.objects.filter(alias__in=settings.PUBLISHERS)
    alive = served.filter(Q(delivered_at__gte=since) | Q(created_at__gte=since))
    move_counts.fold()
    ends = (move_counts.counted(), alive.aggregate(to=Min("position"))["to"])
    return Event.objects.forget(since, min(end for end in ends if end is not None), limit)


class Outbox:
    """The events, for whoever delivers them; any thread may read.

    `soon`: who delivers in large batches need not look so often.
    """

    def __init__(self, using: str = "default", soon: Sequence[float] = SOON) -> None:
        self._using = using
        self._soon = soon
        self._quiet = 0
        """Waits in a row after which there was nothing new."""
        self._rests_until = 0.0
        self._woken = threading.Event()
        self._listener: Listener | None = None
        self._closed = False
        self._version: Any = None

    def oldest(self) -> int:
        return Event.objects.using(self._using).oldest_kept()

    def newest(self) -> int:
        return Event.objects.using(self._using).newest()

    def after(self, sequence: int, limit: int) -> list[TransitionEvent]:
        rows = Event.objects.using(self._using).after(sequence).values_list(*_FIELDS)[:limit]
        return [as_told(row) for row in rows]

    def wait(self, seconds: float) -> bool:
        """For one thread: until there may be something new, having given it its place.

        False: nothing that it knows of, in all that time.
        """
        self._take_breath()
        if taken := sequencing.take(using=self._using):
            pause = self._soon[0] if taken < MANY else max(self._soon[0], BREATH)
            self._quiet, self._rests_until = 0, time.monotonic() + pause
            return True
        if connections[self._using].vendor == "postgresql":
            return self._waits_to_be_woken(seconds)
        return self._waits_for_a_write(seconds)

    def wake(self) -> None:
        """End a `wait` that is under way, from any thread."""
        self._woken.set()

    def rest(self) -> None:
        """Give the connection of this thread back to the pool."""
        give_back_connection(self._using)

    def close(self) -> None:
        """Listen no more; who waits is let go, and from now on only polls."""
        self._closed = True
        if self._listener is not None:
            self._listener.stop()
        self.wake()

    def _take_breath(self) -> None:
        """What comes all the time is taken in turns, not one by one."""
        time.sleep(max(0.0, self._rests_until - time.monotonic()))

    # PostgreSQL

    def _waits_to_be_woken(self, seconds: float) -> bool:
        self._listen()
        if self._quiet < len(self._soon):
            pause = min(self._soon[self._quiet], seconds)
            self._quiet += 1
        elif self._quiet == len(self._soon):
            self._quiet += 1
            sequencing.await_moves(self._using)
            return False  # look once more: it may have come before
        else:
            pause = min(seconds, settings.POLL_SECONDS)
            self._quiet = len(self._soon)  # ask again: somebody else may have been woken by it
        if not self._woken.wait(pause):
            return False
        self._woken.clear()
        self._quiet = 0
        return True

    def _listen(self) -> None:
        if self._listener is None and not self._closed:
            channels = f"{MOVES_CHANNEL} {sequencing.EVENTS_CHANNEL}"
            self._listener = Listener(channels, self._woken.set, self._using)
            self._listener.start()

    # SQLite

    def _waits_for_a_write(self, seconds: float) -> bool:
        ends_at = time.monotonic() + seconds
        while (left := ends_at - time.monotonic()) > 0:
            if self._woken.wait(min(left, SQLITE_SECONDS)):
                self._woken.clear()
                return True
            if (version := self._data_version()) != self._version:
                self._version = version
                return True
        return False

    def _data_version(self) -> Any:
        """Changes whenever another connection has written; each connection counts by itself."""
        with connections[self._using].cursor() as cursor:
            cursor.execute("PRAGMA data_version")
            return connections[self._using].connection, cursor.fetchone()[0]


def _or_unavailable(method: Callable[P, R]) -> Callable[P, R]:
    """What the database says is said in the words of `events`."""

    @wraps(method)
    def asked(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return method(*args, **kwargs)
        except (Error, InterfaceError) as error:
            raise Unavailable(f"database: {str(error).strip()}") from error

    return asked


class FeedSource(Outbox):
    """The same for a feed, which knows no database."""

    oldest = _or_unavailable(Outbox.oldest)
    newest = _or_unavailable(Outbox.newest)
    after = _or_unavailable(Outbox.after)
    wait = _or_unavailable(Outbox.wait)
