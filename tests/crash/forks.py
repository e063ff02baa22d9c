"""Child processes of a driver that has one thread: a fork is much cheaper than an interpreter."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from tests.support.workers import wait_until

PR_SET_PDEATHSIG = 1
"""No worker outlives its case, no case the driver."""


class Child:
    """A forked process: how it stands, and what it said."""

    def __init__(self, act: Callable[[], int | None], log: Path | None = None) -> None:
        self._status: int | None = None
        self.stopped = False
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            _live(act, log)

    def look(self) -> None:
        """Hear what became of it."""
        if self._status is not None:
            return
        pid, status = os.waitpid(self.pid, os.WNOHANG | os.WUNTRACED | os.WCONTINUED)
        if pid == 0:
            return
        if os.WIFSTOPPED(status):
            self.stopped = True
        elif os.WIFCONTINUED(status):
            self.stopped = False
        else:
            self._status = status

    @property
    def has_ended(self) -> bool:
        self.look()
        return self._status is not None

    @property
    def code(self) -> int:
        """Its exit code, negative for a signal, once it has ended."""
        assert self._status is not None
        return os.waitstatus_to_exitcode(self._status)

    def send(self, number: int) -> None:
        if not self.has_ended:
            os.kill(self.pid, number)

    def ended(self, patience: float) -> int:
        wait_until(lambda: self.has_ended, f"process {self.pid} to end", patience)
        return self.code

    def stands_or_ended(self, patience: float) -> None:
        """Wait until SIGSTOP or its end has come."""
        wait_until(lambda: self.has_ended or self.stopped, f"process {self.pid}", patience)

    def end(self) -> None:
        """Whatever it does, it is gone after this."""
        self.send(signal.SIGKILL)
        while not self.has_ended:
            time.sleep(0.01)


def _live(act: Callable[[], int | None], log: Path | None) -> None:
    code = 70
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    try:
        if log is not None:
            _write_to(log)
        code = act() or 0
    except BaseException:  # noqa: BLE001  # the child must not go on as a second driver
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _write_to(log: Path) -> None:
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
