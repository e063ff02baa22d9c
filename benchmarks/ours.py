"""Ours: `manage.py run_worker --until-idle` over a database full of queued jobs.

python -m benchmarks.ours fill 20000     migrates DATABASE_URL and fills its queue
"""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.measure import Drained, Watched, drained
from benchmarks.servers import Server

ROOT = Path(__file__).resolve().parent.parent
EXECUTORS = {"inline": {"class": "container_manager.executors.inline.InlineExecutor"}}
BATCH = 2_000

SPAN = """
SELECT count(*) FILTER (WHERE new_state = 'completed'),
  (SELECT {epoch_of_launch} FROM container_jobs),
  {epoch_of_end} FROM state_history
"""
POSTGRESQL_SPAN = SPAN.format(
    epoch_of_launch="extract(epoch FROM min(launched_at))",
    epoch_of_end="extract(epoch FROM max(changed_at))",
)
SQLITE_SPAN = SPAN.format(
    epoch_of_launch="(julianday(min(launched_at)) - 2440587.5) * 86400.0",
    epoch_of_end="(julianday(max(changed_at)) - 2440587.5) * 86400.0",
)


def environment(database_url: str) -> dict[str, str]:
    """As in production, with one executor and without a log line for each move."""
    return {
        **os.environ,
        "DATABASE_URL": database_url,
        "DEBUG": "off",
        "SECRET_KEY": "for-this-measurement-only-0123456789",
        "LOG_LEVEL": "WARNING",
        "CONTAINER_MANAGER_EXECUTORS": json.dumps(EXECUTORS),
    }


def work(database_url: str, concurrency: int) -> Watched:
    command = [sys.executable, "manage.py", "run_worker", "--until-idle"]
    command += ["--concurrency", str(concurrency)]
    return Watched(command, environment(database_url), ROOT)


def fill_from_outside(database_url: str, jobs: int) -> None:
    command = [sys.executable, "-m", "benchmarks.ours", "fill", str(jobs)]
    subprocess.run(command, env=environment(database_url), cwd=ROOT, check=True)


class OnPostgreSQL:
    """Guard and history on, as migrations leave them."""

    name = "container-manager, PostgreSQL"

    def __init__(self, server: Server, jobs: int, concurrency: int) -> None:
        self.server, self.jobs, self.concurrency = server, jobs, concurrency
        server.command("CREATE DATABASE ours")
        fill_from_outside(server.url("ours"), jobs)

    def round(self) -> Drained:
        with self.server.copy_of("ours") as database:
            worker = work(self.server.url(database), self.concurrency)
            done, first, last = self.server.row(database, POSTGRESQL_SPAN)
        return drained(worker, self.jobs, int(done), first, last)


class OnSQLite:
    """The same on SQLite, as the project's settings open it."""

    name = "container-manager, SQLite"

    def __init__(self, directory: Path, jobs: int, concurrency: int) -> None:
        self.directory, self.jobs, self.concurrency = directory, jobs, concurrency
        self.filled = directory / "filled.sqlite3"
        fill_from_outside(f"sqlite:///{self.filled}", jobs)

    def round(self) -> Drained:
        path = self.directory / "round.sqlite3"
        shutil.copyfile(self.filled, path)
        worker = work(f"sqlite:///{path}", self.concurrency)
        connection = sqlite3.connect(path)
        done, first, last = connection.execute(SQLITE_SPAN).fetchone()
        connection.close()
        path.unlink()
        return drained(worker, self.jobs, int(done), first, last)


@contextmanager
def sqlite_directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="cm-bench-") as directory:
        yield Path(directory)


def fill(jobs: int) -> None:
    """Migrate the database and queue so many jobs, through the ORM, with their first history."""
    os.environ["DJANGO_SETTINGS_MODULE"] = "config.settings"
    import django

    django.setup()
    from django.core.management import call_command
    from django.db import connection

    from container_manager.models import ContainerJob
    from container_manager.states import JobStatus

    call_command("migrate", verbosity=0)
    for start in range(0, jobs, BATCH):
        ContainerJob.objects.bulk_create(
            ContainerJob(
                name=f"job {number}",
                image="busybox:latest",
                command=["/bin/true"],
                executor="inline",
                status=JobStatus.QUEUED,
            )
            for number in range(start, min(start + BATCH, jobs))
        )
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE" if connection.vendor == "sqlite" else "VACUUM ANALYZE")
        if connection.vendor == "sqlite":
            cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)")


if __name__ == "__main__":
    fill(int(sys.argv[2]))
