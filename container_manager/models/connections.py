"""The database connection of this thread, as something that others wait for."""

from __future__ import annotations

from django.db import connections


def give_back_connection(using: str = "default") -> None:
    """To the pool, before a pause; the next query takes another. Not within a transaction."""
    connection = connections[using]
    if not connection.in_atomic_block:
        connection.close()
