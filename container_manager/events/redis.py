"""Tells events to Redis: a Stream for those who must not miss any, pub/sub for who listens live.

- `<prefix>:stream` has one entry for each event: its id is `<sequence>-0`, its field `event` the
  JSON. Redis takes no entry whose id is not newer than the newest, so nothing stands there twice or
  out of order, however many relays there are and however long one of them slept.
- `<prefix>:events` and `<prefix>:<entity type>` are channels of pub/sub, with the same JSON.
- `<prefix>:stream:instance` says whose stream it is.

Nothing is ever read from there that matters here: whatever happens to Redis, what was told is told
again from the database, as far back as the stream may be long.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

from container_manager.events.base import (
    OutOfStep,
    Publisher,
    Standing,
    TransitionEvent,
    Unavailable,
)

logger = logging.getLogger("container_manager")

READ_AT_ONCE = 500
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 5.0
STANDSTILL_SECONDS = 10.0
"""A stream that is behind its reader and does not grow for so long was begun anew."""

# KEYS: stream, whose it is. ARGV: us, the newest entry as we know it, its longest length, up to
# which event nobody listens live any more, prefix; then of each event sequence, id, type and JSON.
# Returns the sequence of the newest entry; -1 where it is not the one that we know; -2 where
# another event stands in the place of one of ours, or none; -3 where it is not our stream.
_TELL = """
local function newest(key)
  if redis.call('EXISTS', key) == 0 then return 0 end
  local told = redis.call('XINFO', 'STREAM', key)
  for i = 1, #told, 2 do
    if told[i] == 'last-generated-id' then return tonumber(string.match(told[i + 1], '^%d+')) end
  end
end
local owner = redis.call('GET', KEYS[2])
if owner and owner ~= ARGV[1] then return -3 end
local top = newest(KEYS[1])
if top ~= tonumber(ARGV[2]) and top < tonumber(ARGV[6]) - 1 then return -1 end
local oldest = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 1)[1]
oldest = oldest and tonumber(string.match(oldest[1], '^%d+')) or top
for i = 6, #ARGV, 4 do
  if tonumber(ARGV[i]) <= top and tonumber(ARGV[i]) >= oldest then
    local there = redis.call('XRANGE', KEYS[1], ARGV[i] .. '-0', ARGV[i] .. '-0')[1]
    if not there or not string.find(table.concat(there[2], ' '), ARGV[i + 1], 1, true) then
      return -2
    end
  end
end
redis.call('SET', KEYS[2], ARGV[1])
for i = 6, #ARGV, 4 do
  local sequence = tonumber(ARGV[i])
  if sequence > top then
    redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[3], ARGV[i] .. '-0', 'event', ARGV[i + 3])
    if sequence > tonumber(ARGV[4]) then
      redis.call('PUBLISH', ARGV[5] .. ':events', ARGV[i + 3])
      redis.call('PUBLISH', ARGV[5] .. ':' .. ARGV[i + 2], ARGV[i + 3])
    end
    top = sequence
  end
