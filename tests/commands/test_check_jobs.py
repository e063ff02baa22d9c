"""Each contradiction is planted behind the guard's back, and must be found."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.db import connection

from container_manager import consistency, db_guard, guarding
from container_manager.models import ContainerJob, JobAttempt, StateHistory
from tests.commands.shell import run
from tests.consistency.conftest import _no_real_engine, configured, world
from tests.consistency.planting import chunk, codes, history, lived, on_engine, plant
from tests.support.fake_executor import World

__all__ = ["_no_real_engine", "configured", "world"]

pytestmark = pytest.mark.django_db


def test_sound_lives_have_no_findings(world: World) -> None:
    lived()
    on_engine(world, lived("running"))
    done = lived("running", "completed")
    done.attempts.update(stdout_bytes=20, stdout_omitted=10, stderr_bytes=3)
    chunk(done, 0, b"12345")
    chunk(done, 15, b"67890")
    chunk(done, 0, b"err", stream="stderr")
    again = lived("running", "failed", "retrying", "queued", "running", "completed")
    ContainerJob.objects.filter(pk=again.pk).update(retry_count=1)
    lived("cancelled")
    ContainerJob.objects.create(image="x", command=["a"], status="killed")
    answer = run("check_jobs")
    assert (answer.code, answer.lines) == (0, ["All is well: 6 jobs compared."])


def test_a_missing_and_a_forged_history_row_are_found() -> None:
    lost, forged = lived("running"), lived("running")
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            cursor.execute("SET CONSTRAINTS ALL IMMEDIATE")
    with guarding.lifted("default"):
        history(lost, 2).delete()
        extra = history(forged, 3).get()
        extra.pk, extra.version = forged.pk, 4
        extra.save(force_insert=True)
    found = {finding.job_id: finding for finding in consistency.findings()}
    assert {lost.pk, forged.pk} == found.keys()
    assert {"history_count", "history_gap"} <= codes(job_ids=[lost.pk])
    assert {"history_count", "history_gap"} <= codes(job_ids=[forged.pk])


def test_a_job_without_any_history_is_found() -> None:
    job = lived()
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            cursor.execute("SET CONSTRAINTS ALL IMMEDIATE")
    with guarding.lifted("default"):
        StateHistory.objects.of(job).delete()
    assert codes() == {"history_count", "history_state"}


def test_a_state_that_no_move_led_to_is_found() -> None:
    plant(ContainerJob.objects.filter(pk=lived("cancelled").pk), status="killed")
    assert codes() == {"history_state"}


def test_a_version_that_no_move_raised_is_found() -> None:
    plant(ContainerJob.objects.filter(pk=lived().pk), version=7)
    assert codes() == {"history_count", "history_state"}


def test_an_edge_that_the_table_lacks_is_found() -> None:
    job = lived("cancelled")
    plant(history(job, 2), new_state="completed")
    plant(history(job, 3), old_state="completed")
    assert codes() == {"history_edge"}


def test_a_history_that_does_not_begin_at_the_beginning_is_found() -> None:
    job = lived()
    plant(history(job, 1), old_state="running")
    assert codes() == {"history_gap"}


def test_a_move_told_before_the_one_it_follows_is_found() -> None:
    job = lived("cancelled")
    plant(history(job, 3), changed_at=job.created_at - timedelta(days=1))
    assert codes() == {"history_time"}


def test_an_attempt_held_though_its_job_does_not_run_is_found() -> None:
    job = lived("running", "completed")
    job.attempts.update(phase="collecting")
    assert codes() == {"attempt_held"}


def test_a_running_job_that_nobody_holds_is_a_note() -> None:
    lived("running", worker=False)
    answer = run("check_jobs")
    assert answer.code == 0
    assert answer.lines[0].startswith("note running_alone")


def test_a_start_without_an_attempt_is_found() -> None:
    job = lived("running", "completed")
    job.attempts.all().delete()
    assert codes() == {"attempt_missing"}


def test_an_attempt_without_a_start_is_found() -> None:
    job = lived("running", "completed")
    JobAttempt.objects.create(job=job, attempt=2, phase="done", exit_code=0)
    assert codes() == {"attempt_unknown"}


def test_more_retries_than_allowed_are_found() -> None:
    job = lived()
    ContainerJob.objects.filter(pk=job.pk).update(retry_count=4, max_retries=3)
    assert codes() == {"retries_exceeded"}


def test_a_retry_that_nobody_counted_is_found() -> None:
    lived("running", "failed", "retrying")
    assert codes() == {"retries_uncounted"}


def test_an_infrastructure_retry_need_not_be_counted() -> None:
    job = lived("running", "failed", "retrying")
    plant(history(job, 5), reason="worker_lost")
    assert codes() == set()


def test_an_attempt_that_ended_without_evidence_is_found() -> None:
    job = lived("running", "completed")
    job.attempts.update(exit_code=None)
    ContainerJob.objects.filter(pk=job.pk).update(exit_code=None)
    assert codes() == {"attempt_evidence"}
    job.attempts.update(reason="worker_lost")
    assert codes() == set()


def test_a_result_that_differs_from_the_attempts_is_found() -> None:
    job = lived("running", "completed")
    job.attempts.update(exit_code=3)
    assert codes() == {"result_differs"}
    job.attempts.update(exit_code=0, oom_killed=True)
    assert codes() == {"result_differs"}


def test_output_stored_twice_is_found() -> None:
    job = lived("running")
    chunk(job, 0, b"12345")
    chunk(job, 4, b"56")
    assert codes() == {"log_overlap"}


@pytest.mark.parametrize(
    ("total", "omitted"), [(11, 0), (10, 1), (12, 1), (9, 0)], ids=["lost", "both", "less", "more"]
)
def test_a_hole_that_the_cap_does_not_account_for_is_found(total: int, omitted: int) -> None:
    job = lived("running", "completed")
    chunk(job, 0, b"12345")
    chunk(job, 5, b"67890")
    job.attempts.update(stdout_bytes=total, stdout_omitted=omitted)
    assert codes() == ({"log_incomplete"} if total - omitted != 10 else set())


def test_a_running_jobs_output_may_still_have_holes() -> None:
    job = lived("running")
    chunk(job, 0, b"12345")
    chunk(job, 50, b"67890")
    assert codes() == set()


def test_output_of_an_attempt_without_a_row_is_found() -> None:
    chunk(lived("running"), 0, b"x", attempt=2)
    assert codes() == {"log_stray"}


def test_a_trigger_that_is_missing_is_found() -> None:
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            cursor.execute("SET CONSTRAINTS ALL IMMEDIATE")
    db_guard.uninstall(connection)
    assert codes() == {"guard"}
    assert codes(job_ids=[]) == set()


@pytest.mark.parametrize(
    ("table", "columns", "values"),
    [
        ("job_changes", "owner, executor, jobs", "'', '', 1"),
        ("job_changes", "owner, executor, jobs", "'=7', '', -1"),
        ("job_changes", "owner, executor, duration_ms, jobs", "'', '', 5000, 1"),
        ("job_counts", "scope, executor, part, jobs", "'*', 'docker', 0, 1"),
        ("job_durations", "scope, width, from_ms, part, jobs, total_ms", "'=7', 1, 9, 0, 1, 9"),
        ("job_durations", "scope, width, from_ms, part, jobs, total_ms", "'*', 1, 9, 0, 0, 1"),
    ],
)
def test_a_counter_that_is_not_what_the_rows_say_is_found_and_counted_anew(
    table: str, columns: str, values: str
) -> None:
    lived("running", "completed")
    if table != "job_durations":
        columns, values = (
            f"status, queue, isolation, {columns}",
            f"'completed', 'default', 'auto', {values}",
        )
    with connection.cursor() as cursor:
        cursor.execute(f"INSERT INTO {table} ({columns}) VALUES ({values})")
    answer = run("check_jobs")
    assert (answer.code, codes()) == (1, {"counter"})
    assert answer.lines[0].startswith("finding counter: job_")
    assert codes(job_ids=[]) == set()
    assert run("check_jobs", "--recount").code == 0
    assert codes() == set()


def test_findings_are_lines_and_json_and_exit_code_1() -> None:
    job = lived()
    ContainerJob.objects.filter(pk=job.pk).update(retry_count=4, max_retries=3)
    answer = run("check_jobs")
    assert (answer.code, answer.err) == (1, "1 finding\n")
    assert answer.lines == [f"finding retries_exceeded: job {job.pk}: used 4 of 3 retries"]
    told = run("check_jobs", "--json", job.pk)
    assert told.code == 1
    assert told.json["findings"][0]["code"] == "retries_exceeded"
    assert told.json["jobs"] == 1


def test_only_the_named_jobs_are_compared() -> None:
    wrong, sound = lived(), lived()
    ContainerJob.objects.filter(pk=wrong.pk).update(retry_count=4)
    assert run("check_jobs", sound.pk).code == 0


def test_the_number_of_questions_does_not_grow_with_the_jobs(
    django_assert_max_num_queries: Any,
) -> None:
    for _ in range(20):
        lived("running", "completed")
    with django_assert_max_num_queries(55):
        assert codes() == set()


def test_every_question_says_what_it_asks() -> None:
    asked: list[Callable[..., Any]] = [*consistency.questions, *consistency.questions_of_all]
    assert all(question.__doc__ for question in asked)
