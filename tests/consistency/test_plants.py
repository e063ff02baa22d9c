"""Each invariant that `check_jobs` can see is violated once, and the violation is found.

The list is complete: a code without a plant fails the first test.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.db import connection
from django.utils import timezone

from container_manager import db_guard
from container_manager.consistency import CODES, NOTE, liveness
from container_manager.models import (
    ContainerJob,
    Dag,
    DagRun,
    IdempotencyKey,
    JobAttempt,
    StateHistory,
    TaskInstance,
    Worker,
)
from container_manager.models.attempt import attempt_name
from tests.commands.shell import run
from tests.consistency.planting import (
    LONG_AGO,
    a_living_worker,
    age,
    behind_the_guard,
    chunk,
    history,
    lived,
    of,
    on_engine,
    plant,
    put,
    told,
)
from tests.factories import DagFactory, RunFactory, TaskFactory
from tests.support.fake_executor import FakeExecutor, World
from tests.support.fleet import process_row

pytestmark = pytest.mark.django_db

Plant = Callable[[World], Any]
PLANTS: dict[str, Plant] = {}


def plants(code: str) -> Callable[[Plant], Plant]:
    def keep(function: Plant) -> Plant:
        PLANTS[code] = function
        return function

    return keep


def execute(sql: str, *values: Any) -> None:
    with connection.cursor() as cursor:
        cursor.execute(sql, values)


# The guard and the history ------------------------------------------------------------------------


@plants("guard")
def _(_: World) -> None:
    if connection.vendor == "postgresql":
        execute("SET CONSTRAINTS ALL IMMEDIATE")
    db_guard.uninstall(connection)


@plants("counter")
def _(_: World) -> None:
    lived()
    execute(
        "INSERT INTO job_counts (scope, status, queue, executor, isolation, part, jobs)"
        " VALUES ('*', 'queued', 'default', '', 'auto', 7, 3)"
    )


@plants("history_count")
def _(_: World) -> None:
    job = lived("cancelled")
    with behind_the_guard():
        history(job, 2).delete()


@plants("history_state")
def _(_: World) -> None:
    plant(of(lived("cancelled")), status="killed")


@plants("history_gap")
def _(_: World) -> None:
    plant(history(lived(), 1), old_state="running")


@plants("history_begin")
def _(_: World) -> None:
    job = lived()
    with behind_the_guard():
        history(job, 1).delete()
    plant(history(job, 2), old_state=None)


@plants("history_edge")
def _(_: World) -> None:
    job = lived("cancelled")
    plant(history(job, 2), new_state="completed")
    plant(history(job, 3), old_state="completed")


@plants("history_time")
def _(_: World) -> None:
    job = lived("cancelled")
    plant(history(job, 3), changed_at=job.created_at - LONG_AGO)


# Rows, attempts, output ---------------------------------------------------------------------------


@plants("attempt_held")
def _(engine: World) -> None:
    job = lived("running", "completed")
    job.attempts.update(phase="collecting")
    on_engine(engine, job)


@plants("running_alone")
def _(_: World) -> None:
    lived("running", worker=False)


@plants("attempt_missing")
def _(_: World) -> None:
    lived("running", "completed").attempts.all().delete()


@plants("attempt_unknown")
def _(_: World) -> None:
    job = lived("running", "completed")
    JobAttempt.objects.create(job=job, attempt=2, phase="done", exit_code=0)


@plants("retries_exceeded")
def _(_: World) -> None:
    of(lived()).update(retry_count=4, max_retries=3)


@plants("retries_uncounted")
def _(_: World) -> None:
    lived("running", "failed", "retrying")


@plants("attempt_evidence")
def _(_: World) -> None:
    job = lived("running", "completed")
    job.attempts.update(exit_code=None)
    of(job).update(exit_code=None)


@plants("result_differs")
def _(_: World) -> None:
    lived("running", "completed").attempts.update(exit_code=3)


@plants("log_overlap")
def _(_: World) -> None:
    job = lived("running", "completed")
    chunk(job, 0, b"12345")
    chunk(job, 4, b"56")
    job.attempts.update(stdout_bytes=7)


@plants("log_incomplete")
def _(_: World) -> None:
    lived("running", "completed").attempts.update(stdout_bytes=7)


@plants("log_stray")
def _(_: World) -> None:
    chunk(lived("running", "completed"), 0, b"x", attempt=2)


# What should happen by itself ---------------------------------------------------------------------


@plants("attempt_orphaned")
def _(engine: World) -> None:
    on_engine(engine, lived("running"))
    Worker.objects.update(last_beat_at=timezone.now() - LONG_AGO)


@plants("rescue_overdue")
def _(engine: World) -> None:
    job = lived("running")
    on_engine(engine, job)
    age(job)
    long_ago = timezone.now() - LONG_AGO
    Worker.objects.update(name="gone", last_beat_at=long_ago)
    a_living_worker(offers={"fake": {"engine_id": "fake", "available": True}}, started_at=long_ago)


@plants("stop_unanswered")
def _(engine: World) -> None:
    job = lived("running")
    of(job).update(cancel_requested_at=timezone.now() - LONG_AGO)
    age(job)
    on_engine(engine, job)


@plants("timeout_overdue")
def _(engine: World) -> None:
    job = lived("running", timeout_seconds=5)
    of(job).update(launched_at=timezone.now() - LONG_AGO)
    age(job)
    on_engine(engine, job)


@plants("retry_overdue")
def _(_: World) -> None:
    job = lived("running", "failed", "retrying", worker=False)
    before = timezone.now() - LONG_AGO
    a_living_worker(started_at=before)
    of(job).update(scheduled_for=before, updated_at=before)


@plants("key_without_job")
def _(_: World) -> None:
    job = lived()
    answered(job, as_text=True)
    ContainerJob.objects.filter(pk=job.pk).delete()


def answered(job: ContainerJob, *, as_text: bool) -> None:
    """A key whose answer names this job, as the API (text) or the admin (an object) keeps it."""
    answer: Any = {"id": str(job.pk), "status": "queued"}
    if as_text:
        answer = json.dumps({**answer, "labels": {"id": "other"}}, separators=(",", ":"))
    IdempotencyKey.objects.create(
        scope="user:1 POST jobs",
        key=str(job.pk),
        body_hash="x",
        answer=answer,
        expires_at=timezone.now() + LONG_AGO,
    )


@plants("keys_expired")
def _(_: World) -> None:
    IdempotencyKey.objects.bulk_create(
        IdempotencyKey(
            scope="s", key=str(number), body_hash="x", expires_at=timezone.now() - LONG_AGO
        )
        for number in range(6)
    )


@plants("changes_unfolded")
def _(_: World) -> None:
    # What looks alike is one row on SQLite: these differ by queue, and add up to nothing at all.
    # Their numbers lie between two foldings: each thousandth change folds all.
    for number in range(1, 42):
        execute(
            "INSERT INTO job_changes (id, owner, status, queue, executor, isolation, jobs)"
            " VALUES (%s, '', 'queued', %s, '', 'auto', 0)",
            db_guard.FOLD_EVERY * 10**9 + number,
            f"q{number}",
        )


@plants("secret_in_history")
def _(_: World) -> None:
    job = lived("cancelled", environment={"TOKEN": "correct horse", "SHORT": "battery"})
    plant(history(job, 3), metadata={"error": "no login with correct horse, battery"})


# Workflows ----------------------------------------------------------------------------------------

NOW = timezone.now()


def a_task(state: str, job: ContainerJob, run_state: str = "running") -> None:
    """A task of that state in a run of that state, with that job; all long unchanged."""
    run = RunFactory(state=run_state)
    task = TaskFactory(dag_run=run, state=state, job=job, queued_at=timezone.now() - LONG_AGO)
    of(job).update(managed_by=task.managed_by)
    for row in (job, task, run):
        plant(type(row).objects.filter(pk=row.pk), updated_at=timezone.now() - LONG_AGO)


@plants("task_early")
def _(_: World) -> None:
    first, second = lived(), lived("running", "completed")
    a_task("queued", first)
    run = DagRun.objects.get()
    TaskInstance.objects.update(queued_at=None)
    plant(TaskInstance.objects.all(), name="first")
    of(first).update(managed_by="")
    task = TaskFactory(dag_run=run, name="second", state="success", job=second, queued_at=NOW)
    of(second).update(managed_by=task.managed_by)


@plants("task_astray")
def _(_: World) -> None:
    a_task("queued", lived("running", "completed"))


@plants("run_ended_early")
def _(_: World) -> None:
    a_task("queued", lived(), run_state="failed")


@plants("run_not_ended")
def _(_: World) -> None:
    a_task("success", lived("running", "completed"))


@plants("job_of_no_task")
def _(_: World) -> None:
    lived(managed_by="task:of-somebody")


@pytest.mark.parametrize("model", [DagRun, TaskInstance])
def test_the_histories_of_runs_and_tasks_are_compared_too(model: Any) -> None:
    a_task("success", lived("running", "completed"), run_state="success")
    assert told() == []
    plant(model.objects.all(), version=2)
    assert {each["code"] for each in told()} == {"history_count", "history_state"}


# Engines ------------------------------------------------------------------------------------------


def two_attempts(engine: World) -> ContainerJob:
    """The first is over, the second runs; the engine has both."""
    job = lived("running", "failed", "retrying", "queued", "running")
    of(job).update(retry_count=1)
    on_engine(engine, job, 1)
    on_engine(engine, job, 2)
    return job


@plants("two_executions")
def _(engine: World) -> None:
    two_attempts(engine)


@plants("execution_left")
def _(engine: World) -> None:
    job = lived("running", "completed")
    age(job)
    job.attempts.update(cleaned_up=True)
    on_engine(engine, job, running=False)


@plants("execution_of_abandoned")
def _(engine: World) -> None:
    job = two_attempts(engine)
    job.attempts.filter(attempt=1).update(reason="unproven", updated_at=timezone.now() - LONG_AGO)


@plants("execution_unknown")
def _(engine: World) -> None:
    put(engine, "cm-01890a5d-ac96-774b-bcce-b302099a8057-1")


@plants("execution_missing")
def _(_: World) -> None:
    lived("running")


@plants("engine_not_looked_at")
def _(_: World) -> None:
    lived("running").attempts.update(engine_id="another")


@plants("slot_overdue")
def _(_: World) -> None:
    DagFactory(schedule="@hourly", next_slot_at=timezone.now() - LONG_AGO)


@plants("process_silent")
def _(_: World) -> None:
    process_row("scheduler", beat_ago=500)


# The tests ----------------------------------------------------------------------------------------

MAY_ALSO = {"history_count": {"history_gap"}, "history_begin": {"history_count"}}
"""What the same plant also looks like, seen from another side."""


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few are too many already."""
    monkeypatch.setattr(liveness, "MOST_EXPIRED_KEYS", 5)
    monkeypatch.setattr(liveness, "MOST_CHANGES", 40)


