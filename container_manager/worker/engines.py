"""Which executors answer here, and which jobs this worker may therefore take."""

from __future__ import annotations

import importlib
import logging
import threading
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from container_manager import conf
from container_manager.executors.base import Capabilities, EngineUnavailable, Executor
from container_manager.models.leases import Offer
from container_manager.states import Isolation

logger = logging.getLogger("container_manager")

PROBE_SECONDS = 5.0
STRENGTH = {str(isolation): rank for rank, isolation in enumerate(Isolation)}


class Engine:
    """One executor of the settings and what is known of the engine behind it."""

    def __init__(self, alias: str, executor: Executor) -> None:
        self.alias = alias
        self.executor = executor
        self.id = ""
        self.capabilities = Capabilities(isolations=())
        self.available = False

    def probe(self) -> None:
        """Ask the engine who it is; it stays known while it is away."""
        was = self.available
        try:
            self.id = self.executor.engine_id()
            self.capabilities = self.executor.capabilities()
            self.available = True
        except EngineUnavailable as error:
            self.available = False
            if was:
                logger.warning("Engine %s: does not answer: %s", self.alias, error)
        if self.available and not was:
            logger.info("Engine %s: %s", self.alias, self.capabilities.engine or self.id)

    def proves_gone(self, engine_id: str) -> bool:
        try:
            return self.executor.proves_gone(engine_id)
        except EngineUnavailable:
            return False

    @property
    def strongest(self) -> str:
        return max(self.capabilities.isolations, key=STRENGTH.__getitem__, default="")


class Engines:
    """All engines of this worker; asks again, on a thread of its own, those that are away."""

    def __init__(self, aliases: Collection[str] = ()) -> None:
        configured = conf.executors()
        chosen = aliases or configured
        self._engines = {alias: Engine(alias, load(configured[alias])) for alias in chosen}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="engines", daemon=True)

    def start(self) -> None:
        self.probe()
        self._thread.start()

    def stop(self) -> None:
        self._ended.set()
        for engine in self._engines.values():
            close = getattr(engine.executor, "close", None)
            if close is not None:
                close()

    def probe(self) -> None:
        for engine in self._engines.values():
            try:
                engine.probe()
            except Exception:
                engine.available = False
                logger.exception("Engine %s: cannot be asked", engine.alias)

    def _watch(self) -> None:
        while not self._ended.wait(PROBE_SECONDS):
            self.probe()

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
        return {
            engine.alias: {
                "engine_id": engine.id,
                "engine": engine.capabilities.engine,
                "isolations": list(engine.capabilities.isolations),
                "available": engine.available,
            }
            for engine in self._engines.values()
            if engine.id
        }

    def offers(self, elsewhere: Iterable[Mapping[str, Any]] = ()) -> tuple[Offer, ...]:
        """The lanes that this worker serves; `elsewhere`: what the other living workers offer."""
        ready = [engine for engine in self._engines.values() if engine.available]
        named = [offer for engine in ready for offer in _offers_of(engine)]
        return (*named, *self._unnamed(ready, elsewhere))

    def _unnamed(
        self, ready: list[Engine], elsewhere: Iterable[Mapping[str, Any]]
    ) -> Iterable[Offer]:
        by_strength = sorted(ready, key=lambda engine: STRENGTH.get(engine.strongest, 0))
        first: dict[str, Engine] = {}
        for engine in by_strength:
            first |= dict.fromkeys(engine.capabilities.isolations, engine)
        for isolation, engine in first.items():
            yield Offer("", isolation, engine.alias, isolation, engine.id)
        if by_strength and self._may_choose(by_strength[-1].strongest, elsewhere):
            best = by_strength[-1]
            yield Offer("", Isolation.AUTO, best.alias, best.strongest, best.id)

    def _may_choose(self, strongest: str, elsewhere: Iterable[Mapping[str, Any]]) -> bool:
        """A job that leaves the choice to us is no plain process while anything else is there."""
        if strongest != Isolation.PROCESS:
            return True
        known_here = [engine.strongest for engine in self._engines.values() if engine.id]
        known_there = [
            isolation
            for offers in elsewhere
            for offer in offers.values()
            for isolation in offer.get("isolations", ())
        ]
        return all(word == Isolation.PROCESS for word in (*known_here, *known_there) if word)


def _offers_of(engine: Engine) -> Iterable[Offer]:
    for isolation in engine.capabilities.isolations:
        yield Offer(engine.alias, isolation, engine.alias, isolation, engine.id)
    yield Offer(engine.alias, Isolation.AUTO, engine.alias, engine.strongest, engine.id)


def load(entry: Mapping[str, Any]) -> Executor:
    """An executor from its dotted path and options."""
    module, _, name = entry["class"].rpartition(".")
    kind = getattr(importlib.import_module(module), name)
    return kind(**entry.get("options", {}))  # type: ignore[no-any-return]
