"""Real `manage.py run_worker` processes on the test database, and waiting for what they do."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

from django.db import connection

from container_manager.executors.base import EngineUnavailable, Execution, Executor
from container_manager.executors.docker import DockerExecutor
from container_manager.executors.process import ProcessExecutor
from container_manager.models import ContainerJob

T = TypeVar("T")

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 60.0
"""Seconds after which a test gives up waiting; nothing is expected to take so long."""


def wait_until(condition: Callable[[], T], what: str = "", patience: float = PATIENCE) -> T:
    """The first true value of `condition`; fails after a generous while."""
    ends_at = time.monotonic() + patience
    while not (value := condition()):
        if time.monotonic() > ends_at:
            raise AssertionError(f"waited {patience:.0f} s in vain for {what or condition}")
        time.sleep(0.02)
    return value


def database_url(name: str = "") -> str:
    """Where a process of its own finds the database of this test run, or another beside it."""
    settings = connection.settings_dict
    name = name or str(settings["NAME"])
    if connection.vendor == "sqlite":
        return f"sqlite:///{name}"
    user, host = settings["USER"], settings["HOST"]
    password = f":{quote(settings['PASSWORD'])}" if settings["PASSWORD"] else ""
    if host.startswith("/"):
        return f"postgres://{user}{password}@/{name}?host={quote(host)}"
    return f"postgres://{user}{password}@{host}:{settings['PORT'] or 5432}/{name}"


class WorkerProcess:
    """One worker process in a process group of its own; its log is in a file."""

    def __init__(self, command: list[str], environment: dict[str, str], log: Path) -> None:
        self.log = log
        with log.open("wb") as file:
            self._process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def has_ended(self) -> bool:
        return self._process.poll() is not None

    @property
    def said(self) -> str:
        return self.log.read_text(errors="replace")

    def send(self, number: int) -> None:
        """To nobody when it has ended: its number may be another's by now."""
        self._process.send_signal(number)

    def kill(self) -> None:
        """kill -9: nothing more is written, said or let go."""
        self.send(signal.SIGKILL)
        self._process.wait()

    def pause(self) -> None:
        self.send(signal.SIGSTOP)

    def go_on(self) -> None:
        self.send(signal.SIGCONT)

    def terminate(self) -> None:
        self.send(signal.SIGTERM)

    def ended(self, patience: float = PATIENCE) -> int:
        """Its exit code, when it has ended by itself."""
        try:
            return self._process.wait(patience)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"worker {self.pid} did not end:\n{self.said}") from None

    def wait_until_started(self) -> WorkerProcess:
        wait_until(lambda: ": started" in self.said or self.has_ended, f"worker {self.pid}")
        assert not self.has_ended, self.said
        return self

    def end(self) -> None:
        """Whatever it does, it is gone after this."""
        if not self.has_ended:
            with suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
        self._process.wait()


