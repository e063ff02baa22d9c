"""The claim: who gets which job, in which order, and never two the same."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.utils import timezone

from container_manager import lifecycle
from container_manager.models import ContainerJob, JobAttempt, Queue, StateHistory
from container_manager.models.leases import Offer
from tests.support.spine import (
    ENGINE,
    Crash,
    a_worker,
    at_once,
    contradictions,
    crash_at,
    finish,
    held_by,
    path_of,
    queued,
    reaching,
)

alone = pytest.mark.django_db
together = pytest.mark.django_db(transaction=True)

DOCKER = Offer("docker", "container", "docker", "container", "engine-2")


def claimed(worker, limit=100):
    return [lease.job_id for lease in lifecycle.claim(worker, limit)]


def minutes_ago(number):
    return timezone.now() - timedelta(minutes=number)


# The order


@alone
def test_the_higher_priority_is_claimed_first_and_among_equals_the_one_queued_first():
    late = queued(priority=50, queued_at=minutes_ago(1))
    low = queued(priority=10, queued_at=minutes_ago(9))
    early = queued(priority=50, queued_at=minutes_ago(5))
    high = queued(priority=90, queued_at=minutes_ago(1))
    assert claimed(a_worker()) == [high.pk, early.pk, late.pk, low.pk]


@alone
def test_the_order_holds_over_queues_executors_and_isolations():
    worker = a_worker(
        offers=[Offer("", kind, "process", "process", ENGINE) for kind in ("auto", "process")]
    )
    jobs = [
        queued(queue=f"queue-{number % 4}", isolation=kind, priority=number)
        for number in range(1, 9)
        for kind in ("auto", "process")
    ]
    best = sorted(jobs, key=lambda job: (-job.priority, job.queued_at))
    assert claimed(worker, 7) == [job.pk for job in best[:7]]


@alone
def test_a_claim_takes_no_more_than_it_asked_for():
    jobs = [queued() for _ in range(5)]
    worker = a_worker()
    assert len(claimed(worker, 3)) == 3
    assert len(claimed(worker, 3)) == 2
    assert ContainerJob.objects.filter(status="running").count() == len(jobs)


@alone
def test_a_claim_of_few_takes_the_best_of_many():
    jobs = [queued(priority=10 + number, queued_at=minutes_ago(60 - number)) for number in range(9)]
    assert claimed(a_worker(), 2) == [jobs[8].pk, jobs[7].pk]
    worse = queued(priority=0, queued_at=minutes_ago(90))
    assert worse.pk not in claimed(a_worker(), 7)
    assert claimed(a_worker(), 1) == [worse.pk]


@alone
@pytest.mark.parametrize("limit", [0, -1])
def test_a_claim_of_nothing_takes_nothing(limit):
    job = queued()
    assert claimed(a_worker(), limit) == []
    job.refresh_from_db()
    assert (job.status, job.version) == ("queued", 1)


@alone
def test_one_claim_serves_a_hundred_lanes():
    jobs = {queued(queue=f"queue-{number}").pk for number in range(100)}
    assert set(claimed(a_worker(), 200)) == jobs


# What is not for this worker, or not yet


@alone
def test_a_job_is_not_claimed_before_it_is_scheduled():
    later = queued(scheduled_for=timezone.now() + timedelta(hours=1))
    due = queued(scheduled_for=minutes_ago(1))
    worker = a_worker()
    assert claimed(worker) == [due.pk]
    ContainerJob.objects.filter(pk=later.pk).update(scheduled_for=minutes_ago(0))
    assert claimed(worker) == [later.pk]


@alone
def test_a_scheduled_job_of_high_priority_does_not_hide_the_ones_that_are_due():
    for _ in range(20):
        queued(priority=100, scheduled_for=timezone.now() + timedelta(hours=1))
    due = queued(priority=1)
    assert claimed(a_worker(), 5) == [due.pk]


@alone
def test_only_jobs_whose_executor_and_isolation_are_offered_are_claimed():
    open_to_all = queued()
    named = queued(executor="docker", isolation="container")
    stronger = queued(executor="docker", isolation="microvm")
    assert claimed(a_worker(offers=[DOCKER])) == [named.pk]
    assert claimed(a_worker()) == [open_to_all.pk]
    stronger.refresh_from_db()
    assert stronger.status == "queued"


@alone
def test_a_worker_that_offers_nothing_claims_nothing():
    queued()
    assert claimed(a_worker(offers=[])) == []


@alone
def test_a_worker_of_some_queues_leaves_the_others_alone():
    wanted = queued(queue="mine")
    other = queued(queue="theirs", priority=100)
    assert claimed(a_worker(queues=["mine", "empty"])) == [wanted.pk]
    assert claimed(a_worker()) == [other.pk]


@alone
@pytest.mark.parametrize(
    "status", ["pending", "running", "completed", "failed", "retrying", "cancelled", "killed"]
)
def test_only_queued_jobs_are_claimed(job, status):
    job(status=status)
    assert claimed(a_worker()) == []


@alone
def test_a_running_job_is_never_offered_again():
    worker = a_worker()
    lease = held_by(worker)
    assert claimed(a_worker("w2")) == []
    assert claimed(worker) == []
    finish(worker, lease)
    assert claimed(worker) == []


@alone
def test_the_last_retry_starts_although_the_count_equals_the_maximum():
    last = queued(retry_count=3, max_retries=3)
    assert last.is_ready_to_launch
    assert claimed(a_worker()) == [last.pk]


# Queues with a row


@alone
def test_a_paused_queue_is_left_alone_until_it_is_opened():
    waits = queued(queue="paused", priority=100)
    goes = queued()
    Queue.objects.create(name="paused", paused=True)
    worker = a_worker()
    assert claimed(worker) == [goes.pk]
    Queue.objects.update(paused=False)
    assert claimed(worker) == [waits.pk]


@alone
def test_a_queue_runs_no_more_jobs_than_its_limit():
    for _ in range(5):
        queued(queue="narrow")
    free = queued()
    Queue.objects.create(name="narrow", max_running=2)
    worker = a_worker()
    first = lifecycle.claim(worker, 100)
    assert len([lease for lease in first if lease.job_id != free.pk]) == 2
    assert claimed(worker) == []
    finish(worker, next(lease for lease in first if lease.job_id != free.pk))
    assert len(claimed(worker)) == 1


@alone
def test_a_limit_takes_the_best_of_all_lanes_of_its_queue():
    worker = a_worker(
        offers=[Offer("", kind, "process", "process", ENGINE) for kind in ("auto", "process")]
    )
    Queue.objects.create(name="narrow", max_running=2)
    jobs = [
        queued(queue="narrow", isolation=kind, priority=priority)
        for kind, priority in (("auto", 10), ("process", 90), ("auto", 80), ("process", 20))
    ]
    assert claimed(worker) == [jobs[1].pk, jobs[2].pk]


@alone
@pytest.mark.parametrize(("limit", "expected"), [(0, 0), (None, 3), (7, 3)])
def test_a_limit_of_none_is_no_limit_and_one_of_0_closes_the_queue(limit, expected):
    for _ in range(3):
        queued(queue="some")
    Queue.objects.create(name="some", max_running=limit)
    assert len(claimed(a_worker())) == expected


@alone
def test_a_limit_that_was_lowered_below_what_runs_lets_nothing_start():
    worker = a_worker()
    for _ in range(3):
        held_by(worker, queue="some")
    queued(queue="some")
    Queue.objects.create(name="some", max_running=2)
    assert claimed(worker) == []


# What a claim writes


@alone
def test_a_claim_commits_who_runs_what_on_which_engine_before_anything_is_created():
    worker = a_worker("builder")
    lease = held_by(worker)
    job = ContainerJob.objects.get(pk=lease.job_id)
    attempt = JobAttempt.objects.get(job=job)
    assert (job.status, job.attempt, job.version) == ("running", 1, 2)
    assert job.launched_at is not None
    assert (attempt.attempt, attempt.lease_epoch, attempt.phase) == (1, 1, "claimed")
    assert (attempt.worker_id, attempt.worker_name) == (worker.worker_id, "builder")
    assert (attempt.executor, attempt.isolation) == ("process", "process")
    assert attempt.engine_id == ENGINE
    assert attempt.execution_id == ""
    assert attempt.name == f"cm-{job.pk}-1" == lease.name


@alone
def test_the_history_names_the_worker_and_the_engine():
    lease = held_by(a_worker("builder"))
    row = StateHistory.objects.get(entity_id=lease.job_id, version=2)
    assert (row.old_state, row.new_state, row.attempt) == ("queued", "running", 1)
    assert row.actor == "worker:builder"
    assert row.metadata["engine"] == ENGINE


@alone
def test_a_lease_carries_all_that_is_needed_to_run():
    fields = {
        "command": ["/bin/echo", "ü", '"'],
        "environment": {"A": "1"},
        "working_dir": "/tmp",
        "timeout_seconds": 7,
        "stop_grace_seconds": 0,
        "cpu_limit": 0.5,
        "memory_limit_mb": 64,
        "retry_policy": {"strategy": "fixed"},
    }
    lease = held_by(a_worker(), **fields)
    assert {name: getattr(lease, name) for name in fields} == fields


@alone
def test_a_second_start_is_a_second_attempt():
    worker = a_worker()
    first = held_by(worker, max_retries=0)
    finish(worker, first, 1)
    lifecycle.retry([first.job_id])
    (second,) = lifecycle.claim(worker, 1)
    assert (second.attempt, second.epoch) == (2, 1)
    attempts = JobAttempt.objects.filter(job=first.job_id).order_by("attempt")
    assert list(attempts.values_list("attempt", "phase")) == [(1, "done"), (2, "claimed")]


@together
@pytest.mark.parametrize("point", ["C1", "C2"])
def test_a_worker_that_dies_before_its_claim_commits_has_claimed_nothing(point):
    Queue.objects.create(name="default", max_running=10)
    job = queued()
    with reaching(crash_at(point)), pytest.raises(Crash):
        lifecycle.claim(a_worker(), 1)
    assert path_of(job) == ["queued"]
    assert not JobAttempt.objects.exists()
    assert claimed(a_worker("w2")) == [job.pk]


# Several at once


@together
def test_eight_workers_at_once_and_one_job_one_of_them_gets_it():
    for _ in range(10):
        job = queued()
        workers = [a_worker(f"w{number}") for number in range(8)]
        results = at_once(*(lambda worker=worker: claimed(worker, 1) for worker in workers))
        assert sorted(results) == [[]] * 7 + [[job.pk]]
        assert path_of(job) == ["queued", "running"]


@together
def test_two_workers_at_once_never_share_a_job():
    jobs = {queued(queue=f"queue-{number % 3}").pk for number in range(120)}

    def drain(worker):
        mine = []
        while batch := claimed(worker, 7):
            mine += batch
        return mine

    workers = [a_worker("w1"), a_worker("w2")]
    one, other = at_once(*(lambda worker=worker: drain(worker) for worker in workers))
    rest = claimed(a_worker("w3"))
    assert sorted([*one, *other, *rest]) == sorted(jobs)
    assert JobAttempt.objects.count() == len(jobs)
    assert contradictions() == []


@together
def test_workers_at_once_never_overshoot_a_limit():
    Queue.objects.create(name="narrow", max_running=3)
    for _ in range(40):
        queued(queue="narrow")
    workers = [a_worker(f"w{number}") for number in range(6)]
    for _ in range(5):
        results = at_once(*(lambda worker=worker: claimed(worker, 2) for worker in workers))
        assert sum(map(len, results)) <= 3
        assert ContainerJob.objects.filter(status="running").count() <= 3
    while claimed(workers[0]):
        pass
    assert ContainerJob.objects.filter(status="running").count() == 3
