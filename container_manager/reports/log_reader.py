"""Reading the output of one attempt, chunk by chunk: byte-exact within each stream."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any
from uuid import UUID

from container_manager.models import JobLog

AT_ONCE, MOST_AT_ONCE = 16, 1024
"""Chunks of a stream that are held in memory, at first and at most."""

CHUNK_BYTES = 64 * 1024
BYTES_AT_ONCE = AT_ONCE * CHUNK_BYTES
"""Bytes of a stream that are held in memory, however many chunks they are."""


def chunks_from(chunks: Any, start: int) -> Iterator[JobLog]:
    """Of these chunks of one stream those at `start` and behind, in batches that grow."""

    def following(last: JobLog | None, number: int) -> list[JobLog]:
        begin = start if last is None else last.offset + 1
        found = chunks.filter(offset__gte=begin).order_by("offset")
        if number > AT_ONCE:
            found = found.filter(offset__lte=begin + BYTES_AT_ONCE - CHUNK_BYTES)
        return list(found[:number])

    return _in_batches(following)


def chunks_before(chunks: Any, end: int) -> Iterator[JobLog]:
    """Those before `end`, the last one first."""

    def preceding(last: JobLog | None, number: int) -> list[JobLog]:
        behind = end if last is None else last.offset
        found = chunks.filter(offset__lt=behind).order_by("-offset")
        if number > AT_ONCE:
            found = found.filter(offset__gte=behind - BYTES_AT_ONCE)
        return list(found[:number])

    return _in_batches(preceding)


def _in_batches(read: Callable[[JobLog | None, int], list[JobLog]]) -> Iterator[JobLog]:
    """Twice as many chunks each time, as long as they are small.

    AT_ONCE are never too many bytes. More are asked for within a stretch of the stream only, which
    may have none because of what the cap left out: then AT_ONCE are, wherever they are.
    """
    last, number = None, AT_ONCE
    while (batch := read(last, number)) or number > AT_ONCE:
        yield from batch
        last = batch[-1] if batch else last
        number = min(max(2 * len(batch), AT_ONCE), MOST_AT_ONCE)


class LogReader:
    """Remembers how far each stream was read, and what was missing on the way."""

    def __init__(
        self,
        job_id: UUID,
        attempt: int,
        streams: Sequence[str],
        start: Mapping[str, int] | None = None,
    ) -> None:
        self.job_id, self.attempt = job_id, attempt
        self.read_to = dict.fromkeys(streams, 0) | dict(start or {})

    def unread(self) -> Iterator[tuple[str, int, bytes]]:
        """What is new: stream, bytes left out before it, data; in the order it was written.

        Each stream is read by its offsets, never by times alone, so that no clock can hide a chunk.
        """
        streams = [self._forwards(stream) for stream in self.read_to]
        for chunk in heapq.merge(*streams, key=_written):
            start = self.read_to[chunk.stream]
            data = bytes(chunk.data)[max(0, start - chunk.offset) :]
            if data:
                self.read_to[chunk.stream] = chunk.offset + len(chunk.data)
                yield chunk.stream, max(0, chunk.offset - start), data

    def seek_last_lines(self, count: int) -> None:
        """Everything before the last `count` lines that are there counts as read."""
        ends = JobLog.objects.ends(self.job_id, self.attempt)
        self.read_to = {stream: ends.get(stream, 0) for stream in self.read_to}
        streams = [self._backwards(stream) for stream in self.read_to]
        newlines, at_end = 0, True
        for chunk in heapq.merge(*streams, key=_written, reverse=True):
            data = bytes(chunk.data)
            position = len(data) - (at_end and data.endswith(b"\n"))
            at_end = False
            while newlines < count and (position := data.rfind(b"\n", 0, position)) >= 0:
                newlines += 1
            if newlines >= count:
                self.read_to[chunk.stream] = chunk.offset + (position + 1 if count else len(data))
                return
            self.read_to[chunk.stream] = chunk.offset

    def _forwards(self, stream: str) -> Iterator[JobLog]:
        yield from chunks_from(self._of(stream), self._beginning(stream))

    def _beginning(self, stream: str) -> int:
        """Where the chunk begins that holds the next unread byte."""
        start = self.read_to[stream]
        if not start:
            return 0
        before = self._of(stream).filter(offset__lte=start).order_by("-offset")
        return before.values_list("offset", flat=True).first() or 0

    def _backwards(self, stream: str) -> Iterator[JobLog]:
        yield from chunks_before(self._of(stream), self.read_to[stream])

    def _of(self, stream: str) -> Any:
        return JobLog.objects.filter(job_id=self.job_id, attempt=self.attempt, stream=stream)


def _written(chunk: JobLog) -> tuple[Any, UUID]:
    return chunk.created_at, chunk.pk
