"""What happens, as it happens, for listeners in this process.

    from container_manager.events import subscribe

    with subscribe(print, entity_types=["job"], states=["failed"]):
        ...

One thread follows the events of the database while anybody listens, and keeps the newest of them in
memory. Each listener has a place of its own in their sequence: a slow one delays no other, and what
is no longer in memory when it comes to it is read again. So nobody misses anything from the moment
when it subscribed, and each event comes once, unless the process ends.
"""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import Protocol, Self
from uuid import UUID

from container_manager.events.base import Filter, TransitionEvent, Unavailable

logger = logging.getLogger("container_manager")

BATCH = 500
"""Events that are read at once."""

KEPT = 10_000
"""Events in memory: at least so many of the newest, once there were as many."""

WAIT_SECONDS = 1.0
"""After so long at the latest a thread looks whether it is still wanted."""


class Forgotten(ValueError):
    """What came behind this event is no longer kept."""

    def __init__(self, after: int, oldest: int) -> None:
        super().__init__(f"events from {after + 1} to {oldest - 1} are no longer kept")
        self.oldest = oldest
        """The oldest that is."""


class Source(Protocol):
    """Where the events are; any thread may ask. Each method raises Unavailable."""

    def oldest(self) -> int:
        """The sequence of the oldest event that is kept; the newest plus one when none is."""

    def newest(self) -> int:
        """The sequence that was given last."""

    def after(self, sequence: int, limit: int) -> Sequence[TransitionEvent]:
        """What is behind this one, in order."""

    def wait(self, seconds: float) -> object:
        """Until there may be something new, but no longer than that. For one thread."""

    def rest(self) -> None:
        """This thread will wait now: whatever it holds others may have."""


Watcher = Callable[[], object]
Handler = Callable[[TransitionEvent], object]


class Feed:
    """The newest events of one source, and who is told that there are more."""

    def __init__(self, source: Source, keep: int = KEPT) -> None:
        self._source = source
        self._keep = keep
        self._changed = threading.Condition()
        self._recent: list[TransitionEvent] = []
        self._start = 0
        """The sequence of the first in memory, or of the one that will be."""
        self._following = False
        self._watchers: dict[int, Watcher] = {}
        self._given = 0

    # For listeners

    def subscribe(
        self,
        handler: Handler,
        *,
        entity_types: Iterable[str] = (),
        states: Iterable[str] = (),
        entity_ids: Iterable[UUID] = (),
        after: int | None = None,
    ) -> Subscription:
        """Call `handler` with each event of these, one after the other, in a thread of its own.

        `after`: the sequence behind which to begin; None: with what happens from now on. What the
        handler raises is logged, and the next event comes.
        Raises ValueError for a filter that there is not, Forgotten, Unavailable.
        """
        wanted = Filter.of(entity_types, states, entity_ids)
        return Subscription(self, handler, wanted, self.place(after))

    def place(self, after: int | None) -> int:
        """Behind which event to begin. Raises ValueError, Forgotten, Unavailable."""
        if after is None:
            return self._source.newest()
        newest = self._source.newest()
        if not 0 <= after <= newest:
            raise ValueError(f"after: there is no event {after}, the newest is {newest}")
        if after + 1 < (oldest := self._source.oldest()):
            raise Forgotten(after, oldest)
        return after

    def after(self, sequence: int, limit: int = BATCH) -> Sequence[TransitionEvent]:
        """What is behind this one, from memory or from the source. Raises Unavailable."""
        recent = self.recent(sequence, limit)
        if recent is not None:
            return recent
        found = self._source.after(sequence, limit)
        with self._changed:
            later = (event for event in self._recent if event.sequence > sequence)
            return found or list(itertools.islice(later, limit))

    def recent(self, sequence: int, limit: int = BATCH) -> Sequence[TransitionEvent] | None:
        """The same from memory alone; None where it does not reach back so far. Asks nobody."""
        with self._changed:
            if not self._following or sequence + 1 < self._start:
                return None
            first = sequence + 1 - self._start
            return self._recent[first : first + limit]

    def watch(self, watcher: Watcher) -> Callable[[], None]:
        """Call `watcher` whenever there is more, from the thread that follows; it must be quick.

        Returns what ends it.
        """
        with self._changed:
            self._given += 1
            key = self._given
            self._watchers[key] = watcher
            if not self._following:
                self._following, self._recent, self._start = True, [], _NOWHERE
                threading.Thread(target=self._follow, name="event feed", daemon=True).start()

        def end() -> None:
            with self._changed:
                self._watchers.pop(key, None)

        return end

    def rest(self) -> None:
        """As a source's."""
        self._source.rest()

    # The thread that follows

    def _follow(self) -> None:
        failures, position = 0, -1
        while self._is_wanted():
            try:
                if position < 0:
                    position = self._source.newest()
                    self._begin(position)
                if events := self._source.after(position, BATCH):
                    position = events[-1].sequence
                    self._add(events)
                else:
                    self._source.wait(WAIT_SECONDS)
                failures = 0
            except Unavailable as error:
                failures += 1
                logger.warning("Events cannot be followed: %s", error)
                self._source.rest()
                threading.Event().wait(min(0.1 * 2**failures, 5.0))
        self._source.rest()

    def _is_wanted(self) -> bool:
        with self._changed:
            self._following = bool(self._watchers)
            if not self._following:
                self._recent = []  # of no use to who comes later, and older than what he asks for
            return self._following

    def _begin(self, position: int) -> None:
        """Whoever is further behind reads the source; and may be, so all are told to look."""
        with self._changed:
            self._recent, self._start = [], position + 1
        self._tell()

    def _add(self, events: Sequence[TransitionEvent]) -> None:
        with self._changed:
            if events[0].sequence != self._start + len(self._recent):
                self._recent, self._start = [], events[0].sequence  # some were forgotten meanwhile
            self._recent.extend(events)
            if len(self._recent) > 2 * self._keep:
                self._start += len(self._recent) - self._keep
                del self._recent[: -self._keep]
        self._tell()

    def _tell(self) -> None:
        with self._changed:
            watchers = list(self._watchers.values())
        for watcher in watchers:
            try:
                watcher()
            except Exception:
                logger.exception("A watcher of events failed")


