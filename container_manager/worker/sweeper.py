"""Removes ended executions from their engines, after their end is recorded."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

from container_manager import journal, lifecycle
from container_manager.engines import Engine
from container_manager.executors.base import Execution, ExecutorError
from container_manager.faults import reached
from container_manager.models.leases import Lease

logger = logging.getLogger("container_manager")

THREADS = 2
Key = dict[str, Any]


class Sweeper:
    """Threads that call the engines; what they removed is written by the worker's main thread."""

    def __init__(self) -> None:
        self._waiting: queue.SimpleQueue[tuple[str, Key | None, Callable[[], None]]] = (
            queue.SimpleQueue()
        )
        self._removed: queue.SimpleQueue[Key] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._under_way: set[str] = set()
        self._threads: list[threading.Thread] = []

    @property
    def is_idle(self) -> bool:
        return not self._under_way

    def sweep(self, lease: Lease, engine: Engine, execution: Execution | None) -> None:
        """Remove this execution soon; None when nothing was ever created."""
        if execution is not None:
            remove = partial(engine.executor.remove, execution)
            self.do(lease.name, lease.key, partial(engine.call, remove))

    def do(self, name: str, key: Key | None, remove: Callable[[], None]) -> None:
        """Call `remove` soon, unless the same is under way; `key` names the attempt, if any."""
        with self._lock:
            if name in self._under_way:
                return
            self._under_way.add(name)
        self._waiting.put((name, key, remove))
        if len(self._threads) < THREADS:
            self._start_another()

    def _start_another(self) -> None:
        thread = threading.Thread(target=self._run, name="sweeper", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:  # no thread is to be had; the next task tries again
            logger.warning("Nobody to remove what is left: %s", error)
        else:
            self._threads.append(thread)

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
            name, key, remove = self._waiting.get()
            told = journal.told(job=key["job_id"], attempt=key["attempt"]) if key else {}
            try:
                remove()
                if key is not None:
                    self._removed.put(key)
            except ExecutorError as error:
                logger.warning("%s: not removed yet: %s", name, error, extra=told)
            except Exception:
                logger.exception("%s: not removed yet", name, extra=told)
            finally:
                with self._lock:
                    self._under_way.discard(name)
