"""A second connection to the database of a test, whose transactions end when the test says so."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from django.db import connections


class Session:
    """Statements in a transaction of its own, which begins with the first one."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    def run(self, sql: str, *parameters: Any) -> Any:
        """The first row of what it answers, if it answers."""
        if self._connection.get_autocommit():
            self._connection.set_autocommit(False)
        with self._connection.cursor() as cursor:
            cursor.execute(sql, parameters)
            return cursor.fetchone() if cursor.description else None

    def number(self) -> int:
        """PostgreSQL: begin to count as a transaction, before anything is written."""
        return int(self.run("SELECT pg_current_xact_id()::text")[0])

    def move(self, row: Any, new: str) -> None:
        """As another program would: job, run or task."""
        table, column = row._meta.db_table, row.state_field
        times = ", queued_at = CURRENT_TIMESTAMP" if table == "container_jobs" else ""
        if new == "running" and times:
            times = ", launched_at = CURRENT_TIMESTAMP"
        pk = row._meta.pk.get_db_prep_value(row.pk, self._connection)
        self.run(
            f"UPDATE {table} SET {column} = %s, version = version + 1{times} WHERE id = %s", new, pk
        )

    def commit(self) -> None:
        self._connection.commit()

    def roll_back(self) -> None:
        self._connection.rollback()


@contextmanager
def second_session() -> Iterator[Session]:
    connection = connections.create_connection("default")
    try:
        yield Session(connection)
    finally:
        connection.close()
