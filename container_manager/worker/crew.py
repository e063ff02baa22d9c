"""Threads for the jobs of a worker, used again: to start one for each job would cost more."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable

Task = Callable[[], object]


class Crew:
    """As many threads as there are tasks at once; whoever is done waits for the next.

    One thread, the worker's main one, gives the tasks.
    """

    def __init__(self) -> None:
        self._tasks: queue.SimpleQueue[tuple[Task, str] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._members = self._idle = 0

    def do(self, task: Task, name: str) -> None:
        """Begin it at once, on a thread of its own that bears this name; it must not raise.

        Raises RuntimeError where no thread is to be had.
        """
        if not self._somebody_is_idle():
            threading.Thread(target=self._work, name=name, daemon=True).start()
            self._members += 1
        self._tasks.put((task, name))

    def dismiss(self) -> None:
        """Let the threads end, each when it is done; nothing more is begun."""
        for _ in range(self._members):
            self._tasks.put(None)

    def _somebody_is_idle(self) -> bool:
        with self._lock:
            found = self._idle > 0
            self._idle -= found
        return found

    def _work(self) -> None:
        while given := self._tasks.get():
            task, threading.current_thread().name = given
            task()
            del task, given  # while it waits nothing is kept alive
            with self._lock:
                self._idle += 1
