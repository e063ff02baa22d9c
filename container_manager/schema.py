"""Does the database have the tables that this code knows, and who may change them, and how.

`migrate` runs alone. On SQLite it is one transaction, so that nobody ever sees a table half
rebuilt, or the guard lifted from it. On PostgreSQL it holds an advisory lock, and it gives up a
table that it cannot have soon: whoever wants that table would have to wait behind it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from django.db import connections, transaction
from django.db.migrations.loader import MigrationLoader
from django.db.migrations.recorder import MigrationRecorder

APP = "container_manager"

LOCK = 0x636D6D69677261
"""Key of the advisory lock: the letters `cmmigra`."""

LOCK_SECONDS = 5
"""So long a change of a table waits for those who use it, and others wait for the change."""


def applied(using: str) -> frozenset[str]:
    """The names of our migrations that the database has."""
    recorder = MigrationRecorder(connections[using])
    if not recorder.has_table():
        return frozenset()
    rows = recorder.migration_qs.filter(app=APP)
    return frozenset(rows.values_list("name", flat=True))


def missing(using: str) -> list[str]:
    """The migrations of this code that the database does not have."""
    return sorted(_known(using) - applied(using))


def _known(using: str) -> frozenset[str]:
    loader = MigrationLoader(connections[using])
    return frozenset(name for app, name in loader.graph.nodes if app == APP)


def problem(using: str) -> str:
    """Empty when the database has what this code knows; else one sentence that says what to do."""
    known, there = _known(using), applied(using)
    if lacking := sorted(known - there):
        return f"the database lacks {', '.join(lacking)}: run `manage.py migrate`"
    newer = sorted(name for name in there if name > max(known))
    if newer:
        return f"the database has {', '.join(newer)}, which this older code does not know"
    return ""


@contextmanager
def changed_by_us_alone(using: str, tell: Callable[[str], Any]) -> Iterator[None]:
    """Inside, nobody else migrates this database."""
    connection = connections[using]
    if connection.in_atomic_block:
        yield
    elif connection.vendor == "sqlite":
        with _as_one_transaction(connection):
            yield
    elif connection.vendor == "postgresql":
        with _under_an_advisory_lock(connection, tell):
            yield
    else:
        yield


@contextmanager
def _as_one_transaction(connection: Any) -> Iterator[None]:
    """Foreign keys are checked by each migration at its end; inside they cannot be switched off."""
    connection.disable_constraint_checking()
    try:
        with transaction.atomic(using=connection.alias):
            yield
    finally:
        connection.enable_constraint_checking()


@contextmanager
def _under_an_advisory_lock(connection: Any, tell: Callable[[str], Any]) -> Iterator[None]:
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_try_advisory_lock(%s)", [LOCK])
        if not cursor.fetchone()[0]:
            tell("Another migrate is at work; waiting for it.")
            cursor.execute("SELECT pg_advisory_lock(%s)", [LOCK])
        cursor.execute(f"SET lock_timeout = '{LOCK_SECONDS}s'")
    try:
        yield
    finally:
        if not connection.needs_rollback and connection.is_usable():
            with connection.cursor() as cursor:
                cursor.execute("RESET lock_timeout")
                cursor.execute("SELECT pg_advisory_unlock(%s)", [LOCK])