end
return top
"""
_NOT_AS_KNOWN, _ANOTHER_EVENT, _NOT_OURS = -1, -2, -3


class RedisPublisher(Publisher):
    """To the server at `url`; no call takes longer than `timeout` seconds.

    `max_length`: entries that the stream keeps, about; who is further behind begins anew.
    """

    def __init__(
        self,
        url: str,
        prefix: str = "container_manager",
        max_length: int = 100_000,
        timeout: float = 1.0,
    ) -> None:
        if not prefix or max_length < 1 or not 0 < timeout <= 60:
            raise ValueError("prefix must not be empty, max_length 1 or more, timeout 60 at most")
        self.prefix = prefix
        self.stream = f"{prefix}:stream"
        self._instance = f"{self.stream}:instance"
        self._max_length = max_length
        self._timeout = timeout
        self._redis = _client(url, timeout)
        self._tell = self._redis.register_script(_TELL)
        self._source = ""
        self._newest = 0
        """The newest entry as we know it."""
        self._live_from = 0
        self._begin_anew = False

    def begin(self, standing: Standing) -> int:
        """Redis knows what it has. What it lost, up to its longest length, is told again."""
        with self._calls():
            newest, owner = self._newest_entry(), self._redis.get(self._instance)
            if owner not in (None, standing.source) or (owner is None and newest > standing.newest):
                raise Unavailable(
                    f"{self.stream} is another installation's: choose another prefix, or delete it"
                )
            if self._begin_anew or newest > standing.newest:
                logger.warning("%s is of an earlier life of this database: begun anew", self.stream)
                self._redis.delete(self.stream)
                newest, self._begin_anew = 0, False
        self._source, self._newest, self._live_from = standing.source, newest, standing.position
        if newest >= standing.position:
            return standing.position
        return max(newest, standing.position - self._max_length, standing.oldest - 1)

    def publish(self, events: Sequence[TransitionEvent]) -> None:
        head = [self._source, self._newest, self._max_length, self._live_from, self.prefix]
        told = [
            word
            for event in events
            for word in (event.sequence, str(event.id), event.entity_type, event.as_text())
        ]
        with self._calls():
            newest = int(self._tell([self.stream, self._instance], [*head, *told]))
        if newest < 0:
            self._begin_anew = newest == _ANOTHER_EVENT
            raise OutOfStep(f"{self.stream} is not as we left it")
        self._newest = newest

    def close(self) -> None:
        self._redis.close()

    def _newest_entry(self) -> int:
        if not self._redis.exists(self.stream):
            return 0
        return _sequence_of(self._redis.xinfo_stream(self.stream)["last-generated-id"])

    @contextmanager
    def _calls(self) -> Iterator[None]:
        """What Redis says, or does not say in time, in the words of `events`."""
        import redis

        try:
            yield
        except (redis.RedisError, OSError) as error:
            raise Unavailable(f"Redis: {error}") from error

    # The other end

    def subscribe(
        self,
        handler: Callable[[TransitionEvent], object],
        after: int | None = None,
        *,
        resync: Callable[[int, int], object] | None = None,
    ) -> StreamSubscription:
        """Call `handler` with each event of the stream, in order, in a thread of its own.

        `after`: the sequence behind which to go on, such as the `position` of an earlier
        subscription; None: what comes from now on. `resync(after, first)` is called where the
        stream does not have what came between these two: they were dropped from it, or it was
        begun anew (then `first` may be the lower one). Raises Unavailable.
        """
        after = self.newest() if after is None else after
        return StreamSubscription(self, handler, after, resync or _say_what_is_missing)

    def newest(self) -> int:
        """The sequence of the entry that was made last; 0 where there is none."""
        with self._calls():
            return self._newest_entry()

    def read(self, after: int, seconds: float) -> list[tuple[int, TransitionEvent | None]]:
        """What is behind this one, waiting for it so long; None is no event. Raises Unavailable."""
        block = max(1, int(min(seconds, self._timeout / 2) * 1000))
        with self._calls():
            found = self._redis.xread({self.stream: f"{after}-0"}, READ_AT_ONCE, block)
        entries = found[0][1] if found else []
        return [(_sequence_of(entry_id), _event_of(entry_id, told)) for entry_id, told in entries]

    def first(self) -> int:
        """The sequence of the oldest entry; one more than the newest where there is none."""
        with self._calls():
            entries = self._redis.xrange(self.stream, count=1)
            return _sequence_of(entries[0][0]) if entries else self._newest_entry() + 1

    def entry(self, sequence: int) -> TransitionEvent | None:
        """The event at this place; None where it was dropped. Raises Unavailable."""
        with self._calls():
            entries = self._redis.xrange(self.stream, f"{sequence}-0", f"{sequence}-0")
        return _event_of(*entries[0]) if entries else None


class StreamSubscription:
    """One reader of the stream; `close()` it, or leave its `with`.

    It connects again by itself and goes on where it was. What the handler raises ends it, with
    `position` before that event, and is raised by `wait`.
    """

    def __init__(
        self,
        publisher: RedisPublisher,
        handler: Callable[[TransitionEvent], object],
        after: int,
        resync: Callable[[int, int], object],
    ) -> None:
        self._publisher = publisher
        self._handler = handler
        self._resync = resync
        self._ended = threading.Event()
        self._error: BaseException | None = None
        self.position = after
        """The sequence of the event that was handled last."""
        self._known: TransitionEvent | None = None
        """The event at that place."""
        self._newest, self._rose_at = -1, 0.0
        self._thread = threading.Thread(target=self._run, name="stream listener", daemon=True)
        self._thread.start()

    def wait(self, seconds: float | None = None) -> bool:
        """Until it has ended, or so long; True when it has. Raises what the handler raised."""
        self._thread.join(seconds)
        if self._error is not None:
            raise self._error
        return not self._thread.is_alive()

    def close(self) -> None:
        """No event after the one under way."""
        self._ended.set()
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
        pause = FIRST_PAUSE
        while not self._ended.is_set():
            try:
                self._take(self._publisher.read(self.position, LONGEST_PAUSE))
                pause = FIRST_PAUSE
            except Unavailable as error:
                logger.warning("Listening is interrupted: %s", error)
                self._ended.wait(pause)
                pause = min(2 * pause, LONGEST_PAUSE)
            except BaseException as error:  # noqa: BLE001  it is raised by `wait`
                self._error = error
                break

    def _take(self, entries: Sequence[tuple[int, TransitionEvent | None]]) -> None:
        if self._is_of_another_life(bool(entries)):
            self._begin_anew()
            return
        for sequence, event in entries:
            if self._ended.is_set():
                break
            if sequence > self.position + 1:
                self._resync(self.position, sequence)
            if event is not None:
                self._handler(event)
            self.position, self._known = sequence, event

    def _is_of_another_life(self, goes_on: bool) -> bool:
        """Of a database that was set back: another event stands in our place, or none ever comes.

        What Redis lost is told to it again, and so such a stream comes up to where we are.
        """
        if not goes_on and self._stands_still_behind_us():
            return True
        there = self._publisher.entry(self.position) if self._known else None
        return there is not None and self._known is not None and there.id != self._known.id

    def _stands_still_behind_us(self) -> bool:
        newest, now = self._publisher.newest(), time.monotonic()
        if newest != self._newest:
            self._newest, self._rose_at = newest, now
        return 0 < newest < self.position and now - self._rose_at > STANDSTILL_SECONDS

    def _begin_anew(self) -> None:
        first = self._publisher.first()
        self._resync(self.position, first)
        self.position, self._known = first - 1, None


def _say_what_is_missing(after: int, first: int) -> None:
    logger.warning("Events behind %d are not in the stream, which goes on with %d", after, first)


def _sequence_of(entry_id: Any) -> int:
    return int(str(entry_id).partition("-")[0])


def _event_of(entry_id: Any, told: Any) -> TransitionEvent | None:
    """None for what somebody else wrote there."""
    try:
        return TransitionEvent.from_json(json.loads(told["event"]), _sequence_of(entry_id))
    except (KeyError, ValueError):
        logger.warning("Entry %s of the stream is no event", entry_id)
        return None


def _client(url: str, timeout: float) -> Any:
    """It tries once: who calls decides when to try again."""
    import redis
    from redis.backoff import NoBackoff
    from redis.retry import Retry

    return redis.Redis.from_url(
        url,
        socket_timeout=timeout,
        socket_connect_timeout=timeout,
        retry=Retry(NoBackoff(), 0),
        decode_responses=True,
        protocol=2,
    )
