"""Many workers and thousands of jobs: each runs exactly once, judged from outside the database."""

from __future__ import annotations

import re
from datetime import timedelta

import pytest
from django.db import connection
from django.utils import timezone

from container_manager import ids
from container_manager.models import ContainerJob, JobAttempt, Queue, StateHistory, Worker
from tests.factories import JobFactory
from tests.support.inline_jobs import runs
from tests.support.spine import contradictions
from tests.support.workers import wait_until

pytestmark = [pytest.mark.processes, pytest.mark.django_db(transaction=True)]

LIMIT = 5
SQLITE = connection.vendor == "sqlite"
WORKERS = 4 if SQLITE else 8
JOBS = 1000 if SQLITE else 5000
TROUBLE = re.compile(r"locked|Traceback|ERROR|deadlock|WARNING", re.IGNORECASE)


@pytest.fixture(autouse=True)
def _inline(workers):
    workers.use_inline()


def make_jobs(number):
    """Most of them anywhere; some in a narrow queue, some in a closed one, some for tomorrow."""
    now = timezone.now()
    rows = []
    for count in range(number):
        kind = {0: "narrow", 1: "closed", 2: "later"}.get(count % 20, "open")
        rows.append(
            ContainerJob(
                id=ids.uuid7(),
                name=kind,
                image="any",
                command=["x"],
                status="queued",
                queued_at=now,
                queue={"open": f"queue-{count % 3}", "later": "default"}.get(kind, kind),
                priority=count % 101,
                scheduled_for=now + timedelta(days=1) if kind == "later" else None,
                environment={"SECONDS": "0.01"} if kind == "narrow" else {},
            )
        )
    Queue.objects.create(name="narrow", max_running=LIMIT)
    Queue.objects.create(name="closed", paused=True)
    ContainerJob.objects.bulk_create(rows, batch_size=500)
    return [job for job in rows if job.name in ("open", "narrow")]


class Sampler:
    """Looks at the narrow queue as often as it can."""

    def __init__(self):
        self.most = 0

    def look(self):
        running = ContainerJob.objects.filter(queue="narrow", status="running").count()
        self.most = max(self.most, running)
        return True


def is_drained():
    going = ContainerJob.objects.filter(status__in=["queued", "running"])
    return not going.exclude(name__in=["closed", "later"]).exists()


def most_at_once(queue):
    """The most jobs of a queue that ran at once, by the times in their history."""
    ours = ContainerJob.objects.filter(queue=queue).values("pk")
    moves = StateHistory.objects.filter(entity_id__in=ours).order_by("changed_at", "-old_state")
    running = most = 0
    for old, new in moves.values_list("old_state", "new_state"):
        running += (new == "running") - (old == "running")
        most = max(most, running)
    return most


def assert_each_ran_once(workers, wanted):
    ran = runs(workers.runs)
    assert set(ran) == {(str(job.pk), 1) for job in wanted}
    assert set(ran.values()) == {1}
    by_status = ContainerJob.objects.values_list("name", "status").distinct()
    assert set(by_status) == {
        ("open", "completed"),
        ("narrow", "completed"),
        ("closed", "queued"),
        ("later", "queued"),
    }
    assert JobAttempt.objects.filter(phase="done").count() == len(wanted)
    assert StateHistory.objects.filter(version=3).count() == len(wanted)
    assert contradictions() == []


@pytest.mark.parametrize(
    ("jobs", "delay"),
    [pytest.param(JOBS, None, id="plainly"), pytest.param(JOBS, 0.01, id="with_delays")],
)
def test_many_workers_run_each_job_exactly_once(workers, jobs, delay):
    # Nobody dies here, and on SQLite a beat may have to wait its turn among so many writers.
    patient = {"LEASE_SECONDS": 30}
    started = [workers.start("--concurrency", "10", delay=delay, **patient) for _ in range(WORKERS)]
    for worker in started:
        worker.wait_until_started()
    wanted = make_jobs(jobs)
    sampler = Sampler()
    wait_until(lambda: sampler.look() and is_drained(), "the queues to be drained", patience=120)
    for worker in started:
        worker.terminate()
    assert [worker.ended() for worker in started] == [0] * WORKERS, workers.said[-5000:]
    trouble = [line for line in workers.said.splitlines() if TROUBLE.search(line)]
    assert trouble == []
    assert_each_ran_once(workers, wanted)
    assert 0 < sampler.most <= LIMIT
    assert 0 < most_at_once("narrow") <= LIMIT
    assert not Worker.objects.exists()
    took_part = set(JobAttempt.objects.values_list("worker_name", flat=True))
    assert len(took_part) > 1


def test_one_worker_starts_jobs_by_priority_and_then_by_time_queued(workers):
    now = timezone.now()
    jobs = [
        JobFactory(
            status="queued",
            priority=number % 5,
            queued_at=now - timedelta(minutes=number),
            queue=f"queue-{number % 2}",
        )
        for number in range(40)
    ]
    workers.start("--until-idle", "--concurrency", "1").ended()
    best_first = sorted(jobs, key=lambda job: (-job.priority, job.queued_at))
    assert list(runs(workers.runs)) == [(str(job.pk), 1) for job in best_first]


def test_failures_are_retried_until_the_retries_are_used_up(workers):
    policy = {"strategy": "fixed", "base_seconds": 0, "jitter": 0}
    job = JobFactory(status="queued", environment={"EXIT": "3"}, max_retries=2, retry_policy=policy)
    assert workers.start("--until-idle").ended() == 0
    job.refresh_from_db()
    assert (job.status, job.exit_code, job.attempt, job.retry_count) == ("failed", 3, 3, 2)
    assert set(runs(workers.runs)) == {(str(job.pk), number) for number in (1, 2, 3)}
    assert contradictions() == []


def test_a_worker_that_waits_for_nothing_ends_and_leaves_no_row(workers):
    assert workers.start("--until-idle").ended() == 0
    assert not Worker.objects.exists()


def test_a_worker_of_some_queues_is_idle_when_those_are_empty(workers):
    other = JobFactory(status="queued", queue="theirs")
    mine = JobFactory(status="queued", queue="mine")
    assert workers.start("--until-idle", "--queues", "mine").ended() == 0
    assert set(runs(workers.runs)) == {(str(mine.pk), 1)}
    other.refresh_from_db()
    assert other.status == "queued"


@pytest.mark.postgres
def test_a_job_that_comes_to_an_idle_worker_starts_at_once_by_notification(workers):
    workers.start(POLL_SECONDS=30).wait_until_started()
    wait_until(lambda: _is_listening(), "the worker to listen")
    for _ in range(3):
        job = JobFactory()
        job.mark_as_queued()
        wait_until(lambda job=job: runs(workers.runs)[str(job.pk), 1], "the job", patience=5)


def _is_listening():
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM pg_stat_activity WHERE query ILIKE 'LISTEN%%'", [])
        return cursor.fetchone()[0]
