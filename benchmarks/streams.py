"""Streams: how long after its commit a move is at the client, a line after it was printed; and what
five hundred clients of one process cost.

Real processes on PostgreSQL: uvicorn, a worker, somebody who moves jobs. They read one clock.

python -m benchmarks.streams token            migrates DATABASE_URL, prints a token
python -m benchmarks.streams move 100 0.05    makes so many jobs with pauses, prints when each was
python -m benchmarks.streams print 100        queues a job that prints so often, prints its id
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks import servers
from benchmarks.measure import resident
from benchmarks.ours import environment
from benchmarks.report import MIB
from benchmarks.rescue import percentile

ROOT = Path(__file__).resolve().parent.parent
CLIENTS = 500
AT_ONCE = 20
"""Clients that connect at the same time."""
PAUSE_SECONDS = 0.1
"""Between two moves, or two lines, on average."""
SETTLE_SECONDS = 3.0
PATIENCE = 120.0
TARGETS = {"events": 10.0, "lines": 100.0, "memory": 200.0}
"""Milliseconds at the median, and MiB."""

EVENTS = "/api/v1/events/?state=pending"
LINES = "/api/v1/jobs/{}/logs/?follow=1"


def run(rounds: int, jobs: int, _concurrency: int) -> dict[str, Any]:
    """So many rounds of at most 500 moves and lines each, then all clients at once."""
    count = min(jobs, 500)
    with servers.postgres() as server, tempfile.TemporaryDirectory(prefix="cm-streams-") as made:
        server.command("CREATE DATABASE streams")
        given = _environment(server.url("streams"), Path(made))
        token = _manage("token", given=given).split()[-1]
        with _site(given) as (port, pid), _worker(given):
            bench = _Bench(port, pid, token, given)
            milliseconds: dict[str, list[float]] = {"events": [], "lines": []}
            for number in range(1, rounds + 1):
                for name, measure in (("events", bench.events), ("lines", bench.lines)):
                    told = asyncio.run(measure(count))
                    milliseconds[name] += told
                    print(f"round {number}: {name}: p50 {percentile(told, 0.5):.1f} ms", flush=True)
            crowd = asyncio.run(bench.crowd(CLIENTS, max(jobs // 10, 100)))
        return {
            "workload": "streams",
            "machine": servers.machine(server),
            "milliseconds": milliseconds,
            "crowd": crowd,
        }


def _environment(url: str, state_dir: Path) -> dict[str, str]:
    executor = {
        "class": "container_manager.executors.process.ProcessExecutor",
        "options": {"state_dir": str(state_dir)},
    }
    return {
        **environment(url),
        "SECURE": "off",
        "CONTAINER_MANAGER_EXECUTORS": json.dumps({"process": executor}),
        "CONTAINER_MANAGER_PROCESS_EXECUTOR": "on",
        "CONTAINER_MANAGER_STREAMS_PER_USER": str(2 * CLIENTS),
    }


# What is measured ---------------------------------------------------------------------------------


class _Bench:
    """One running site."""

    def __init__(self, port: int, pid: int, token: str, given: dict[str, str]) -> None:
        self._port, self._pid, self._token, self._given = port, pid, token, given

    async def events(self, count: int) -> list[float]:
        """Milliseconds from the end of a commit to the client."""
        came: dict[str, float] = {}
        stream = await self._open(EVENTS)
        moving = asyncio.create_task(self._moved(count, PAUSE_SECONDS))
        async for at, data in stream:
            came[data["entity_id"]] = at
            if len(came) == count:
                break
        moved = await moving
        return [1000 * max(0.0, came[job] - at) for job, at in moved.items()]

    async def lines(self, count: int) -> list[float]:
        """Milliseconds from the printing of a line to the client."""
        job = _manage("print", str(count), given=self._given).split()[-1]
        lags: list[float] = []
        async for at, data in await self._open(LINES.format(job)):
            lags += [1000 * (at - float(line)) for line in data.get("text", "").split()]
            if "exit_code" in data:
                break
        if len(lags) != count:
            raise SystemExit(f"{len(lags)} of {count} lines came: nothing was measured")
        return lags

    async def crowd(self, clients: int, moves: int) -> dict[str, Any]:
        """Memory of the site with so many clients, and whether each of them got every move."""
        alone = resident(self._pid) or 0
        gate = asyncio.Semaphore(AT_ONCE)
        streams = await asyncio.gather(*(self._admitted(gate) for _ in range(clients)))
        await asyncio.sleep(SETTLE_SECONDS)
        waiting = resident(self._pid) or 0
        came: list[dict[str, float]] = [{} for _ in streams]
        listening = [
            asyncio.create_task(_listen(stream, each, moves))
            for stream, each in zip(streams, came, strict=True)
        ]
        began = time.monotonic()
        moved = await self._moved(moves, 0.0)
        await asyncio.wait(listening, timeout=PATIENCE)
        afterwards = resident(self._pid) or 0
        lags = [
            1000 * max(0.0, each[job] - at)
            for each in came
            for job, at in moved.items()
            if job in each
        ]
        return {
            "clients": clients,
            "moves": moves,
            "moves_per_second": moves / (max(moved.values()) - began),
            "missed": clients * moves - len(lags),
            "alone": alone,
            "waiting": waiting,
            "afterwards": afterwards,
            "p50": percentile(lags, 0.5),
            "p99": percentile(lags, 0.99),
        }

    async def _admitted(self, gate: asyncio.Semaphore) -> AsyncIterator[tuple[float, Any]]:
        async with gate:
            return await self._open(EVENTS)

    async def _moved(self, count: int, pause: float) -> dict[str, float]:
        """Jobs that another process made, and when each was there."""
        said = await asyncio.to_thread(_manage, "move", str(count), str(pause), given=self._given)
        return {job: float(at) for job, at in (line.split() for line in said.splitlines())}

    async def _open(self, path: str) -> AsyncIterator[tuple[float, Any]]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        asked = ["Host: localhost", f"Authorization: Token {self._token}", "", ""]
        writer.write("\r\n".join([f"GET {path} HTTP/1.1", *asked]).encode())
        status = await reader.readline()
        if b" 200 " not in status:
            raise SystemExit(f"{path}: {status!r}: nothing was measured")
        while not (await reader.readline()).startswith(b"retry: "):
            pass
        return _told(reader, writer)


async def _told(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> AsyncIterator[tuple[float, Any]]:
    """When it came, and what it says. The server sends each message in one piece."""
    try:
        while line := await reader.readline():
            if line.startswith(b"data: "):
                yield time.monotonic(), json.loads(line[6:])
    finally:
        writer.close()


async def _listen(
    stream: AsyncIterator[tuple[float, Any]], came: dict[str, float], moves: int
) -> None:
    async for at, data in stream:
        came[data["entity_id"]] = at
        if len(came) == moves:
            return


# Processes ----------------------------------------------------------------------------------------


@contextmanager
def _site(given: dict[str, str]) -> Iterator[tuple[int, int]]:
    """Its port, and the process."""
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listener:
        port, fd = listener.getsockname()[1], listener.fileno()
        command = [sys.executable, "-m", "uvicorn", "config.asgi:application", "--fd", str(fd)]
        how = ["--no-access-log", "--log-level", "warning", "--lifespan", "off"]
        with subprocess.Popen([*command, *how], env=given, cwd=ROOT, pass_fds=[fd]) as process:
            try:
                yield port, process.pid
            finally:
                process.terminate()


@contextmanager
def _worker(given: dict[str, str]) -> Iterator[None]:
    command = [sys.executable, "manage.py", "run_worker", "--concurrency", "2"]
    with subprocess.Popen(command, env=given, cwd=ROOT) as process:
        try:
            yield
        finally:
            process.terminate()


def _manage(*arguments: str, given: dict[str, str]) -> str:
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.streams", *arguments]
    said = subprocess.run(command, env=given, cwd=ROOT, check=True, stdout=subprocess.PIPE)
    return said.stdout.decode()


def markdown(results: dict[str, Any]) -> str:
    """Milliseconds, then what a crowd costs; beside what was aimed at."""
    machine, crowd = results["machine"], results["crowd"]
    lines = [
        f"{machine['cores']} cores, Python {machine['python']}, Django {machine['django']},"
        f" PostgreSQL {machine['postgresql']['server_version']}.",
        "",
        "| to one client | number | p50, ms | p99, ms | p50 aimed at, ms |",
        "|---|---:|---:|---:|---:|",
    ]
    words = {"events": "from the commit of a move", "lines": "from the printing of a line"}
    for name, told in results["milliseconds"].items():
        shares = [f"{percentile(told, share):.1f}" for share in (0.5, 0.99)]
        cells = [words[name], str(len(told)), *shares, f"≤ {TARGETS[name]:g}"]
        lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        f"| to {crowd['clients']} clients of one process | | aimed at |",
        "|---|---:|---:|",
        f"| its memory without clients, MiB | {crowd['alone'] / MIB:.0f} | |",
        f"| while all wait, MiB | {crowd['waiting'] / MIB:.0f} | ≤ {TARGETS['memory']:g} |",
        f"| after {crowd['moves']:,} moves, MiB | {crowd['afterwards'] / MIB:.0f}"
        f" | ≤ {TARGETS['memory']:g} |",
        f"| moves per second | {crowd['moves_per_second']:,.0f} | |",
        f"| from the commit of a move, p50, ms | {crowd['p50']:,.0f} | |",
        f"| the same, p99, ms | {crowd['p99']:,.0f} | |",
        f"| events that a client missed | {crowd['missed']} | 0 |",
    ]
    return "\n".join(lines)


# Inside a database --------------------------------------------------------------------------------

PRINTING = """
import random, sys, time
for _ in range(int(sys.argv[1])):
    time.sleep(random.uniform(0, 2 * float(sys.argv[2])))
    print(time.monotonic(), flush=True)
