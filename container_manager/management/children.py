"""Commands of this project as child processes, which end when we end them."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from typing import IO, Any

from django.conf import settings

STOP_SECONDS = 10.0
PR_SET_PDEATHSIG = 1


class Child:
    """One command in a process group of its own, so that Ctrl-C reaches it only through us."""

    def __init__(
        self,
        *command: str,
        environment: Mapping[str, str] | None = None,
        output: IO[Any] | None = None,
    ) -> None:
        self._process = subprocess.Popen(  # noqa: S603 - our own interpreter, our own command
            [sys.executable, "-m", "django", *command],
            env={**_environment(), **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            preexec_fn=_end_with_parent,
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
        """Ask it to end in order; by force when it does not, or when we are interrupted again."""
        if self.code is not None:
            return
        self._process.terminate()
        try:
            if self.wait(seconds) is None:
                self.kill()
        except KeyboardInterrupt:
            self.kill()

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


def _end_with_parent() -> None:
    """Where the kernel can: a parent that is killed takes its child along, in order."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _environment() -> dict[str, str]:
    return {
        **os.environ,
        "DJANGO_SETTINGS_MODULE": str(settings.SETTINGS_MODULE),
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }
