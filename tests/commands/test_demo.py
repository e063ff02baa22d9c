"""The demo and the worker of `standalone`, as real processes."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import time
from pathlib import Path

import pytest

from container_manager.management.demonstration import SCENES
from tests.commands.shell import Shell, eventually

pytestmark = [pytest.mark.processes, pytest.mark.sqlite]


def children_of(pid: int) -> set[int]:
    """Processes that this one started and that still live."""
    found = set()
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid and fields[0] != "Z":
            found.add(int(status.parent.name))
    return found


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def running(database: Path) -> int:
    """Jobs that run now; a command would take longer to tell than the demo runs."""
    with contextlib.closing(sqlite3.connect(database, timeout=10)) as connection:
        query = "SELECT count(*) FROM container_jobs WHERE status = 'running'"
        return int(connection.execute(query).fetchone()[0])


def test_every_job_of_the_demo_ends_as_it_should(shell: Shell) -> None:
    answer = shell("demo", timeout=90)
    assert answer.code == 0, answer.out + answer.err
    assert f"All {len(SCENES)} jobs ended as they should" in answer.out
    assert "History, rows, attempts and output of all of them agree." in answer.out
    assert "as local processes" in answer.out
    for name in ("completed", "failed", "killed", "cancelled", "timeout", "second try worked"):
        assert name in answer.out
    assert shell("check_jobs").code == 0
    listed = shell("list_jobs", "--queue", "demo", "--json")
    assert len(listed.json) == len(SCENES)
    assert all(job["labels"]["demo"] for job in listed.json)


def test_interrupting_the_demo_leaves_nothing_running(shell: Shell) -> None:
    demo = shell.start("demo")
    eventually(lambda: running(shell.database))
    workers = children_of(demo.pid)
    assert workers
    demo.send_signal(signal.SIGINT)
    _out, err = demo.communicate(timeout=40)
    assert demo.returncode == 130
    assert "Traceback" not in err
    assert not any(is_alive(pid) for pid in workers)
    left = shell("list_jobs", "--status", "pending,queued,running,retrying")
    assert left.code == 3


def test_the_demo_says_what_is_missing_where_it_cannot_run(shell: Shell) -> None:
    answer = shell("demo", CONTAINER_MANAGER_PROCESS_EXECUTOR="off")
    assert answer.code == 1
    assert "CONTAINER_MANAGER_PROCESS_EXECUTOR=on" in answer.err


def test_standalone_starts_a_dead_worker_again_and_leaves_no_process(shell: Shell) -> None:
    standalone = shell.start("standalone")
    first = eventually(lambda: children_of(standalone.pid))
    time.sleep(1)
    os.kill(min(first), signal.SIGKILL)
    second = eventually(lambda: children_of(standalone.pid) - first)
    job = shell("submit_job", "--executor", "process", "--wait", "--", "echo", "hi")
    assert job.code == 0, job.err
    standalone.send_signal(signal.SIGTERM)
    out, err = standalone.communicate(timeout=60)
    assert standalone.returncode == 0
    assert "another starts in 1 s" in err
    assert "Stopped" in out
    assert not any(is_alive(pid) for pid in second)


def test_a_standalone_that_is_killed_takes_its_worker_along(shell: Shell) -> None:
    standalone = shell.start("standalone")
    workers = eventually(lambda: children_of(standalone.pid))
    time.sleep(1.5)
    standalone.kill()
    standalone.communicate(timeout=30)
    eventually(lambda: not any(is_alive(pid) for pid in workers))
