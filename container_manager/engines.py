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
from container_manager.models.offers import Described, offers_of

logger = logging.getLogger("container_manager")

PROBE_SECONDS = 5.0


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
                "outlives_worker": engine.capabilities.outlives_worker,
                "available": engine.available,
            }
            for engine in self._engines.values()
            if engine.id
        }

    def offers(self, elsewhere: Iterable[Described] = ()) -> tuple[Offer, ...]:
        """The lanes that this worker serves; `elsewhere`: what the other living workers offer."""
        return offers_of(self.described(), elsewhere)


def load(entry: Mapping[str, Any]) -> Executor:
    """An executor from its dotted path and options."""
    module, _, name = entry["class"].rpartition(".")
    kind = getattr(importlib.import_module(module), name)
    return kind(**entry.get("options", {}))  # type: ignore[no-any-return]
