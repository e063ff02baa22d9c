"""The demo, as a real process."""

from __future__ import annotations

import contextlib
import re
import signal
import sqlite3
from pathlib import Path

import pytest

from container_manager.management.demo_pipeline import TASKS, Pipeline
from container_manager.management.demonstration import SCENES, Place
from container_manager.models import DagRun
from container_manager.states import NOT_OVER
from container_manager.workflows import spec
from tests.commands.shell import PROJECT, Shell, eventually
from tests.workflows.driving import end

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
    assert f"All {len(SCENES)} jobs and the DAG ended as they should" in answer.out
    assert "History, rows, attempts and output of all of them agree." in answer.out
    assert "as local processes" in answer.out
    for name in ("completed", "failed", "killed", "cancelled", "timeout", "second try worked"):
        assert name in answer.out
    assert shell("check_jobs").code == 0
    listed = shell("list_jobs", "--queue", "demo", "--json")
    assert len(listed.json) == len(SCENES) + len(TASKS)
    assert all(job["labels"]["demo"] for job in listed.json)
    assert "demo_pipeline.transform: running -> success" in answer.out
    assert re.search(r"^transform +success .* got 42 +as it should$", answer.out, re.MULTILINE)
    assert [len(line) for line in answer.out.splitlines() if len(line) > 80] == []
    (run,) = shell("list_runs", "demo_pipeline", "--json").json
    assert (run["state"], run["tasks"]) == ("success", {"success": len(TASKS)})


def test_the_dag_of_the_demo_is_that_of_the_example() -> None:
    text = (PROJECT / "examples/etl_pipeline.yaml").read_text()
    assert spec.read(text)["tasks"] == TASKS


@pytest.mark.django_db
def test_a_task_of_the_demo_that_does_not_succeed_is_told() -> None:
    pipeline = Pipeline(Place("process", "", "here"), "label")
    pipeline.advance()
    run = DagRun.objects.get()
    end(run, "extract", exit_code=1)
    pipeline.advance()
    end(run, "notify")
    pipeline.advance()
    assert pipeline.is_over
    assert pipeline.wrong() == [
        f"demo_pipeline.{name}" for name in ("extract", "transform", "load")
    ]


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
    under_way = [word for state in NOT_OVER for word in ("--state", state)]
    assert shell("list_runs", *under_way).code == 3


def test_the_demo_says_what_is_missing_where_it_cannot_run(shell: Shell) -> None:
    answer = shell("demo", CONTAINER_MANAGER_PROCESS_EXECUTOR="off")
    assert answer.code == 1
    assert "CONTAINER_MANAGER_PROCESS_EXECUTOR=on" in answer.err
