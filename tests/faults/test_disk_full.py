"""Row 15: a disk without space left, under the database, the local jobs and the temporary files.

The job waits or ends with the reason `disk_full`; rows are whole; with space all goes on by itself.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from uuid import UUID

import pytest
from django.db import OperationalError, connection

from container_manager import lifecycle
from container_manager.models import ContainerJob, JobAttempt, Worker
from tests.support.machine_faults import SmallDisk, small_disk
from tests.support.postgres_server import postgres_server
from tests.support.running import attempt_of, queue_job, stdout
from tests.support.spine import contradictions, path_of
from tests.support.workers import (
    Workers,
    settled,
    some_workers,
    wait_for,
    wait_until,
)

pytestmark = [
    pytest.mark.processes,
    pytest.mark.django_db(transaction=True),
    pytest.mark.mount,
]


FILLER = "x" * 30_000
NO_SPACE = re.compile("disk is full|No space left on device")


@contextmanager
def database_on(disk: SmallDisk) -> Iterator[None]:
    """Django on a copy of the test database that lies on this disk."""
    settings = connection.settings_dict
    before = settings["NAME"]
    copy = disk.path / "database.sqlite3"
    with closing(sqlite3.connect(before)) as source:
        source.execute("VACUUM INTO ?", [str(copy)])  # earlier tests may have made it large
    connection.close()
    settings["NAME"] = str(copy)
    try:
        yield
    finally:
        connection.close()
        settings["NAME"] = before


def gated(gate: Path) -> ContainerJob:
    """Prints, and ends when the file is there."""
    script = f"echo here; while [ ! -e {gate} ]; do sleep 0.1; done; echo there"
    return queue_job("process", script, max_retries=0)


@pytest.mark.sqlite
def test_sqlite_without_space_loses_nothing_and_goes_on_when_there_is_some(
    tmp_path: Path, transactional_db: None
) -> None:
    with small_disk(16) as disk, database_on(disk), some_workers(tmp_path) as workers:
        _outlives_a_full_database(workers, disk, tmp_path / "gate")
        with connection.cursor() as cursor:
            cursor.execute("PRAGMA integrity_check")
            assert cursor.fetchone() == ("ok",)


@pytest.mark.postgres
def test_postgresql_without_space_loses_nothing_and_goes_on_when_there_is_some(
    tmp_path: Path, transactional_db: None
) -> None:
    with small_disk(220) as disk, postgres_server(disk.path) as server:
        disk.path.chmod(0o755)
        with server.serving_django("on_a_small_disk"), some_workers(tmp_path) as workers:
            _outlives_a_full_database(workers, disk, tmp_path / "gate")


def _outlives_a_full_database(workers: Workers, disk: SmallDisk, gate: Path) -> None:
    worker = workers.start("--concurrency", "2").wait_until_started()
    job = gated(gate)
    wait_until(lambda: stdout(job), "it to print")
    disk.fill()
    confirmed = _submit_until_full()
    gate.touch()
    wait_until(lambda: NO_SPACE.search(worker.said), "the worker to find no space")
    disk.empty()
    assert settled(job).status == "completed"
    assert stdout(job) == b"here\nthere\n"
    assert ContainerJob.objects.filter(pk__in=confirmed).count() == len(confirmed)
    assert _submit()
    assert path_of(job) == ["queued", "running", "completed"]
    assert JobAttempt.objects.filter(job=job.pk).count() == 1
    assert not worker.has_ended
    assert Worker.objects.count() == 1
    wait_until(lambda: not workers.left_behind(), "the remains to be removed")
    assert contradictions() == []


def _submit_until_full() -> list[UUID]:
    """Those that were confirmed while there was still a little space in the files."""
    confirmed = []
    for _ in range(100_000):
        try:
            confirmed.append(_submit().pk)
        except OperationalError:
            connection.close()
            return confirmed
    raise AssertionError("the disk never was full")


def _submit() -> ContainerJob:
    return lifecycle.submit(image="x", command=["true"], environment={"FILLER": FILLER})


@pytest.mark.sqlite  # the database has no part in it: once is enough
def test_a_job_that_fills_the_disk_of_the_local_jobs_fails_and_the_next_one_runs(
    tmp_path: Path, transactional_db: None
) -> None:
    """Also the temporary files of the worker lie there."""
    with small_disk(4) as disk, some_workers(tmp_path) as workers:
        workers.state_dir = disk.path / "executions"
        options = {"state_dir": str(workers.state_dir)}
        workers.executors["process"]["options"] = options
        worker = workers.start("--concurrency", "2", MAX_INFRA_RETRIES=0).wait_until_started()
        greedy = queue_job("process", "head -c 8000000 /dev/zero; sleep 600", max_retries=0)
        greedy = settled(greedy)
        assert greedy.status == "failed"
        assert attempt_of(greedy).reason in ("disk_full", "poison")
        assert "No space left" in greedy.error
        wait_until(lambda: not workers.left_behind(), "the remains to be removed")
        disk.fill()
        refused = settled(queue_job("process", "true", max_retries=0))
        assert (refused.status, attempt_of(refused).exit_code) == ("failed", None)
        disk.empty()
        assert settled(queue_job("process", "true")).status == "completed"
        assert not worker.has_ended
        wait_until(lambda: not workers.left_behind(), "the remains to be removed")
    assert contradictions() == []


@pytest.mark.sqlite  # the database has no part in it: once is enough
def test_a_worker_needs_no_temporary_files(
    tmp_path: Path, transactional_db: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with small_disk(1) as disk:
        disk.fill()
        monkeypatch.setenv("TMPDIR", str(disk.path))
        with some_workers(tmp_path) as workers:
            worker = workers.start("--concurrency", "2").wait_until_started()
            job = wait_for(queue_job("process", "echo done"), "completed")
            assert stdout(job) == b"done\n"
            assert not worker.has_ended
            assert "Traceback" not in worker.said
    assert contradictions() == []
