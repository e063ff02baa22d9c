"""Rescue: how long after a worker's kill -9 its running jobs are held by another worker.

Two workers, real processes, jobs that sleep. One worker is killed, at a random moment between two
beats, while it holds all jobs; the other adopts each. A job counts from the kill to the moment when
its attempt is the other's, lease_epoch 2.

python -m benchmarks.rescue queue 8     queues so many jobs on DATABASE_URL and prints their ids
python -m benchmarks.rescue stop ID …   kills them
"""

from __future__ import annotations

import json
import math
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg

from benchmarks import servers
from benchmarks.ours import environment
from benchmarks.servers import Server

ROOT = Path(__file__).resolve().parent.parent
JOBS = 8
"""Held by the worker that is killed, in each round."""
LEASES = {30.0: 1, 3.0: 4}
"""Seconds of a lease, the default and a short one, and how many times as many rounds it gets."""
TARGETS = {30.0: 60.0, 3.0: 9.0}
"""Seconds at the 99th percentile."""
POLL_SECONDS = 0.02
PATIENCE = 300.0

Environment = dict[str, str]


def run(rounds: int, _jobs: int, _concurrency: int) -> dict[str, Any]:
    """So many rounds with the default lease, several times as many with the short one."""
    with servers.postgres() as server, tempfile.TemporaryDirectory(prefix="cm-rescue-") as made:
        done = {
            str(lease): _rounds(server, Path(made), lease, factor * rounds)
            for lease, factor in LEASES.items()
        }
        return {
            "workload": "rescue",
            "jobs": JOBS,
            "machine": servers.machine(server),
            "seconds": done,
        }


def _rounds(server: Server, directory: Path, lease: float, rounds: int) -> list[float]:
    name = f"rescue_{lease:g}"
    server.command(f"CREATE DATABASE {name}")
    given = _environment(server.url(name), directory / name, lease)
    seconds: list[float] = []
    with psycopg.connect(server.dsn(name), autocommit=True) as connection:
        for number in range(1, rounds + 1):
            seconds += _round(connection, given, lease)
            print(f"lease {lease:g} s, round {number}: {seconds[-1]:.2f} s", flush=True)
    return seconds


def _environment(url: str, state_dir: Path, lease: float) -> Environment:
    executor = {
        "class": "container_manager.executors.process.ProcessExecutor",
        "options": {"state_dir": str(state_dir)},
    }
    return {
        **environment(url),
        "DATABASE_POOL": "off",
        "CONTAINER_MANAGER_EXECUTORS": json.dumps({"process": executor}),
        "CONTAINER_MANAGER_PROCESS_EXECUTOR": "on",
        "CONTAINER_MANAGER_LEASE_SECONDS": str(lease),
    }


def _round(connection: Any, given: Environment, lease: float) -> list[float]:
    """Seconds from the kill to the adoption of each job."""
    ids = _manage("queue", str(JOBS), given=given).split()
    with _worker(given) as first:
        _wait_until(lambda: len(_held(connection, ids, 1)) == JOBS)
        with _worker(given) as second:
            _wait_until(lambda: _workers(connection) == 2)
            time.sleep(lease * random.uniform(0.4, 0.8))  # noqa: S311
            os.kill(first.pid, signal.SIGKILL)
            seconds = _adoptions(connection, ids)
            _manage("stop", *ids, given=given)
            second.terminate()
            second.wait()
    return seconds


def _adoptions(connection: Any, ids: Sequence[str]) -> list[float]:
    """Seconds from now on, job by job, until each is held for the second time."""
    began = time.monotonic()
    taken: dict[str, float] = {}

    def look() -> bool:
        for job_id in _held(connection, ids, 2):
            taken.setdefault(job_id, time.monotonic() - began)
        return len(taken) == len(ids)

    _wait_until(look)
    return sorted(taken.values())


def _held(connection: Any, ids: Sequence[str], epoch: int) -> list[str]:
    held = connection.execute(
        "SELECT job_id::text FROM job_attempts WHERE job_id = ANY(%s::uuid[]) AND lease_epoch = %s"
        " AND phase IN ('started', 'stopping', 'collecting')",
        [list(ids), epoch],
    )
    return [row[0] for row in held.fetchall()]


def _workers(connection: Any) -> int:
    return int(connection.execute("SELECT count(*) FROM workers").fetchone()[0])


def _wait_until(condition: Callable[[], bool]) -> None:
    ends_at = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > ends_at:
            raise SystemExit(f"waited for {PATIENCE:.0f} s in vain: nothing was measured")
        time.sleep(POLL_SECONDS)


@contextmanager
def _worker(given: Environment) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "manage.py", "run_worker", "--concurrency", str(JOBS)]
    log = subprocess.DEVNULL  # it tells of each job that it adopts
    with subprocess.Popen(command, env=given, cwd=ROOT, stderr=log) as process:
        try:
            yield process
        finally:
            process.kill()


def _manage(*arguments: str, given: Environment) -> str:
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.rescue", *arguments]
    said = subprocess.run(command, env=given, cwd=ROOT, check=True, stdout=subprocess.PIPE)
    return said.stdout.decode()


def percentile(values: Sequence[float], share: float) -> float:
    """By nearest rank."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def markdown(results: dict[str, Any]) -> str:
    """Seconds for each lease, beside what was aimed at."""
    machine = results["machine"]
    lines = [
        f"{results['jobs']} jobs a round, {machine['cores']} cores, Python {machine['python']},"
        f" Django {machine['django']}, PostgreSQL {machine['postgresql']['server_version']}.",
        "",
        "| lease, s | kills | jobs | p50, s | p99, s | longest, s | p99 aimed at, s |",
        "|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for lease, seconds in results["seconds"].items():
        shares = [f"{percentile(seconds, share):.1f}" for share in (0.5, 0.99, 1.0)]
        rounds = len(seconds) // results["jobs"]
        cells = [f"{float(lease):g}", str(rounds), str(len(seconds)), *shares]
        lines.append(f"| {' | '.join(cells)} | ≤ {TARGETS[float(lease)]:g} |")
    return "\n".join(lines)


# Inside a database --------------------------------------------------------------------------------


def queue(jobs: int) -> None:
    """Migrate, queue jobs that sleep for long, print their ids."""
    from django.core.management import call_command

    from container_manager import lifecycle

    call_command("migrate", verbosity=0)
    for number in range(jobs):
        wanted = {"executor": "process", "isolation": "process", "command": ["sleep", "3600"]}
        print(lifecycle.submit(queue_now=True, name=f"job {number}", **wanted).pk)


def stop(ids: Sequence[str]) -> None:
    """Kill these jobs and wait until they are gone."""
    from uuid import UUID

    from container_manager import lifecycle
    from container_manager.models import ContainerJob
    from container_manager.states import StopKind

    lifecycle.stop([UUID(job_id) for job_id in ids], StopKind.KILL)
    jobs = ContainerJob.objects.filter(pk__in=ids)
    _wait_until(lambda: jobs.settled().count() == len(ids))


def main(what: str, *arguments: str) -> None:
    os.environ["DJANGO_SETTINGS_MODULE"] = "config.settings"
    import django

    django.setup()
    if what == "queue":
        queue(int(arguments[0]))
    else:
        stop(arguments)


if __name__ == "__main__":
    main(*sys.argv[1:])
