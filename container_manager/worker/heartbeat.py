"""A thread that says: this worker lives. It counts up; nobody compares clocks."""

from __future__ import annotations

import logging
import threading

from django.db import Error, connection
from django.db.models import F
from django.utils import timezone

from container_manager.faults import reached
from container_manager.models import Worker

logger = logging.getLogger("container_manager")


class Heartbeat:
    """Beats at a third of the lease, over a database connection of its own."""

    def __init__(self, worker: Worker, seconds: float) -> None:
        self._worker = worker
        self._seconds = seconds
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._ended.set()
        self._thread.join(timeout=self._seconds)

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()

    def register_again(self) -> None:
        """If the row was pruned: everybody takes us for dead, and epochs guard what we held."""
        if not Worker.objects.filter(pk=self._worker.pk).exists():
            self._worker.save(force_insert=True)

    def _run(self) -> None:
        try:
            reached("U3")
            while not self._ended.wait(self._seconds):
                self._beat_or_say_why()
                reached("U3")
        finally:
            connection.close()

    def _beat_or_say_why(self) -> None:
        try:
            self._beat()
        except Error as error:
            logger.warning("Worker %s: no beat: %s", self._worker.name, str(error).strip())
            connection.close()

    def _beat(self) -> None:
        rows = Worker.objects.filter(pk=self._worker.pk)
        if not rows.update(beat=F("beat") + 1, last_beat_at=timezone.now()):
            self.register_again()
