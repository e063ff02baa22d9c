"""A container's output, byte for byte: from the engine's frames to chunks with offsets. Pure.

Measured on Docker 20.10, 256 byte values, long lines, empty lines, no last newline:
- the attach stream is exact, and the engine waits for a slow reader instead of dropping bytes;
- log driver `json-file` replaces what is not UTF-8: 256 bytes written, 512 read;
- log driver `local` keeps every byte but the newline at the end of a line of 16 KiB and more:
  it stores such a line in parts, and loses the newline of the last one.

So output is read from the attach stream, and from the log only to resume. There the lost newlines
are put back: with `timestamps=1` each frame is one stored part, and a part that is shorter than
16 KiB, follows a full one and is not the last of its stream did end with a newline. What the log
cannot tell is whether the very last line, when it has 16 KiB or more, ended with one: it is taken
to have.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping

from container_manager.executors.base import CHUNK_BYTES, Chunk, EngineUnavailable
from container_manager.states import Stream

_HEADER = struct.Struct(">BxxxL")
_STREAMS = {1: Stream.STDOUT.value, 2: Stream.STDERR.value}
_PART_BYTES = 16 * 1024

Piece = tuple[str, bytes]
"""A stream's name and the bytes that it carries next."""


class Frames:
    """Cuts the engine's multiplexed stream into pieces."""

    def __init__(self) -> None:
        self._pending = bytearray()

    def feed(self, data: bytes) -> Iterator[Piece]:
        """The pieces that are complete with `data`."""
        self._pending += data
        at = 0
        while (end := self._end_of_frame(at)) is not None:
            yield self._piece(at, end)
            at = end
        del self._pending[:at]

    def _end_of_frame(self, at: int) -> int | None:
        if len(self._pending) - at < _HEADER.size:
            return None
        end: int = at + _HEADER.size + _HEADER.unpack_from(self._pending, at)[1]
        return end if end <= len(self._pending) else None

    def _piece(self, at: int, end: int) -> Piece:
        payload = bytes(memoryview(self._pending)[at + _HEADER.size : end])
        stream = _STREAMS.get(self._pending[at])
        if stream is None:
            raise EngineUnavailable(
                f"The engine's stream failed: {payload.decode(errors='replace')}"
            )
        return stream, payload


class LogLines:
    """Puts back what the log driver took from one stream; reads entries with a timestamp."""

    def __init__(self) -> None:
        self._in_long_line = False
        self._owes_newline = False

    def restore(self, entry: bytes) -> bytes:
        """The bytes that the job wrote, given the next entry of the log."""
        part = entry[entry.index(b" ") + 1 :]
        owed = self.end()
        if part.endswith(b"\n"):
            self._in_long_line = False
        elif len(part) == _PART_BYTES:
            self._in_long_line = True
        else:
            self._owes_newline, self._in_long_line = self._in_long_line, False
        return owed + part

    def end(self) -> bytes:
        """What is still owed when nothing follows."""
        owed, self._owes_newline = self._owes_newline, False
        return b"\n" if owed else b""


class Log:
    """The pieces of a whole log, from its frames."""

    def __init__(self) -> None:
        self._frames = Frames()
        self._lines = {stream: LogLines() for stream in _STREAMS.values()}

    def feed(self, data: bytes) -> Iterator[Piece]:
        for stream, entry in self._frames.feed(data):
            yield stream, self._lines[stream].restore(entry)

    def end(self) -> Iterator[Piece]:
        for stream, lines in self._lines.items():
            yield stream, lines.end()


class Progress:
    """How far each stream was told; makes chunks of what comes next."""

    def __init__(self, offsets: Mapping[str, int]) -> None:
        self._told = {stream: offsets.get(stream, 0) for stream in _STREAMS.values()}
        self._skip: dict[str, int] = {}
        self.rewind()

    def rewind(self) -> None:
        """What comes next starts again from each stream's first byte."""
        self._skip = dict(self._told)

    def chunks(self, pieces: Iterable[Piece]) -> Iterator[Chunk]:
        """The news in these pieces, each stream's joined."""
        news: dict[str, list[bytes]] = {}
        for stream, data in pieces:
            news.setdefault(stream, []).append(self._unseen(stream, data))
        for stream, parts in news.items():
            yield from self._cut(stream, b"".join(parts))

    def _unseen(self, stream: str, data: bytes) -> bytes:
        seen = min(self._skip[stream], len(data))
        self._skip[stream] -= seen
        return data[seen:]

    def _cut(self, stream: str, data: bytes) -> Iterator[Chunk]:
        for start in range(0, len(data), CHUNK_BYTES):
            chunk = Chunk(stream, self._told[stream], data[start : start + CHUNK_BYTES])
            self._told[stream] += len(chunk.data)
            yield chunk
