"""Server-Sent Events: what every stream is made of, whatever it tells.

A `Source` knows what comes next for one client, a `Stream` sends it: heartbeats while there is
nothing, no more than the client takes, an end when the server stops. It is a coroutine: a client
that waits keeps no thread and no database connection.

`Streams` wraps the project's ASGI application. Django keeps a thread for each request until it is
answered, and cannot drop a connection; what a view hands over to `Streams` is sent outside of it.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
import signal
import socket
import struct
import threading
import weakref
from abc import ABC, abstractmethod
from collections import Counter, defaultdict
from collections.abc import (
    AsyncGenerator,
    Awaitable,
    Callable,
    Hashable,
    Iterable,
    Mapping,
    Sequence,
)
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from functools import cached_property, partial
from types import FrameType
from typing import Any

logger = logging.getLogger("container_manager")

Scope = dict[str, Any]
ASGIMessage = Mapping[str, Any]
Receive = Callable[[], Awaitable[ASGIMessage]]
Send = Callable[[ASGIMessage], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

MEDIA_TYPE = "text/event-stream"
RETRY_MILLISECONDS = 1000, 3000
"""When a client that lost its stream comes back, from and to: not all at the same moment."""
LINGER_SECONDS = 1.0
"""So long a client may take for what was sent to it when the server stops."""


# Messages -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Message:
    """One event of a stream. A client that lost the stream comes back with the latest `id`.

    >>> Message("log", {"text": "one\\ntwo"}, "7").encoded
    b'id: 7\\nevent: log\\ndata: {"text":"one\\\\ntwo"}\\n\\n'
    """

    event: str
    """Empty: what a browser takes for a `message`."""
    data: Any
    """What JSON can say."""
    id: str = ""

    @cached_property
    def encoded(self) -> bytes:
        """As it is sent: once, to however many."""
        data = json.dumps(self.data, ensure_ascii=False, separators=(",", ":"), default=str)
        lines = [*_line("id", self.id), *_line("event", self.event), *_line("data", data), "", ""]
        return "\n".join(lines).encode()


def _line(name: str, value: str) -> list[str]:
    return [f"{name}: {value}"] if value else []


def _comment(*lines: str, place: str) -> bytes:
    """No message, but a browser remembers the place."""
    return "\n".join([*lines, *_line("id", place), "", ""]).encode()


class Bell:
    """Wakes the coroutine that made it."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self._rung = asyncio.Event()

    def ring(self) -> None:
        """In its own event loop only; `ring` is for everybody else."""
        self._rung.set()

    def ring_later(self, seconds: float) -> None:
        self.loop.call_later(seconds, self._rung.set)

    def mute(self) -> None:
        self._rung.clear()

    async def heard(self, seconds: float) -> bool:
        """Wait for it so long at most; was it rung?"""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._rung.wait()
        return self._rung.is_set()


def ring(bells: Iterable[Bell]) -> None:
    """From any thread: each event loop is called once, however many wait there."""
    by_loop: dict[asyncio.AbstractEventLoop, list[Bell]] = defaultdict(list)
    for bell in bells:
        by_loop[bell.loop].append(bell)
    for loop, of_loop in by_loop.items():
        with suppress(RuntimeError):  # it is closed: nobody waits there any more
            loop.call_soon_threadsafe(_ring_here, of_loop)


def _ring_here(bells: Iterable[Bell]) -> None:
    for bell in bells:
        bell.ring()


class Source(ABC):
    """What one client is told, in its order."""

    over = False
    """Nothing comes after what `next` gave."""

    @property
    @abstractmethod
    def place(self) -> str:
        """Where who has all that was told goes on: an id."""

    @abstractmethod
    def open(self, bell: Bell) -> None:
        """Begin; ring the bell whenever there may be something."""

    @abstractmethod
    async def next(self) -> Sequence[Message]:
        """What is there now, so much as fits into one buffer; empty when there is nothing yet."""

    @abstractmethod
    def close(self) -> None:
        """Nobody asks any more. May be called more than once, and without `open`."""


# How many -----------------------------------------------------------------------------------------


class NoSeat(Exception):
    """This one has as many streams already as one may have."""


