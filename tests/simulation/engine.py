"""The engine of a simulated world: containers that print, end and linger; answers that get lost.

What really happened on it is the oracle's, whatever the records say.
"""

from __future__ import annotations

import random
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, ClassVar

from container_manager.executors.base import (
    Barred,
    Capabilities,
    Chunk,
    EngineUnavailable,
    Execution,
    Executor,
    ExecutorError,
    JobSpec,
    LaunchFailed,
    Outcome,
    StartCancelled,
)
from container_manager.states import Reason
from tests.simulation.scheduler import BEGAN, Process, Scheduler

SLOWEST = 0.5


@dataclass
class Container:
    """One container, and how it will behave."""

    number: int
    name: str
    job: str
    runs_for: float = 0.0
    code: int = 0
    deaf: bool = False
    """Ignores SIGTERM."""
    prints: list[tuple[float, bytes]] = field(default_factory=list)
    barred: bool = False
    started: float | None = None
    ended: float | None = None
    exit_code: int | None = None
    signal: int | None = None

    @property
    def id(self) -> str:
        return f"id-{self.number}"

    def printed(self, now: float) -> bytes:
        if self.started is None:
            return b""
        until = self.ended if self.ended is not None else now
        return b"".join(text for after, text in self.prints if self.started + after <= until)


