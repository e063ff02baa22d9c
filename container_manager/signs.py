"""The sign of life of a process that is no worker: one row, one UPDATE now and then."""

from __future__ import annotations

import os
import socket
import time

from django.db.models import F
from django.db.models.functions import Now

from container_manager import __version__
from container_manager.conf import settings
from container_manager.duties import Every
from container_manager.models.base import database_now
from container_manager.models.process import Process, ProcessKind
from container_manager.models.sql import storable

LONGEST_SECONDS = 5.0
FORGET_SECONDS = 60.0

USING = "default"


class SignOfLife:
    """Tells others that this process lives, as often as they must hear of it.

    It is called as often as you like: as a duty of each turn, and between the pieces of a long one.

    >>> sign = SignOfLife(ProcessKind.RELAY, name="relay-1")
    >>> sign()  # doctest: +SKIP
    >>> sign.end()  # doctest: +SKIP
    """

    def __init__(self, kind: ProcessKind, name: str = "") -> None:
        hostname = socket.gethostname()
        self._row = Process(
            kind=kind,
            name=(storable(name) or f"{hostname}-{os.getpid()}")[:255],
            hostname=hostname[:255],
            pid=os.getpid(),
            version=__version__,
        )
        self._beats = Every(min(LONGEST_SECONDS, settings.LEASE_SECONDS / 3))
        self._forgets = Every(FORGET_SECONDS)

    @property
    def name(self) -> str:
        """What others call this process."""
        return self._row.name

    def __call__(self) -> None:
        now = time.monotonic()
        if self._beats.is_due(now):
            self._beat()
        if self._forgets.is_due(now):
            Process.objects.forgettable(database_now(USING)).delete()

    def _beat(self) -> None:
        """Also for the first time, and where it was forgotten while it stood still."""
        mine = Process.objects.filter(pk=self._row.pk)
        if not mine.update(beat=F("beat") + 1, last_beat_at=Now()):
            if self._row.beat == 0:
                self._row.started_at = database_now(USING)
            self._row.beat += 1
            self._row.last_beat_at = database_now(USING)
            Process.objects.bulk_create([self._row])

    def end(self) -> None:
        """It ends in order: nobody needs to wait for another sign."""
        Process.objects.filter(pk=self._row.pk).delete()
