"""Rows 14 and 16: SQLite under many writers, a long reader and kill -9; a disk that answers EIO."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from itertools import count
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from django.db import connection

from container_manager import lifecycle
from container_manager.executors.base import Outcome
from container_manager.models import ContainerJob
from container_manager.states import StopKind
from tests.factories import JobFactory
from tests.support.machine_faults import failing
from tests.support.running import queue_job, stdout
from tests.support.spine import a_worker, contradictions
from tests.support.workers import ROOT, Workers, settled, status_of, wait_until

pytestmark = [
    pytest.mark.processes,
    pytest.mark.sqlite,
    pytest.mark.django_db(transaction=True),
]

WRITERS, KILLED = 8, 6


def file() -> Path:
    return Path(connection.settings_dict["NAME"])


def wal() -> Path:
    return Path(f"{file()}-wal")


def ask(pragma: str) -> Any:
    with connection.cursor() as cursor:
        cursor.execute(f"PRAGMA {pragma}")
        return cursor.fetchone()[0]


# Row 14 -------------------------------------------------------------------------------------------


class Writer:
    """A process that does what doors and workers do, and notes what the database has confirmed."""

    def __init__(self, notes: Path) -> None:
        self.notes = notes
        notes.touch()
        connection.close()
        self.pid = os.fork()
        if self.pid == 0:
            os._exit(self._write())

    def _write(self) -> int:
        try:
            with self.notes.open("a", buffering=1) as notes:
                for number in count():
                    notes.write(f"{_one_life(number)}\n")
        except BaseException as error:  # noqa: BLE001 - whatever it is, the test is told
            Path(f"{self.notes}.error").write_text(repr(error))
        return 1

    @property
    def confirmed(self) -> list[UUID]:
        """The jobs that it was told of; the last line may be torn."""
        return [UUID(line) for line in self.notes.read_text().split("\n")[:-1]]

    @property
    def error(self) -> str:
        path = Path(f"{self.notes}.error")
        return path.read_text() if path.exists() else ""

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)


def _one_life(number: int) -> UUID:
    """Submit; then cancel it, or take one and end it."""
    job = lifecycle.submit(queue_now=True, image="x", command=["true"], max_retries=0)
    if number % 2:
        lifecycle.stop([job.pk], StopKind.CANCEL)
        return job.pk
    worker = a_worker(f"writer-{os.getpid()}")
    leases = lifecycle.claim(worker, 1)
    lifecycle.finish(worker, [lifecycle.ending(lease, Outcome(0), None) for lease in leases])
    return job.pk


@contextmanager
def long_reader() -> Iterator[None]:
    """A transaction that sees the database as it is now, and so keeps the whole WAL."""
    with closing(sqlite3.connect(file(), isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM container_jobs").fetchone()
        yield
        reader.execute("ROLLBACK")


def test_eight_writers_a_long_reader_and_kill_9_leave_a_whole_database(tmp_path: Path) -> None:
    """Row 14: nobody is told "database is locked", and what was confirmed is there."""
    names = count()
    started = []

    def another() -> Writer:
        started.append(Writer(tmp_path / f"writer-{next(names)}"))
        return started[-1]

    living = [another() for _ in range(WRITERS)]
    try:
        with long_reader():
            for _ in range(KILLED):
                time.sleep(random.uniform(0.1, 0.4))
                living.pop(0).kill()
                living.append(another())
            told = {writer: len(writer.confirmed) for writer in living}
            wait_until(
                lambda: all(len(each.confirmed) > told[each] for each in living), "all to write"
            )
    finally:
        for writer in living:
            writer.kill()
    assert [writer.error for writer in started if writer.error] == []
    assert ask("integrity_check") == "ok"
    confirmed = {pk for writer in started for pk in writer.confirmed}
    assert len(confirmed) >= WRITERS
    assert confirmed <= set(ContainerJob.objects.values_list("pk", flat=True))
    running = ContainerJob.objects.filter(status="running").count()
    assert running <= KILLED + WRITERS
    assert contradictions() == []


def test_the_log_that_a_long_reader_made_grow_is_given_back() -> None:
    """Row 14: the WAL is bounded by a limit as soon as nobody needs it."""
    assert ask("journal_size_limit") == 64 * 1024 * 1024
    limit = 1024 * 1024
    ask(f"journal_size_limit={limit}")
    try:
        with long_reader():
            while wal().stat().st_size <= 2 * limit:
                JobFactory.create_batch(20, environment={"FILLER": "x" * 10_000})
        wait_until(lambda: JobFactory() and wal().stat().st_size <= limit, "it to be cut")
    finally:
        connection.close()


# Row 16 -------------------------------------------------------------------------------------------


def cancel(workers: Workers, job: ContainerJob, *under: str) -> subprocess.CompletedProcess[str]:
    """`manage.py cancel_jobs` as a person runs it, under that command."""
    command = [sys.executable, "-W", "ignore", "manage.py", "cancel_jobs", str(job.pk)]
    return subprocess.run(
        [*under, *command],
        cwd=ROOT,
        env=workers.environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


@pytest.mark.strace
@pytest.mark.parametrize(
    ("calls", "error"),
    [("pwrite64,write", "EIO"), ("pwrite64,write", "ENOSPC"), ("fsync,fdatasync", "EIO")],
)
def test_a_move_is_told_as_done_only_if_it_is(workers: Workers, calls: str, error: str) -> None:
    """Row 16: the file system refuses to write, or to sync; the same again works afterwards."""
    job = JobFactory(status="queued")
    connection.close()
    answer = cancel(workers, job, *failing(wal(), calls, error))
    done = status_of(job) == "cancelled"
    assert done == (answer.returncode == 0), answer.stderr
    if "write" in calls:
        assert not done
        assert answer.stderr.count("\n") == 1
        assert "disk" in answer.stderr
    assert ask("integrity_check") == "ok"
    if not done:
        assert cancel(workers, job).returncode == 0
    assert status_of(job) == "cancelled"
    assert contradictions() == []


@pytest.mark.strace
def test_a_job_whose_output_cannot_be_written_fails_and_says_so(workers: Workers) -> None:
    """Row 16: EIO on the log file of a local job; the worker and its other jobs do not notice."""
    doomed = queue_job("process", "echo lost; sleep 600", max_retries=0, priority=90)
    fine = queue_job("process", "echo kept")
    output = workers.state_dir / f"cm-{doomed.pk}-1" / "stdout"
    workers.under = failing(output, "write")
    workers.start("--concurrency", "2", MAX_INFRA_RETRIES=0)
    doomed, fine = settled(doomed), settled(fine)
    assert (doomed.status, fine.status) == ("failed", "completed")
    assert "could not be kept: Input/output error" in doomed.error
    assert (stdout(doomed), stdout(fine)) == (b"", b"kept\n")
    wait_until(lambda: not workers.left_behind(), "the remains to be removed")
    assert contradictions() == []
