"""A thread that says: this worker lives. It counts up; nobody compares clocks.

A beat that the database did not take is tried again at once and then soon: others wait for it.
"""

from __future__ import annotations

import logging
import threading
import time

from django.db import Error, connection
from django.db.models import F
from django.db.models.functions import Now

from container_manager.duties import pause_after
from container_manager.faults import reached
from container_manager.models import Worker
from container_manager.models.base import database_now

logger = logging.getLogger("container_manager")


class Heartbeat:
    """Beats at a third of the lease, over a database connection of its own."""

    def __init__(self, worker: Worker, seconds: float) -> None:
        self._worker = worker
        self._seconds = seconds
        self._taken_at = time.monotonic()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def start(self) -> None:
        self._taken_at = time.monotonic()
        self._thread.start()

    def stop(self) -> None:
        self._ended.set()
        self._thread.join(timeout=self._seconds)

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()

    @property
    def is_late(self) -> bool:
        """No beat was taken for two thirds of a lease: others may soon take us for dead."""
        return time.monotonic() - self._taken_at > 2 * self._seconds

    def register_again(self) -> None:
        """If the row was pruned: everybody takes us for dead, and epochs guard what we held."""
        if not Worker.objects.filter(pk=self._worker.pk).exists():
            self._worker.last_beat_at = database_now("default")
            # The heartbeat's thread and the worker's may both come to miss it.
            Worker.objects.bulk_create([self._worker], ignore_conflicts=True)

    def _run(self) -> None:
        failures = 0
        try:
            reached("U3")
            while not self._ended.wait(self._pause(failures)):
                failures = 0 if self._beat_or_say_why() else failures + 1
                reached("U3")
        finally:
            connection.close()

    def _pause(self, failures: int) -> float:
        if failures == 0:
            return self._seconds
        soon = 0.0 if failures == 1 else pause_after(failures)
        return min(soon, self._seconds)

    def _beat_or_say_why(self) -> bool:
        try:
            self._beat()
        except Error as error:
            logger.warning("Worker %s: no beat: %s", self._worker.name, str(error).strip())
            connection.close()
            return False
        return True

    def _beat(self) -> None:
        began = time.monotonic()
        rows = Worker.objects.filter(pk=self._worker.pk)
        if not rows.update(beat=F("beat") + 1, last_beat_at=Now()):
            self.register_again()
        self._taken_at = began
