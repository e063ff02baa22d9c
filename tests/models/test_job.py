"""The job's own methods and questions."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from django.utils import timezone

from container_manager import states
from container_manager.exceptions import InvalidTransition
from container_manager.models import ContainerJob, StateHistory
from container_manager.states import JOB, JobStatus, valid_transition
from tests.factories import JobFactory, UserFactory
from tests.models.ways import stored, told

pytestmark = pytest.mark.django_db


def test_the_states_and_the_table_are_those_of_the_state_machine():
    assert ContainerJob.Status is JobStatus
    assert ContainerJob.VALID_TRANSITIONS is states.VALID_TRANSITIONS is JOB.table
    assert ContainerJob.machine is JOB


@pytest.mark.parametrize("status", JOB.states)
def test_can_transition_to_says_what_the_table_says(status):
    job = JobFactory.build(status=status)
    for new in [*JOB.states, "x", "", None, []]:
        assert job.can_transition_to(new) == valid_transition(status, new)
    assert job.is_terminal == (status in ("completed", "cancelled", "killed"))
    assert job.is_settled == (job.is_terminal or status == "failed")
    assert job.is_queued == (status == "queued")


def test_a_job_goes_from_pending_to_its_end_by_the_mark_methods(caplog):
    caplog.set_level("INFO", logger="container_manager")
    job = JobFactory()
    job.mark_as_queued()
    job.mark_as_running()
    job.mark_as_completed()
    row = stored(job)
    assert row["queued_at"] <= row["launched_at"] <= row["completed_at"]
    assert (row["status"], row["version"], row["attempt"]) == ("completed", 4, 1)
    assert [record.getMessage() for record in caplog.records] == [
        f"Job {job.pk}: pending -> queued",
        f"Job {job.pk}: queued -> running",
        f"Job {job.pk}: running -> completed",
    ]


@pytest.mark.parametrize("bulk", [False, True])
def test_a_move_of_many_is_logged_in_one_line_each(caplog, bulk):
    caplog.set_level("INFO", logger="container_manager")
    jobs = JobFactory.create_batch(3)
    if bulk:
        for job in jobs:
            job.status = "queued"
        ContainerJob.objects.bulk_update(jobs, ["status"])
    else:
        ContainerJob.objects.update(status="queued")
    lines = {f"Job {job.pk}: pending -> queued" for job in jobs}
    assert {record.getMessage() for record in caplog.records} == lines


def test_a_refused_move_is_not_logged(caplog):
    caplog.set_level("INFO", logger="container_manager")
    with pytest.raises(InvalidTransition):
        JobFactory().mark_as_completed()
    assert caplog.records == []


def test_mark_as_queued_may_say_when():
    job, later = JobFactory(), timezone.now() + timedelta(hours=2)
    job.mark_as_queued(scheduled_for=later)
    assert stored(job)["scheduled_for"] == later
    assert job.queue_status == "scheduled"


@pytest.mark.parametrize(
    ("retry_count", "max_retries", "should_retry", "ends"),
    [
        (0, 3, True, "retrying"),
        (2, 3, True, "retrying"),
        (3, 3, True, "failed"),
        (0, 0, True, "failed"),
        (0, 3, False, "failed"),
    ],
)
def test_a_failed_job_is_retried_when_asked_and_while_retries_are_left(
    retry_count, max_retries, should_retry, ends
):
    job = JobFactory(status="running", retry_count=retry_count, max_retries=max_retries)
    job.mark_as_failed(should_retry=should_retry)
    path = ["running", "failed"] + (["retrying"] if ends == "retrying" else [])
    assert [new for _, new, _ in told(job)] == path
    assert stored(job)["status"] == ends
    assert stored(job)["retry_count"] == retry_count + (ends == "retrying")


def test_both_steps_of_a_retry_happen_or_none(monkeypatch):
    job = JobFactory(status="running")
    monkeypatch.setattr(JobFactory._meta.model, "after_moves", staticmethod(_fail_at_retrying))
    with pytest.raises(RuntimeError):
        job.mark_as_failed(should_retry=True)
    assert stored(job)["status"] == job.status == "running"
    assert stored(job)["version"] == job.version == 1
    assert len(told(job)) == 1


def _fail_at_retrying(_using, new_states):
    if "retrying" in new_states:
        raise RuntimeError


def test_the_last_retry_starts_when_the_count_equals_the_maximum():
    job = JobFactory(status="running", max_retries=1)
    job.mark_as_failed(should_retry=True)
    job.mark_as_queued()
    assert job.retry_count == job.max_retries == 1
    assert job.is_ready_to_launch
    assert list(ContainerJob.objects.ready()) == [job]
    job.mark_as_running()
    job.mark_as_failed(should_retry=True)
    assert job.status == "failed"


def test_a_retry_begins_with_a_clean_slate():
    job = JobFactory(
        status="failed", exit_code=7, error="e", output="o", reason="oom", oom_killed=True
    )
    job.transition_to("retrying", kill_requested_at=timezone.now(), signalled_at=timezone.now())
    ContainerJob.objects.filter(pk=job.pk).update(status="queued")
    row = stored(job)
    fresh = ("launched_at", "completed_at", "duration_ms", "exit_code", "kill_requested_at")
    assert [row[name] for name in (*fresh, "signalled_at", "cancel_requested_at")] == [None] * 7
    assert (row["error"], row["output"], row["reason"], row["oom_killed"]) == ("", "", "", False)
    assert row["attempt"] == 1
    job.refresh_from_db()
    job.mark_as_running()
    assert stored(job)["attempt"] == 2
    assert StateHistory.objects.of(job).last().attempt == 2


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, "not_queued"),
        ({"status": "cancelled", "launched_at": None}, "not_queued"),
        ({"status": "queued"}, "queued"),
        ({"status": "queued", "scheduled_for": datetime(2020, 1, 1, tzinfo=UTC)}, "queued"),
        ({"status": "queued", "scheduled_for": datetime(2999, 1, 1, tzinfo=UTC)}, "scheduled"),
        ({"status": "queued", "retry_count": 3, "max_retries": 3}, "queued"),
        ({"status": "queued", "retry_count": 4, "max_retries": 3}, "launch_failed"),
        ({"status": "running"}, "launched"),
        ({"status": "completed"}, "launched"),
        ({"status": "failed"}, "launched"),
    ],
)
def test_queue_status_has_five_words(fields, expected):
    job = JobFactory(**fields)
    assert job.queue_status == expected
    assert job.is_ready_to_launch == (expected == "queued")
    assert ContainerJob.objects.ready().exists() == (expected == "queued")


def test_ready_jobs_come_by_priority_then_by_time_queued():
    now = timezone.now()
    low = JobFactory(status="queued", priority=1, queued_at=now - timedelta(1))
    late = JobFactory(status="queued", priority=9, queued_at=now)
    early = JobFactory(status="queued", priority=9, queued_at=now - timedelta(1))
    assert list(ContainerJob.objects.ready()) == [early, late, low]


def test_the_words_of_the_queryset_choose_by_state_and_owner():
    owner = UserFactory()
    jobs = {status: JobFactory(status=status) for status in JOB.states}
    mine = JobFactory(created_by=owner)
    words = ContainerJob.objects
    assert set(words.running()) == {jobs["running"]}
    ended = {jobs[s] for s in ("completed", "failed", "retrying", "cancelled", "killed")}
    assert set(words.finished()) == ended
    assert set(words.settled()) == ended - {jobs["retrying"]}
    assert list(words.owned_by(owner)) == [mine]


@pytest.mark.parametrize("way", ["save", "update"])
def test_a_clock_that_steps_back_never_makes_a_duration_negative(way):
    job = JobFactory(status="running", launched_at=timezone.now() + timedelta(hours=1))
    assert job.duration == timedelta(0)
    if way == "save":
        job.mark_as_completed()
    else:
        ContainerJob.objects.filter(pk=job.pk).update(status="completed")
    job.refresh_from_db()
    assert job.duration_ms == 0
    assert job.duration == timedelta(0)


@pytest.mark.parametrize("way", ["save", "update"])
def test_the_duration_is_the_time_from_launch_to_end_in_milliseconds(way):
    start = timezone.now() - timedelta(seconds=90)
    end = start + timedelta(milliseconds=61_234)
    job = JobFactory(status="running", launched_at=start)
    if way == "save":
        job.transition_to("completed", completed_at=end)
    else:
        ContainerJob.objects.filter(pk=job.pk).update(status="completed", completed_at=end)
    job.refresh_from_db()
    assert job.duration_ms == 61_234
    assert job.duration == timedelta(milliseconds=61_234)


def test_the_duration_of_a_running_job_grows_and_of_a_waiting_one_is_none():
    assert JobFactory(status="running").duration > timedelta(seconds=60)
    assert JobFactory(status="queued").duration is None
    assert JobFactory(status="cancelled").duration is None


def test_deleting_a_user_leaves_the_jobs_without_an_owner():
    user = UserFactory()
    running = JobFactory(created_by=user, status="running")
    user.delete()
    assert stored(running)["created_by_id"] is None
    assert stored(running)["version"] == 1


def test_a_job_reads_as_its_name_or_its_id():
    assert str(JobFactory.build(name="nightly")) == "nightly"
    job = JobFactory.build(name="")
    assert str(job) == str(job.pk)


def test_the_newest_job_comes_first():
    jobs = JobFactory.create_batch(3)
    assert list(ContainerJob.objects.all()) == jobs[::-1]


def test_all_fields_come_back_as_they_were_stored():
    given = {
        "labels": {"team": "data"},
        "command": ["/bin/sh", "-c", "echo ü \U0001f600"],
        "environment": {"A": "1\n2"},
        "working_dir": "/srv",
        "cpu_limit": 0.5,
        "memory_limit_mb": 64,
        "pids_limit": 9,
        "timeout_seconds": 60,
        "queue": "batch",
        "retry_policy": {"strategy": "fixed"},
        "output": "x" * 70_000,
    }
    job = ContainerJob.objects.get(pk=JobFactory(**given).pk)
    assert {name: getattr(job, name) for name in given} == given
