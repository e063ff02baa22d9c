"""When the guard is installed, and when it must step aside.

A migration installs it and `post_migrate` compares it again. Two kinds of migration cannot run
while it stands, so `migrate` lifts it for their time: any rebuild of a table on SQLite, where a
trigger that names a table stops the rebuild, and a new type of a column that a trigger of
PostgreSQL names. Nobody else can write an entity then: on SQLite `migrate` is one transaction, and
on PostgreSQL a door stands where the guard stood.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from django.db import connections, migrations, transaction
from django.db.migrations.operations.base import Operation

from container_manager import db_guard
from container_manager.models import sequencing
from container_manager.models.base import guarded_models, guarded_tables

_suspended: set[str] = set()
"""Aliases of databases on which `migrate` lifted the guard and will put it back."""


def before_migrate(*, using: str, plan: Any = (), **_: Any) -> None:
    """Lift the guard if this plan cannot run with it."""
    connection = connections[using]
    operations = [
        operation
        for migration, _backwards in plan
        if migration.app_label in {model._meta.app_label for model in guarded_models()}
        for operation in _flat(migration.operations)
    ]
    if any(_is_stopped_by_guard(connection, operation) for operation in operations):
        db_guard.uninstall(connection, door=guarded_tables())
        _suspended.add(using)


def after_migrate(*, using: str, **_: Any) -> None:
    """Install the guard where it is missing or differs."""
    db_guard.install(connections[using], guarded_tables())
    if using in _suspended:
        _suspended.discard(using)
        db_guard.open_door(connections[using])


def give_back(using: str) -> None:
    """After a `migrate` that failed while the guard was lifted: install it again, if that goes."""
    if using in _suspended and not connections[using].in_atomic_block:  # else it is rolled back
        after_migrate(using=using)
    _suspended.discard(using)


def recount(using: str) -> None:
    """Begin the counters of jobs anew from the rows; who writes a job waits meanwhile."""
    db_guard.recount(connections[using], guarded_tables())


def _flat(operations: Iterable[Operation]) -> Iterator[Operation]:
    for operation in operations:
        yield operation
        yield from _flat(getattr(operation, "database_operations", ()))


def is_down(using: str) -> bool:
    """Is a trigger or function of the guard missing? A failed `migrate` can leave it so."""
    lines = db_guard.differences(connections[using], guarded_tables())
    return any(line.endswith("is missing") for line in lines)


def _is_stopped_by_guard(connection: Any, operation: Operation) -> bool:
    if connection.vendor == "sqlite":
        return True
    return (
        isinstance(operation, migrations.AlterField)
        and operation.model_name_lower in {model._meta.model_name for model in guarded_models()}
        and operation.name in {"id", "version", "status", "state"}
    )


def install_in_migration(_apps: Any, schema_editor: Any) -> None:
    """For RunPython: install the guard, unless `migrate` does so when all migrations have run."""
    connection = schema_editor.connection
    if connection.alias not in _suspended:
        db_guard.install(connection, guarded_tables())


def remove_in_migration(_apps: Any, schema_editor: Any) -> None:
    """For RunPython: the way back."""
    db_guard.uninstall(schema_editor.connection)


@contextmanager
def lifted(using: str) -> Iterator[None]:
    """A transaction in which the guard is down; it stands again when the transaction ends."""
    with transaction.atomic(using=using):
        db_guard.uninstall(connections[using])
        yield
        db_guard.install(connections[using], guarded_tables())
        sequencing.begin(using)
