"""Rows 6, 7, 31, 32, 33, 34: many at once, on threads and connections of their own.

`RACES=10000 pytest tests/faults/test_races.py` plays each of them so often; the orders that two
verbs can take are played one by one where a crash point lets the one stop while the other goes on.
"""

from __future__ import annotations

import os
import threading
from collections import Counter
from contextlib import contextmanager
from datetime import timedelta
from functools import partial

import pytest
from django.db import connection
from django.utils import timezone

from container_manager import lifecycle
from container_manager.exceptions import InvalidTransition, MoveRefused
from container_manager.executors.base import Outcome
from container_manager.lifecycle import Stopped
from container_manager.models import ContainerJob, JobAttempt, JobLog
from container_manager.models.outcomes import LogChunk, Progress
from container_manager.states import JobStatus, Reason, StopKind
from tests.support.spine import (
    PLACE,
    a_worker,
    at_once,
    contradictions,
    ending,
    failed,
    finish,
    held_by,
    path_of,
    queued,
    reaching,
)

pytestmark = pytest.mark.django_db(transaction=True)

RACES = int(os.environ.get("RACES", "8"))
alone = pytest.mark.django_db
KINDS = (StopKind.KILL, StopKind.CANCEL)


def status_of(pk):
    return ContainerJob.objects.values_list("status", flat=True).get(pk=pk)


def refused(act):
    """What `act` returns, or that the state did not allow it."""
    try:
        return act()
    except MoveRefused as error:
        return error


# Row 6: several workers and one row ---------------------------------------------------------------


