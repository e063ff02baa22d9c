"""The database connection of this thread, as something that others wait for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from django.db import connections

T = TypeVar("T")

_few_threads = ThreadPoolExecutor(max_workers=4, thread_name_prefix="database")


def give_back_connection(using: str = "default") -> None:
    """To the pool, before a pause; the next query takes another. Not within a transaction."""
    connection = connections[using]
    if not connection.in_atomic_block:
        connection.close()


async def apart(ask: Callable[[], T]) -> T:
    """What the database says, for a coroutine: asked on one of few threads for all of them."""
    return await asyncio.get_running_loop().run_in_executor(_few_threads, _let_go_after, ask)


def _let_go_after(ask: Callable[[], T]) -> T:
    try:
        return ask()
    finally:
        give_back_connection()
