"""Questions to the database that may not be waited for, however it fails.

Each is asked on a thread of its own: a connection pool, or a server that accepts and never answers,
would keep the asker waiting much longer.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, TypeVar

from django.db import Error, connections

logger = logging.getLogger("container_manager")

T = TypeVar("T")


class Asking(Generic[T]):
    """One question at a time; whoever asks meanwhile gets the same answer."""

    def __init__(self, name: str, question: Callable[[], T], patience: float) -> None:
        self._name = name
        self._question = question
        self._patience = patience
        self._lock = threading.Lock()
        self._asked: Future[T] | None = None

    def answer(self) -> T | None:
        """None when the database does not answer in time; what else goes wrong is raised."""
        with self._lock:
            if self._asked is None or self._asked.done():
                self._asked = Future()
                threading.Thread(target=self._ask, args=(self._asked,), daemon=True).start()
            asked = self._asked
        try:
            return asked.result(self._patience)
        except TimeoutError:
            logger.warning(
                "%s: the database did not answer in %s seconds", self._name, self._patience
            )
        except Error as error:
            logger.warning("%s: database: %s", self._name, str(error).strip())
        return None

    def _ask(self, asked: Future[T]) -> None:
        try:
            asked.set_result(self._question())
        except BaseException as error:  # noqa: BLE001 - whoever waits for it raises it
            asked.set_exception(error)
        finally:
            connections.close_all()
