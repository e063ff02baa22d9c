"""Several things at once, each over a database connection of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable

from django.db import connection


def in_threads(*actions: Callable[[], None]) -> None:
    """Each in a thread of its own; what one raises fails the test."""
    errors: list[BaseException] = []

    def once(action: Callable[[], None]) -> None:
        try:
            action()
        except BaseException as error:  # noqa: BLE001
            errors.append(error)
        finally:
            connection.close()

    threads = [threading.Thread(target=once, args=[action]) for action in actions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
