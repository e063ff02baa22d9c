"""The kept output of one stream as one sequence of bytes, of which any part can be read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from django.db.models import F, Max, Sum, Window
from django.db.models.functions import Length

from container_manager.models import JobAttempt, JobLog
from container_manager.reports.log_reader import chunks_from


class Shrunk(Exception):
    """The cap dropped bytes that were being read; what is left is not what was promised."""


class RawLog:
    """One stream of one attempt, as it was when this was made."""

    def __init__(self, job_id: Any, attempt: int, stream: str) -> None:
        self.chunks = JobLog.objects.filter(job=job_id, attempt=attempt, stream=stream)
        sums = self.chunks.aggregate(
            end=Max(F("offset") + Length("data")), kept=Sum(Length("data"))
        )
        self.end: int = sums["end"] or 0
        self.size: int = sums["kept"] or 0
        """Bytes that can be read."""
        rows = JobAttempt.objects.filter(job=job_id, attempt=attempt)
        emitted = rows.values_list(f"{stream}_bytes", flat=True).first() or 0
        self.omitted = max(self.end, emitted) - self.size
        """Bytes that the cap left out."""
        self.tag = f"{job_id}-{attempt}-{stream}-{self.end}-{self.size}"
        """Changes whenever the bytes do."""

    def read(self, start: int, stop: int) -> Iterator[bytes]:
        """The bytes from `start` up to `stop`, some chunks in memory at a time. Raises Shrunk."""
        left = stop - start
        if left <= 0:
            return
        offset, skip = self._find(start)
        for chunk in chunks_from(self.chunks, offset):
            data = bytes(chunk.data)
            piece = data[skip : skip + left]
            skip = max(0, skip - len(data))
            left -= len(piece)
            if piece:
                yield piece
            if not left:
                return
        raise Shrunk

    def _find(self, position: int) -> tuple[int, int]:
        """Offset of the chunk that holds the byte, and how many bytes of it are before."""
        if not position:
            return 0, 0
        length = Length("data")
        counted = self.chunks.annotate(
            behind=Window(Sum(length), order_by=F("offset").asc()), length=length
        ).order_by("offset")
        found = counted.filter(behind__gt=position).values_list("offset", "behind", "length")
        row = found.first()
        if row is None:
            raise Shrunk
        offset, behind, size = row
        return offset, position - (behind - size)
