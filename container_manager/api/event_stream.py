"""What happens, as a stream: the events that one person may see and asks for."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from container_manager import sse
from container_manager.events.base import Filter, TransitionEvent, Unavailable
from container_manager.events.feed import the_feed
from container_manager.models.connections import apart
from container_manager.sse import Bell, Message, Source

AT_ONCE = 100
"""Events that one client is told at once."""

AWAY_SECONDS = 1.0
"""When the database did not answer it is asked again after so long."""

REMEMBERED = 2_000
"""Messages that were made for one client and may serve others."""

IsFor = Callable[[TransitionEvent], bool]
"""May this person see it, and was it asked for?"""


def asked_by(person: Any, sees_all: bool, wanted: Filter) -> IsFor:
    """What this person may see of what is wanted."""
    if sees_all:
        return wanted.wants
    return lambda event: event.owner == person and wanted.wants(event)


def resync(after: int, oldest: int, position: int) -> Message:
    """What a client is told that cannot have all that came behind `after`."""
    told = {"after": after, "oldest": oldest, "goes_on_after": position}
    return Message("resync", told, str(position))


class EventSource(Source):
    """Events behind a position, of those that are for one client."""

    def __init__(self, position: int, is_for: IsFor, first: Sequence[Message] = ()) -> None:
        self._position = position
        self._is_for = is_for
        self._first = list(first)
        self._bell: Bell | None = None

    @property
    def place(self) -> str:
        return str(self._position)

    def open(self, bell: Bell) -> None:
        self._bell = bell
        _listeners.join(bell)

    async def next(self) -> Sequence[Message]:
        told, self._first = self._first, []
        while not told and (events := await self._behind()):
            told = self._told(events)
            await asyncio.sleep(0)  # whoever wants little of much must not keep all others waiting
        return told

    async def _behind(self) -> Sequence[TransitionEvent]:
        feed = the_feed()
        recent = feed.recent(self._position, AT_ONCE)
        if recent is not None:
            return recent
        try:
            return await apart(partial(feed.after, self._position, AT_ONCE))
        except Unavailable:
            if self._bell:
                self._bell.ring_later(AWAY_SECONDS)
            return []

    def _told(self, events: Sequence[TransitionEvent]) -> list[Message]:
        oldest, before = events[0].sequence, self._position
        self._position = events[-1].sequence
        lost = [resync(before, oldest, oldest - 1)] if oldest > before + 1 else []
        return lost + [_message(event) for event in events if self._is_for(event)]

    def close(self) -> None:
        if self._bell:
            _listeners.leave(self._bell)
            self._bell = None


class _Listeners:
    """The streams of this process; one watcher of the feed rings for all of them."""

    def __init__(self) -> None:
        self._bells: set[Bell] = set()
        self._lock = threading.Lock()
        self._end_watch: Callable[[], None] | None = None

    def join(self, bell: Bell) -> None:
        with self._lock:
            self._bells.add(bell)
            if self._end_watch is None:
                self._end_watch = the_feed().watch(self._ring)

    def leave(self, bell: Bell) -> None:
        with self._lock:
            self._bells.discard(bell)
            if not self._bells and self._end_watch is not None:
                self._end_watch()
                self._end_watch = None

    def _ring(self) -> None:
        with self._lock:
            bells = list(self._bells)
        sse.ring(bells)


_listeners = _Listeners()


_made: dict[int, tuple[TransitionEvent, Message]] = {}


def _message(event: TransitionEvent) -> Message:
    """Made once for all clients, as long as the event is the one in memory."""
    known = _made.get(event.sequence)
    if known is not None and known[0] is event:
        return known[1]
    if len(_made) >= REMEMBERED:
        _made.clear()
    message = Message("", event.as_json(), str(event.sequence))
    _made[event.sequence] = event, message
    return message