class Seats:
    """Counts the streams that each has in this process."""

    def __init__(self) -> None:
        self._taken: Counter[Hashable] = Counter()
        self._lock = threading.RLock()  # a forgotten seat may be given back while it is held

    def take(self, who: Hashable, most: int) -> Seat:
        """One more, of so many at most. Raises NoSeat."""
        with self._lock:
            if self._taken[who] >= most:
                raise NoSeat
            self._taken[who] += 1
            return Seat(self, who)

    def taken_by(self, who: Hashable) -> int:
        return self._taken[who]

    def _give_back(self, who: Hashable) -> None:
        with self._lock:
            self._taken[who] -= 1
            if not self._taken[who]:
                del self._taken[who]


class Seat:
    """Is given back once: when it is left, or with the last one who knows of it."""

    def __init__(self, seats: Seats, who: Hashable) -> None:
        self._given_back = weakref.finalize(self, seats._give_back, who)
        self._given_back.atexit = False

    def leave(self) -> None:
        self._given_back()


# Streams ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Patience:
    """Seconds of one stream."""

    heartbeat: float = 15.0
    """After so long without a message a comment is sent, so that nobody takes it for dead."""
    send: float = 30.0
    """A client that takes nothing for so long is dropped."""
    allowed: float = 60.0
    """So often it is asked whether the client may still have it."""


async def always() -> bool:
    """The answer for a stream that everybody may have."""
    return True