class Workers:
    """Starts workers of one installation, and leaves nothing of it behind."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.instance = f"test-{os.getpid()}-{time.time_ns():x}"
        self.state_dir = directory / "executions"
        self.runs = directory / "runs"
        self.started: list[WorkerProcess] = []
        self.under: list[str] = []
        """The beginning of each worker's command line: a program that runs it."""
        self.executors: dict[str, dict[str, Any]] = {
            "process": {
                "class": "container_manager.executors.process.ProcessExecutor",
                "options": {"state_dir": str(self.state_dir)},
            }
        }

    def use_inline(self) -> None:
        """Jobs run inside the workers and leave a line in `runs`."""
        self.executors = {
            "inline": {
                "class": "container_manager.executors.inline.InlineExecutor",
                "options": {"run": "tests.support.inline_jobs.note"},
            }
        }

    def use_docker(self, **options: Any) -> None:
        self.executors["docker"] = {
            "class": "container_manager.executors.docker.DockerExecutor",
            "options": options,
        }

    def start(self, *arguments: str, delay: float | None = None, **settings: Any) -> WorkerProcess:
        """Start one; `delay`: pause randomly for so long between the steps of a claim."""
        slow = ["-m", "tests.support.slow_worker", str(delay)]
        script = slow if delay is not None else ["manage.py", "run_worker"]
        name = f"w{len(self.started) + 1}"
        return self._start([*script, "--name", name, *arguments], "worker", **settings)

    def start_scheduler(self, *arguments: str, **settings: Any) -> WorkerProcess:
        return self._start(["manage.py", "run_scheduler", *arguments], "scheduler", **settings)

    def start_relay(self, *arguments: str, **settings: Any) -> WorkerProcess:
        """Give it PUBLISHERS as a dict."""
        settings["PUBLISHERS"] = json.dumps(settings.get("PUBLISHERS", {}))
        return self._start(["manage.py", "relay_events", *arguments], "relay", **settings)

    def _start(self, script: list[str], what: str, **settings: Any) -> WorkerProcess:
        process = WorkerProcess(
            [*self.under, sys.executable, "-W", "ignore", *script],
            self.environment(**settings),
            self.directory / f"{what}-{len(self.started) + 1}.log",
        )
        self.started.append(process)
        return process

    def environment(self, **settings: Any) -> dict[str, str]:
        chosen = {
            "INSTANCE_ID": self.instance,
            "EXECUTORS": json.dumps(self.executors),
            "PROCESS_EXECUTOR": "on",
            "LEASE_SECONDS": 2,
            "REQUEST_POLL_SECONDS": 0.2,
            **settings,
        }
        kept = {"PATH", "HOME", "TMPDIR", "LANG", "DOCKER_HOST", "DOCKER_CERT_PATH"}
        return {
            **{name: value for name, value in os.environ.items() if name in kept},
            **{f"CONTAINER_MANAGER_{name}": str(value) for name, value in chosen.items()},
            "DATABASE_URL": database_url(),
            "DATABASE_POOL": "off",
            "DEBUG": "on",
            "DJANGO_SETTINGS_MODULE": "config.settings",
            "TEST_RUNS": str(self.runs),
        }

    @property
    def said(self) -> str:
        """The logs of all workers."""
        return "\n".join(f"--- {each.log.name}\n{each.said}" for each in self.started)

    @cached_property
    def engines(self) -> list[Executor]:
        """Executors that see what the workers' executors see."""
        found: list[Executor] = []
        if "process" in self.executors:
            found.append(ProcessExecutor(self.state_dir))
        if "docker" in self.executors:
            found.append(DockerExecutor(**self.executors["docker"]["options"]))
        return found

    def left_behind(self) -> list[str]:
        return [name for engine in self.engines for name in engine.list_names(self.instance)]

    def container_ids(self) -> dict[str, str]:
        """Name to id of each of this installation's containers, as the engine knows them."""
        (engine,) = (each for each in self.engines if isinstance(each, DockerExecutor))
        found = {name: engine.find(name, self.instance) for name in self.left_behind()}
        return {name: each.execution_id for name, each in found.items() if each}

    def clean_up(self) -> None:
        """End the workers, then whatever runs under their instance label."""
        for worker in self.started:
            worker.end()
        for engine in self.engines:
            with suppress(EngineUnavailable):
                _remove_all(engine, self.instance)
            engine.close()  # type: ignore[attr-defined]


def _remove_all(engine: Executor, instance: str) -> None:
    for name in engine.list_names(instance):
        if execution := engine.find(name, instance):
            engine.stop(execution, grace=0)
        engine.remove(execution or Execution(name, name))  # else the name is only barred


@contextmanager
def some_workers(directory: Path) -> Iterator[Workers]:
    workers = Workers(directory)
    try:
        yield workers
    except BaseException:
        print(workers.said)
        raise
    finally:
        workers.clean_up()


def status_of(job: Any) -> str:
    return str(ContainerJob.objects.values_list("status", flat=True).get(pk=job.pk))


def wait_for(job: Any, *statuses: str, patience: float = PATIENCE) -> ContainerJob:
    """The job, when it has come to one of these states."""
    wait_until(lambda: status_of(job) in statuses, f"{job} to be {statuses}", patience)
    return ContainerJob.objects.get(pk=job.pk)


SETTLED: Collection[str] = ("completed", "failed", "cancelled", "killed")


def settled(job: Any, patience: float = PATIENCE) -> ContainerJob:
    return wait_for(job, *SETTLED, patience=patience)
