"""How a line of the log looks, and what it is about.

    with journal.about(job=job_id, attempt=2):
        logger.info("engine unreachable")        # tells job and attempt, too
    logger.info("...", extra=journal.told(reason="timeout"))

What a line is about stands in its context (of the thread, the request, the process) and in what is
told with it. As JSON all of it is written; as text what the message does not say already.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from typing import Any

from container_manager.escapes import visible, visible_lines

SHOWN_IN_TEXT = ("attempt", "reason", "actor", "request_id")
"""What a line of text tells beside its message; the message names the rest."""

TOLD = "told"
"""The attribute of a log record that holds what is told with it."""

MOST_CHARACTERS = 16_384
"""Of a message, of a value and of a traceback: longer ones are cut."""

_context: ContextVar[dict[str, Any]] = ContextVar("container_manager_journal")
_process: dict[str, Any] = {}


@contextmanager
def about(**fields: Any) -> Iterator[None]:
    """Every line that is written inside, by this thread or task, tells these fields as well."""
    token = _context.set({**_context.get({}), **fields})
    try:
        yield
    finally:
        _context.reset(token)


def note(**fields: Any) -> None:
    """What has become known since: the lines up to the end of the innermost `about` tell it."""
    if (known := _context.get(None)) is not None:
        known.update(fields)


def of_process(**fields: Any) -> None:
    """Every line of this process tells these fields."""
    _process.update(fields)


def context() -> dict[str, Any]:
    """What a line that is written now is about."""
    return {**_process, **_context.get({})}


def told(**fields: Any) -> dict[str, Any]:
    """For `extra=` of a logging call: fields of this one line. A name may end in `_` (`from_`)."""
    return {TOLD: {name.removesuffix("_"): value for name, value in fields.items()}}


class _Lines(logging.Formatter):
    """What both forms share."""

    def fields(self, record: logging.LogRecord) -> dict[str, Any]:
        """Name to value, without those that are empty."""
        given = getattr(record, TOLD, {})
        found = {**context(), **(given if isinstance(given, Mapping) else {})}
        return {name: value for name, value in found.items() if value not in (None, "")}

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:  # noqa: N802
        return f"{_local(int(record.created))},{int(record.msecs):03d}"

    def trouble(self, record: logging.LogRecord) -> str:
        """The traceback, if there is one; its end says most."""
        if record.exc_info and not record.exc_text:
            record.exc_text = self.formatException(record.exc_info)
        lines = [record.exc_text or ""]
        if record.stack_info:
            lines.append(self.formatStack(record.stack_info))
        return "\n".join(filter(None, lines))[-MOST_CHARACTERS:]


class TextLines(_Lines):
    """`2026-01-31 12:00:00,123 INFO Job …: queued -> running actor=worker:w1`

    Nobody's data can begin a line of its own, or steer a terminal.
    """

    def format(self, record: logging.LogRecord) -> str:
        fields = self.fields(record)
        shown = [f"{name}={fields[name]}" for name in SHOWN_IN_TEXT if name in fields]
        said = " ".join([record.getMessage()[:MOST_CHARACTERS], *shown])
        line = f"{self.formatTime(record)} {record.levelname} {visible(said)}"
        trouble = visible_lines(self.trouble(record)).split("\n")
        return "\n  ".join([line, *filter(None, trouble)])


class JsonLines(_Lines):
    """One JSON object a line, in ASCII."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": _moment(record.created),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage()[:MOST_CHARACTERS],
        }
        for name, value in self.fields(record).items():
            line.setdefault(name, _plain(value))
        if trouble := self.trouble(record):
            line["exception"] = trouble
        return json.dumps(line)


FORMATS: dict[str, type[logging.Formatter]] = {"text": TextLines, "json": JsonLines}
"""What LOG_FORMAT may say."""


@lru_cache(maxsize=2)  # many lines are of one second
def _local(second: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(second))


@lru_cache(maxsize=2)
def _utc(second: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))


def _moment(created: float) -> str:
    second, rest = divmod(int(created * 1_000_000), 1_000_000)
    return f"{_utc(second)}.{rest:06d}Z"


def _plain(value: Any) -> Any:
    if isinstance(value, int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    return str(value)[:MOST_CHARACTERS]
