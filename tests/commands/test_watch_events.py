"""`watch_events` as a real process: what it prints, what it leaves out, how it ends."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from container_manager.models import Event
from container_manager.models.sequencing import take_all
from tests.commands.shell import PROJECT, Shell, run
from tests.factories import JobFactory, TaskFactory
from tests.support.workers import WorkerProcess, Workers, some_workers, wait_until


@pytest.fixture
def workers(tmp_path, transactional_db) -> Iterator[Workers]:
    with some_workers(tmp_path) as workers:
        yield workers


@contextmanager
def watching(workers: Workers, *arguments: str) -> Iterator[WorkerProcess]:
    """A watcher that has begun: it prints what happened before, from the first event on."""
    log = workers.directory / "watch.log"
    command = [sys.executable, "-W", "ignore", "manage.py", "watch_events", *arguments]
    watcher = WorkerProcess(command, workers.environment(), log)
    workers.started.append(watcher)
    yield watcher
    watcher.end()


def lines(watcher: WorkerProcess, count: int) -> list[str]:
    wait_until(lambda: watcher.said.count("\n") >= count or watcher.has_ended, f"{count} lines")
    assert not watcher.has_ended, watcher.said
    return watcher.said.splitlines()


@pytest.mark.processes
@pytest.mark.django_db(transaction=True)
def test_each_move_is_a_line_as_it_happens(workers):
    job = JobFactory()
    take_all()
    with watching(workers, "--after", "0") as watcher:
        assert len(lines(watcher, 1)) == 1
        job.transition_to("queued")
        job.transition_to("running")
        rows = [line.split("\t") for line in lines(watcher, 3)]
    moves = [("", "pending"), ("pending", "queued"), ("queued", "running")]
    assert [(row[0], row[2], row[3], row[4], row[5]) for row in rows] == [
        (str(number), "job", str(job.pk), old, new) for number, (old, new) in enumerate(moves, 1)
    ]
    assert rows[0][7] == "system"


@pytest.mark.processes
@pytest.mark.django_db(transaction=True)
def test_json_is_an_object_on_each_line_with_its_place(workers):
    JobFactory(name="ä")
    take_all()
    with watching(workers, "--after", "0", "--json") as watcher:
        told = json.loads(lines(watcher, 1)[0])
    event = Event.objects.get()
    assert told.pop("sequence") == event.sequence == 1
    assert (told["id"], told["new_state"]) == (str(event.event_id), "pending")


@pytest.mark.processes
@pytest.mark.django_db(transaction=True)
def test_only_what_was_asked_for_is_printed(workers):
    job, other = JobFactory(), JobFactory()
    task = TaskFactory()
    for status in ("queued", "running", "failed"):
        job.transition_to(status)
        other.transition_to(status)
    take_all()
    for arguments, expected in {
        ("--type", "task_instance"): [(task.pk, "queued")],
        ("--state", "failed", "--state", "running"): [
            *((job.pk, "running"), (other.pk, "running")),
            *((job.pk, "failed"), (other.pk, "failed")),
        ],
        ("--job", job.pk.hex[-12:], "--state", "queued"): [(job.pk, "queued")],
    }.items():
        with watching(workers, "--after", "0", *arguments) as watcher:
            rows = [line.split("\t") for line in lines(watcher, len(expected))]
        assert [(row[3], row[5]) for row in rows] == [(str(pk), state) for pk, state in expected]


@pytest.mark.processes
@pytest.mark.django_db(transaction=True)
def test_ctrl_c_ends_it_with_130_and_no_traceback(workers):
    JobFactory()
    take_all()
    with watching(workers, "--after", "0") as watcher:
        lines(watcher, 1)
        watcher.send(signal.SIGINT)
        assert watcher.ended() == 130
        assert "Traceback" not in watcher.said
        assert watcher.said.endswith("watch_events: interrupted\n")


@pytest.mark.processes
@pytest.mark.django_db(transaction=True)
def test_who_goes_on_behind_the_last_number_misses_nothing(workers):
    jobs = [JobFactory() for _ in range(5)]
    take_all()
    with watching(workers, "--after", "0") as watcher:
        last = lines(watcher, 5)[-1].split("\t")[0]
    jobs[0].transition_to("queued")
    take_all()
    with watching(workers, "--after", last) as watcher:
        (row,) = (line.split("\t") for line in lines(watcher, 1))
    assert (row[0], row[5]) == ("6", "queued")


@pytest.mark.sqlite
@pytest.mark.processes
def test_on_a_terminal_each_event_is_one_line_of_80_columns(shell: Shell):
    evil = "x" * 300 + "\x1b[31m\n\u202e"
    made = shell("submit_job", "--image", "busybox", "--name", evil, "--", "true")
    assert made.code == 2  # not a name; the events below come of a tame one
    assert shell("submit_job", "--image", "busybox", "--", "true", USER="u" * 200).code == 0
    assert shell("relay_events", "--until-idle").code == 0
    leader, follower = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "manage.py", "watch_events", "--after", "0", "--no-color"],
        env=shell.environment | {"COLUMNS": "80", "TERM": "xterm"},
        cwd=PROJECT,
        stdin=subprocess.DEVNULL,
        stdout=follower,
        stderr=follower,
    ) as watcher:
        os.close(follower)
        shown = b""
        while shown.count(b"\n") < 2:
            shown += os.read(leader, 4096)
        watcher.terminate()
    os.close(leader)
    rows = re.sub(r"\x1b\[\d*m", "", shown.decode()).splitlines()[:2]
    assert [row.split()[4:7] for row in rows] == [
        ["*", "->", "pending"],
        ["pending", "->", "queued"],
    ]
    assert max(map(len, rows)) <= 80


@pytest.mark.sqlite
@pytest.mark.processes
def test_a_reader_that_goes_away_ends_it(shell: Shell):
    assert shell("submit_job", "--image", "busybox", "--", "true").code == 0
    assert shell("relay_events", "--until-idle").code == 0
    answer = shell.pipeline("manage watch_events --after 0 | head -n 2")
    assert [line.split("\t")[0] for line in answer.lines] == ["1", "2"]
    assert (answer.code, answer.err) == (0, "")


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--type", "jobs"], "there is no entity type 'jobs', but job, dag_run, task_instance"),
        (["--state", "done"], "there is no state 'done'"),
        (["--type", "job", "--state", "success"], "there is no state 'success'"),
        (["--after", "x"], "'x' is not the number of an event"),
        (["--after", "-1"], "--after"),
        (["--after", "999999"], "--after: there is no event 999999, the newest is"),
        (["--job", "0190a1b2-0000-7000-8000-000000000000"], "no job has the id"),
    ],
)
def test_what_there_is_not_is_exit_code_2(arguments, words):
    answer = run("watch_events", *arguments)
    assert (answer.code, answer.out) == (2, "")
    assert words in answer.err


@pytest.mark.django_db
def test_what_is_forgotten_is_exit_code_1_and_says_what_there_is():
    for _ in range(3):
        JobFactory()
    take_all()
    newest = Event.objects.newest()
    Event.objects.filter(sequence__lt=newest).delete()
    answer = run("watch_events", "--after", newest - 3)
    assert answer.code == 1
    assert f"the oldest is {newest}" in answer.err
