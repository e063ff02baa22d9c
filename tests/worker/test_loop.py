"""The worker as a whole, inside the test's process, on a fake engine."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta

import pytest
from django.db import OperationalError
from django.utils import timezone

from container_manager import lifecycle
from container_manager.duties import Every
from container_manager.executors.base import Execution
from container_manager.models import ContainerJob, JobAttempt, Worker
from container_manager.models.leases import Offer
from container_manager.reports.fleet import seen_workers
from container_manager.states import StopKind
from container_manager.worker.heartbeat import Heartbeat
from container_manager.worker.loop import WorkerLoop
from container_manager.worker.sweeper import THREADS, Sweeper
from tests.support.loops import FAKE, work, working
from tests.support.spine import (
    a_worker,
    contradictions,
    failed,
    held_by,
    path_of,
    queued,
    reaching,
)
from tests.support.workers import settled, status_of, wait_for, wait_until

pytestmark = pytest.mark.django_db(transaction=True)

AN_HOUR_AGO = datetime.now(UTC) - timedelta(hours=1)
FAKE_OFFER = Offer("", "auto", "fake", "container", "fake")


def test_every_is_due_once_in_so_many_seconds():
    every = Every(10)
    assert every.is_due(100)
    assert not every.is_due(109)
    assert every.left(109) == 1
    assert every.is_due(110)
    assert every.left(200) == 0


def test_a_worker_runs_what_is_queued_and_leaves_nothing(world):
    jobs = [queued() for _ in range(10)]
    assert work(name="w1") == 0
    assert {path_of(job)[-1] for job in jobs} == {"completed"}
    assert world.executions == {}
    assert not JobAttempt.objects.filter(cleaned_up=False).exists()
    assert not Worker.objects.exists()
    assert contradictions() == []


def test_a_worker_waits_for_the_retries_of_what_failed(world):
    world.outcome = failed(1)
    policy = {"strategy": "fixed", "base_seconds": 0.3, "jitter": 0}
    job = queued(max_retries=2, retry_policy=policy)
    assert work() == 0
    job.refresh_from_db()
    assert (job.status, job.attempt) == ("failed", 3)


def test_a_worker_runs_no_more_at_once_than_it_may(world):
    world.runs_until_stopped = True
    jobs = [queued(priority=90 - number) for number in range(6)]
    with working():
        wait_until(lambda: world.times("start") == 4, "four to run")
        assert [status_of(job) for job in jobs] == ["running"] * 4 + ["queued"] * 2
        lifecycle.stop([jobs[0].pk], StopKind.KILL)
        wait_for(jobs[4], "running")
        lifecycle.stop([job.pk for job in jobs], StopKind.KILL)
        for job in jobs:
            settled(job)


def test_a_worker_is_seen_with_what_it_offers(world):
    with working(name="builder", queues=["a", "b"]):
        row = wait_until(lambda: Worker.objects.filter(name="builder").first(), "its row")
        assert (row.queues, row.concurrency, row.draining) == (["a", "b"], 4, False)
        assert row.offers["fake"]["isolations"] == ["container"]
        wait_until(lambda: Worker.objects.get().beat > 0, "a beat")


def test_a_deadline_is_enforced(world):
    world.runs_until_stopped = True
    job = queued(timeout_seconds=1, max_retries=0)
    with working():
        job = settled(job)
    assert (job.status, job.reason) == ("failed", "timeout")
    assert job.signalled_at is not None
    assert JobAttempt.objects.get().stop_kind == "timeout"


def test_a_job_that_was_killed_while_it_was_created_never_starts(world):
    creating, go_on = threading.Event(), threading.Event()

    def slowly(_spec):
        creating.set()
        go_on.wait(30)

    world.on_create = slowly
    job = queued()
    with working():
        creating.wait(30)
        lifecycle.stop([job.pk], StopKind.KILL)
        wait_until(lambda: ContainerJob.objects.get().signalled_at, "the worker to see it")
        assert status_of(job) == "running"
        go_on.set()
        job = settled(job)
    assert (job.status, job.exit_code) == ("killed", None)
    assert world.times("start") == 0


def test_a_worker_lets_go_of_what_outlives_it(world):
    world.runs_until_stopped = True
    job = queued()
    with working():
        wait_until(lambda: world.times("attach"), "it to run")
    assert status_of(job) == "running"
    assert JobAttempt.objects.get().phase == "started"
    assert not Worker.objects.exists()
    with working(name="next"):
        wait_until(lambda: JobAttempt.objects.get().worker_name == "next", "its adoption")
        lifecycle.stop([job.pk], StopKind.KILL)
        settled(job)
    assert world.times("create") == world.times("start") - 1 == 1
    assert JobAttempt.objects.get().lease_epoch == 2


def test_a_worker_stops_what_does_not_outlive_it_and_queues_it_again(world, configured):
    configured(EXECUTORS={"fake": {"class": FAKE, "options": {"outlives_worker": False}}})
    world.runs_until_stopped = True
    job = queued()
    with working():
        wait_until(lambda: world.times("attach"), "it to run")
    assert path_of(job) == ["queued", "running", "failed", "retrying", "queued"]
    assert JobAttempt.objects.get().reason == "worker_stopped"


def test_orphans_are_adopted_and_seen_to_their_end(world):
    lease = held_by(a_worker("gone", offers=[FAKE_OFFER]), max_retries=0)
    with working():
        wait_until(lambda: path_of(lease.job_id)[-1] == "retrying", "its end")
    attempt = JobAttempt.objects.get()
    assert (attempt.reason, attempt.lease_epoch) == ("worker_lost", 2)
    assert world.barred == {lease.name}


def test_a_claim_whose_answer_was_lost_is_found_again(world):
    """The database committed it, and the worker never heard of it."""
    lost = []

    def lose_once(point):
        if point == "C3" and not lost:
            lost.append(point)
            raise OperationalError("the connection broke")

    job = queued()
    with reaching(lose_once), working():
        wait_until(lambda: len(path_of(job)) > 2, "its end")
    assert lost == ["C3"]
    attempt = JobAttempt.objects.get()
    assert (attempt.attempt, attempt.lease_epoch, attempt.reason) == (1, 2, "worker_lost")
    assert path_of(job)[-1] == "retrying"


@pytest.mark.parametrize("verb", ["claim", "progress", "finish", "requests", "keep_chunks"])
def test_a_database_that_is_away_for_a_moment_costs_nothing(world, monkeypatch, verb):
    do, away = getattr(lifecycle, verb), iter([True, True])

    def sometimes(*arguments):
        if next(away, False):
            raise OperationalError("away")
        return do(*arguments)

    monkeypatch.setattr(lifecycle, verb, sometimes)
    jobs = [queued() for _ in range(3)]
    assert work() == 0
    for job in jobs:
        assert path_of(job) == ["queued", "running", "completed"]


def test_a_worker_whose_row_was_pruned_says_that_it_lives(world):
    worker = Worker.objects.create(name="w", hostname="h", pid=1, concurrency=1)
    heartbeat = Heartbeat(worker, 1.0)
    Worker.objects.all().delete()
    heartbeat._beat()
    assert Worker.objects.filter(pk=worker.pk).exists()
    heartbeat._beat()
    assert Worker.objects.get().beat == 1


def test_a_beat_is_late_when_none_was_taken_for_two_thirds_of_a_lease(monkeypatch):
    clock = [100.0]
    monkeypatch.setattr("container_manager.worker.heartbeat.time.monotonic", lambda: clock[0])
    worker = Worker.objects.create(name="w", hostname="h", pid=1, concurrency=1)
    heartbeat = Heartbeat(worker, 10.0)
    clock[0] += 20
    assert not heartbeat.is_late
    clock[0] += 1
    assert heartbeat.is_late
    heartbeat._beat()
    assert not heartbeat.is_late


def test_a_worker_whose_beat_is_late_claims_nothing_until_one_is_taken(world, monkeypatch):
    """It may have been stopped for long: others would take at once what it claims."""
    asked, late = [], [True]
    monkeypatch.setattr(Heartbeat, "is_late", property(lambda _: asked.append(1) or late[0]))
    job = queued()
    with working():
        wait_until(lambda: len(asked) > 3, "it to look for work")
        assert path_of(job) == ["queued"]
        late[0] = False
        assert settled(job).status == "completed"


@pytest.mark.parametrize("beats", [0, 1])
def test_whoever_may_abandon_its_jobs_sees_it_live_whatever_its_own_clock_says(
    world, monkeypatch, beats
):
    worker = Worker(name="w", hostname="h", pid=1, concurrency=1, last_beat_at=AN_HOUR_AGO)
    heartbeat = Heartbeat(worker, 1.0)
    monkeypatch.setattr(timezone, "now", lambda: AN_HOUR_AGO)
    monkeypatch.setattr(
        "container_manager.worker.heartbeat.database_now", lambda _: datetime.now(UTC)
    )
    heartbeat.register_again()
    for _ in range(beats):
        heartbeat._beat()
    monkeypatch.undo()
    assert [seen.alive for seen in seen_workers()] == [True]


def test_a_worker_without_a_thread_to_spare_removes_later_what_is_left(monkeypatch):
    sweeper, removed = Sweeper(), threading.Event()
    with monkeypatch.context() as full:
        full.setattr(threading.Thread, "start", _no_thread)
        for number in range(THREADS):
            sweeper.do(f"early {number}", None, lambda: None)
    sweeper.do("late", None, removed.set)
    assert removed.wait(10)
    wait_until(lambda: sweeper.is_idle, "all to be removed")


def _no_thread(_thread):
    raise RuntimeError("can't start new thread")


def test_a_worker_whose_heartbeat_ended_ends_itself(world, monkeypatch):
    monkeypatch.setattr(Heartbeat, "is_alive", False)
    loop = WorkerLoop(concurrency=1)
    assert loop.run() == 1
    assert not Worker.objects.exists()


def test_an_end_of_an_earlier_attempt_does_not_hide_the_one_that_runs(world):
    """Both are of one job, and the same worker came to hold it twice."""
    world.runs_until_stopped = True
    worker = a_worker("w1", offers=[FAKE_OFFER])
    first = held_by(worker)
    loop = WorkerLoop(concurrency=4)
    loop._claimant = loop._recorder._claimant = worker
    loop._engines.probe()
    world.executions[first.name] = Execution(first.name, "id", running=True, started=True)
    world.ended[first.name] = threading.Event()
    loop._start_run(first)
    (second,) = lifecycle.adopt(worker, JobAttempt.objects.all())
    loop._start_run(second)
    old, new = second, loop._runs[first.job_id]
    loop._recorder.end(lifecycle.ending(first, world.outcome, None))
    loop._record()
    assert loop._runs[first.job_id] is new
    assert new.lease is old
    for run in loop._runs.values():
        run.let_go()
    for ended in world.ended.values():
        ended.set()
    loop._crew.dismiss()


def test_a_signal_handler_may_drain_whatever_lock_the_main_thread_holds(world):
    loop = WorkerLoop(concurrency=1)
    with loop._woken._cond, loop._look._cond:
        thread = threading.Thread(target=loop.drain, daemon=True)
        thread.start()
        thread.join(10)
        assert not thread.is_alive()
    assert loop.run() == 0


def test_a_worker_that_is_asked_until_idle_survives_an_outage_while_it_asks(world, monkeypatch):
    asked = iter([True, True])
    something_waits = WorkerLoop._something_waits

    def sometimes(self):
        if next(asked, False):
            raise OperationalError("away")
        return something_waits(self)

    monkeypatch.setattr(WorkerLoop, "_something_waits", sometimes)
    job = queued()
    assert work() == 0
    assert status_of(job) == "completed"


def test_an_idle_worker_looks_after_the_dead_in_time_however_seldom_it_looks_for_work(
    world, configured, monkeypatch
):
    """Later than half a lease would be no look at all: see Rescuer.dead."""
    configured(LEASE_SECONDS=2, POLL_SECONDS=60, SQLITE_POLL_SECONDS=60)
    loop = WorkerLoop(concurrency=1)
    now = 5000.0
    monkeypatch.setattr("container_manager.worker.loop.time.monotonic", lambda: now)
    for every in (loop._poll, loop._rescue):
        assert every.is_due(now)
    now += 0.5
    assert loop._seconds_to_wait() == pytest.approx(2 / 3 - 0.5)
