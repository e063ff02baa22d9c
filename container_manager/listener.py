"""Wakes a process when PostgreSQL says that there is something to look at. Only a hint."""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable

from django.db import connections

logger = logging.getLogger("container_manager")

RETRY_SECONDS = 5.0


class Listener:
    """LISTEN over a connection of its own, which no pool and no PgBouncer may share."""

    def __init__(self, channels: str, wake: Callable[[], None], using: str = "default") -> None:
        """`channels`: one or, with blanks between them, several."""
        self._channels = channels.split()
        self._wake = wake
        self._using = using
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="listener", daemon=True)

    def start(self) -> None:
        if connections[self._using].vendor == "postgresql":
            self._thread.start()

    def stop(self) -> None:
        self._ended.set()

    def _run(self) -> None:
        import psycopg

        while not self._ended.is_set():
            try:
                self._listen()
            except psycopg.Error as error:
                logger.warning("Not listening, polling only: %s", str(error).strip())
                self._ended.wait(random.uniform(RETRY_SECONDS / 2, RETRY_SECONDS))  # noqa: S311

    def _listen(self) -> None:
        import psycopg

        given = connections[self._using].get_connection_params()
        ours = {"cursor_factory", "context", "prepare_threshold", "pool", "row_factory"}
        parameters = {key: value for key, value in given.items() if key not in ours}
        with psycopg.connect(**parameters, autocommit=True) as connection:
            for channel in self._channels:
                connection.execute(f"LISTEN {channel}")
            while not self._ended.is_set():
                for _ in connection.notifies(timeout=1.0, stop_after=1):
                    self._wake()
