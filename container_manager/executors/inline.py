"""Runs a Python callable inside the worker: for tests and benchmarks of everything around it."""

from __future__ import annotations

import importlib
import threading
from collections.abc import Callable, Iterator, Mapping

from container_manager.executors.base import (
    Capabilities,
    Chunk,
    Execution,
    Executor,
    JobSpec,
    Outcome,
)


def succeed(_spec: JobSpec) -> Outcome:
    """Does nothing, successfully."""
    return Outcome(exit_code=0)


class InlineExecutor(Executor):
    """Calls `run(spec) -> Outcome` (a callable or its dotted path) in the worker's own process."""

    def __init__(self, run: Callable[[JobSpec], Outcome] | str = succeed) -> None:
        self._run = _load(run) if isinstance(run, str) else run
        self._outcomes: dict[str, Outcome] = {}

    def engine_id(self) -> str:
        return "inline"

    def capabilities(self) -> Capabilities:
        return Capabilities(
            isolations=("process",), outlives_worker=False, in_process=True, engine="inline"
        )

    def create_or_adopt(
        self, spec: JobSpec, *, timeout: float, cancelled: threading.Event
    ) -> Execution:
        self._outcomes[spec.name] = self._run(spec)
        return Execution(spec.name, spec.name, started=True)

    def start(self, execution: Execution) -> Execution:
        return execution

    def find(self, name: str, instance: str) -> Execution | None:
        return None

    def attach(self, execution: Execution, offsets: Mapping[str, int]) -> Iterator[Chunk]:
        return iter(())

    def collect(self, execution: Execution) -> Outcome:
        return self._outcomes[execution.name]

    def stop(self, execution: Execution, *, grace: float) -> bool:
        return False

    def remove(self, execution: Execution) -> None:
        self._outcomes.pop(execution.name, None)

    def discard(self, execution: Execution) -> bool:
        return False

    def bar(self, spec: JobSpec) -> bool:
        return True

    def list_names(self, instance: str) -> list[str]:
        return []


def _load(path: str) -> Callable[[JobSpec], Outcome]:
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)  # type: ignore[no-any-return]