def test_every_code_has_a_plant() -> None:
    assert PLANTS.keys() == CODES.keys()


def test_the_table_of_codes_in_the_docs_is_complete() -> None:
    page = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()
    rows = re.findall(r"^\| (`[a-z_]+`(?: `[a-z_]+`)*) \| (I[I0-9 ]+) \|", page, re.MULTILINE)
    told = {code: words.split() for codes, words in rows for code in re.findall(r"\w+", codes)}
    assert told.keys() == CODES.keys()
    assert all(CODES[code] in words for code, words in told.items())


@pytest.mark.parametrize("code", CODES)
def test_a_planted_violation_is_found_and_nothing_else(code: str, engine: World) -> None:
    PLANTS[code](engine)
    found = told()
    assert {each["code"] for each in found} - MAY_ALSO.get(code, set()) == {code}
    assert {each["invariant"] for each in found if each["code"] == code} == {CODES[code]}
    answer = run("check_jobs")
    assert answer.code == (0 if all(each["level"] == NOTE for each in found) else 1)


@pytest.mark.parametrize("as_text", [True, False], ids=["api", "admin"])
def test_a_key_of_a_job_that_is_there_is_sound(as_text: bool) -> None:
    answered(lived(), as_text=as_text)
    assert told() == []


@pytest.mark.parametrize("keep_history", [True, False])
def test_a_key_of_a_job_that_was_pruned_is_no_finding(keep_history: bool) -> None:
    job = lived("cancelled")
    answered(job, as_text=False)
    ContainerJob.objects.filter(pk=job.pk).delete()
    if not keep_history:
        StateHistory.objects.all().delete()
    assert [each["level"] for each in told()] == ([] if keep_history else [NOTE])


