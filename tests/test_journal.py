"""How a line of the log looks, whatever stands in it, and what it is about."""

from __future__ import annotations

import json
import logging
import sys
import threading
from datetime import datetime
from typing import Any

import pytest
from django.db import OperationalError, connection
from django.db.models import F, Value
from django.test.utils import CaptureQueriesContext

from container_manager import journal, lifecycle
from container_manager.journal import JsonLines, TextLines
from container_manager.models import ContainerJob, StateHistory, acting_as
from container_manager.states import StopKind
from tests.factories import JobFactory

FORGED = "a\n2026-01-31 12:00:00,000 INFO Job 1: running -> completed\r\x1b[2J\x9b31m\u2028\u202e\0"


def record(said: str = "said", /, *args: Any, error: bool = False, **told: Any) -> Any:
    made = logging.LogRecord("container_manager", logging.INFO, "", 1, said, args, None)
    made.__dict__.update(journal.told(**told))
    if error:
        made.exc_info = sys.exc_info()
    return made


def as_json(made: logging.LogRecord) -> dict[str, Any]:
    line = JsonLines().format(made)
    assert "\n" not in line
    assert line.isascii()
    return json.loads(line)


# The forms


def test_a_line_of_json_has_what_it_is_about_in_fields_of_their_own():
    with journal.about(job="j", attempt=2), journal.about(user="ada"):
        line = as_json(record("moved %s", "on", from_="queued", reason=""))
    moment = datetime.fromisoformat(line.pop("time"))
    assert moment.utcoffset().total_seconds() == 0
    assert abs(datetime.now(moment.tzinfo) - moment).total_seconds() < 60
    assert line == {
        "level": "INFO",
        "logger": "container_manager",
        "message": "moved on",
        "job": "j",
        "attempt": 2,
        "user": "ada",
        "from": "queued",
    }


def test_a_field_never_takes_the_place_of_what_every_line_has():
    line = as_json(record(message="forged", level="NONE", time="never", took=float("nan")))
    assert (line["message"], line["level"], line["took"]) == ("said", "INFO", "nan")
    assert line["time"] != "never"


def test_a_line_of_text_tells_who_and_why_behind_its_message():
    made = record("Job 1: queued -> running", actor="worker:w1", reason="timeout", from_="queued")
    _date, _time, rest = TextLines().format(made).split(" ", 2)
    assert rest == "INFO Job 1: queued -> running reason=timeout actor=worker:w1"


def test_nobody_s_data_begins_a_line_or_steers_a_terminal():
    line = TextLines().format(record("Job %s", FORGED, actor=FORGED))
    assert not set(line) & set("\n\r\x1b\x9b\u2028\u202e\0")
    assert "Job a\\n2026" in line
    assert as_json(record("Job %s", FORGED))["message"] == f"Job {FORGED}"
    assert as_json(record("Job %s", "\ud800"))["message"] == "Job \ud800"


def test_a_traceback_is_told_and_its_lines_are_not_taken_for_others():
    try:
        raise ValueError(FORGED)
    except ValueError:
        made = record("went wrong", error=True)
    first, *others = TextLines().format(made).split("\n")
    assert first.endswith("INFO went wrong")
    assert others[0] == "  Traceback (most recent call last):"
    assert all(line.startswith("  ") for line in others)
    assert not set("".join(others)) & set("\r\x1b\x9b\u2028\0")
    made.exc_text = None
    assert "ValueError: a\n" in as_json(made)["exception"]


def test_a_line_has_an_end():
    line = as_json(record("x" * 1_000_000, error_text="y" * 1_000_000))
    assert len(line["message"]) == len(line["error_text"]) == journal.MOST_CHARACTERS
    assert len(TextLines().format(record("x" * 1_000_000))) < journal.MOST_CHARACTERS + 100


def test_what_becomes_known_belongs_to_the_innermost_only():
    journal.note(user="nobody")
    with journal.about(request_id="1"):
        with journal.about():
            journal.note(user="ada")
            assert journal.context() == {"request_id": "1", "user": "ada"}
        assert journal.context() == {"request_id": "1"}
    assert journal.context() == {}


def test_a_thread_knows_nothing_of_what_others_are_about():
    seen: list[dict[str, Any]] = []
    with journal.about(job="j"):
        thread = threading.Thread(target=lambda: seen.append(journal.context()))
        thread.start()
        thread.join()
    assert seen == [{}]


# The lines of moves


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Any:
    """What is told of each move since it was asked for the last time, in any order."""
    caplog.set_level("INFO", logger="container_manager")

    def told() -> list[dict[str, Any]]:
        found = [getattr(each, journal.TOLD, {}) for each in caplog.records]
        caplog.clear()
        return sorted(
            ({key: str(value) for key, value in each.items() if value} for each in found), key=str
        )

    told()
    return told


