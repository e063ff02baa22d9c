"""One thing at a time, chosen by a seed: threads become tasks; time passes when all of them wait.

The modules of the worker get stand-ins for `threading`, `time`, `queue` and `random`. A task gives
way where a real thread could be overtaken: when it waits, calls an engine, comes to a crash point,
or is about to begin a transaction.
"""

from __future__ import annotations

import concurrent.futures
import queue
import random
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import greenlet

BEGAN = 1_900_000_000.0
"""Where the clock stands at first, in Unix seconds."""


class Dead(BaseException):
    """The process ended here: nothing more may be done by it."""


class Process:
    """What is killed and paused together."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.alive = True
        self.paused_until = 0.0
        self.tasks: list[Task] = []


class Task:
    """A thread, as far as the scheduler sees it."""

    def __init__(
        self, process: Process, name: str, act: Callable[[], None], hub: greenlet.greenlet
    ) -> None:
        self.process, self.name, self.act = process, name, act
        self.ready: Callable[[], bool] | None = None
        self.wake: float | None = None
        self.done = False
        self.failure: BaseException | None = None
        self.body = greenlet.greenlet(self._run, parent=hub)

    def _run(self) -> None:
        try:
            self.act()
        except (Dead, SystemExit):
            pass
        except BaseException as error:  # noqa: BLE001
            self.failure = error
        finally:
            self.done = True

    def can_go_on(self, now: float) -> bool:
        if self.process.paused_until > now:
            return False
        if self.wake is not None and self.wake <= now:
            return True
        return self.ready() if self.ready is not None else self.wake is None


class Scheduler:
    """Chooses who goes on; the same seed chooses the same."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.now = 0.0
        self.steps = 0
        self.tasks: list[Task] = []
        self.current: Task | None = None
        self.trace: list[str] = []
        self.on_step: Callable[[], None] = lambda: None
        self.hub = greenlet.getcurrent()

    def start(self, process: Process, name: str, act: Callable[[], None]) -> Task:
        task = Task(process, name, act, self.hub)
        process.tasks.append(task)
        self.tasks.append(task)
        return task

    # Called by tasks

    def wait(self, ready: Callable[[], bool] | None = None, seconds: float | None = None) -> bool:
        """Give way; on again when `ready` says so or the time is over. Was it ready?"""
        task = self.current
        if task is None:  # the world is being set up or looked at
            return ready() if ready else True
        self.die_if_dead()
        task.ready = ready
        task.wake = None if seconds is None else self.now + max(0.0, seconds)
        self.hub.switch()
        self.die_if_dead()
        return ready() if ready else True

    def die_if_dead(self) -> None:
        if self.current is not None and not self.current.process.alive:
            raise Dead

    # Called by the world

    def run(self, enough: Callable[[], bool], most_steps: int) -> bool:
        """Let things happen until `enough`; False when it did not come to that in so many steps."""
        for _ in range(most_steps):
            if enough():
                return True
            self.step()
        return enough()

    def step(self) -> None:
        self.steps += 1
        self.on_step()
        able = [task for task in self.tasks if task.can_go_on(self.now)]
        if able:
            self._resume(self.chance.choice(able))
        else:
            self.now = self._next_event()

    def _next_event(self) -> float:
        moments = [
            max(task.wake if task.wake is not None else self.now, task.process.paused_until)
            for task in self.tasks
            if task.wake is not None or task.process.paused_until > self.now
        ]
        if not moments:
            raise AssertionError("nothing will ever happen any more")
        return max(min(moments), self.now)

    def _resume(self, task: Task) -> None:
        self.trace.append(f"{self.now:.6f} {task.process.name} {task.name}")
        self.current = task
        try:
            task.body.switch()
        finally:
            self.current = None
        self._bury()

    def _bury(self) -> None:
        for task in self.tasks:
            if task.failure is not None:
                raise AssertionError(f"{task.process.name}: {task.name} failed") from task.failure
        self.tasks = [task for task in self.tasks if not task.done]

    def kill(self, process: Process) -> None:
        """kill -9: each task ends where it stands, and can write nothing while it unwinds."""
        process.alive = False
        for task in process.tasks:
            if task.body and not task.done:
                outer, self.current = self.current, task
                try:
                    task.body.throw(Dead)
                finally:
                    self.current = outer
            task.done = True
        self.tasks = [task for task in self.tasks if task.process is not process]


class _Event:
    def __init__(self, world: Scheduler) -> None:
        self._world, self._is_set = world, False

    def set(self) -> None:
        self._is_set = True

    def clear(self) -> None:
        self._is_set = False

    def is_set(self) -> bool:
        return self._is_set

    def wait(self, timeout: float | None = None) -> bool:
        return self._world.wait(self.is_set, timeout)


