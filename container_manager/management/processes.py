"""What processes that run for long share: how they begin, and how they are told to end."""

from __future__ import annotations

import os
import signal
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from django.db import connection

from container_manager import guarding, schema
from container_manager.management.base import failed


def refuse_unfit_database() -> None:
    """Raises CommandError where the tables are of another release, or not guarded."""
    if differs := schema.problem("default"):
        raise failed(differs)
    if guarding.is_down("default"):
        raise failed("the database is not guarded: run `manage.py migrate`, which installs it")


@contextmanager
def no_statements_kept() -> Iterator[None]:
    """DEBUG remembers the last 9,000; those of a worker are as long as what its jobs print."""
    kept = connection.queries_log
    connection.queries_log = deque(maxlen=0)
    try:
        yield
    finally:
        connection.queries_log = kept


def stop_on_signals(stop: Callable[[], None]) -> None:
    """The first SIGTERM or SIGINT calls `stop`, the second one ends this process at once."""

    def on_signal(number: int, _frame: object) -> None:
        if on_signal.seen:  # type: ignore[attr-defined]
            os._exit(128 + number)
        on_signal.seen = True  # type: ignore[attr-defined]
        stop()

    on_signal.seen = False  # type: ignore[attr-defined]
    signal.signal(signal.SIGTERM, on_signal)
    signal.signal(signal.SIGINT, on_signal)
