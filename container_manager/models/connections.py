"""The database connection of this thread, as something that others wait for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

from django.db import InternalError, OperationalError, connections, transaction

T = TypeVar("T")

_few_threads = ThreadPoolExecutor(max_workers=4, thread_name_prefix="database")


def give_back_connection(using: str = "default") -> None:
    """To the pool, before a pause; the next query takes another. Not within a transaction."""
    connection = connections[using]
    if not connection.in_atomic_block:
        connection.close()


HELD_SECONDS = 5
"""Who holds what all need and stands still for so long loses it, with his connection."""


@contextmanager
def briefly_atomic(using: str = "default") -> Iterator[None]:
    """A transaction that holds what all need: a process that is frozen in it must not keep it."""
    connection = connections[using]
    if connection.in_atomic_block or connection.vendor != "postgresql":
        with transaction.atomic(using=using):
            yield
        return
    try:
        with transaction.atomic(using=using):
            with connection.cursor() as cursor:
                cursor.execute(f"SET LOCAL idle_in_transaction_session_timeout = '{HELD_SECONDS}s'")
            yield
    except InternalError as error:  # so psycopg calls it that the server ended the session
        connection.close()
        raise OperationalError(str(error)) from error


async def apart(ask: Callable[[], T]) -> T:
    """What the database says, for a coroutine: asked on one of few threads for all of them."""
    return await asyncio.get_running_loop().run_in_executor(_few_threads, _let_go_after, ask)


def _let_go_after(ask: Callable[[], T]) -> T:
    try:
        return ask()
    finally:
        give_back_connection()
