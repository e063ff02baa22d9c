"""Publishers whose receiver is the test, in this process or in files."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from container_manager.events.base import (
    OutOfStep,
    Publisher,
    Refused,
    Standing,
    TransitionEvent,
    Unavailable,
)

ERRORS = {"unavailable": Unavailable, "refused": Refused, "out of step": OutOfStep}


class FilePublisher(Publisher):
    """Appends `sequence entity version` to a file; another one may say what goes wrong.

    `trouble`: a file with `unavailable`, `refused <sequence>`, `crash <sequence>` or `sleep
    <seconds>` in it; while there is none all goes well.
    """

    def __init__(self, path: str, trouble: str = "", max_tries: int = 10) -> None:
        self._path = Path(path)
        self._trouble = Path(trouble) if trouble else None
        self.max_tries = max_tries

    def publish(self, events: Sequence[TransitionEvent]) -> None:
        for number, event in enumerate(events):
            self._stumble(event, number)
            with self._path.open("a") as file:
                file.write(f"{event.sequence} {event.entity_id} {event.version}\n")

    def _stumble(self, event: TransitionEvent, number: int) -> None:
        if self._trouble is None or not self._trouble.exists():
            return
        what, _, given = self._trouble.read_text().strip().partition(" ")
        if what == "sleep":
            self._path.with_suffix(".sleeps").touch()
            time.sleep(float(given))
        elif what == "unavailable":
            raise Unavailable("nobody is there", delivered=number)
        elif what and int(given) == event.sequence:
            if what == "crash":
                raise RuntimeError("a bug")
            raise Refused("not this one", delivered=number)


def told(path: Path) -> list[tuple[int, str, int]]:
    """What stands in such a file: sequence, entity, version."""
    if not path.exists():
        return []
    rows = [line.split() for line in path.read_text().splitlines() if line.count(" ") == 2]
    return [(int(sequence), entity, int(version)) for sequence, entity, version in rows]


class Spy(Publisher):
    """Of this process; each option `name` has what it was told in `Spy.of[name]`."""

    of: dict[str, Spy] = {}

    def __init__(self, name: str = "spy", max_tries: int = 3) -> None:
        self.told: list[TransitionEvent] = []
        self.batches: list[int] = []
        self.begun: list[Standing] = []
        self.trouble: dict[int, Any] = {}
        """By sequence: an error to raise, or an Event to wait for."""
        self.away: Exception | None = None
        self.starts_at: int | None = None
        self.closed = 0
        self.max_tries = max_tries
        Spy.of[name] = self

    @property
    def sequences(self) -> list[int]:
        return [event.sequence for event in self.told]

    def begin(self, standing: Standing) -> int:
        self.begun.append(standing)
        if self.away:
            raise self.away
        return standing.position if self.starts_at is None else self.starts_at

    def publish(self, events: Sequence[TransitionEvent]) -> None:
        self.batches.append(len(events))
        for number, event in enumerate(events):
            if self.away:
                raise self.away
            trouble = self.trouble.get(event.sequence)
            if isinstance(trouble, threading.Event):
                trouble.wait()
            elif isinstance(trouble, type) and issubclass(trouble, tuple(ERRORS.values())):
                raise trouble(f"no {event.sequence}", delivered=number)
            elif trouble is not None:
                raise trouble
            self.told.append(event)

    def close(self) -> None:
        self.closed += 1


def spies(*names: str) -> dict[str, Any]:
    """PUBLISHERS with a Spy of each name."""
    path = "tests.support.publishers.Spy"
    return {name: {"class": path, "options": {"name": name}} for name in names}


def to_file(path: Path, trouble: Path | str = "", **options: Any) -> dict[str, Any]:
    """An entry of PUBLISHERS."""
    given = {"path": os.fspath(path), "trouble": os.fspath(trouble), **options}
    return {"class": "tests.support.publishers.FilePublisher", "options": given}
