"""A listener that goes away and comes back with the last sequence that it saw."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from typing import Any

from django.db import connection

from container_manager.events.base import TransitionEvent, Unavailable
from container_manager.events.feed import Source

Handler = Callable[[TransitionEvent], object]
Subscribe = Callable[[Handler, int, Callable[[int, int], object]], Any]
"""Called with a handler, the sequence to go on from, and what to call for a gap."""


class Comer:
    """Subscribes, listens for a while, closes, and begins again; `seen` has everything it saw."""

    def __init__(self, subscribe: Subscribe, chance: random.Random, records: Source) -> None:
        self._subscribe = subscribe
        self._chance = chance
        self._records = records
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.seen: list[TransitionEvent] = []
        self.position = 0
        self.comings = 0

    def start(self) -> None:
        self._thread.start()

    def end(self) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            while not self._ended.is_set():
                self._come()
        finally:
            connection.close()

    def _come(self) -> None:
        try:
            subscription = self._subscribe(self.seen.append, self.position, self._missed)
        except Unavailable:
            self._ended.wait(0.1)
            return
        self.comings += 1
        self._ended.wait(self._chance.choice((0.05, 0.3, 1.0, 3.0)))
        subscription.close()
        self.position = subscription.position

    def _missed(self, after: int, first: int) -> None:
        """What the docs say: read what is missing from the records, then go on."""
        while after + 1 < first:
            events = [each for each in self._records.after(after, 500) if each.sequence < first]
            if not events:
                break
            self.seen += events
            after = events[-1].sequence
