"""What a process does in turn, each duty by itself: what goes wrong in one stops no other.

A duty that failed is tried again, ever more seldom while it goes on failing. When the database
does not answer at all, the whole turn waits instead: no duty could do anything.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Iterable

from django.db import Error, InterfaceError, OperationalError, connection

logger = logging.getLogger("container_manager")

FIRST_PAUSE, LONGEST_PAUSE = 0.2, 5.0
BREATH = 0.05
"""Seconds between two turns while any duty fails: whatever wakes the worker, it never spins."""


def pause_after(failures: int) -> float:
    """Seconds to wait after so many failures in a row; no two workers come back together."""
    longest = min(FIRST_PAUSE * 2.0 ** min(failures, 10), LONGEST_PAUSE)
    return random.uniform(longest / 2, longest)  # noqa: S311


class Every:
    """True once in so many seconds."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._next = 0.0

    def is_due(self, now: float) -> bool:
        if now < self._next:
            return False
        self._next = now + self._seconds
        return True

    def left(self, now: float) -> float:
        return max(0.0, self._next - now)


class Duty:
    """One thing to do at every turn, or once in so many seconds."""

    def __init__(self, name: str, do: Callable[[], None], seconds: float = 0.0) -> None:
        self.name = name
        self.do = do
        self._every = Every(seconds)
        self._failures = 0
        self._not_before = 0.0

    def is_due(self, now: float) -> bool:
        return now >= self._not_before and self._every.is_due(now)

    @property
    def fails(self) -> bool:
        return self._failures > 0

    def went_well(self) -> None:
        self._failures = 0

    def went_wrong(self, now: float) -> None:
        self._failures += 1
        self._not_before = now + pause_after(self._failures)


class Turns:
    """Takes the duties of one process in turn and keeps what goes wrong in each to itself."""

    def __init__(self, who: str) -> None:
        self._who = who
        self._outages = 0
        """Turns in a row in which the database did not answer."""

    def take(self, duties: Iterable[Duty]) -> None:
        """Do what is due of them; after trouble a pause."""
        duties = list(duties)
        for duty in duties:
            if duty.is_due(time.monotonic()) and not self._do(duty):
                self._outages += 1
                time.sleep(pause_after(self._outages))
                return
        self._outages = 0
        if any(duty.fails for duty in duties):
            time.sleep(BREATH)

    def insist(self, name: str, do: Callable[[], None]) -> None:
        """Do it now, a second time if it fails: the connection may have been a broken one."""
        duty = Duty(name, do)
        self._do(duty)
        if duty.fails:
            self._do(duty)

    def _do(self, duty: Duty) -> bool:
        """False when there is no point in going on to the next: the database is away."""
        try:
            duty.do()
        except (OperationalError, InterfaceError) as error:
            duty.went_wrong(time.monotonic())
            logger.warning("%s: database, %s: %s", self._who, duty.name, str(error).strip())
            return _database_answers()
        except Exception:
            duty.went_wrong(time.monotonic())
            logger.exception("%s: %s went wrong and is tried again", self._who, duty.name)
        else:
            duty.went_well()
        return True


def _database_answers() -> bool:
    """Over a new connection: the old one may be what was wrong."""
    try:
        connection.close()
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
    except Error:
        return False
    return True
