"""Memory: what a worker grows by over many jobs, and while a job prints as much as it likes.

python -m benchmarks.memory queue docker lines     migrates DATABASE_URL and queues one such job
"""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks import ours, servers
from benchmarks.measure import Watched
from benchmarks.report import MIB

ROOT = Path(__file__).resolve().parent.parent
PRINTED = {
    "lines": (1024 * MIB, "yes 0123456789abcde | head -c {size}"),
    "one line": (350_000_000, "head -c {size} /dev/zero | tr '\\0' x"),
}
"""What is printed: how many bytes, and by which script."""
MOST_GROWTH_MIB = 64
"""What the worker may grow by, from its first claim to its highest point."""

EVIDENCE = """
SELECT CASE status WHEN 'completed' THEN 1 ELSE 0 END, {launched}, {ended},
  stdout_bytes, stdout_omitted, (SELECT sum(length(data)) FROM job_logs)
FROM container_jobs JOIN job_attempts ON job_attempts.job_id = container_jobs.id
"""
POSTGRESQL_EVIDENCE = EVIDENCE.format(
    launched="extract(epoch FROM launched_at)", ended="extract(epoch FROM completed_at)"
)
SQLITE_EVIDENCE = EVIDENCE.format(
    launched="(julianday(launched_at) - 2440587.5) * 86400.0",
    ended="(julianday(completed_at) - 2440587.5) * 86400.0",
)

Ask = Callable[[], tuple[Any, ...]]


def run(rounds: int, jobs: int, concurrency: int) -> dict[str, Any]:
    """In each round: so many small jobs, then one job that prints, by executor and database."""
    done: dict[str, list[dict[str, float]]] = {}
    with servers.postgres() as server, ours.sqlite_directory() as directory:
        contestants = [
            ours.OnPostgreSQL(server, jobs, concurrency),
            ours.OnSQLite(directory, jobs, concurrency),
        ]
        for number in range(1, rounds + 1):
            for name, memory in _round(contestants, server, directory):
                done.setdefault(name, []).append(memory)
                said = ", ".join(f"{word} {size:.0f} MiB" for word, size in memory.items())
                print(f"round {number}: {name}: {said}", flush=True)
        return {
            "workload": "memory",
            "jobs": jobs,
            "rounds": rounds,
            "most_growth": MOST_GROWTH_MIB,
            "concurrency": {"ours": concurrency},
            "machine": servers.machine(server),
            "mib": done,
        }


def _round(
    contestants: list[Any], server: servers.Server, directory: Path
) -> Iterator[tuple[str, dict[str, float]]]:
    for each in contestants:
        drained = each.round()
        figures = (drained.rss_at_first_claim, drained.peak_rss, drained.rss_at_last_end)
        yield f"{each.jobs:,} jobs, {each.name.rpartition(' ')[2]}", _in_mib(*figures)
    for executor, shape in product(("process", "docker"), PRINTED):
        what = f"{PRINTED[shape][0] / MIB:,.0f} MiB in {shape}, {executor}"
        with _on_postgresql(server) as (url, ask):
            yield f"{what}, PostgreSQL", _print(executor, shape, _environment(url, directory), ask)
        with _on_sqlite(directory) as (url, ask):
            yield f"{what}, SQLite", _print(executor, shape, _environment(url, directory), ask)


@contextmanager
def _on_postgresql(server: servers.Server) -> Iterator[tuple[str, Ask]]:
    server.command("CREATE DATABASE empty")
    try:
        with server.copy_of("empty") as database:
            yield server.url(database), lambda: server.row(database, POSTGRESQL_EVIDENCE)
    finally:
        server.command("DROP DATABASE empty")


@contextmanager
def _on_sqlite(directory: Path) -> Iterator[tuple[str, Ask]]:
    path = directory / "streamed.sqlite3"

    def ask() -> tuple[Any, ...]:
        connection = sqlite3.connect(path)
        row: tuple[Any, ...] = connection.execute(SQLITE_EVIDENCE).fetchone()
        connection.close()
        return row

    try:
        yield f"sqlite:///{path}", ask
    finally:
        path.unlink(missing_ok=True)


def _print(executor: str, shape: str, environment: dict[str, str], ask: Ask) -> dict[str, float]:
    """Memory of a worker whose only job prints; what was stored must add up."""
    queue = [sys.executable, "-m", "benchmarks.memory", "queue", executor, shape]
    subprocess.run(queue, env=environment, cwd=ROOT, check=True)
    work = [sys.executable, "manage.py", "run_worker", "--until-idle"]
    worker = Watched(work, environment, ROOT)
    completed, first, last, printed, omitted, stored = map(float, ask())
    if not completed or printed != PRINTED[shape][0] or stored + omitted != printed:
        raise SystemExit(f"{executor}: {printed} printed, {stored} stored, {omitted} left out")
    return _in_mib(worker.rss_at(first), worker.peak(first, last), worker.rss_at(last))


def _in_mib(before: int, peak: int, after: int) -> dict[str, float]:
    sizes = {"before": before, "peak": peak, "after": after, "growth": peak - before}
    return {word: size / MIB for word, size in sizes.items()}


def _environment(database_url: str, directory: Path) -> dict[str, str]:
    executors = {
        "process": {
            "class": "container_manager.executors.process.ProcessExecutor",
            "options": {"state_dir": str(directory / "executions")},
        },
        "docker": {"class": "container_manager.executors.docker.DockerExecutor", "options": {}},
    }
    return {
        **ours.environment(database_url),
        "CONTAINER_MANAGER_EXECUTORS": json.dumps(executors),
        "CONTAINER_MANAGER_PROCESS_EXECUTOR": "on",
    }


def markdown(results: dict[str, Any]) -> str:
    """The highest of the rounds: a limit is kept always or not at all."""
    lines = [
        f"The highest of {results['rounds']} rounds; limit of the growth: {MOST_GROWTH_MIB} MiB.",
        "",
        "| | at the first claim | highest | at the end | growth |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, rounds in results["mib"].items():
        worst = max(rounds, key=lambda each: each["growth"])
        sizes = [f"{worst[word]:.0f} MiB" for word in ("before", "peak", "after", "growth")]
        lines.append(f"| {' | '.join([name, *sizes])} |")
    return "\n".join(lines)


def queue(executor: str, shape: str) -> None:
    """Migrate the database and queue one job that prints that."""
    os.environ["DJANGO_SETTINGS_MODULE"] = "config.settings"
    import django

    django.setup()
    from django.core.management import call_command

    from container_manager.models import ContainerJob
    from container_manager.states import JobStatus

    size, script = PRINTED[shape]
    call_command("migrate", verbosity=0)
    ContainerJob.objects.create(
        name="printing",
        image="busybox:latest",
        command=["/bin/sh", "-c", script.format(size=size)],
        executor=executor,
        status=JobStatus.QUEUED,
    )


if __name__ == "__main__":
    queue(sys.argv[2], sys.argv[3])
