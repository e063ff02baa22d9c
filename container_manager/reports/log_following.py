"""Following the output of one job while it runs, through its retries, to its end.

What comes next is taken from the newest output that is at hand in memory (`Window`), as long as the
reader is not further behind; else from the database. Both give the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from uuid import UUID

from container_manager import states
from container_manager.models import JobAttempt
from container_manager.models.followed import Standing
from container_manager.reports.log_pages import Place, split_at_character
from container_manager.reports.log_reader import LogReader
from container_manager.states import JobStatus, Phase

AT_ONCE = 64 * 1024
"""Bytes that one reader is told at once."""

AT_HAND = 64 * 1024
"""Bytes of a job's output that are kept in memory while it is followed."""


@dataclass(frozen=True)
class Chunk:
    """Bytes that one stream got, and how many it had before."""

    stream: str
    offset: int
    data: bytes

    @property
    def end(self) -> int:
        return self.offset + len(self.data)

    def behind(self, start: int) -> Chunk:
        """What of it is not before that offset."""
        return Chunk(self.stream, max(start, self.offset), self.data[max(0, start - self.offset) :])


# What is at hand ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Window:
    """The newest output of one attempt: of each stream what is kept between `start` and `end`."""

    attempt: int
    start: Mapping[str, int]
    end: Mapping[str, int]
    chunks: tuple[Chunk, ...] = ()

    @classmethod
    def at_the_end(cls, standing: Standing) -> Window:
        """An empty one."""
        return cls(standing.attempt, standing.ends, standing.ends)

    def lacks(self, standing: Standing) -> int:
        """How many bytes there are behind it, at most."""
        return sum(standing.ends[stream] - end for stream, end in self.end.items())

    def up_to(self, standing: Standing, new: Iterable[Chunk]) -> Window:
        """With what came since, and without the oldest that do not fit any more."""
        added = (chunk for chunk in new if chunk.end <= standing.ends[chunk.stream])
        start, chunks = dict(self.start), [*self.chunks, *added]
        size = sum(len(chunk.data) for chunk in chunks)
        while size > AT_HAND:
            gone = chunks.pop(0)
            start[gone.stream] = gone.end
            size -= len(gone.data)
        return Window(self.attempt, start, standing.ends, tuple(chunks))

    def covers(self, place: Place) -> bool:
        """Is all here that is new to who has read so far?"""
        return self.attempt == place.attempt and all(
            self.start[stream] <= read_to for stream, read_to in place.read_to.items()
        )

    def behind(self, place: Place) -> Iterator[Chunk]:
        for chunk in self.chunks:
            read_to = place.read_to.get(chunk.stream, chunk.end)
            if chunk.end > read_to:
                yield chunk.behind(read_to)


@dataclass(frozen=True)
class Seen:
    """How a job stood at one moment, and its output up to then. No standing: it is deleted."""

    standing: Standing | None
    window: Window | None = None


# What a reader is told ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Printed:
    """Bytes of one stream."""

    place: Place
    """Behind them."""
    chunk: Chunk
    omitted_before: int
    """Bytes that the cap left out before them."""


@dataclass(frozen=True)
class Began:
    """What follows is of another attempt."""

    place: Place


@dataclass(frozen=True)
class Ended:
    """Nothing follows. No status: the job was deleted."""

    place: Place
    status: str = ""
    reason: str = ""
    exit_code: int | None = None


Told = Printed | Began | Ended


