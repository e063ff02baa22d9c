"""CONTAINER_MANAGER_CRASH_AT: at that moment and no other, and never in production."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest
from django.db import connection, transaction

from container_manager import checks, crashes, engines, faults
from container_manager.executors.inline import InlineExecutor
from container_manager.faults import Moment
from container_manager.models import ContainerJob
from tests.support.loops import configured
from tests.support.running import attempt_of, queue_job, stdout
from tests.support.spine import contradictions
from tests.support.workers import ROOT, settled, some_workers

__all__ = ["configured"]

INLINE = {
    "class": "container_manager.executors.inline.InlineExecutor",
    "options": {"run": "tests.support.inline_jobs.note"},
}


# The words


def test_a_moment_is_a_point_or_a_count_and_its_number():
    assert faults.moments("R4, R4:2,sql:17, stop:engine-done:3,") == [
        Moment("R4"),
        Moment("R4", 2),
        Moment("sql", 17),
        Moment("engine-done", 3, stop=True),
    ]


@pytest.mark.parametrize(
    "words", ["R9", "r4", "R4:0", "R4:", "R4:-1", "sql:x", "stop:", ":3", "R4;S1"]
)
def test_what_is_no_moment_is_refused_and_told_what_there_is(words):
    assert f"{words!r} is no crash point; there are S1, S2" in faults.problem_of(words)


# Where it is refused


def manage(*arguments, **environment):
    return subprocess.run(
        [sys.executable, "-W", "ignore", "manage.py", *arguments],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], "DATABASE_URL": "sqlite:////nowhere/x", **environment},
        capture_output=True,
        text=True,
        check=False,
    )


PRODUCTION = {"DEBUG": "off", "SECRET_KEY": "only for this test", "ALLOWED_HOSTS": "a.example"}


@pytest.mark.processes
@pytest.mark.parametrize("command", ["run_worker", "check"])
def test_no_process_starts_with_it_while_debug_is_off(command):
    answer = manage(command, CONTAINER_MANAGER_CRASH_AT="R4", **PRODUCTION)
    assert answer.returncode == 2
    assert answer.stderr == (
        "manage.py: CONTAINER_MANAGER['CRASH_AT']: kills this process; only while DEBUG is on\n"
    )


@pytest.mark.processes
def test_no_process_starts_with_an_unknown_point():
    answer = manage("run_worker", CONTAINER_MANAGER_CRASH_AT="R4,R44", DEBUG="on")
    assert answer.returncode == 2
    assert answer.stderr.startswith("manage.py: CONTAINER_MANAGER['CRASH_AT']: 'R44' is no crash")
    assert len(answer.stderr.splitlines()) == 1


def test_the_system_check_tells_of_it(configured):
    configured(CRASH_AT="R4")
    (error,) = checks.settings_are_valid()
    assert error.id == "container_manager.E001"
    assert "only while DEBUG is on" in error.msg


# What it costs, and what it counts


def test_without_it_nothing_is_in_the_way():
    assert (faults.on_reach, faults.on_load) == (None, None)
    assert type(engines.load(INLINE)) is InlineExecutor


@pytest.fixture
def armed(monkeypatch):
    """Armed as a process is, with a mark in the place of a death."""
    struck = []
    monkeypatch.setattr(crashes, "strike", struck.append)
    monkeypatch.setattr(faults, "on_reach", None)
    monkeypatch.setattr(faults, "on_load", None)
    counting = crashes.arm("sql:2,commit:1,committed:1,engine:1,engine-done:2,C1:2,stop:C1")
    counting.watch_connection(connection)
    yield counting, struck
    crashes.connection_created.disconnect(counting.watch_connection)
    connection.execute_wrappers.remove(counting._before_statement)
    del connection._commit


@pytest.mark.django_db(transaction=True)
def test_it_strikes_just_before_a_statement_and_on_either_side_of_a_commit(armed):
    counting, struck = armed
    counting.watch_connection(connection)  # again, as when a connection opens again
    assert ContainerJob.objects.count() == 0
    assert struck == []
    ContainerJob.objects.count()
    assert struck.pop() == Moment("sql", 2)
    with transaction.atomic():
        ContainerJob.objects.count()
        assert struck == []
    assert struck == [Moment("commit"), Moment("committed")]


def test_it_strikes_on_either_side_of_an_executors_call(armed):
    _, struck = armed
    executor = engines.load(INLINE)
    assert executor.applied_limits.__self__.__class__ is InlineExecutor  # asks no engine
    assert struck == []
    executor.engine_id()
    assert struck == [Moment("engine")]
    executor.capabilities()
    assert struck[1:] == [Moment("engine-done", 2)]


def test_it_strikes_at_each_arrival_that_was_named(armed):
    _, struck = armed
    for _ in range(3):
        faults.reached("C1")
    assert struck == [Moment("C1", 1, stop=True), Moment("C1", 2)]


@pytest.mark.processes
@pytest.mark.django_db(transaction=True)
def test_a_worker_dies_there_and_the_next_one_mends_it(tmp_path):
    job = queue_job("process", "echo once")
    with some_workers(tmp_path) as workers:
        assert workers.start(CRASH_AT="R5").ended() == -signal.SIGKILL
        workers.start()
        assert settled(job).status == "completed"
        assert stdout(job) == b"once\n"
        assert attempt_of(job).lease_epoch == 2
    assert contradictions() == []
