"""Named points at which a crash must lose nothing, and how a crash is asked for.

`reached` does nothing in production; tests, and CONTAINER_MANAGER_CRASH_AT, put something there
to delay or end the process. The names are those of the crash table in docs/architecture.md.

    R4         when this process comes to R4
    R4:2       when it comes there for the second time
    sql:17     just before its 17th SQL statement
    stop:R4    not kill -9, but SIGSTOP: whoever wants may let it go on
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

POINTS = (
    *("S1", "S2", "C1", "C2", "C3", "R1", "R2", "R3", "R4", "R5"),
    *("U1", "U2", "U3", "U4", "X1", "X2", "X3", "X4", "X5"),
    *("T1", "K1", "K2", "K3", "A1", "A2", "N1", "D1"),
)
COUNTED = ("sql", "commit", "committed", "engine", "engine-done")
"""Before a statement; before and after a COMMIT; before and after a call of an executor."""

T = TypeVar("T")

on_reach: Callable[[str], None] | None = None
on_load: Callable[[Any], Any] | None = None


def reached(point: str) -> None:
    """The code has come to `point`."""
    if on_reach is not None:
        on_reach(point)


def loaded(executor: T) -> T:
    """The executor that is used from now on: this one, or what was put around it."""
    return executor if on_load is None else on_load(executor)


@dataclass(frozen=True)
class Moment:
    """One moment in the life of a process: the `number`th time that it comes to `what`."""

    what: str
    number: int = 1
    stop: bool = False
    """SIGSTOP instead of SIGKILL."""


_MOMENT = re.compile(r"(?P<stop>stop:)?(?P<what>[A-Za-z0-9-]+?)(:(?P<number>[1-9][0-9]{0,8}))?")


def moments(text: str) -> list[Moment]:
    """The moments that `text` names, separated by commas. Raises ValueError.

    >>> moments("R4, sql:17")
    [Moment(what='R4', number=1, stop=False), Moment(what='sql', number=17, stop=False)]
    """
    return [_moment(word.strip()) for word in text.split(",") if word.strip()]


def _moment(word: str) -> Moment:
    found = _MOMENT.fullmatch(word)
    if found is None or found["what"] not in (*POINTS, *COUNTED):
        known = ", ".join((*POINTS, *COUNTED))
        raise ValueError(f"{word!r} is no crash point; there are {known}, each with `:number`")
    return Moment(found["what"], int(found["number"] or 1), bool(found["stop"]))


def problem_of(text: str) -> str:
    """What is wrong with these words; empty when nothing is."""
    try:
        moments(text)
    except ValueError as error:
        return str(error)
    return ""
