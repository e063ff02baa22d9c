"""An executor that does as a test says, and remembers what was asked of it."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import ClassVar

from container_manager.executors.base import (
    Capabilities,
    Chunk,
    EngineUnavailable,
    Execution,
    Executor,
    JobSpec,
    LaunchFailed,
    Outcome,
    StartCancelled,
)
from container_manager.states import Reason

KILLED = Outcome(137, signal=9, reason=Reason.SIGNAL, error="Killed.")


def _nothing(_spec: JobSpec) -> None:
    pass


@dataclass
class World:
    """What is behind every FakeExecutor: its executions, and how they behave."""

    outcome: Outcome = field(default_factory=lambda: Outcome(0))
    chunks: tuple[Chunk, ...] = ()
    runs_until_stopped: bool = False
    listens: bool = True
    """Ends when it is asked to, else only by force."""
    refusal: LaunchFailed | None = None
    hiccups: int = 0
    """How often each kind of call finds the engine away."""
    on_create: Callable[[JobSpec], None] = _nothing
    executions: dict[str, Execution] = field(default_factory=dict)
    ended: dict[str, threading.Event] = field(default_factory=dict)
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    barred: set[str] = field(default_factory=set)
    calls: list[tuple[str, str]] = field(default_factory=list)
    specs: dict[str, JobSpec] = field(default_factory=dict)
    _away: Counter[tuple[str, str]] = field(default_factory=Counter)

    def asked(self, what: str, name: str) -> None:
        self._away[what, name] += 1
        if self._away[what, name] <= self.hiccups:
            raise EngineUnavailable("The engine is away.")
        self.calls.append((what, name))

    def times(self, what: str) -> int:
        return sum(call == what for call, _ in self.calls)

    def end(self, name: str, outcome: Outcome) -> None:
        self.outcomes.setdefault(name, outcome)
        self.executions[name] = replace(self.executions[name], running=False)
        self.ended[name].set()


class FakeExecutor(Executor):
    """One of the executors of the settings in a test; all of them look at the same world."""

    world: ClassVar[World] = World()

    def __init__(
        self,
        engine: str = "fake",
        isolations: tuple[str, ...] = ("container",),
        away: bool = False,
        outlives_worker: bool = True,
    ) -> None:
        self._engine = engine
        self._isolations = tuple(isolations)
        self._away = away
        self._outlives_worker = outlives_worker

    def engine_id(self) -> str:
        if self._away:
            raise EngineUnavailable("The engine is away.")
        return self._engine

    def capabilities(self) -> Capabilities:
        return Capabilities(self._isolations, outlives_worker=self._outlives_worker)

    def create_or_adopt(
        self, spec: JobSpec, *, timeout: float, cancelled: threading.Event
    ) -> Execution:
        world = self.world
        world.asked("create", spec.name)
        world.specs[spec.name] = spec
        world.on_create(spec)
        if cancelled.is_set():
            raise StartCancelled
        if world.refusal is not None:
            raise world.refusal
        world.ended.setdefault(spec.name, threading.Event())
        return world.executions.setdefault(spec.name, Execution(spec.name, f"id-{spec.name}"))

    def start(self, execution: Execution) -> Execution:
        world = self.world
        world.asked("start", execution.name)
        started = world.executions[execution.name]
        if not started.started:
            now = datetime.now(UTC)
            started = replace(started, started=True, running=True, started_at=now)
            world.executions[execution.name] = started
            if not world.runs_until_stopped:
                world.end(execution.name, world.outcome)
        return started

    def find(self, name: str, instance: str) -> Execution | None:
        self.world.asked("find", name)
        found = self.world.executions.get(name)
        return replace(found, adopted=True) if found else None

    def attach(self, execution: Execution, offsets: Mapping[str, int]) -> Iterator[Chunk]:
        self.world.asked("attach", execution.name)
        yield from (
            chunk for chunk in self.world.chunks if chunk.offset >= offsets.get(chunk.stream, 0)
        )
        self.world.ended[execution.name].wait(60)

    def collect(self, execution: Execution) -> Outcome:
        self.world.asked("collect", execution.name)
        self.world.ended[execution.name].wait(60)
        return self.world.outcomes[execution.name]

    def stop(self, execution: Execution, *, grace: float) -> bool:
        world = self.world
        world.asked(f"stop {grace:g}", execution.name)
        if execution.name not in world.executions or world.ended[execution.name].is_set():
            return False
        if world.listens or grace == 0:
            world.end(execution.name, KILLED if grace == 0 else world.outcome)
        else:
            world.ended[execution.name].wait(60)
        return True

    def remove(self, execution: Execution) -> None:
        self.world.asked("remove", execution.name)
        self.world.executions.pop(execution.name, None)
        self.world.barred.discard(execution.name)

    def discard(self, execution: Execution) -> bool:
        self.world.asked("discard", execution.name)
        if self.world.executions[execution.name].started:
            return False
        self.world.executions.pop(execution.name)
        return True

    def bar(self, spec: JobSpec) -> bool:
        self.world.asked("bar", spec.name)
        self.world.barred.add(spec.name)
        return True

    def list_names(self, instance: str) -> list[str]:
        return [*self.world.executions, *self.world.barred]
