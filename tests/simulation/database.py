"""The database of a simulated world: SQLite in memory, on the world's clock, with faults.

Every transaction is one step, as one writer at a time makes it; before each begins, others may
come first. It may refuse a statement, and it may commit and then not answer.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from datetime import UTC, datetime
from typing import Any

import time_machine
from django.core.management import call_command
from django.db import OperationalError, connections

from tests.simulation.scheduler import BEGAN, Scheduler

USING = "default"


class Database:
    """Wraps the connection that all tasks of one world share."""

    def __init__(self, world: Scheduler, template: sqlite3.Connection) -> None:
        self.world = world
        self.refuse_next = False
        """The next transaction is refused."""
        self.forget_next = False
        """The next one that writes is committed, and whoever asked for it is not told."""
        self.wall_ahead = 0.0
        self._before = connections[USING]
        settings = deepcopy(connections.databases[USING])
        wrapper = connections[USING].__class__({**settings, "NAME": ":memory:"}, USING)
        wrapper.ensure_connection()
        template.backup(wrapper.connection)
        self._scratch = sqlite3.connect(":memory:")
        wrapper.connection.create_function("strftime", -1, self._told("strftime", 1))
        wrapper.connection.create_function("julianday", -1, self._told("julianday", 0))
        wrapper.execute_wrappers.append(self._around_statement)
        self._commit, wrapper._commit = wrapper._commit, self._committing
        self._close, wrapper.close = wrapper.close, lambda: None
        self.wrapper: Any = wrapper

    @property
    def wall(self) -> float:
        return BEGAN + self.world.now + self.wall_ahead

    def _told(self, function: str, place: int) -> Callable[..., Any]:
        """SQLite's own function with the world's clock in the place of 'now'."""

        def told(*given: Any) -> Any:
            moment = datetime.fromtimestamp(self.wall, UTC).strftime("%Y-%m-%d %H:%M:%S.%f")
            words = [
                moment if number == place and word in ("now", "NOW") else word
                for number, word in enumerate(given)
            ]
            marks = ", ".join("?" * len(words))
            return self._scratch.execute(f"SELECT {function}({marks})", words).fetchone()[0]

        return told

    def _around_statement(
        self, execute: Any, sql: str, parameters: Any, many: bool, context: Any
    ) -> Any:
        if self.world.current is None:
            return execute(sql, parameters, many, context)
        begins = not self.wrapper.in_atomic_block or sql.startswith("BEGIN")
        if begins:
            self.world.wait()
            if self.refuse_next:
                self.refuse_next = False
                self.world.trace.append("database refuses")
                raise OperationalError("server closed the connection unexpectedly")
        elif not sql.startswith(("ROLLBACK", "RELEASE")):
            self.world.die_if_dead()
        return execute(sql, parameters, many, context)

    def _committing(self) -> None:
        self.world.die_if_dead()
        self._commit()
        if self.forget_next and self.world.current is not None:
            self.forget_next = False
            self.world.trace.append("database does not answer")
            raise OperationalError("the answer to COMMIT was lost")

    @contextmanager
    def in_use(self) -> Iterator[None]:
        connections[USING] = self.wrapper
        with time_machine.travel(self._moment(), tick=False) as traveller:
            self.show = lambda: traveller.move_to(self._moment(), tick=False)
            try:
                yield
            finally:
                connections[USING] = self._before
                self._close()
                self._scratch.close()

    def _moment(self) -> datetime:
        return datetime.fromtimestamp(self.wall, UTC)


def empty_database() -> sqlite3.Connection:
    """A database with all tables and triggers, to be copied into each world."""
    wrapper = connections[USING]
    wrapper.close()
    wrapper.settings_dict["NAME"] = ":memory:"
    call_command("migrate", verbosity=0)
    template = sqlite3.connect(":memory:")
    wrapper.connection.backup(template)
    return template
