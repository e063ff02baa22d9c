"""Commands as people meet them: called from code, and as real processes of a shell."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from django.core.management import call_command
from django.core.management.base import CommandError

PROJECT = Path(__file__).resolve().parents[2]


@dataclass
class Answer:
    """What a command said and with which exit code it ended."""

    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        return self.out.splitlines()

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def run(command: str, /, *arguments: Any, **options: Any) -> Answer:
    """Call a command in this process, as Django code does."""
    out, err = io.StringIO(), io.StringIO()
    try:
        call_command(command, *map(str, arguments), stdout=out, stderr=err, **options)
    except CommandError as error:
        return Answer(error.returncode, out.getvalue(), f"{err.getvalue()}{error}\n")
    return Answer(0, out.getvalue(), err.getvalue())


class Shell:
    """Runs `manage.py` as a process on an SQLite file of its own."""

    def __init__(self, database: Path) -> None:
        self.database = database
        self.environment = {
            "PATH": os.environ["PATH"],
            "HOME": os.environ.get("HOME", "/"),
            "DEBUG": "on",
            "DATABASE_URL": f"sqlite:///{database}",
            "CONTAINER_MANAGER_PROCESS_EXECUTOR": "on",
            "DOCKER_HOST": "unix:///there/is/no/engine.sock",
        }

    def start(self, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, str(PROJECT / "manage.py"), *arguments],
            env=self.environment | environment,
            cwd=PROJECT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        )

    def __call__(self, *arguments: str, timeout: float = 60, **environment: str) -> Answer:
        with self.start(*arguments, **environment) as process:
            try:
                out, err = process.communicate(timeout=timeout)
            except subprocess.TimeoutExpired:
                process.kill()
                raise
        return Answer(process.returncode, out, err)

    def pipeline(self, line: str, **environment: str) -> Answer:
        """A line of sh, with `manage` for our manage.py."""
        script = f'set -o pipefail; manage() {{ "{sys.executable}" manage.py "$@"; }}; {line}'
        done = subprocess.run(
            ["bash", "-c", script],
            env=self.environment | environment,
            cwd=PROJECT,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        return Answer(done.returncode, done.stdout, done.stderr)


def eventually(true: Callable[[], Any], seconds: float = 20) -> Any:
    """What `true` returns as soon as it returns something."""
    deadline = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < deadline, "did not come true in time"
        time.sleep(0.05)
    return found


class Script:
    """Stands in for `time` in a command: at each sleep the next thing happens."""

    def __init__(self, steps: Sequence[Callable[[], Any]]) -> None:
        self._steps = list(steps)
        self._now = 0.0

    def sleep(self, seconds: float) -> None:
        self._now += seconds
        if self._steps:
            self._steps.pop(0)()

    def monotonic(self) -> float:
        return self._now
