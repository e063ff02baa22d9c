"""Who is connected to the test database on PostgreSQL."""

from __future__ import annotations

import time

from django.db import connection
from django.db.backends.utils import CursorWrapper

SECONDS = 10
"""So long what a test began, and nobody waits for, may take to end."""

OTHERS = (
    "FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    " AND backend_type = 'client backend'"
)


def await_being_alone() -> None:
    """Until no other session is left; one that stays is told of, by what it did last, and ended."""
    ends_at = time.monotonic() + SECONDS
    own = connection.copy()
    try:
        with own.cursor() as cursor:
            while left := _others(cursor):
                if time.monotonic() > ends_at:
                    print("left connected when all tests were over:", *left, sep="\n  ")
                    cursor.execute(f"SELECT pg_terminate_backend(pid) {OTHERS}")
                    ends_at += SECONDS
                time.sleep(0.05)
    finally:
        own.close()


def _others(cursor: CursorWrapper) -> list[str]:
    cursor.execute(f"SELECT application_name, state, query {OTHERS}")
    return [" | ".join(map(str, row)) for row in cursor.fetchall()]