def test_a_queue_of_changes_of_few_is_sound() -> None:
    lived()
    assert told() == []


@pytest.mark.parametrize(
    "fields",
    [
        {"stop_grace_seconds": 200_000, "cancel_requested_at": LONG_AGO},
        {"cancel_requested_at": timedelta(seconds=1)},
        {"timeout_seconds": 200_000, "launched_at": LONG_AGO},
        {"timeout_seconds": 5, "start_timeout_seconds": 200_000, "launched_at": LONG_AGO},
    ],
)
def test_what_still_has_time_is_sound(fields: dict[str, Any], engine: World) -> None:
    job = lived("running")
    age(job)
    on_engine(engine, job)
    now = timezone.now()
    of(job).update(
        **{name: now - by if isinstance(by, timedelta) else by for name, by in fields.items()}
    )
    assert told() == []


@pytest.mark.parametrize("code", ["stop_unanswered", "timeout_overdue"])
def test_nobody_is_late_who_just_took_it_over_or_cannot_reach_it(code: str, engine: World) -> None:
    PLANTS[code](engine)
    attempts = JobAttempt.objects.all()
    attempts.update(updated_at=timezone.now())
    assert told() == []
    attempts.update(updated_at=timezone.now() - LONG_AGO, unreachable_since=timezone.now())
    assert told() == []
    attempts.update(unreachable_since=None)
    assert [each["code"] for each in told()] == [code]


