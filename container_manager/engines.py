"""Which executors answer here, and which jobs this worker may therefore take."""

from __future__ import annotations

import importlib
import logging
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from container_manager import conf, faults
from container_manager.executors.base import (
    Capabilities,
    EngineUnavailable,
    Execution,
    Executor,
)
from container_manager.executors.breaker import Breaker
from container_manager.models.leases import Offer
from container_manager.models.offers import Described, offers_of

logger = logging.getLogger("container_manager")

T = TypeVar("T")

PROBE_SECONDS = 5.0
FIRST_ANSWER_SECONDS = 5.0
"""So long a worker that starts waits for engines that keep silent."""


class Engine:
    """One executor of the settings and what is known of the engine behind it."""

    def __init__(self, alias: str, executor: Executor, breaker: Breaker | None = None) -> None:
        self.alias = alias
        self.executor = executor
        self.breaker = breaker or Breaker()
        self.breaker.on_change = self._changed
        self.id = ""
        self.capabilities = Capabilities(isolations=())
        self._stirred = threading.Event()
        self._ended = False

    @property
    def available(self) -> bool:
        """It has told who it is, and answers."""
        return bool(self.id) and self.breaker.is_closed

    def watch(self, asked: threading.Event) -> None:
        """Probe it now and then, and soon when its breaker opened; sets `asked` after the first."""
        while not self._ended:
            self.probe()
            asked.set()
            self._stirred.wait(self.breaker.seconds_to_probe or PROBE_SECONDS)
            self._stirred.clear()

    def close(self) -> None:
        """Watched no longer; what runs there goes on."""
        self._ended = True
        self._stirred.set()
        close = getattr(self.executor, "close", None)
        if close is not None:
            close()

    def probe(self) -> None:
        """Ask the engine who it is, if it is time to; it stays known while it is away."""
        was = self.id
        try:
            with self.breaker.probing():
                engine_id, self.capabilities = self._who()
                self.id = engine_id
        except EngineUnavailable:
            return
        except Exception:
            logger.exception("Engine %s: cannot be asked", self.alias)
        if self.id != was:
            logger.info("Engine %s: %s", self.alias, self.capabilities.engine or self.id)

    def _who(self) -> tuple[str, Capabilities]:
        return self.executor.engine_id(), self.executor.capabilities()

    def _changed(self, why: str) -> None:
        if why:
            level = logging.WARNING if self.id else logging.INFO
            logger.log(level, "Engine %s: does not answer, its jobs wait: %s", self.alias, why)
        else:
            logger.warning("Engine %s: answers again", self.alias)
        self._stirred.set()

    def call(self, ask: Callable[[], T]) -> T:
        """Ask it something, unless it is away. Raises EngineAway, and whatever `ask` raises."""
        with self.breaker.calling():
            return ask()

    def listing(self, instance: str) -> Listing | None:
        """What it has of this installation; None when another engine took its place meanwhile."""
        engine_id = self.executor.engine_id()
        names = frozenset(self.executor.list_names(instance))
        return Listing(self, engine_id, names) if self.executor.engine_id() == engine_id else None

    def remove(self, name: str, instance: str) -> None:
        """End and remove this execution of the installation, or the bar in its place.

        One of that name which is another installation's is not touched.
        """
        found = self.executor.find(name, instance)
        if found is not None:
            self.executor.stop(found, grace=0)
            self.executor.remove(found)
        elif name in self.executor.list_names(instance):
            self.executor.remove(Execution(name, name))

    def proves_gone(self, engine_id: str) -> bool:
        try:
            return self.executor.proves_gone(engine_id)
        except EngineUnavailable:
            return False

    def described(self) -> dict[str, Any]:
        """For the worker's row: what is offered here, as other workers and people see it."""
        since = self.breaker.since
        return {
            "engine_id": self.id,
            "engine": self.capabilities.engine,
            "isolations": list(self.capabilities.isolations),
            "outlives_worker": self.capabilities.outlives_worker,
            "available": self.available,
            "unavailable_since": since.isoformat() if since else None,
        }


@dataclass(frozen=True)
class Listing:
    """The names of all executions of this installation that one engine has, at one moment."""

    engine: Engine
    engine_id: str
    names: frozenset[str]

    def speaks_of(self, alias: str, engine_id: str) -> bool:
        """May it say of an attempt that was started there that nothing of it is left?"""
        if alias != self.engine.alias:
            return False
        return engine_id == self.engine_id or self.engine.proves_gone(engine_id)


class Engines:
    """All engines of this worker, each asked now and then on a thread of its own."""

    def __init__(self, aliases: Collection[str] = ()) -> None:
        configured = conf.executors()
        chosen = aliases or configured
        self._engines = {alias: Engine(alias, load(configured[alias])) for alias in chosen}

    def start(self) -> None:
        """Ask all at the same time; one that keeps silent is not waited for."""
        asked = [_watched(engine) for engine in self._engines.values()]
        until = time.monotonic() + FIRST_ANSWER_SECONDS
        for each in asked:
            each.wait(max(0.0, until - time.monotonic()))

    def probe(self) -> None:
        """Ask each once, one after the other: for those who do not stay."""
        for engine in self._engines.values():
            engine.probe()

    def stop(self) -> None:
        for engine in self._engines.values():
            engine.close()

    def __iter__(self) -> Iterator[Engine]:
        return iter(self._engines.values())

    def __getitem__(self, alias: str) -> Engine:
        return self._engines[alias]

    def for_id(self, alias: str, engine_id: str) -> Engine | None:
        """The engine that may speak about executions of `engine_id`, if it is ours and answers."""
        engine = self._engines.get(alias)
        if engine is None or not engine.available:
            return None
        return engine if engine.id == engine_id or engine.proves_gone(engine_id) else None

    def described(self) -> dict[str, Any]:
        """For the worker's row: what is offered here, as other workers and people see it."""
        return {each.alias: each.described() for each in self._engines.values() if each.id}

    def offers(self, elsewhere: Iterable[Described] = ()) -> tuple[Offer, ...]:
        """The lanes that this worker serves; `elsewhere`: what the other living workers offer."""
        return offers_of(self.described(), elsewhere)


def _watched(engine: Engine) -> threading.Event:
    """Set when it was asked for the first time."""
    asked = threading.Event()
    name = f"engine {engine.alias}"
    threading.Thread(target=engine.watch, args=[asked], name=name, daemon=True).start()
    return asked


def load(entry: Mapping[str, Any]) -> Executor:
    """An executor from its dotted path and options."""
    module, _, name = entry["class"].rpartition(".")
    kind = getattr(importlib.import_module(module), name)
    return faults.loaded(kind(**entry.get("options", {})))  # type: ignore[no-any-return]
