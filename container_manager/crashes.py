"""Ends this very process at a moment that was asked for: CONTAINER_MANAGER_CRASH_AT.

For tests and for whoever wants to see a crash: the setting is refused unless DEBUG is on. Nothing
here is in the way of a process that was not asked: the hooks of `faults` stay empty.
"""

from __future__ import annotations

import os
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

from django.conf import settings as django_settings
from django.db.backends.signals import connection_created

from container_manager import conf, faults
from container_manager.executors.base import Executor
from container_manager.faults import Moment


def arm_as_told() -> None:
    """Arm this process if its settings ask for a crash. Raises ImproperlyConfigured."""
    given = getattr(django_settings, "CONTAINER_MANAGER", {})
    if isinstance(given, Mapping) and given.get("CRASH_AT"):
        arm(conf.settings.CRASH_AT)


def arm(text: str) -> Crashes:
    """From now on count what this process does, and strike at the moments that `text` names."""
    crashes = Crashes(faults.moments(text))
    faults.on_reach = crashes.come_to
    faults.on_load = partial(CountedExecutor, crashes.come_to)
    connection_created.connect(crashes.watch_connection, weak=False)
    return crashes


class Crashes:
    """Counts points, statements, commits and calls of engines, over all threads together."""

    def __init__(self, moments: list[Moment]) -> None:
        self.counts: Counter[str] = Counter()
        self._wanted = {(moment.what, moment.number): moment for moment in moments}
        self._lock = threading.Lock()

    def come_to(self, what: str) -> None:
        with self._lock:
            self.counts[what] += 1
            moment = self._wanted.get((what, self.counts[what]))
        if moment is not None:
            strike(moment)

    def watch_connection(self, connection: Any, **_: Any) -> None:
        """Called whenever a connection opens, also when the same one opens again."""
        if self._before_statement in connection.execute_wrappers:
            return
        connection.execute_wrappers.append(self._before_statement)
        connection._commit = partial(self._around_commit, connection._commit)

    def _before_statement(self, execute: Callable[..., Any], *arguments: Any) -> Any:
        self.come_to("sql")
        return execute(*arguments)

    def _around_commit(self, commit: Callable[[], Any]) -> None:
        self.come_to("commit")
        commit()
        self.come_to("committed")


def strike(moment: Moment) -> None:
    """U3 ends the thread of the heartbeat alone, U4 is a pause; else as the moment says."""
    if moment.what == "U3" and not moment.stop:
        raise SystemExit
    pause = moment.stop or moment.what == "U4"
    os.kill(os.getpid(), signal.SIGSTOP if pause else signal.SIGKILL)


class CountedExecutor:
    """An executor whose calls are counted."""

    def __init__(self, come_to: Callable[[str], None], executor: Executor) -> None:
        self._come_to = come_to
        self._executor = executor

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._executor, name)
        return partial(self._call, method) if name in Executor.__abstractmethods__ else method

    def _call(self, method: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        self._come_to("engine")
        result = method(*arguments, **options)
        if isinstance(result, Iterator):
            return self._to_its_end(result)
        self._come_to("engine-done")
        return result

    def _to_its_end(self, chunks: Iterator[Any]) -> Iterator[Any]:
        yield from chunks
        self._come_to("engine-done")
