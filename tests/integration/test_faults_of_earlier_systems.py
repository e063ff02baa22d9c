"""What went wrong in earlier systems of this kind, and must not come back: one test for each."""

from __future__ import annotations

from datetime import timedelta
from functools import partial

import pytest
from django.db import connection, transaction
from django.utils import timezone

from container_manager import lifecycle
from container_manager.models import ContainerJob, JobAttempt, JobLog
from container_manager.states import JobStatus, StopKind
from tests.factories import JobFactory
from tests.support.loops import work
from tests.support.running import lives, queue_job, stderr, stdout
from tests.support.spine import a_worker, at_once, failed, finish, held_by, path_of, queued
from tests.support.workers import settled, status_of, wait_for, wait_until

pytestmark = pytest.mark.django_db(transaction=True)


def test_a_claim_does_not_release_its_lock_before_it_changes_the_row():
    for _ in range(5):
        queued()
        workers = [a_worker(f"w{number}") for number in range(4)]
        launched = at_once(*(partial(lifecycle.claim, worker, 1) for worker in workers))
        assert sum(map(len, launched)) == 1


def test_a_running_job_is_not_offered_by_the_queue_again():
    lease = held_by(a_worker())
    lifecycle.requeue_due()
    lifecycle.expire_waiting()
    assert lifecycle.claim(a_worker("w2"), 10) == []
    assert not ContainerJob.objects.ready().filter(pk=lease.job_id).exists()


def test_a_transition_drops_no_timestamp():
    worker = a_worker()
    job = lifecycle.submit(image="busybox", command=["true"], queue_now=True)
    assert ContainerJob.objects.get().queued_at is not None
    (lease,) = lifecycle.claim(worker, 1)
    assert ContainerJob.objects.get().launched_at is not None
    finish(worker, lease)
    job.refresh_from_db()
    assert job.queued_at <= job.launched_at <= job.completed_at
    assert job.duration_ms is not None


def test_nothing_is_created_inside_a_transaction_that_could_be_rolled_back(world):
    """When the engine is asked to create, another connection sees the attempt already."""
    seen = []

    def look(spec):
        rows = JobAttempt.objects.filter(job=spec.job_id, attempt=spec.attempt)
        seen.append((connection.in_atomic_block, list(rows.values_list("engine_id", flat=True))))
        connection.close()

    world.on_create = look
    queued()
    assert work() == 0
    assert seen == [(False, ["fake"])]


def test_a_hiccup_of_the_engine_fails_no_job(world):
    world.hiccups = 2
    jobs = [queued(max_retries=0) for _ in range(6)]
    assert work() == 0
    for job in jobs:
        assert path_of(job) == ["queued", "running", "completed"]
    assert world.times("start") == len(jobs)


def test_a_non_zero_exit_is_retried(world):
    world.outcome = failed(1)
    policy = {"strategy": "fixed", "base_seconds": 0, "jitter": 0}
    job = queued(max_retries=1, retry_policy=policy)
    assert work() == 0
    job.refresh_from_db()
    assert (job.status, job.attempt, job.retry_count) == ("failed", 2, 1)


@pytest.mark.processes
def test_stdout_and_stderr_are_not_told_apart_by_keywords(workers):
    job = queue_job("process", "echo ERROR: warning; echo all is well >&2")
    workers.start()
    settled(job)
    assert stdout(job) == b"ERROR: warning\n"
    assert stderr(job) == b"all is well\n"
    assert JobLog.objects.count() == 2


def test_retrying_is_in_every_constraint(job):
    retrying = job(status="failed")
    retrying.transition_to("retrying")
    with connection.cursor() as cursor:
        cursor.execute("SELECT status FROM container_jobs")
        assert cursor.fetchall() == [("retrying",)]
    for status in JobStatus:
        assert JobFactory(status=status).status == status


@pytest.mark.parametrize("launched", [True, False])
def test_no_constraint_on_launched_at_refuses_a_cancel(job, launched):
    cancelled = job(status="running" if launched else "queued")
    cancelled.transition_to("cancelled")
    cancelled.refresh_from_db()
    assert (cancelled.launched_at is not None) == launched


@pytest.mark.processes
def test_a_kill_does_not_only_set_a_status_while_the_work_runs_on(workers):
    job = queue_job("process", "trap '' TERM; echo ready; while :; do sleep 0.2; done")
    workers.start()
    wait_until(lambda: stdout(job), "it to run")
    lifecycle.stop([job.pk], StopKind.KILL)
    assert status_of(job) == "running" or not lives(job)
    wait_for(job, "killed")
    assert not lives(job)


def test_the_last_retry_starts_although_the_count_equals_the_maximum(world):
    world.outcome = failed(1)
    ago = timezone.now() - timedelta(minutes=1)
    last = queued(retry_count=2, max_retries=2, queued_at=ago)
    assert work() == 0
    last.refresh_from_db()
    assert (last.status, last.attempt) == ("failed", 1)
    assert transaction.get_autocommit()
