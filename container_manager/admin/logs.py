"""The output of one attempt, piece by piece, as a page shows it while it grows."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from uuid import UUID

from container_manager.models import ContainerJob, JobAttempt, JobLog
from container_manager.reports.log_reader import LogReader
from container_manager.states import Stream
from container_manager.templatetags.cm import visible

TAIL = 128 * 1024
"""Bytes of each stream that a page begins with."""

AT_ONCE = 256 * 1024
"""Bytes of a piece; what is left comes with the next one."""

MOST_HELD_BACK = 4096
"""Bytes that may be the beginning of something; more of them are shown as they are."""

# What steers a terminal: CSI (colours, cursor), OSC (titles, links), the short ones.
_ESCAPES = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"
    r"|\x1b(?:\][^\x07\x1b]*(?:\x07|\x1b\\)|[ -/]+[0-~]|[0-Z\\^-~])"
)

# The beginning of one of those, or of CR LF, at the end of what was read.
_UNFINISHED = re.compile(
    rb"(?:\x1b(?:\[[0-?]*[ -/]*|\][^\x07\x1b]*\x1b?|[ -/]*)|\xc2\x9b[0-?]*[ -/]*|\r)\Z"
)


def readable(text: str) -> str:
    """As a page shows it: colours and cursor moves left out, a carriage return is a new line."""
    return visible(_ESCAPES.sub("", text).replace("\r\n", "\n").replace("\r", "\n"))


@dataclass(frozen=True)
class Bit:
    """Neighbouring text of one stream."""

    stream: str
    text: str
    missing: int = 0
    """Bytes of the stream that are not kept before it."""


@dataclass
class Piece:
    """What is new since a position, and where to go on."""

    bits: list[Bit] = field(default_factory=list)
    position: dict[str, int] = field(default_factory=dict)
    more: bool = False
    """There may be more already."""


def start_of_tail(job_id: UUID, attempt: int) -> dict[str, int]:
    """For each stream where a page begins."""
    ends = JobLog.objects.ends(job_id, attempt)
    return {str(stream): max(0, ends.get(stream, 0) - TAIL) for stream in Stream}


def read(job_id: UUID, attempt: int, position: Mapping[str, int], *, ended: bool) -> Piece:
    """The output behind `position`; what is unfinished at its end is left for the next piece."""
    reader = LogReader(job_id, attempt, list(position), position)
    piece, characters = Piece(), _Characters()
    for stream, missing, data in reader.unread():
        if missing:
            piece.bits.append(Bit(stream, characters.rest(stream)))
        piece.bits.append(Bit(stream, characters.text(stream, data), missing))
        if sum(reader.read_to.values()) - sum(position.values()) >= AT_ONCE:
            piece.more = True
            break
    for stream in position:
        if ended and not piece.more:
            piece.bits.append(Bit(stream, characters.rest(stream)))
        else:
            reader.read_to[stream] -= characters.unfinished(stream)
    piece.bits = [bit for bit in piece.bits if bit.text or bit.missing]
    piece.position = reader.read_to
    return piece


class _Characters:
    """Bytes of both streams to text; whatever belongs together may be split between chunks."""

    def __init__(self) -> None:
        self._decoders: dict[str, codecs.IncrementalDecoder] = {}
        self._held: dict[str, bytes] = {}

    def _of(self, stream: str) -> codecs.IncrementalDecoder:
        make = codecs.getincrementaldecoder("utf-8")
        return self._decoders.setdefault(stream, make("replace"))

    def text(self, stream: str, data: bytes) -> str:
        data = self._held.pop(stream, b"") + data
        found = _UNFINISHED.search(data)
        if found and len(found[0]) <= MOST_HELD_BACK:
            self._held[stream] = found[0]
            data = data[: found.start()]
        return readable(self._of(stream).decode(data))

    def unfinished(self, stream: str) -> int:
        return len(self._of(stream).getstate()[0]) + len(self._held.get(stream, b""))

    def rest(self, stream: str) -> str:
        held = self._held.pop(stream, b"")
        return readable(self._of(stream).decode(held, final=True))


def raw(job_id: UUID, attempt: int, stream: str) -> Iterator[bytes]:
    """Every kept byte of one stream."""
    for _stream, _missing, data in LogReader(job_id, attempt, [stream]).unread():
        yield data


def is_over(job: ContainerJob, attempt: int) -> bool:
    """Will nothing be added to the log of this attempt any more?"""
    if attempt < job.attempt or job.is_settled:
        return not JobAttempt.objects.active().filter(job=job, attempt=attempt).exists()
    return False
