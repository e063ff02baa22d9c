"""The one line that every move leaves in the log.

A verb that the database has it begin again, or that fails, tells nothing of what it tried: the
lines of its moves are kept until it is done.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from container_manager import journal

logger = logging.getLogger("container_manager")

JOB = "job"


@dataclass(frozen=True, slots=True)
class MoveLine:
    """What is told of one move."""

    label: str
    entity_type: str
    entity_id: Any
    old: str
    new: str
    reason: str = ""
    actor: str = ""
    attempt: int | None = None

    def write(self) -> None:
        whose = {JOB: self.entity_id} if self.entity_type == JOB else {}
        told = journal.told(
            entity=self.entity_type,
            id=self.entity_id,
            from_=self.old,
            to=self.new,
            reason=self.reason,
            actor=self.actor,
            attempt=self.attempt,
            **whose,
        )
        logger.info("%s %s: %s -> %s", self.label, self.entity_id, self.old, self.new, extra=told)


_kept: ContextVar[list[MoveLine] | None] = ContextVar("container_manager_move_lines", default=None)


def are_read() -> bool:
    """Does anybody want these lines?"""
    return logger.isEnabledFor(logging.INFO)


def log_move(line: MoveLine) -> None:
    """Write it now, or, inside of `kept_until_done`, when that is done."""
    kept = _kept.get()
    if kept is None:
        line.write()
    else:
        kept.append(line)


@contextmanager
def kept_until_done() -> Iterator[None]:
    """Lines of moves made inside are written at its end; those of what fails, never."""
    outer, inner = _kept.get(), list[MoveLine]()
    token = _kept.set(inner)
    try:
        yield
    finally:
        _kept.reset(token)
    for line in inner:
        if outer is None:
            line.write()
        else:
            outer.append(line)