@dataclass(eq=False)
class Stream:
    """The messages of a source on their way to one client."""

    source: Source
    seat: Seat | None = None
    patience: Patience = field(default_factory=Patience)
    is_allowed: Callable[[], Awaitable[bool]] = always
    _abort: Callable[[], None] | None = field(default=None, init=False)

    async def bodies(self) -> AsyncGenerator[bytes, None]:
        """What is sent, until there is no more or the server stops; nothing is read ahead."""
        bell = Bell()
        _server.begin(self, bell)
        try:
            self.source.open(bell)
            retry = random.randint(*RETRY_MILLISECONDS)  # noqa: S311
            yield _comment(f"retry: {retry}", place=self.source.place)
            async for body in self._all(bell):
                yield body
        finally:
            self.close()

    async def _all(self, bell: Bell) -> AsyncGenerator[bytes, None]:
        clock = bell.loop.time
        beat_at = clock() + self.patience.heartbeat
        # Those that began together do not all ask together.
        ask_at = clock() + self.patience.allowed * random.uniform(0.5, 1.0)  # noqa: S311
        while not _server.stops:
            bell.mute()  # before anything is looked at: what comes meanwhile rings again
            messages = await self.source.next()
            if messages:
                yield b"".join(message.encoded for message in messages)
                beat_at = clock() + self.patience.heartbeat
            if self.source.over:
                return
            if clock() >= beat_at:
                yield _comment(": still here", place=self.source.place)
                beat_at = clock() + self.patience.heartbeat
            if clock() >= ask_at:
                if not await self.is_allowed():
                    return
                ask_at = clock() + self.patience.allowed
            if not messages:
                await bell.heard(min(beat_at, ask_at) - clock())

    def close(self) -> None:
        """Let go of what is kept for this client."""
        _server.end(self)
        self.source.close()
        if self.seat:
            self.seat.leave()

    # Outside of Django's handler

    async def serve(self, receive: Receive, send: Send) -> None:
        """Send all of it; ends when the client has it, has gone, or is dropped."""
        self._abort = _way_to_abort(send)
        sending, gone = (
            asyncio.ensure_future(each) for each in (self._send_all(send), _until_gone(receive))
        )
        try:
            await asyncio.wait({sending, gone}, return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                await self._look_back(sending, gone)
        finally:
            sending.cancel()
            gone.cancel()
            await asyncio.wait({sending, gone})
            self.close()

    async def _send_all(self, send: Send) -> None:
        async with aclosing(self.bodies()) as bodies:
            async for body in bodies:
                await self._send(send, body, more=True)
            await self._send(send, b"", more=False)

    async def _look_back(self, sending: asyncio.Future[None], gone: asyncio.Future[None]) -> None:
        try:
            sending.result()
        except _TakesNothing:
            seconds = self.patience.send
            logger.info("A stream was dropped: its client took nothing for %g s", seconds)
            self.drop()
            await asyncio.wait({gone}, timeout=LINGER_SECONDS)  # else the server misses our end

    async def _send(self, send: Send, body: bytes, more: bool) -> None:
        try:
            async with asyncio.timeout(self.patience.send):
                await send({"type": "http.response.body", "body": body, "more_body": more})
        except TimeoutError:
            raise _TakesNothing from None

    def drop(self) -> None:
        """Close the connection at once, whatever the client has not taken yet."""
        if self._abort:
            self._abort()


class _TakesNothing(Exception):
    """What is sent to this client stays where it is."""


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


RESET = struct.pack("ii", 1, 0)
"""SO_LINGER: the system, too, forgets what it would still send."""


def _way_to_abort(send: Send) -> Callable[[], None] | None:
    """ASGI has no word for it: uvicorn's `send` is a method of what holds the transport."""
    transport: Any = getattr(getattr(send, "__self__", None), "transport", None)
    return partial(_reset, transport) if hasattr(transport, "abort") else None


def _reset(transport: asyncio.WriteTransport) -> None:
    line = transport.get_extra_info("socket")
    if line is not None and not transport.is_closing():
        with suppress(OSError):
            line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    transport.abort()


# The server ---------------------------------------------------------------------------------------


class _Server:
    """All streams of this process, and the end of them.

    A server tells its applications that it stops when it has waited for all that they send: too
    late for what has no end of its own. So the signals that stop it are heard here, too.
    """

    def __init__(self) -> None:
        self.stops = False
        self._streams: dict[Stream, Bell] = {}

    def begin(self, stream: Stream, bell: Bell) -> None:
        self._streams[stream] = bell
        _hear_signals()

    def end(self, stream: Stream) -> None:
        self._streams.pop(stream, None)

    @property
    def streams(self) -> int:
        return len(self._streams)

    def stop(self) -> None:
        self.stops = True
        for loop in {bell.loop for bell in list(self._streams.values())}:
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(self._stop_here, loop)

    def _stop_here(self, loop: asyncio.AbstractEventLoop) -> None:
        for stream, bell in list(self._streams.items()):
            if bell.loop is loop:
                bell.ring()
                loop.call_later(LINGER_SECONDS, stream.drop)


_server = _Server()


def stop() -> None:
    """The server stops: every stream ends, and no other begins. From any thread."""
    _server.stop()


def open_streams() -> int:
    """How many there are in this process."""
    return _server.streams


class _Heard:
    """A handler of a signal that also stops the streams."""

    def __init__(self, handler: Callable[[int, FrameType | None], Any]) -> None:
        self._handler = handler

    def __call__(self, number: int, frame: FrameType | None) -> Any:
        stop()
        return self._handler(number, frame)


def _hear_signals() -> None:
    if threading.current_thread() is not threading.main_thread():
        return
    for number in (signal.SIGTERM, signal.SIGINT):
        handler = signal.getsignal(number)
        if callable(handler) and not isinstance(handler, _Heard):
            signal.signal(number, _Heard(handler))


HANDED_OVER = "container_manager.streams"
"""Where a view puts a stream that shall be sent outside of Django's handler."""


def hand_over(scope: Mapping[str, Any], stream: Stream) -> bool:
    """True: it will be sent behind the head of this answer. False: `Streams` is not there."""
    places: list[Stream] | None = scope.get(HANDED_OVER)
    if places is None:
        return False
    places.append(stream)
    return True


class Streams:
    """An ASGI application that sends the streams which another one hands over to it."""

    def __init__(self, application: Application) -> None:
        self._application = application

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._application(scope, receive, send)
            return
        answer = _Answer(send)
        scope[HANDED_OVER] = answer.streams
        try:
            await self._application(scope, receive, answer.send)
            if answer.is_stream:
                await answer.streams[0].serve(receive, send)
        finally:
            for stream in answer.streams:
                stream.close()


class _Answer:
    """Sends the head of an answer, and its body unless that is a stream of ours."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.streams: list[Stream] = []
        self.is_stream = False

    async def send(self, message: ASGIMessage) -> None:
        if message["type"] == "http.response.start" and self.streams:
            heads = {name.lower(): value for name, value in message["headers"]}
            self.is_stream = heads.get(b"content-type", b"").startswith(MEDIA_TYPE.encode())
        if message["type"] != "http.response.body" or not self.is_stream:
            await self._send(message)