def test_a_slot_that_came_just_now_or_of_a_paused_dag_is_not_overdue() -> None:
    DagFactory(schedule="@hourly", next_slot_at=timezone.now() - timedelta(seconds=30))
    DagFactory(schedule="@hourly", next_slot_at=timezone.now() - LONG_AGO, is_paused=True)
    DagFactory(schedule="@hourly", next_slot_at=timezone.now() + LONG_AGO)
    assert told() == []


def test_whether_a_scheduler_lives_is_told_with_a_slot_that_is_overdue(engine: World) -> None:
    PLANTS["slot_overdue"](engine)
    assert "no scheduler gives a sign of life" in told()[0]["text"]
    process_row("relay")
    assert "no scheduler gives a sign of life" in told()[0]["text"]
    process_row("scheduler")
    assert "though a scheduler lives" in told()[0]["text"]
    RunFactory(dag=Dag.objects.get())
    (late,) = told()
    assert (late["level"], late["code"]) == (NOTE, "slot_overdue")


def test_only_the_named_jobs_are_asked_about(engine: World) -> None:
    PLANTS["secret_in_history"](engine)
    (wrong,) = ContainerJob.objects.all()
    sound = lived()
    PLANTS["execution_unknown"](engine)
    assert told(sound.pk) == []
    assert [each["code"] for each in told(wrong.pk)] == ["secret_in_history"]


@pytest.mark.parametrize("ended", [False, True], ids=["just created", "just removed"])
def test_what_looks_sound_at_the_second_look_is_not_told(
    ended: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker created it, or removed it, between reading the engine and reading the rows."""
    job = lived("running", *(["completed"] if ended else []))
    age(job)
    there = [attempt_name(job.pk, 1)]
    looks = iter([there, []] if ended else [[], there])
    monkeypatch.setattr(FakeExecutor, "list_names", lambda *_: next(looks))
    assert told() == []
    assert next(looks, None) is None
