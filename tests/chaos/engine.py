"""The Docker engine of a run: one of its own that fails now and then, the machine's, or none."""

from __future__ import annotations

import math
import random
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from tests.chaos.daemon_log import DaemonLog
from tests.chaos.faults import Fault, Server
from tests.support import docker_engine, second_engine
from tests.support.second_engine import SecondEngine, a_second_engine

AWAY = (1.0, 6.0)
"""Seconds until it goes on, or is started again."""
TIMEOUT = 3.0
"""Seconds that workers wait for its answer: shorter than some of the pauses."""
WRITTEN = 3.0
"""Seconds after dockerd heard of an end until it stands on disk: it waits 2 for the output."""
SEEN_BY_CONTAINERS = ("/usr:ro", "/lib:ro", "/lib64:ro")
"""Of the machine: containers run the same script as processes do, with the same programs."""


class Engine(Server, Protocol):
    """Where the containers are, if there are any."""

    told: str
    """What it is, and why not another one."""
    options: dict[str, Any] | None
    """Of the workers' executor; without them no job runs in a container."""
    runs_scripts: bool
    """Containers see the directory of the run, and write down there what they do."""

    def was_away(self, begin: float, end: float) -> bool:
        """Stopped, killed or paused at some time between."""

    def missed(self, container: str, ended: float) -> float | None:
        """Since when it was gone, if it was before it had dealt with that end; a pause is none."""

    def lost_track_of(self, container: str) -> bool:
        """It says itself that it could not clean up: then it makes up the exit code."""

    def running(self) -> list[str]:
        """What runs in containers still, whether or not the engine knows of it."""


@dataclass
class Absence:
    """A time in which it does not answer, by the wall clock."""

    is_pause: bool
    began: float = field(default_factory=time.time)
    ended: float = math.inf


class OwnEngine:
    """With live-restore: its containers go on while it is away."""

    runs_scripts = True

    def __init__(self, engine: SecondEngine) -> None:
        self.told = "its own, which fails now and then"
        self.options: dict[str, Any] | None = {"base_url": engine.url, "timeout": TIMEOUT}
        self.faults: dict[str, Fault] = {
            "engine paused": (0.5, self.pause),
            "engine stopped": (0.5, self.stop),
            "engine killed": (0.5, self.kill),
        }
        self._engine = engine
        self._absences: list[Absence] = []

    def pause(self, chance: random.Random) -> None:
        """It stands still, and whoever asks it waits."""
        with self._absence(is_pause=True):
            self._engine.pause()
            try:
                time.sleep(chance.uniform(*AWAY))
            finally:
                self._engine.go_on()

    def stop(self, chance: random.Random) -> None:
        with self._absence():
            self._engine.stop()
            self._come_back(chance)

    def kill(self, chance: random.Random) -> None:
        with self._absence():
            self._engine.kill()
            self._come_back(chance)

    @contextmanager
    def _absence(self, *, is_pause: bool = False) -> Iterator[None]:
        """One that does not end well ends never."""
        absence = Absence(is_pause)
        self._absences.append(absence)
        yield
        absence.ended = time.time()

    def _come_back(self, chance: random.Random) -> None:
        time.sleep(chance.uniform(*AWAY))
        self._engine.start(live_restore=True)

    def was_away(self, begin: float, end: float) -> bool:
        return any(each.began <= end and begin <= each.ended for each in self._absences)

    def missed(self, container: str, ended: float) -> float | None:
        """Of the first time that it was gone after that end, its own log tells whether it knew."""
        gone = [each for each in self._absences if not each.is_pause and ended <= each.ended]
        if not gone or self._log.heard.get(container, math.inf) + WRITTEN < gone[0].began:
            return None
        return gone[0].began

    def lost_track_of(self, container: str) -> bool:
        return container in self._log.unclean

    @cached_property
    def _log(self) -> DaemonLog:
        return DaemonLog(self._engine.log)

    def running(self) -> list[str]:
        return self._engine.running()


class QuietEngine:
    """The machine's, to which nothing is done; or none, which has no `options`."""

    runs_scripts = False

    def __init__(self, told: str, options: dict[str, Any] | None) -> None:
        self.told = told
        self.options = options
        self.faults: dict[str, Fault] = {}

    def was_away(self, begin: float, end: float) -> bool:
        return False

    def missed(self, container: str, ended: float) -> float | None:
        return None

    def lost_track_of(self, container: str) -> bool:
        return False

    def running(self) -> list[str]:
        return []


@contextmanager
def own(notes: Path) -> Iterator[Engine]:
    """One of its own, or else the machine's."""
    if why := second_engine.why_not():
        yield _instead(why)
        return
    seen = [path for path in SEEN_BY_CONTAINERS if Path(path.partition(":")[0]).exists()]
    with a_second_engine([str(notes), *seen]) as second:
        try:
            why = _why_not_started(second)
            yield _instead(why) if why else OwnEngine(second)
        finally:
            if second.log.exists():
                shutil.copy(second.log, notes.parent / "dockerd.log")


def _why_not_started(second: SecondEngine) -> str:
    try:
        second.start(live_restore=True)
    except Exception as error:  # noqa: BLE001  # whatever it is, there is another engine
        return f"it did not start: {error!r}"
    return ""


def _instead(why: str) -> Engine:
    return _shared(f"NO ENGINE OF ITS OWN ({why}); ")


@contextmanager
def shared(_notes: Path) -> Iterator[Engine]:
    yield _shared()


def _shared(before: str = "") -> Engine:
    why = docker_engine.why_not()
    told = why or "the machine's, which does not fail"
    return QuietEngine(f"{before}{told}", None if why else {})


@contextmanager
def none(_notes: Path) -> Iterator[Engine]:
    yield QuietEngine("none, as wanted", None)


ENGINES = {"own": own, "shared": shared, "none": none}