@pytest.mark.parametrize("number", [2, 8])
def test_of_several_workers_that_claim_one_row_one_gets_it_and_no_other_hears_an_error(number):
    workers = [a_worker(f"w{each}") for each in range(number)]

    def claim(worker, rounds):
        return [lease.job_id for _ in range(rounds) for lease in lifecycle.claim(worker, 1)]

    for _ in range(max(1, RACES // 2)):
        jobs = [queued().pk for _ in range(3)]
        caught = at_once(*(partial(claim, worker, 3) for worker in workers))
        caught.append(claim(a_worker("last"), 3))  # what all stepped aside for
        assert sorted(pk for each in caught for pk in each) == sorted(jobs)
        assert {path_of(pk)[-1] for pk in jobs} == {"running"}
    assert contradictions() == []


# Row 7: two rescuers and one orphan ---------------------------------------------------------------


def orphans():
    return lifecycle.orphans((), [PLACE], 100)


@alone
def test_of_two_rescuers_the_slow_one_gets_nothing_and_can_write_nothing():
    """It read, was stopped, and goes on when the quick one is long done."""
    gone, quick, slow = a_worker("gone"), a_worker("quick"), a_worker("slow")
    for write_first in (False, True):
        lost = held_by(gone)
        seen_by_slow = orphans()
        (mine,) = lifecycle.adopt(quick, orphans())
        if write_first:
            finish(quick, mine)
        assert lifecycle.adopt(slow, seen_by_slow) == []
        for epoch in (lost.epoch, mine.epoch):
            step = Progress(mine.job_id, mine.attempt, epoch, "started")
            assert lifecycle.progress(slow, [step]) == set()
        assert lifecycle.finish(gone, [ending(lost, 1)]) == set()
        if not write_first:
            finish(quick, mine)
        assert path_of(lost.job_id) == ["queued", "running", "completed"]
    assert contradictions() == []


def test_of_several_rescuers_at_once_exactly_one_owns_each_orphan():
    for _ in range(max(1, RACES // 4)):
        leases = [held_by(a_worker("gone")) for _ in range(4)]
        seen = list(JobAttempt.objects.filter(job__in=[lease.job_id for lease in leases]))
        rescuers = [a_worker(f"r{number}") for number in range(4)]
        adopted = at_once(*(partial(lifecycle.adopt, each, seen) for each in rescuers))
        owners = Counter(lease.job_id for each in adopted for lease in each)
        assert owners == dict.fromkeys((lease.job_id for lease in leases), 1)
        for rescuer, mine in zip(rescuers, adopted, strict=True):
            held = JobAttempt.objects.held_by(rescuer.worker_id).values_list("job", flat=True)
            assert set(held) == {lease.job_id for lease in mine}
            for lease in mine:
                finish(rescuer, lease)
    assert contradictions() == []


def test_a_rescuer_and_the_worker_that_comes_back_with_its_end_one_of_them_writes_it():
    for number in range(RACES):
        worker, rescuer = a_worker("w"), a_worker("r")
        lease = held_by(worker, max_retries=0)
        seen = list(JobAttempt.objects.filter(job=lease.job_id))
        ended, adopted = at_once(
            partial(lifecycle.finish, worker, [ending(lease, number % 2)]),
            partial(lifecycle.adopt, rescuer, seen),
        )
        assert len(ended) + len(adopted) == 1
        if adopted:
            finish(rescuer, adopted[0])
        assert len(path_of(lease.job_id)) == 3
    assert contradictions() == []


# Row 31: kill and natural completion --------------------------------------------------------------


def truth(came, job):
    """Does the answer to a stop agree with how the job stands in the end?"""
    if came == Stopped.REFUSED:  # the end was there first
        return job.status in ("completed", "failed", "killed", "cancelled")
    if came == Stopped.DONE:  # between two attempts
        return job.status in ("killed", "cancelled")
    return came == Stopped.REQUESTED and job.status in ("completed", "failed")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("exit_code", "retries"), [(0, 0), (1, 0), (1, 1)])
def test_a_stop_that_races_the_end_leaves_one_state_and_a_true_answer(kind, exit_code, retries):
    for _ in range(RACES):
        worker = a_worker()
        lease = held_by(worker, max_retries=retries)
        ended, came = at_once(
            partial(lifecycle.finish, worker, [ending(lease, exit_code)]),
            partial(lifecycle.stop, [lease.job_id], kind),
        )
        job = ContainerJob.objects.get(pk=lease.job_id)
        assert ended == {lease.job_id}
        assert truth(came[job.pk], job), (came, job.status)
        assert job.exit_code == exit_code
        again = lifecycle.stop([job.pk], StopKind.KILL)[job.pk]
        assert again == Stopped.REFUSED
        assert status_of(job.pk) == job.status
    assert contradictions() == []


@contextmanager
def halted_at(point, act):
    """`act` on a thread of its own, standing at `point` while the block runs; its results."""
    there, go_on, results = threading.Event(), threading.Event(), []
    halting = []

    def hook(name):
        if name == point and threading.current_thread() in halting:
            there.set()
            go_on.wait(60)

    def run():
        try:
            results.append(refused(act))
        finally:
            there.set()
            connection.close()

    thread = threading.Thread(target=run)
    halting.append(thread)
    with reaching(hook):
        thread.start()
        assert there.wait(60)
        try:
            yield results
        finally:
            go_on.set()
            thread.join(60)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("retries", [0, 1])
@pytest.mark.postgres
def test_a_stop_that_comes_while_an_end_is_being_written_waits_for_it(kind, retries):
    """The end moved the job, and did not decide on its retry yet (T1). SQLite locks the file."""
    worker = a_worker()
    lease = held_by(worker, max_retries=retries)
    end = partial(lifecycle.finish, worker, [ending(lease, 1)])
    came = []
    stopper = threading.Thread(target=lambda: came.append(stop_here(lease.job_id, kind)))
    with halted_at("T1", end) as ended:
        stopper.start()
        stopper.join(0.3)
        assert came == []
    stopper.join(60)
    job = ContainerJob.objects.get(pk=lease.job_id)
    assert ended == [{job.pk}]
    if retries:
        assert (came[0], job.status) == (Stopped.DONE, "killed" if kind == "kill" else "cancelled")
    elif kind == StopKind.CANCEL:
        assert (came[0], job.status) == (Stopped.DONE, "cancelled")
    else:
        assert (came[0], job.status) == (Stopped.REFUSED, "failed")
    assert contradictions() == []


def stop_here(job_id, kind):
    try:
        return lifecycle.stop([job_id], kind)[job_id]
    finally:
        connection.close()


ORDERS = {
    "asked, signalled, ended by it": ("stop", "signal", "end by signal"),
    "asked, ended by itself": ("stop", "end"),
    "asked, signalled, ended by itself": ("stop", "signal", "end"),
    "ended, asked": ("end", "stop"),
    "asked, lost": ("stop", "lost"),
    "asked, adopted, ended by signal": ("stop", "adopt", "end by signal"),
    "asked, signalled, adopted, lost": ("stop", "signal", "adopt", "lost"),
}
ENDS = {
    "asked, signalled, ended by it": "as asked",
    "asked, ended by itself": "failed",
    "asked, signalled, ended by itself": "failed",
    "ended, asked": "retried, then as asked",
    "asked, lost": "as asked",
    "asked, adopted, ended by signal": "as asked",
    "asked, signalled, adopted, lost": "as asked",
}


@alone
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("order", ORDERS)
def test_whatever_the_order_of_stop_and_end_the_job_says_what_happened_and_runs_no_more(
    order, kind
):
    worker = a_worker()
    lease = held_by(worker, max_retries=3)
    steps = ORDERS[order]
    for step in steps:
        if step == "stop":
            lifecycle.stop([lease.job_id], kind)
        elif step == "signal":
            assert lifecycle.signalled(worker, [lease], kind)
        elif step == "adopt":
            worker = a_worker("other")
            (lease,) = lifecycle.adopt(worker, orphans())
        elif step == "lost":
            lost = Outcome(None, reason=Reason.WORKER_LOST)
            assert lifecycle.finish(worker, [ending(lease, lost)])
        elif step == "end by signal":
            killed = failed(137, Reason.SIGNAL, signal=9)
            assert lifecycle.finish(worker, [ending(lease, killed, kind)])
        else:
            assert lifecycle.finish(worker, [ending(lease, 1)])
    target = {StopKind.KILL: "killed", StopKind.CANCEL: "cancelled"}[kind]
    expected = "failed" if ENDS[order] == "failed" else target
    assert status_of(lease.job_id) == expected
    assert lifecycle.requeue_due() == 0
    assert lifecycle.claim(a_worker("next"), 10) == []
    assert contradictions() == []


# Row 32: cancel and claim -------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_stop_that_races_a_claim_either_prevents_the_start_or_reaches_the_worker(kind):
    target = {StopKind.KILL: "killed", StopKind.CANCEL: "cancelled"}[kind]
    for _ in range(RACES):
        worker, job = a_worker(), queued()
        leases, came = at_once(
            partial(lifecycle.claim, worker, 1), partial(lifecycle.stop, [job.pk], kind)
        )
        if came[job.pk] == Stopped.DONE:
            assert (leases, status_of(job.pk)) == ([], target)
            assert not JobAttempt.objects.filter(job=job).exists()
        else:
            assert came[job.pk] == Stopped.REQUESTED
            (lease,) = leases
            assert status_of(job.pk) == "running"
            assert lifecycle.requests([job.pk]) == {job.pk: kind}
            assert finish(worker, lease, failed(137), kind).status == target
    assert contradictions() == []


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("point", ["C1", "C2", "C3"])
def test_a_stop_in_the_middle_of_a_claim_never_leaves_a_stopped_job_with_a_live_attempt(
    point, kind
):
    worker, job = a_worker(), queued()
    came = []
    stopper = threading.Thread(target=lambda: came.append(stop_here(job.pk, kind)))
    with halted_at(point, partial(lifecycle.claim, worker, 1)) as claims:
        stopper.start()
        stopper.join(0.3)
    stopper.join(60)
    (leases,) = claims
    live = JobAttempt.objects.active().filter(job=job).exists()
    assert live == bool(leases)
    if leases:
        assert (came, status_of(job.pk)) == ([Stopped.REQUESTED], "running")
    else:
        assert came == [Stopped.DONE]
        assert status_of(job.pk) in ("cancelled", "killed")
    assert contradictions() == []


# Row 33: retry and kill, retry and retry ----------------------------------------------------------


def failed_job(**fields):
    worker = a_worker()
    return finish(worker, held_by(worker, max_retries=0, **fields), 1)


def test_a_double_click_on_retry_starts_one_attempt_and_the_second_is_told_why_not():
    for _ in range(RACES):
        job = failed_job()
        results = at_once(*[partial(refused, partial(lifecycle.retry, [job.pk]))] * 3)
        assert Counter(map(type, results)) == {int: 1, InvalidTransition: 2}
        assert path_of(job)[-2:] == ["retrying", "queued"]
        (lease,) = lifecycle.claim(a_worker(), 10)
        assert lease.attempt == 2
        assert lifecycle.claim(a_worker(), 10) == []
        with pytest.raises(InvalidTransition):
            lifecycle.retry([job.pk])
        lifecycle.stop([job.pk], StopKind.KILL)
    assert contradictions() == []


@pytest.mark.parametrize("kind", KINDS)
def test_a_retry_that_races_a_stop_gives_at_most_one_attempt_and_none_after_the_stop(kind):
    for _ in range(RACES):
        job = failed_job()
        retried, came = at_once(
            partial(refused, partial(lifecycle.retry, [job.pk])),
            partial(lifecycle.stop, [job.pk], kind),
        )
        stopped = came[job.pk] == Stopped.DONE
        if isinstance(retried, InvalidTransition):
            assert (stopped, status_of(job.pk)) == (True, "cancelled")
        assert len(lifecycle.claim(a_worker(), 10)) == (0 if stopped else 1)
        lifecycle.stop([job.pk], StopKind.KILL)
    assert contradictions() == []


def test_nothing_is_retried_after_it_was_cancelled_not_even_twice():
    job = failed_job()
    lifecycle.stop([job.pk], StopKind.CANCEL)
    results = at_once(*[partial(refused, partial(lifecycle.retry, [job.pk]))] * 2)
    assert [type(each) for each in results] == [InvalidTransition] * 2
    with pytest.raises(InvalidTransition):
        lifecycle.bring(job.pk, JobStatus.RETRYING)
    assert status_of(job.pk) == "cancelled"


def test_an_automatic_requeue_and_a_retry_by_hand_at_once_queue_the_job_once():
    policy = {"strategy": "fixed", "base_seconds": 0, "jitter": 0}
    for _ in range(RACES):
        worker = a_worker()
        job = finish(worker, held_by(worker, max_retries=5, retry_policy=policy), 1)
        at_once(lifecycle.requeue_due, partial(refused, partial(lifecycle.retry, [job.pk])))
        assert path_of(job)[-2:] == ["retrying", "queued"]
        assert len(lifecycle.claim(worker, 10)) == 1
        lifecycle.stop([job.pk], StopKind.KILL)
    assert contradictions() == []


# Row 34: many failures at once --------------------------------------------------------------------


def busiest_second(moments):
    """The most of these moments that fall into any one second, wherever it begins."""
    moments, most, first = sorted(moments), 0, 0
    for last, moment in enumerate(moments):
        while moment - moments[first] >= timedelta(seconds=1):
            first += 1
        most = max(most, last - first + 1)
    return most


@alone
@pytest.mark.parametrize("batch", [1000, 7])
def test_of_a_thousand_jobs_that_fail_in_one_second_few_come_back_in_any_one(batch):
    """At most 5 % with the default policy, in whatever batches the ends were written.

    What counts is how long each waits after its end: this machine may take more than a second.
    """
    worker = a_worker()
    ContainerJob.objects.bulk_create([queued_unsaved() for _ in range(1000)])
    leases = lifecycle.claim(worker, 1000)
    for start in range(0, 1000, batch):
        lifecycle.finish(worker, [ending(each, 1) for each in leases[start : start + batch]])
    rows = ContainerJob.objects.filter(status="retrying")
    waits = [due - ended for due, ended in rows.values_list("scheduled_for", "completed_at")]
    assert len(waits) == 1000
    assert busiest_second(waits) <= 50, "all failed at one moment"
    spread = [wait + timedelta(milliseconds=number) for number, wait in enumerate(waits)]
    assert busiest_second(spread) <= 50, "they failed one after the other, within a second"


def queued_unsaved():
    now = timezone.now()
    return ContainerJob(
        status="queued", queued_at=now, image="busybox", command=["x"], max_retries=3
    )


def test_what_became_due_while_the_database_was_away_is_queued_in_bounded_batches():
    """Ten minutes of retries at once: each call takes so many, and none is forgotten or doubled."""
    worker = a_worker()
    ContainerJob.objects.bulk_create([queued_unsaved() for _ in range(300)])
    lifecycle.finish(worker, [ending(each, 1) for each in lifecycle.claim(worker, 300)])
    away = timezone.now() - timedelta(minutes=10)
    ContainerJob.objects.filter(status="retrying").update(scheduled_for=away)
    assert at_once(*[partial(lifecycle.requeue_due, 100)] * 2) in ([100, 100], [100, 0], [0, 100])
    while lifecycle.requeue_due(100):
        assert ContainerJob.objects.filter(status="queued").count() % 100 == 0
    assert ContainerJob.objects.filter(status="queued").count() == 300
    assert contradictions() == []


def test_output_of_a_worker_that_lost_its_attempt_is_not_stored_however_late_it_comes():
    worker, other = a_worker("w1"), a_worker("w2")
    for _ in range(RACES):
        lease = held_by(worker)
        seen = list(JobAttempt.objects.filter(job=lease.job_id))
        late = LogChunk(**lease.key, stream="stdout", offset=0, data=b"from the first")

        def adopt_and_read(seen=seen):
            (mine,) = lifecycle.adopt(other, seen)
            return mine, JobLog.objects.ends(mine.job_id, mine.attempt)

        (mine, ends), _ = at_once(adopt_and_read, partial(lifecycle.keep_chunks, worker, [late]))
        # what the adopter saw is all that there is: it goes on from there
        stored = JobLog.objects.content(mine.job_id, "stdout", mine.attempt)
        assert len(stored) == ends.get("stdout", 0)
        lifecycle.stop([mine.job_id], StopKind.KILL)