class _Lock:
    """Also a Condition: whoever waits for one looks at what he waits for himself."""

    def __init__(self, world: Scheduler) -> None:
        self._world, self._held = world, 0

    def __enter__(self) -> bool:
        if self._held:
            self._world.wait(lambda: not self._held)
        self._held += 1
        return True

    def __exit__(self, *_: object) -> None:
        self._held -= 1

    def wait_for(self, ready: Callable[[], bool], timeout: float | None = None) -> bool:
        if ready():
            return True
        held, self._held = self._held, 0
        try:
            return self._world.wait(ready, timeout)
        finally:
            self._held = held

    def notify_all(self) -> None:
        pass


class _Thread:
    def __init__(
        self,
        world: Scheduler,
        target: Callable[..., None],
        args: Any = (),
        name: str = "thread",
        daemon: bool = True,
    ) -> None:
        self._world, self.name, self._act = world, name, lambda: target(*args)
        self._task: Task | None = None

    def start(self) -> None:
        assert self._world.current is not None
        self._task = self._world.start(self._world.current.process, self.name, self._act)

    def is_alive(self) -> bool:
        return self._task is not None and not self._task.done

    def join(self, timeout: float | None = None) -> None:
        self._world.wait(lambda: not self.is_alive(), timeout)


class _Queue:
    def __init__(self, world: Scheduler) -> None:
        self._world, self._items = world, deque[Any]()

    def put(self, item: Any) -> None:
        self._items.append(item)

    def empty(self) -> bool:
        return not self._items

    def get(self) -> Any:
        self._world.wait(lambda: bool(self._items))
        return self._items.popleft()

    def get_nowait(self) -> Any:
        if not self._items:
            raise queue.Empty
        return self._items.popleft()


class _Future:
    def __init__(self, world: Scheduler) -> None:
        self._world, self._results = world, list[Any]()

    def set_result(self, result: Any) -> None:
        self._results.append(result)

    def done(self) -> bool:
        return bool(self._results)

    def result(self, timeout: float | None = None) -> Any:
        self._world.wait(self.done, timeout)
        return self._results[0]


class _StandIn:
    """A module of which some names are ours."""

    def __init__(self, module: Any, **ours: Any) -> None:
        self.__dict__.update(ours)
        self._module = module

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


def stand_ins(world: Scheduler) -> dict[Any, Any]:
    """What the modules get, by what they have."""
    chance = random.Random(world.chance.random())

    def made(kind: Any) -> Callable[..., Any]:
        return lambda *given, **options: kind(world, *given, **options)

    def monotonic() -> float:
        return 1000.0 + world.now

    def sleep(seconds: float) -> None:
        world.wait(seconds=seconds)

    threads = _StandIn(
        threading,
        Thread=made(_Thread),
        Event=made(_Event),
        Lock=made(_Lock),
        RLock=made(_Lock),
        Condition=made(_Lock),
    )
    return {
        threading: threads,
        time: _StandIn(time, monotonic=monotonic, sleep=sleep),
        queue: _StandIn(queue, SimpleQueue=made(_Queue), Queue=made(_Queue)),
        random: chance,
        concurrent.futures.Future: made(_Future),
        time.monotonic: monotonic,
        time.sleep: sleep,
        random.random: chance.random,
        random.uniform: chance.uniform,
    }


PATCHED = (
    "container_manager.worker",
    "container_manager.duties",
    "container_manager.listener",
    "container_manager.engines",
    "container_manager.lifecycle",
    "container_manager.executors.breaker",
)


@contextmanager
def patched(world: Scheduler) -> Iterator[None]:
    """The worker's modules run on the world's threads and clock."""
    replaced: list[tuple[Any, str, Any]] = []
    ours = stand_ins(world)
    modules = [module for name, module in sorted(sys.modules.items()) if name.startswith(PATCHED)]
    try:
        for module in modules:
            _replace(module, ours, replaced)
        yield
    finally:
        for owner, name, value in reversed(replaced):
            setattr(owner, name, value)


def _replace(owner: Any, ours: dict[Any, Any], replaced: list[tuple[Any, str, Any]]) -> None:
    for name, value in list(vars(owner).items()):
        if _is_one_of(value, ours):
            replaced.append((owner, name, value))
            setattr(owner, name, ours[value])
        elif isinstance(value, type) and value.__module__ == owner.__name__:
            initialiser = vars(value).get("__init__")
            if initialiser is not None and hasattr(initialiser, "__code__"):
                _replace_defaults(initialiser, ours, replaced)


def _replace_defaults(function: Any, ours: dict[Any, Any], replaced: list[Any]) -> None:
    """What stands in a signature was looked up long ago."""
    given, named = function.__defaults__ or (), function.__kwdefaults__ or {}
    replaced.append((function, "__defaults__", function.__defaults__))
    replaced.append((function, "__kwdefaults__", function.__kwdefaults__))
    function.__defaults__ = tuple(ours[v] if _is_one_of(v, ours) else v for v in given) or None
    function.__kwdefaults__ = {
        key: ours[value] if _is_one_of(value, ours) else value for key, value in named.items()
    } or None


def _is_one_of(value: Any, ours: dict[Any, Any]) -> bool:
    try:
        return value in ours
    except TypeError:
        return False
