"""The output of one running attempt on its way into the database."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from container_manager.executors.base import CHUNK_BYTES, Chunk
from container_manager.models.leases import Lease
from container_manager.models.outcomes import LogChunk
from container_manager.models.sql import storable
from container_manager.states import Stream

PENDING_BYTES = 1024 * 1024
"""A job that prints faster than the database writes waits when so much of a stream is unwritten."""

SPARE_BYTES = 8 * 1024 * 1024
"""So much more may be unwritten, of all jobs of this process together, beyond their heads: what
falls out of the tail in time is never written, and its job need not wait for the database."""

WRITE_BYTES = 1024 * 1024
"""So much is written at once: what a statement is made of is in memory several times."""

OUTPUT_BYTES = 64 * 1024
"""So much of the end of stdout stands on the job itself."""

Fallen = tuple[Lease, str, int, int]


class Spare:
    """Memory that is lent to those streams which have more unwritten than is everybody's right."""

    def __init__(self, size: int = SPARE_BYTES) -> None:
        self._left = size
        self._lock = threading.Lock()

    def has(self, size: int) -> bool:
        return self._left >= size

    def lend(self, more: int) -> None:
        """Less, when it is given back."""
        with self._lock:
            self._left -= more


SPARE = Spare()


class _StreamState:
    def __init__(self, end: int) -> None:
        self.end = end
        self.pending: deque[tuple[int, bytearray]] = deque()
        self.pending_bytes = 0
        self.borrowed = 0
        self.taken_to = end
        """What begins before may be in the database already, and must not grow."""

    def append(self, offset: int, data: bytes, *, joins: bool) -> None:
        """Keep a piece; a job that prints byte by byte must not make a row of each."""
        self.pending_bytes += len(data)
        if joins and self.pending:
            start, before = self.pending[-1]
            fits = start + len(before) == offset and len(before) + len(data) <= CHUNK_BYTES
            if fits and start >= self.taken_to:
                before += data
                return
        self.pending.append((offset, bytearray(data)))

    def take(self) -> list[tuple[int, bytes]]:
        """The oldest pieces; what is left for the next time may still grow."""
        taken: list[tuple[int, bytes]] = []
        size = 0
        for offset, data in self.pending:
            if size >= WRITE_BYTES:
                self.taken_to = max(self.taken_to, offset)
                return taken
            taken.append((offset, bytes(data)))
            size += len(data)
        self.taken_to = self.end
        return taken

    def written(self, pieces: list[tuple[int, bytes]]) -> None:
        """Forget the pieces that are written; some may have been forgotten meanwhile."""
        gone = {offset for offset, _ in pieces}
        self.pending = deque(piece for piece in self.pending if piece[0] not in gone)
        self.pending_bytes = sum(len(data) for _, data in self.pending)

    def forget(self) -> None:
        self.pending.clear()
        self.pending_bytes = 0

    def settle(self, spare: Spare) -> None:
        """Have as much borrowed as is needed now."""
        needed = max(0, self.pending_bytes - PENDING_BYTES)
        if needed != self.borrowed:
            spare.lend(needed - self.borrowed)
            self.borrowed = needed


