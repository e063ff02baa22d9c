"""Tells events to Python's logging: one line each, which other programs can read, too."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from container_manager.events.base import Publisher, TransitionEvent


class LogPublisher(Publisher):
    """Writes `event <sequence> <JSON>`; the record also has `event` (a dict) and `sequence`."""

    def __init__(self, logger: str = "container_manager.events", level: str = "INFO") -> None:
        known = logging.getLevelNamesMapping()
        if level not in known:
            raise ValueError(f"level: {level!r} is not one of {', '.join(known)}")
        self._logger = logging.getLogger(logger)
        self._level = known[level]

    def publish(self, events: Sequence[TransitionEvent]) -> None:
        for event in events:
            extra = {"event": event.as_json(), "sequence": event.sequence}
            self._logger.log(
                self._level, "event %d %s", event.sequence, event.as_text(), extra=extra
            )