def of_history(*jobs: ContainerJob) -> list[dict[str, Any]]:
    """What the history says of their moves, as the log should."""
    rows = StateHistory.objects.filter(
        entity_id__in=[job.pk for job in jobs], old_state__isnull=False
    )
    return sorted(
        (
            {
                key: str(value)
                for key, value in {
                    "entity": row.entity_type,
                    "id": row.entity_id,
                    "job": row.entity_id,
                    "from": row.old_state,
                    "to": row.new_state,
                    "reason": row.reason,
                    "actor": row.actor,
                }.items()
                if value
            }
            for row in rows
        ),
        key=str,
    )


def without_attempt(told: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in each.items() if key != "attempt"} for each in told]


@pytest.mark.django_db
def test_a_move_by_save_says_who_moved_it_and_why(lines):
    job = JobFactory()
    with acting_as("tester"):
        job.mark_as_queued()
        job.mark_as_running()
        job.transition_to("failed", reason="timeout")
    told = lines()
    assert without_attempt(told) == of_history(job)
    assert {each.get("attempt") for each in told} == {None, "1"}


@pytest.mark.django_db
@pytest.mark.parametrize("why", ["queue_timeout", Value("queue_timeout"), F("reason")])
def test_a_move_by_update_does_however_the_reason_is_given(lines, why):
    jobs = [JobFactory(reason="queue_timeout") for _ in range(3)]
    ContainerJob.objects.filter(pk__in=[job.pk for job in jobs]).update(
        status="cancelled", reason=why
    )
    told = lines()
    assert [each["reason"] for each in told] == ["queue_timeout"] * 3
    assert told == of_history(*jobs)


@pytest.mark.django_db
def test_a_move_without_a_reason_tells_none(lines):
    job = JobFactory()
    ContainerJob.objects.filter(pk=job.pk).update(status="queued")
    told = lines()
    assert "reason" not in told[0]
    assert told == of_history(job)


@pytest.mark.django_db
def test_a_reason_that_the_move_implies_is_told(lines):
    jobs = [JobFactory(), JobFactory(status="queued")]
    lifecycle.stop([job.pk for job in jobs], StopKind.CANCEL, actor="api:ada")
    told = lines()
    assert {each["reason"] for each in told} == {"cancelled"}
    assert {each["actor"] for each in told} == {"api:ada"}
    assert told == of_history(*jobs)


@pytest.mark.django_db
@pytest.mark.parametrize("by_update", [False, True])
def test_what_the_caller_tells_of_a_move_is_told(lines, by_update):
    job, info = JobFactory(), {"actor": "carol", "reason": "maintenance"}
    with acting_as("somebody else"):
        if by_update:
            ContainerJob.objects.filter(pk=job.pk).update(status="killed", transition_info=info)
        else:
            job.transition_to("killed", transition_info=info)
    told = without_attempt(lines())
    assert told == of_history(job)
    assert [(each["actor"], each["reason"]) for each in told] == [("carol", "maintenance")]


@pytest.mark.django_db
def test_a_move_by_bulk_update_does(lines):
    jobs = [JobFactory() for _ in range(2)]
    for job in jobs:
        job.status = "queued"
    with acting_as("importer"):
        ContainerJob.objects.bulk_update(jobs, ["status"])
    assert without_attempt(lines()) == of_history(*jobs)


@pytest.mark.django_db
def test_what_a_verb_tried_and_did_not_do_is_not_told(lines):
    job = JobFactory()
    tries = []

    @lifecycle.verb
    def move(*, fails: Exception | None) -> None:
        tries.append(1)
        ContainerJob.objects.filter(pk=job.pk).update(status="queued")
        if fails and len(tries) == 1:
            raise fails

    with pytest.raises(ZeroDivisionError):
        move(fails=ZeroDivisionError())
    assert lines() == []
    tries.clear()

    @lifecycle.verb
    def outer() -> None:
        with pytest.raises(ZeroDivisionError):
            move(fails=ZeroDivisionError())
        move(fails=None)
        assert lines() == [], "not before it is done"

    outer()
    assert without_attempt(lines()) == of_history(job)


@pytest.mark.django_db(transaction=True)
def test_a_verb_that_is_begun_again_tells_its_moves_once(lines, monkeypatch):
    job, tries = JobFactory(), []
    monkeypatch.setattr(lifecycle, "_was_in_the_way", lambda _error: True)

    @lifecycle.verb
    def move() -> None:
        tries.append(1)
        ContainerJob.objects.filter(pk=job.pk).update(status="queued")
        if len(tries) < 3:
            raise OperationalError("database is locked")

    move()
    assert len(tries) == 3
    assert lines() == of_history(job)


@pytest.mark.django_db
def test_nothing_is_read_for_lines_that_nobody_wants(caplog):
    moved = ContainerJob.objects.filter(pk=JobFactory().pk)

    def last_statement(level: str, status: str) -> str:
        caplog.set_level(level, logger="container_manager")
        with CaptureQueriesContext(connection) as queries:
            moved.update(status=status, reason=F("reason"))
        told = [query["sql"] for query in queries if "SAVEPOINT" not in query["sql"]]
        return told[-1].split()[0]

    assert last_statement("WARNING", "running") == "UPDATE"
    assert last_statement("INFO", "failed") == "SELECT"
