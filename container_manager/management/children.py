"""Commands of this project as child processes, which end when we end them, and when we die.

Parent and child are one process group. A child that was told `--supervised` leaves Ctrl-C to its
parent and ends in order when the parent closes the pipe that is the child's standard input; the
kernel closes it, too, when the parent is killed. So no child is ever asked twice.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Collection, Mapping
from typing import IO, Any

from django.conf import settings

STOP_SECONDS = 10.0
PATIENCE_SECONDS = (1, 2, 5, 10, 30)
"""How long to wait before a child that died is started again, longer each time in a row."""

CALM_SECONDS = 60
"""A child that lived so long counts as healthy."""

OF_THE_TERMINAL = (signal.SIGINT, signal.SIGHUP)
"""Signals that a terminal sends to the whole group; the parent decides what they mean."""


class Child:
    """One Python module as a process; without another, a command of this project."""

    def __init__(
        self,
        *arguments: str,
        module: str = "django",
        environment: Mapping[str, str] | None = None,
        output: IO[Any] | None = None,
        inherits: Collection[int] = (),
    ) -> None:
        self._process = subprocess.Popen(  # noqa: S603 - our own interpreter, our own command
            [sys.executable, "-m", module, *arguments, "--supervised"],
            env={**_environment(), **(environment or {})},
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
            pass_fds=tuple(inherits),
            preexec_fn=_be_deaf_to_the_terminal,
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def code(self) -> int | None:
        """Its exit code, None while it runs."""
        return self._process.poll()

    def wait(self, seconds: float) -> int | None:
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    def stop(self, seconds: float = STOP_SECONDS) -> None:
        """Have it end in order; by force when it does not, or when we are interrupted again."""
        self._let_go()
        try:
            if self.wait(seconds) is None:
                self.kill()
        except KeyboardInterrupt:
            self.kill()
            raise

    def kill(self) -> None:
        self._let_go()
        self._process.kill()
        self._process.wait()

    def _let_go(self) -> None:
        if self._process.stdin:
            self._process.stdin.close()


class Kept:
    """A child that is started again whenever it dies, later each time in a row."""

    def __init__(self, what: str, start: Callable[[], Child]) -> None:
        self._what = what
        self._start = start
        self._child: Child | None = None
        self._due = self._began = 0.0
        self._deaths = 0

    def look(self, now: float) -> str:
        """Start it when that is due; returns what is to be told about it, mostly nothing."""
        if self._child is None:
            if now >= self._due:
                self._child, self._began = self._start(), now
            return ""
        if self._child.code is None:
            return ""
        return self._bury(self._child, now)

    def _bury(self, child: Child, now: float) -> str:
        self._deaths = 0 if now - self._began > CALM_SECONDS else self._deaths
        pause = PATIENCE_SECONDS[min(self._deaths, len(PATIENCE_SECONDS) - 1)]
        self._deaths += 1
        self._due = now + pause
        self._child = None
        return f"{self._what} ended with exit code {child.code}; another starts in {pause} s"

    def stop(self, seconds: float) -> None:
        if self._child:
            self._child.stop(seconds)

    def kill(self) -> None:
        if self._child:
            self._child.kill()


def obey_parent(stop: Callable[[], None]) -> None:
    """In a child: `stop` is called, from a thread, when the parent lets go of it or is gone."""
    for number in OF_THE_TERMINAL:
        signal.signal(number, _leave_it_to_the_parent)
    threading.Thread(target=_wait_for_parent, args=(stop,), daemon=True).start()


def _wait_for_parent(stop: Callable[[], None]) -> None:
    while os.read(sys.stdin.fileno(), 1024):
        pass
    stop()


def _leave_it_to_the_parent(_number: int, _frame: object) -> None:
    """A handler, not SIG_IGN: what the child starts must not inherit it."""


def _be_deaf_to_the_terminal() -> None:
    """Until `obey_parent`: an interpreter that is just starting would end with a traceback."""
    for number in OF_THE_TERMINAL:
        signal.signal(number, signal.SIG_IGN)


def _environment() -> dict[str, str]:
    return {
        **os.environ,
        "DJANGO_SETTINGS_MODULE": str(settings.SETTINGS_MODULE),
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }
