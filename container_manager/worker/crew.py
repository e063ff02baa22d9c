"""Threads for the jobs of a worker, used again: to start one for each job would cost more."""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue

Task = Callable[[], object]


class Crew:
    """As many threads as there are tasks at once; whoever is done waits for the next."""

    def __init__(self) -> None:
        self._tasks: SimpleQueue[Task | None] = SimpleQueue()
        self._waiting = threading.Semaphore(0)
        self._lock = threading.Lock()
        self._members = 0

    def do(self, task: Task) -> None:
        """Begin it at once, on a thread of its own; it must not raise.

        Raises RuntimeError where no thread is to be had.
        """
        if not self._waiting.acquire(blocking=False):
            threading.Thread(target=self._work, name="job", daemon=True).start()
            with self._lock:
                self._members += 1
        self._tasks.put(task)

    def dismiss(self) -> None:
        """Let the threads end, each when it is done; nothing more is begun."""
        with self._lock:
            for _ in range(self._members):
                self._tasks.put(None)

    def _work(self) -> None:
        while task := self._tasks.get():
            task()
            self._waiting.release()