_NOWHERE = 1 << 62
"""While it is not known where the memory begins, everybody asks the source."""


class Subscription:
    """One listener; `close()` it, or leave its `with`."""

    def __init__(self, feed: Feed, handler: Handler, wanted: Filter, position: int) -> None:
        self._feed = feed
        self._handler = handler
        self._wanted = wanted
        self._position = position
        self._woken = threading.Event()
        self._closed = False
        self._end_watch = feed.watch(self._woken.set)
        self._thread = threading.Thread(target=self._run, name="event listener", daemon=True)
        self._thread.start()

    @property
    def position(self) -> int:
        """The sequence of the event that was handled last, wanted or not: from it one goes on."""
        return self._position

    def close(self) -> None:
        """No event after the one under way; returns when that is handled."""
        self._closed = True
        self._end_watch()
        self._woken.set()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _run(self) -> None:
        while not self._closed:
            self._woken.clear()
            try:
                events = self._feed.after(self._position)
            except Unavailable:
                events = ()  # the thread that follows says so
            for event in events:
                if self._closed:
                    break
                self._handle(event)
            if not events:
                self._feed.rest()
                self._woken.wait(WAIT_SECONDS)
        self._feed.rest()

    def _handle(self, event: TransitionEvent) -> None:
        if self._wanted.wants(event):
            try:
                self._handler(event)
            except Exception:
                logger.exception("A listener failed at event %d, %s", event.sequence, event)
        self._position = event.sequence


# The one of this process --------------------------------------------------------------------------

_feed: Feed | None = None


def use(source: Source) -> None:
    """From now on the events of this process come from there."""
    global _feed
    _feed = Feed(source)


def the_feed() -> Feed:
    """Raises RuntimeError before Django's apps are ready."""
    if _feed is None:
        raise RuntimeError("events: Django's apps are not ready yet")
    return _feed


def subscribe(
    handler: Handler,
    *,
    entity_types: Iterable[str] = (),
    states: Iterable[str] = (),
    entity_ids: Iterable[UUID] = (),
    after: int | None = None,
) -> Subscription:
    """As `Feed.subscribe`, in this process' own feed."""
    return the_feed().subscribe(
        handler, entity_types=entity_types, states=states, entity_ids=entity_ids, after=after
    )
