"""Removes ended executions from their engines, after their end is recorded."""

from __future__ import annotations

import logging
import queue
import threading

from container_manager import lifecycle
from container_manager.executors.base import Execution, Executor, ExecutorError
from container_manager.faults import reached
from container_manager.models.leases import Lease

logger = logging.getLogger("container_manager")

THREADS = 2


class Sweeper:
    """Threads that call the engines; what they removed is written by the worker's main thread."""

    def __init__(self) -> None:
        self._waiting: queue.SimpleQueue[tuple[Lease, Executor, Execution]] = queue.SimpleQueue()
        self._removed: queue.SimpleQueue[Lease] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._under_way = 0
        self._threads: list[threading.Thread] = []

    @property
    def is_idle(self) -> bool:
        return self._under_way == 0

    def sweep(self, lease: Lease, executor: Executor, execution: Execution | None) -> None:
        """Remove this execution soon; None when nothing was ever created."""
        if execution is None:
            return
        self._count(1)
        self._waiting.put((lease, executor, execution))
        if len(self._threads) < THREADS:
            thread = threading.Thread(target=self._run, name="sweeper", daemon=True)
            self._threads.append(thread)
            thread.start()

    def record(self) -> None:
        """Write which attempts left nothing behind; what is not written is swept again later."""
        removed = []
        while not self._removed.empty():
            removed.append(self._removed.get_nowait())
        if removed:
            reached("X5")
            lifecycle.cleaned_up(removed)

    def _run(self) -> None:
        while True:
            lease, executor, execution = self._waiting.get()
            try:
                executor.remove(execution)
                self._removed.put(lease)
            except ExecutorError as error:
                logger.warning("%s: not removed yet: %s", lease.name, error)
            finally:
                self._count(-1)

    def _count(self, change: int) -> None:
        with self._lock:
            self._under_way += change
