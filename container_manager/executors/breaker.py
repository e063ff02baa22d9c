"""The circuit breaker of an engine: while it is away one asks it now and then, all others wait.

- **closed**: calls go through. So many failures in a row, of whatever threads, open it; so does one
  failed probe.
- **open**: no call goes through, each is told `EngineAway` at once; queued jobs stay queued.
- **half-open**: the pause is over and one probe is under way. Its answer closes the breaker; its
  failure opens it for a longer pause.

A call counts in the period in which it began: what was sent before the engine went away and timed
out after it came back says nothing about it now. An engine that answers that it will not
(`EngineRefused`) is not away.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

from container_manager.executors.base import (
    Barred,
    EngineRefused,
    EngineUnavailable,
    LaunchFailed,
)

FAILURES_TO_OPEN = 3
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 10.0


class EngineAway(EngineUnavailable):
    """The breaker is open: the engine was not asked."""


def _nobody(_: str) -> None:
    """Hears of changes where nobody else wants to."""


class Breaker:
    """Safe to use from threads. `on_change` hears why it opened, and "" when it closed."""

    def __init__(
        self,
        *,
        failures: int = FAILURES_TO_OPEN,
        clock: Callable[[], float] = time.monotonic,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._limit = failures
        self.on_change: Callable[[str], None] = _nobody
        self._clock = clock
        self._chance = chance
        self._lock = threading.Lock()
        self._failures = 0
        self._period = 0
        self._pause = 0.0
        self._ask_at = 0.0
        self._probing = False
        self.why = ""
        self.since: datetime | None = None
        """When it opened; None while it is closed."""

    @property
    def state(self) -> str:
        if self.since is None:
            return "closed"
        return "half-open" if self._probing else "open"

    @property
    def is_closed(self) -> bool:
        return self.since is None

    @property
    def seconds_to_probe(self) -> float:
        """How long it stays open before somebody may ask; 0 while it is closed."""
        return 0.0 if self.is_closed else max(0.0, self._ask_at - self._clock())

    @contextmanager
    def calling(self) -> Iterator[None]:
        """Around one call of the engine. Raises EngineAway."""
        period = self._enter()
        try:
            yield
        except (EngineRefused, LaunchFailed, Barred):
            self._answered(period)
            raise
        except EngineUnavailable as error:
            self._failed(period, error)
            raise
        else:
            self._answered(period)

    @contextmanager
    def probing(self) -> Iterator[None]:
        """Around the one call that decides. Raises EngineAway when it is not time, or under way."""
        self._begin_probe()
        try:
            yield
        except BaseException as error:
            self._probe_failed(str(error) or repr(error))
            raise
        else:
            self._probe_answered()

    def _enter(self) -> int:
        with self._lock:
            if self.since is not None:
                raise EngineAway(self.why)
            return self._period

    def _answered(self, period: int) -> None:
        with self._lock:
            if period == self._period:
                self._failures = 0

    def _failed(self, period: int, error: EngineUnavailable) -> None:
        with self._lock:
            if period != self._period:
                return
            self._failures += 1
            opens = self._failures >= self._limit
            if opens:
                self._open(str(error), FIRST_PAUSE)
        if opens:
            self.on_change(str(error))

    def _begin_probe(self) -> None:
        with self._lock:
            if self._probing or self.seconds_to_probe > 0:
                raise EngineAway(self.why)
            self._probing = True

    def _probe_failed(self, why: str) -> None:
        with self._lock:
            self._probing = False
            opens = self.since is None
            self._open(why, FIRST_PAUSE if opens else min(2 * self._pause, LONGEST_PAUSE))
        if opens:
            self.on_change(why)

    def _probe_answered(self) -> None:
        with self._lock:
            self._probing = False
            self._failures = 0
            closes = self.since is not None
            if closes:
                self._period += 1
                self.since, self.why = None, ""
        if closes:
            self.on_change("")

    def _open(self, why: str, pause: float) -> None:
        """With the lock held. No two workers ask in step: the pause is between half and whole."""
        if self.since is None:
            self._period += 1
            self.since = datetime.now(UTC)
        self.why = why
        self._pause = pause
        self._ask_at = self._clock() + pause * (0.5 + self._chance() / 2)