class Follower:
    """One reader, and how far he has come."""

    def __init__(self, job_id: UUID, place: Place, *, only: bool = False) -> None:
        """`only`: this attempt and no other."""
        self.job_id = job_id
        self.place = place
        self.over = False
        self._only = only

    def at_hand(self, seen: Seen) -> Sequence[Told] | None:
        """What comes next; None when that must be read from the database."""
        if seen.standing is None or not self.place.attempt:
            return self._before_the_output(seen.standing)
        if seen.window is None or not seen.window.covers(self.place):
            return None
        return self._go_on(seen.standing, seen.window.behind(self.place))

    def read(self, seen: Seen) -> Sequence[Told]:
        """The same, from the database."""
        if seen.standing is None or not self.place.attempt:
            return self._before_the_output(seen.standing)
        return self._go_on(seen.standing, self._stored())

    def _before_the_output(self, standing: Standing | None) -> Sequence[Told]:
        if standing is None:
            return self._end(Ended(self.place))
        return self._begin(1) if standing.attempt else self._end_if_settled(standing)

    def _go_on(self, standing: Standing, chunks: Iterable[Chunk]) -> Sequence[Told]:
        blocks, more = _joined(chunks)
        over = self._is_over(standing) and not more  # known before the chunks were read
        told = [self._tell(block) for block in (blocks if over else _whole(blocks))]
        return told if told or not over else self._behind_the_output(standing)

    def _is_over(self, standing: Standing) -> bool:
        """Is nothing more written of this attempt?"""
        if self.place.attempt != standing.attempt:
            return self.place.attempt < standing.attempt
        if standing.phase:
            return standing.phase == Phase.DONE
        return standing.status != JobStatus.RUNNING

    def _tell(self, block: Chunk) -> Printed:
        missing = block.offset - self.place.read_to[block.stream]
        read_to = {**self.place.read_to, block.stream: block.end}
        self.place = Place(self.place.attempt, read_to)
        return Printed(self.place, block, missing)

    def _behind_the_output(self, standing: Standing) -> Sequence[Told]:
        if self.place.attempt == standing.attempt:
            return self._end_if_settled(standing)
        if self._only:
            return self._end(self._end_of_attempt(standing))
        return self._begin(self.place.attempt + 1)

    def _end_if_settled(self, standing: Standing) -> Sequence[Told]:
        if standing.status not in states.SETTLED and not self._only:
            return []
        return self._end(Ended(self.place, standing.status, standing.reason, standing.exit_code))

    def _end_of_attempt(self, standing: Standing) -> Ended:
        """Of one that was followed by others."""
        attempts = JobAttempt.objects.filter(job=self.job_id, attempt=self.place.attempt)
        reason, exit_code = attempts.values_list("reason", "exit_code").first() or ("", None)
        return Ended(self.place, standing.status, reason, exit_code)

    def _begin(self, attempt: int) -> Sequence[Told]:
        self.place = Place(attempt, dict.fromkeys(self.place.read_to, 0))
        return [Began(self.place)]

    def _end(self, told: Ended) -> Sequence[Told]:
        self.over = True
        return [told]

    def _stored(self) -> Iterator[Chunk]:
        place = self.place
        reader = LogReader(self.job_id, place.attempt, list(place.read_to), place.read_to)
        for stream, _missing, data in reader.unread():
            yield Chunk(stream, reader.read_to[stream] - len(data), data)


def _joined(chunks: Iterable[Chunk]) -> tuple[list[Chunk], bool]:
    """So much as is told at once, neighbours as one, and whether there is more."""
    blocks: list[tuple[str, int, bytearray]] = []
    room, more = AT_ONCE, False
    for chunk in chunks:
        if blocks and _is_next(blocks[-1], chunk):
            blocks[-1][2].extend(chunk.data[:room])
        elif room:
            blocks.append((chunk.stream, chunk.offset, bytearray(chunk.data[:room])))
        more = len(chunk.data) > room
        room = max(0, room - len(chunk.data))
        if more:
            break
    return [Chunk(stream, offset, bytes(data)) for stream, offset, data in blocks], more


def _is_next(block: tuple[str, int, bytearray], chunk: Chunk) -> bool:
    stream, offset, data = block
    return (stream, offset + len(data)) == (chunk.stream, chunk.offset)


def _whole(blocks: list[Chunk]) -> list[Chunk]:
    """Without the characters at the very end whose other bytes are still to come."""
    latest = {block.stream: number for number, block in enumerate(blocks)}
    for number in latest.values():
        block = blocks[number]
        blocks[number] = Chunk(block.stream, block.offset, split_at_character(block.data)[0])
    return [block for block in blocks if block.data]