class Output:
    """Takes chunks from the job's thread, gives them to the recorder, keeps head and tail.

    Of each stream the first half of the cap is kept, and the last half; what is between is counted
    by the hole that it leaves in the offsets.
    """

    def __init__(
        self,
        lease: Lease,
        cap: int,
        ends: Mapping[str, int],
        last_stdout: bytes = b"",
        wake: Callable[[], None] = lambda: None,
        spare: Spare = SPARE,
        news: Callable[[], None] = lambda: None,
    ) -> None:
        self.lease = lease
        self._wake = wake
        self._news = news
        self._spare = spare
        self._head = cap - cap // 2
        self._tail = cap // 2
        self._streams = {str(stream): _StreamState(ends.get(stream, 0)) for stream in Stream}
        self._last_stdout = bytearray(last_stdout)
        self._changed = threading.Condition()
        self._closed = False

    def ends(self) -> dict[str, int]:
        """Where to go on reading, stream by stream."""
        return {name: state.end for name, state in self._streams.items()}

    def is_beyond_cap(self, stream: str) -> bool:
        return self._streams[stream].end > self._head + self._tail

    def add(self, chunk: Chunk) -> None:
        """Take one chunk; waits while too much is unwritten."""
        with self._changed:
            state = self._streams[chunk.stream]
            self._changed.wait_for(lambda: self._closed or self._has_room(state))
            if self._closed:
                return
            for offset, data in self._split(chunk):
                state.append(offset, data, joins=offset != self._head)
            state.end = chunk.offset + len(chunk.data)
            self._forget_middle(state)
            state.settle(self._spare)
            if chunk.stream == Stream.STDOUT:
                self._last_stdout += chunk.data
                del self._last_stdout[:-OUTPUT_BYTES]
        self._news()
        if self.is_full:
            self._wake()

    def _has_room(self, state: _StreamState) -> bool:
        return state.pending_bytes < PENDING_BYTES or self._has_spare(state)

    def _split(self, chunk: Chunk) -> list[tuple[int, bytes]]:
        """Cut where the head ends, so that a stored chunk is either head or tail."""
        cut = self._head - chunk.offset
        if 0 < cut < len(chunk.data):
            return [(chunk.offset, chunk.data[:cut]), (self._head, chunk.data[cut:])]
        return [(chunk.offset, chunk.data)]

    def _forget_middle(self, state: _StreamState) -> None:
        """What no longer belongs to the tail need not be written at all."""
        oldest = state.end - self._tail
        kept: deque[tuple[int, bytearray]] = deque()
        while state.pending and state.pending[0][0] < self._head:
            kept.append(state.pending.popleft())
        while state.pending and state.pending[0][0] + len(state.pending[0][1]) <= oldest:
            state.pending_bytes -= len(state.pending.popleft()[1])
        state.pending.extendleft(reversed(kept))

    @property
    def is_full(self) -> bool:
        """So much is unwritten that the job's thread will soon have to wait."""
        return any(
            state.pending_bytes > PENDING_BYTES // 2 and not self._has_spare(state)
            for state in self._streams.values()
        )

    def _has_spare(self, state: _StreamState) -> bool:
        return state.end > self._head and self._spare.has(CHUNK_BYTES)

    @property
    def portions(self) -> int:
        """How often to take until all is written that is unwritten now."""
        return 1 + max(state.pending_bytes for state in self._streams.values()) // WRITE_BYTES

    @contextmanager
    def taking(self) -> Iterator[tuple[list[LogChunk], list[Fallen]]]:
        """A portion of what is unwritten, and the ranges that fell out of the tail.

        Stays unwritten when the block fails, so that it is taken again.
        """
        with self._changed:
            taken = {name: state.take() for name, state in self._streams.items()}
        chunks = [
            LogChunk(**self.lease.key, stream=name, offset=offset, data=data)
            for name, pieces in taken.items()
            for offset, data in pieces
        ]
        yield chunks, self._fallen({chunk.stream for chunk in chunks})
        with self._changed:
            for name, pieces in taken.items():
                self._streams[name].written(pieces)
                self._streams[name].settle(self._spare)
            self._changed.notify_all()

    def _fallen(self, names: set[str]) -> list[Fallen]:
        return [
            (self.lease, name, self._head, self._streams[name].end - self._tail - CHUNK_BYTES + 1)
            for name in names
            if self._streams[name].end - self._tail - CHUNK_BYTES > self._head
        ]

    def close(self) -> None:
        """Nobody will write any more: let the job's thread go on, and keep nothing."""
        with self._changed:
            self._closed = True
            for state in self._streams.values():
                state.forget()
                state.settle(self._spare)
            self._changed.notify_all()

    @property
    def last_text(self) -> str:
        """The end of stdout as text, from its first whole character on."""
        data = bytes(self._last_stdout)
        cut = _rest_of_a_character(data) if len(data) == OUTPUT_BYTES else 0
        return storable(data[cut:].decode("utf-8", "replace"))


def _rest_of_a_character(data: bytes) -> int:
    """How many bytes at the beginning belong to a character that was cut.

    >>> _rest_of_a_character("€ 1".encode()[1:])
    2
    """
    followers = next((at for at, byte in enumerate(data[:4]) if byte & 0xC0 != 0x80), 4)
    return followers if followers < 4 else 0
