"""The output of one attempt as text, page by page: no byte is lost or told twice.

A page ends between two characters; what is not UTF-8 is replaced and said so. Where a page ended is
a `Place`, from which the next one goes on.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from django.db.models import F, Max, Sum
from django.db.models.functions import Length

from container_manager.models import JobAttempt, JobLog
from container_manager.reports.log_reader import LogReader
from container_manager.states import JobStatus, Phase

SMALLEST = 8
"""A page holds so many bytes at least: two halves of a character may be held back."""


@dataclass(frozen=True)
class Place:
    """An attempt, and how far each of its streams was read."""

    attempt: int
    read_to: dict[str, int]


@dataclass
class Entry:
    """Text that one stream got without a break."""

    stream: str
    offset: int
    """Bytes of the stream before it, those left out included."""
    bytes: int
    text: str
    replaced: bool
    """Some of its bytes are not UTF-8; `text` has U+FFFD in their place."""
    omitted_before: int
    """Bytes left out by the cap between the entry before and this one."""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class StreamTotals:
    """What a stream got so far, and what of it is not kept."""

    bytes: int
    omitted: int


@dataclass(frozen=True)
class LogPage:
    """One page, and where the next one begins."""

    place: Place
    entries: list[Entry]
    totals: dict[str, StreamTotals]
    more: bool
    """There is more to be read at once."""
    complete: bool
    """The attempt has ended and this is the end of its output."""


def last_lines(job: Any, attempt: int, streams: Sequence[str], count: int) -> dict[str, int]:
    """Where in each stream the last so many lines begin, of all of them together."""
    reader = LogReader(job.pk, attempt, streams)
    reader.seek_last_lines(count)
    return reader.read_to


def page_from(job: Any, place: Place, limit: int) -> LogPage:
    """The output behind `place`, about `limit` bytes of all streams together."""
    evidence = JobAttempt.objects.filter(job=job.pk, attempt=place.attempt).first()
    ended = _has_ended(
        job, place.attempt, evidence
    )  # asked first: nothing is written after the end
    reader = LogReader(job.pk, place.attempt, list(place.read_to), place.read_to)
    page = _Page(place.read_to)
    more = page.fill(reader, max(limit, SMALLEST))
    page.close(at_the_end=ended and not more)
    return LogPage(
        place=Place(place.attempt, page.read_to),
        entries=page.entries,
        totals=_totals(job, place, evidence),
        more=more,
        complete=ended and not more,
    )


def _has_ended(job: Any, number: int, attempt: JobAttempt | None) -> bool:
    """Will nothing more be written of it?"""
    if attempt is not None:
        return attempt.phase == Phase.DONE
    if number < job.attempt:
        return True
    return bool(job.is_settled if not number else job.status != JobStatus.RUNNING)


def _totals(job: Any, place: Place, attempt: JobAttempt | None) -> dict[str, StreamTotals]:
    chunks = JobLog.objects.filter(job=job.pk, attempt=place.attempt).order_by()
    sums = chunks.values_list("stream").annotate(
        end=Max(F("offset") + Length("data")), kept=Sum(Length("data"))
    )
    found = {stream: (end, kept) for stream, end, kept in sums}
    totals = {}
    for stream in place.read_to:
        end, kept = found.get(stream, (0, 0))
        emitted = max(end, getattr(attempt, f"{stream}_bytes", 0))
        totals[stream] = StreamTotals(bytes=emitted, omitted=emitted - kept)
    return totals


@dataclass
class _Page:
    """Entries as they are filled."""

    read_to: dict[str, int]
    entries: list[Entry] = field(default_factory=list)
    held_back: dict[str, bytes] = field(default_factory=dict)
    """The first bytes of a character whose other bytes have not been read yet."""

    def __post_init__(self) -> None:
        self.read_to = dict(self.read_to)

    def fill(self, reader: LogReader, room: int) -> bool:
        """Take what has room; True when something was left."""
        for stream, missing, data in reader.unread():
            if not room:
                return True
            self._take(stream, missing, data[:room])
            if len(data) > room:
                return True
            room -= len(data)
        return False

    def _take(self, stream: str, missing: int, data: bytes) -> None:
        if missing:
            self._let_go(stream)
            self.read_to[stream] += missing
        before = self.held_back.pop(stream, b"")
        whole, rest = split_at_character(before + data)
        if rest:
            self.held_back[stream] = rest
        self._add(stream, whole, missing)

    def close(self, *, at_the_end: bool) -> None:
        """What was held back is for the next page, unless there is none."""
        for stream in list(self.held_back) if at_the_end else []:
            self._let_go(stream)

    def _let_go(self, stream: str) -> None:
        if rest := self.held_back.pop(stream, b""):
            self._add(stream, rest, 0)

    def _add(self, stream: str, data: bytes, missing: int) -> None:
        if not data and not missing:
            return
        start = self.read_to[stream]
        self.read_to[stream] += len(data)
        text = data.decode("utf-8", "replace")
        replaced = text.encode() != data
        last = self.entries[-1] if self.entries else None
        if last is not None and last.stream == stream and not missing:
            last.bytes += len(data)
            last.text += text
            last.replaced |= replaced
        else:
            self.entries.append(Entry(stream, start, len(data), text, replaced, missing))


def split_at_character(data: bytes) -> tuple[bytes, bytes]:
    """
    >>> split_at_character("1 €".encode()[:-1])
    (b'1 ', b'\\xe2\\x82')
    >>> split_at_character(b"1 \\xff")
    (b'1 \\xff', b'')
    """
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    decoder.decode(data)
    rest, _ = decoder.getstate()
    return data[: len(data) - len(rest)], rest
