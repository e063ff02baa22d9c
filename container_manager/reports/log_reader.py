"""Reading the output of one attempt, chunk by chunk: byte-exact within each stream."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from typing import Any
from uuid import UUID

from container_manager.models import JobLog

AT_ONCE = 16
"""Chunks of a stream that are held in memory: 1 MiB."""


class LogReader:
    """Remembers how far each stream was read, and what was missing on the way."""

    def __init__(self, job_id: UUID, attempt: int, streams: Sequence[str]) -> None:
        self.job_id, self.attempt = job_id, attempt
        self.read_to = dict.fromkeys(streams, 0)

    def unread(self) -> Iterator[tuple[str, int, bytes]]:
        """What is new: stream, bytes left out before it, data; in the order it was written.

        Each stream is read by its offsets, never by times alone, so that no clock can hide a chunk.
        """
        streams = [self._forwards(stream) for stream in self.read_to]
        for chunk in heapq.merge(*streams, key=_written):
            missing = chunk.offset - self.read_to[chunk.stream]
            data = bytes(chunk.data)
            self.read_to[chunk.stream] = chunk.offset + len(data)
            yield chunk.stream, max(0, missing), data

    def last_lines(self, count: int) -> bytes:
        """The last `count` lines that are there; everything before them counts as read."""
        ends = JobLog.objects.ends(self.job_id, self.attempt)
        self.read_to = {stream: ends.get(stream, 0) for stream in self.read_to}
        streams = [self._backwards(stream) for stream in self.read_to]
        found: list[bytes] = []
        newlines = 0
        for chunk in heapq.merge(*streams, key=_written, reverse=True):
            found.insert(0, bytes(chunk.data))
            newlines += found[0].count(b"\n")
            if newlines > count:
                break
        return _last_lines(b"".join(found), count)

    def _forwards(self, stream: str) -> Iterator[JobLog]:
        chunks = self._of(stream).order_by("offset")
        start = self.read_to[stream]
        while batch := list(chunks.filter(offset__gte=start)[:AT_ONCE]):
            yield from batch
            start = batch[-1].offset + 1

    def _backwards(self, stream: str) -> Iterator[JobLog]:
        chunks = self._of(stream).order_by("-offset")
        before = self.read_to[stream]
        while batch := list(chunks.filter(offset__lt=before)[:AT_ONCE]):
            yield from batch
            before = batch[-1].offset

    def _of(self, stream: str) -> Any:
        return JobLog.objects.filter(job_id=self.job_id, attempt=self.attempt, stream=stream)


def _written(chunk: JobLog) -> tuple[Any, UUID]:
    return chunk.created_at, chunk.pk


def _last_lines(data: bytes, count: int) -> bytes:
    """
    >>> _last_lines(b"one\\ntwo\\nthree\\n", 2)
    b'two\\nthree\\n'
    """
    position = len(data) - data.endswith(b"\n")
    for _ in range(count):
        position = data.rfind(b"\n", 0, position)
        if position < 0:
            return data
    return data[position + 1 :] if count else b""
