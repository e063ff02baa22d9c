"""Rendering of jobs: for people, for pipes and for programs."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from container_manager.escapes import visible as visible
from container_manager.escapes import visible_lines
from container_manager.models import ContainerJob
from container_manager.models.validators import MASK
from container_manager.states import JobStatus, Reason

SHORT = 12
"""Characters at the end of an id: its random part, so that jobs of one moment differ."""

COLOURS = {
    JobStatus.PENDING: "dim",
    JobStatus.QUEUED: "yellow",
    JobStatus.RUNNING: "cyan",
    JobStatus.COMPLETED: "green",
    JobStatus.FAILED: "red",
    JobStatus.RETRYING: "magenta",
    JobStatus.CANCELLED: "blue",
    JobStatus.KILLED: "bright_red",
}


class Decoder:
    """Bytes to text that a terminal only shows: a character may be split between two chunks."""

    def __init__(self) -> None:
        self._streams: dict[str, codecs.IncrementalDecoder] = {}

    def text(self, stream: str, data: bytes, *, final: bool = False) -> str:
        make = codecs.getincrementaldecoder("utf-8")
        decoder = self._streams.setdefault(stream, make("replace"))
        return visible_lines(decoder.decode(data, final))

    def rest(self) -> str:
        """What an unfinished character leaves at the end."""
        return "".join(self.text(stream, b"", final=True) for stream in self._streams)


def short_id(job_id: UUID) -> str:
    """What a person needs to name a job: the end of its id."""
    return job_id.hex[-SHORT:]


def span(passed: timedelta | None) -> str:
    """A length of time in a few characters: 0.4s, 12s, 3m20s, 2h05m, 4d.

    >>> span(timedelta(seconds=200))
    '3m20s'
    """
    if passed is None:
        return ""
    seconds = max(0.0, passed.total_seconds())
    if seconds < 9.95:
        return f"{seconds:.1f}s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02}s"
    if whole < 48 * 3600:
        return f"{whole // 3600}h{whole % 3600 // 60:02}m"
    return f"{whole // 86400}d"


def result(job: ContainerJob) -> str:
    """How the latest attempt ended, in a word or two."""
    if job.reason in ("", Reason.EXIT_CODE, job.status):
        return f"exit {job.exit_code}" if job.exit_code is not None else ""
    return str(job.reason)


def described(job: ContainerJob) -> str:
    """Where a job stands, in one line: `failed (exit 3) after 0.2s`."""
    ended = result(job)
    took = span(job.duration) if job.completed_at else ""
    return (
        str(job.status)
        + (f" ({ended})" if ended else "")
        + (f" after {took}" if took else "")
        + (f": {visible(job.error)}" if job.error else "")
    )


def title(job: ContainerJob) -> str:
    """Its name, or else what it runs."""
    return visible(job.name or " ".join(map(str, job.command)))


# Tables -------------------------------------------------------------------------------------------


def console(stream: Any, *, no_color: bool = False) -> Console:
    """A rich console that takes our text as it is: no markup, no emoji, no highlighting."""
    return Console(
        file=stream, markup=False, emoji=False, highlight=False, no_color=no_color or None
    )


def table(*headers: str) -> Table:
    """An empty table without frames: every column counts."""
    made = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for header in headers:
        made.add_column(header, no_wrap=True, overflow="ellipsis")
    return made


def jobs_table(jobs: Iterable[ContainerJob], now: datetime, width: int) -> Table:
    """Jobs as people read them; the names take what the other columns leave of `width`."""
    rows = [
        (
            short_id(job.pk),
            Text(title(job), style="" if job.name else "dim"),
            status_text(job.status),
            visible(job.queue),
            span(now - job.created_at),
            span(job.duration),
            visible(result(job)),
        )
        for job in jobs
    ]
    made = table("ID", "NAME", "STATUS", "QUEUE", "AGE", "TOOK", "RESULT")
    for column, most in ((3, 10), (6, 14)):
        made.columns[column].max_width = most
    for column in (4, 5):
        made.columns[column].justify = "right"
    for row in rows:
        made.add_row(*row)
    others = sum(_width(made, column, rows) for column in range(7) if column != NAME)
    made.columns[NAME].max_width = max(10, width - others - 2 * 6)
    return made


NAME = 1


def _width(made: Table, column: int, rows: Iterable[tuple[Any, ...]]) -> int:
    header = len(str(made.columns[column].header))
    widest = max((cell_len(str(row[column])) for row in rows), default=0)
    return min(max(header, widest), made.columns[column].max_width or widest + header)


def status_text(status: str) -> Text:
    """A state in its colour."""
    return Text(str(status), style=COLOURS.get(status, ""))  # type: ignore[call-overload]


LINE = (
    *("name", "status", "queue", "created_at", "launched_at", "completed_at", "duration_ms"),
    *("exit_code", "reason"),
)
"""The columns that `job_line` looks at."""


def job_line(job: ContainerJob) -> str:
    """Tab-separated: id, name, status, queue, created, seconds it ran, exit code, reason."""
    took = job.duration
    cells = (
        job.pk,
        visible(job.name),
        job.status,
        visible(job.queue),
        job.created_at.isoformat(timespec="seconds"),
        "" if took is None else f"{took.total_seconds():.3f}",
        "" if job.exit_code is None else job.exit_code,
        visible(job.reason),
    )
    return "\t".join(map(str, cells))


# JSON ---------------------------------------------------------------------------------------------

_NOT_TOLD = {"transition_info", "output", "environment", "created_by"}


def as_json(job: ContainerJob) -> dict[str, Any]:
    """What a job's row says; its output is for job_logs, its environment's values stay hidden."""
    told = {
        field.name: getattr(job, field.name)
        for field in job._meta.concrete_fields
        if field.name not in _NOT_TOLD
    }
    return {
        **told,
        "created_by": job.created_by_id,
        "environment": dict.fromkeys(job.environment, MASK),
        "allowed_transitions": list(job.machine.get_next_states(job.status)),
    }


def dumps(value: Any) -> str:
    """JSON in ASCII, so that every terminal and locale can carry it."""
    return json.dumps(value, default=_plain)


def _plain(value: Any) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)


def array(items: Iterable[Any]) -> Iterator[str]:
    """The pieces of one JSON array, an item on each line."""
    before = "["
    for item in items:
        yield f"{before}\n{dumps(item)}"
        before = ","
    yield "[]" if before == "[" else "\n]"