class World:
    """Everything that exists on the engine, and everything that ever ran there."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self.chance = random.Random(scheduler.chance.random())
        self.daemon = Process("engine")
        self.containers: dict[str, Container] = {}
        self.ever_started: list[Container] = []
        self.away_until = 0.0
        self.loses = 0.0
        """How often, of all calls, the answer or the call itself gets lost or late."""
        self.on_late: Callable[[], None] = lambda: None
        """Called where a request went off that arrives late."""
        self.wrongs: list[str] = []
        self._made = 0

    @property
    def now(self) -> float:
        return self.scheduler.now

    @property
    def is_away(self) -> bool:
        return self.now < self.away_until

    # What clients ask, each in one step

    def create(self, spec: JobSpec, barred: bool = False) -> Container | None:
        """None when the name is taken."""
        if spec.name in self.containers:
            return None
        self._made += 1
        made = Container(self._made, spec.name, spec.job_id, barred=barred)
        if not barred:
            fate = random.Random(f"{spec.name}-{self._made}")
            made.runs_for = fate.choice([0.0, 0.2, 3.0, 10.0, 30.0]) * fate.uniform(0.5, 1.5)
            made.code = fate.choice([0, 0, 0, 1])
            made.deaf = fate.random() < 0.3
            lines = fate.randint(0, 5)
            made.prints = sorted(
                (fate.uniform(0, made.runs_for), f"{made.name} {line}\n".encode())
                for line in range(lines)
            )
        self.containers[spec.name] = made
        return made

    def start(self, container: Container) -> None:
        if container.started is not None:
            return
        container.started = self.now
        self.ever_started.append(container)
        for other in self.ever_started:
            if other is not container and other.job == container.job and other.ended is None:
                self.wrongs.append(f"{other.name} and {container.name} run at once")
            if other is not container and other.name == container.name:
                self.wrongs.append(f"{container.name} was started twice")
        self.scheduler.start(self.daemon, container.name, lambda: self._live(container))

    def _live(self, container: Container) -> None:
        self.scheduler.wait(lambda: container.ended is not None, container.runs_for)
        self.end(container, container.code, None)

    def end(self, container: Container, code: int, by: int | None) -> bool:
        if container.ended is not None or container.started is None:
            return False
        container.ended, container.exit_code, container.signal = self.now, code, by
        return True

    def remove(self, container: Container) -> None:
        if container.started is not None and container.ended is None:
            self.wrongs.append(f"{container.name} was removed while it ran")
        if self.containers.get(container.name) is container:
            del self.containers[container.name]

    def by_id(self, execution: Execution) -> Container | None:
        found = self.containers.get(execution.name)
        return found if found and found.id == execution.execution_id else None


class SimulatedExecutor(Executor):
    """The client of that engine in one worker."""

    world: ClassVar[World]

    def _ask(self, act: Any = lambda: None) -> Any:
        """One request: it may never arrive, arrive late, or its answer may get lost."""
        world, wait = self.world, self.world.scheduler.wait
        wait(seconds=world.chance.choice([0.0, 0.0, 0.01, SLOWEST]))
        lost = world.chance.random()
        if world.is_away or lost < world.loses / 3:
            raise EngineUnavailable("The engine is away.")
        if lost < 2 * world.loses / 3:
            late = world.chance.uniform(0.1, 60.0)
            world.scheduler.start(world.daemon, "late request", lambda: self._later(late, act))
            world.on_late()
            raise EngineUnavailable("The engine did not answer in time.")
        result = act()
        if lost < world.loses:
            wait(seconds=SLOWEST)
            raise EngineUnavailable("The answer was lost.")
        wait()
        return result

    def _later(self, seconds: float, act: Any) -> None:
        self.world.scheduler.wait(seconds=seconds)
        act()

    def engine_id(self) -> str:
        self._ask()
        return "simulated"

    def capabilities(self) -> Capabilities:
        return Capabilities(("container",))

    def create_or_adopt(
        self, spec: JobSpec, *, timeout: float, cancelled: threading.Event
    ) -> Execution:
        if cancelled.is_set():
            raise StartCancelled
        made = self._ask(lambda: self.world.create(spec) or self.world.containers[spec.name])
        if made.barred:
            raise Barred("The name is barred.")
        return self._seen(made)

    def start(self, execution: Execution) -> Execution:
        def act() -> Container | None:
            if found := self.world.by_id(execution):
                self.world.start(found)
            return found

        found = self._ask(act)
        if found is None:
            raise LaunchFailed(Reason.LAUNCH_ERROR, "There is no such container.")
        return self._seen(found)

    def find(self, name: str, instance: str) -> Execution | None:
        found = self._ask(lambda: self.world.containers.get(name))
        return None if found is None or found.barred else self._seen(found)

    def attach(self, execution: Execution, offsets: Mapping[str, int]) -> Iterator[Chunk]:
        container = self._there(execution)
        offset = offsets.get("stdout", 0)
        while True:
            if self.world.is_away:
                raise EngineUnavailable("The stream broke.")
            has_ended = container.ended is not None
            text = container.printed(self.world.now)[offset:]
            if text:
                yield Chunk("stdout", offset, text)
                offset += len(text)
            elif has_ended:
                return
            self.world.scheduler.wait(lambda: container.ended is not None, 1.0)

    def _there(self, execution: Execution) -> Container:
        found = self._ask(lambda: self.world.by_id(execution))
        if found is None:
            raise ExecutorError("There is no such container.")
        return found  # type: ignore[no-any-return]

    def collect(self, execution: Execution) -> Outcome:
        container = self._there(execution)
        self.world.scheduler.wait(lambda: container.ended is not None)
        code, by = container.exit_code, container.signal
        reason = Reason.SIGNAL if by else Reason.EXIT_CODE if code else None
        return Outcome(
            code,
            signal=by,
            reason=reason,
            started_at=_moment(container.started),
            ended_at=_moment(container.ended),
        )

    def stop(self, execution: Execution, *, grace: float) -> bool:
        container = self._ask(lambda: self.world.by_id(execution))
        if container is None or container.ended is not None:
            return False
        if container.started is None:
            return not self.discard(execution) and self.stop(execution, grace=grace)
        if grace > 0:
            reached = self._ask(lambda: container.ended is None)
            if not reached:
                return False
            if not container.deaf:
                self.world.end(container, 143, int(signal.SIGTERM))
            if self.world.scheduler.wait(lambda: container.ended is not None, grace):
                return True
        return bool(self._ask(lambda: self.world.end(container, 137, int(signal.SIGKILL))))

    def remove(self, execution: Execution) -> None:
        def act() -> None:
            found = self.world.containers.get(execution.name)
            if found and execution.execution_id in (found.id, found.name):
                self.world.remove(found)

        self._ask(act)

    def discard(self, execution: Execution) -> bool:
        def act() -> bool:
            found = self.world.by_id(execution)
            if found is not None and found.started is not None:
                return False
            if found is not None:
                self.world.remove(found)
            return True

        return bool(self._ask(act))

    def bar(self, spec: JobSpec) -> bool:
        def act() -> bool:
            self.world.create(spec, barred=True)
            return self.world.containers[spec.name].barred

        return bool(self._ask(act))

    def list_names(self, instance: str) -> list[str]:
        return list(self._ask(lambda: list(self.world.containers)))

    def _seen(self, container: Container) -> Execution:
        started = container.started
        elapsed = self.world.now - started if started is not None else 0.0
        return Execution(
            container.name,
            container.id,
            running=started is not None and container.ended is None,
            started=started is not None,
            started_at=_moment(started),
            elapsed_seconds=elapsed,
        )


def _moment(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(BEGAN + seconds, UTC)
