"""The demo, as a real process."""

from __future__ import annotations

import contextlib
import signal
import sqlite3
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