"""


def token() -> None:
    """Migrate; the token of an operator."""
    from django.contrib.auth import get_user_model
    from django.core.management import call_command
    from knox.models import AuthToken

    call_command("migrate", verbosity=0)
    operator = get_user_model().objects.create_superuser("operator")
    print(AuthToken.objects.create(operator)[1])


def move(count: int, pause: float) -> None:
    """Make jobs, one commit for each."""
    from container_manager.models import ContainerJob

    for _ in range(count):
        time.sleep(random.uniform(0, 2 * pause))  # noqa: S311
        job = ContainerJob.objects.create(image="a", command=["true"])
        print(job.pk, time.monotonic())


def print_lines(count: int) -> None:
    """Queue a job that prints the time, again and again."""
    from container_manager import lifecycle

    command = [sys.executable, "-c", PRINTING, str(count), str(PAUSE_SECONDS)]
    wanted = {"executor": "process", "isolation": "process", "command": command}
    print(lifecycle.submit(queue_now=True, **wanted).pk)


def main(what: str, *arguments: str) -> None:
    os.environ["DJANGO_SETTINGS_MODULE"] = "config.settings"
    import django

    django.setup()
    inside = {
        "token": token,
        "move": lambda: move(int(arguments[0]), float(arguments[1])),
        "print": lambda: print_lines(int(arguments[0])),
    }
    inside[what]()


if __name__ == "__main__":
    main(*sys.argv[1:])
