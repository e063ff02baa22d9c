"""The Docker engine of a run: one of its own that fails now and then, the machine's, or none."""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

from tests.chaos.faults import Fault, Server
from tests.support import docker_engine, second_engine
from tests.support.second_engine import SecondEngine, a_second_engine

AWAY = (1.0, 6.0)
"""Seconds until it goes on, or is started again."""
TIMEOUT = 3.0
"""Seconds that workers wait for its answer: shorter than some of the pauses."""
UNHEARD = 1.0
"""Seconds before it goes in which it may have heard of an end and not yet of the output."""
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

    def outage(self, at: datetime) -> float | None:
        """Since when it was away at that time, if it was; a pause is none."""

    def running(self) -> list[str]:
        """What runs in containers still, whether or not the engine knows of it."""


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
        self._outages: list[tuple[float, float]] = []

    def pause(self, chance: random.Random) -> None:
        """It stands still, and whoever asks it waits."""
        self._engine.pause()
        try:
            time.sleep(chance.uniform(*AWAY))
        finally:
            self._engine.go_on()

    def stop(self, chance: random.Random) -> None:
        with self._outage(chance):
            self._engine.stop()

    def kill(self, chance: random.Random) -> None:
        with self._outage(chance):
            self._engine.kill()

    @contextmanager
    def _outage(self, chance: random.Random) -> Iterator[None]:
        since = time.time() - UNHEARD
        yield
        time.sleep(chance.uniform(*AWAY))
        self._engine.start(live_restore=True)
        self._outages.append((since, time.time()))

    def outage(self, at: datetime) -> float | None:
        moment = at.timestamp()
        return next((since for since, until in self._outages if since <= moment <= until), None)

    def running(self) -> list[str]:
        return self._engine.running()


class QuietEngine:
    """The machine's, to which nothing is done; or none, which has no `options`."""

    runs_scripts = False

    def __init__(self, told: str, options: dict[str, Any] | None) -> None:
        self.told = told
        self.options = options
        self.faults: dict[str, Fault] = {}

    def outage(self, at: datetime) -> float | None:
        return None

    def running(self) -> list[str]:
        return []


@contextmanager
def own(notes: Path) -> Iterator[Engine]:
    """One of its own, or else the machine's."""
    seen = [path for path in SEEN_BY_CONTAINERS if Path(path.partition(":")[0]).exists()]
    with a_second_engine([str(notes), *seen]) as second:
        why = second_engine.why_not() or _why_not_started(second)
        try:
            yield _shared(f"NO ENGINE OF ITS OWN ({why}); ") if why else OwnEngine(second)
        finally:
            if second.log.exists():
                shutil.copy(second.log, notes.parent / "dockerd.log")


def _why_not_started(second: SecondEngine) -> str:
    try:
        second.start(live_restore=True)
    except (OSError, AssertionError) as error:
        return f"it did not start: {error}"
    return ""


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
