"""An operator gives up jobs that nobody can reach; so does LOST_AFTER_SECONDS."""

from __future__ import annotations

from datetime import timedelta
from functools import partial
from typing import Any
from uuid import uuid4

import pytest
from django.utils import timezone

from container_manager import bulk, lifecycle
from container_manager.bulk import Verb
from container_manager.exceptions import InvalidTransition, StaleState, StillReached
from container_manager.executors.base import Outcome
from container_manager.lifecycle import Stopped
from container_manager.models import ContainerJob, JobAttempt, StateHistory, Worker
from container_manager.models.leases import Claimant, Lease
from container_manager.models.outcomes import LogChunk, Progress
from container_manager.states import JobStatus, StopKind
from container_manager.worker.reaper import Reaper
from tests.factories import JobFactory
from tests.support.api import a_person, an_operator
from tests.support.fake_executor import World
from tests.support.loops import configured, working, world
from tests.support.spine import (
    ENGINE,
    a_worker,
    at_once,
    contradictions,
    finish,
    held_by,
    path_of,
    queued,
)
from tests.support.workers import wait_for, wait_until

__all__ = ["configured", "world"]

pytestmark = pytest.mark.django_db

together = pytest.mark.django_db(transaction=True)


def living(worker: Claimant, *, reaches: bool = True, alias: str = "process") -> Worker:
    """The worker's row: it beats, and its engine answers it or does not."""
    offer = {"engine_id": ENGINE, "isolations": ["process"], "available": reaches}
    return Worker.objects.create(
        id=worker.worker_id,
        name=worker.worker_name,
        hostname="h",
        pid=1,
        concurrency=1,
        version="1",
        offers={alias: offer},
    )


def unreachable(lease: Lease, *, since: timedelta = timedelta(hours=1)) -> None:
    JobAttempt.objects.filter(job=lease.job_id).update(unreachable_since=timezone.now() - since)


def last_move(job_id: Any) -> StateHistory:
    found = StateHistory.objects.filter(entity_id=job_id).order_by("-version").first()
    assert found is not None
    return found


def a_lost_job(**fields: Any) -> tuple[Claimant, Lease]:
    """Its worker lives, and its engine does not answer."""
    worker = a_worker()
    living(worker, reaches=False)
    lease = held_by(worker, **fields)
    unreachable(lease)
    return worker, lease


def test_a_job_that_nobody_can_reach_ends_as_unproven_and_says_who_gave_it_up() -> None:
    _, lease = a_lost_job(max_retries=5)
    assert lifecycle.abandon([lease.job_id], actor="api:ada") == {lease.job_id: Stopped.DONE}
    job = ContainerJob.objects.get()
    assert (job.status, job.reason, job.exit_code) == ("failed", "unproven", None)
    assert job.completed_at is not None
    attempt = JobAttempt.objects.get()
    assert (attempt.phase, attempt.reason, attempt.blame) == ("done", "unproven", "infra")
    assert (attempt.lease_epoch, attempt.cleaned_up) == (2, False)
    move = last_move(job.pk)
    assert (move.actor, move.reason, move.metadata) == ("api:ada", "unproven", {"abandoned": True})
    assert contradictions() == []


def test_a_job_that_is_not_there_is_unknown() -> None:
    nobody = uuid4()
    assert lifecycle.abandon([nobody]) == {nobody: Stopped.UNKNOWN}


def test_it_is_not_retried_by_itself_but_a_person_may() -> None:
    _, lease = a_lost_job(max_retries=5)
    lifecycle.abandon([lease.job_id])
    assert lifecycle.requeue_due() == 0
    assert path_of(lease.job_id)[-1] == "failed"
    lifecycle.retry([lease.job_id], actor="api:ada")
    assert path_of(lease.job_id)[-2:] == ["retrying", "queued"]


def test_its_worker_is_fenced() -> None:
    worker, lease = a_lost_job()
    lifecycle.abandon([lease.job_id])
    before = list(JobAttempt.objects.values())
    assert lifecycle.finish(worker, [lifecycle.ending(lease, Outcome(0), None)]) == set()
    assert lifecycle.progress(worker, [Progress(**lease.key, phase="started")]) == set()
    assert list(JobAttempt.objects.values()) == before
    assert contradictions() == []


def test_the_output_that_was_stored_is_accounted_for() -> None:
    worker, lease = a_lost_job()
    for offset, data in ((0, b"12345"), (20, b"678")):
        chunk = LogChunk(**lease.key, stream="stdout", offset=offset, data=data)
        lifecycle.keep_chunks(worker, [chunk])
    lifecycle.abandon([lease.job_id])
    attempt = JobAttempt.objects.get()
    assert (attempt.stdout_bytes, attempt.stdout_omitted, attempt.stderr_bytes) == (23, 15, 0)
    assert contradictions() == []


def test_the_output_of_an_earlier_attempt_is_not_counted_again() -> None:
    worker, lease = a_lost_job(max_retries=1, retry_policy={"base_seconds": 0, "jitter": 0})
    chunk = LogChunk(**lease.key, stream="stdout", offset=0, data=b"12345")
    lifecycle.keep_chunks(worker, [chunk])
    finish(worker, lease, 1)
    assert lifecycle.requeue_due() == 1
    (again,) = lifecycle.claim(worker, 1)
    unreachable(again)
    lifecycle.abandon([lease.job_id])
    assert JobAttempt.objects.get(attempt=2).stdout_bytes == 0


def test_a_request_to_stop_stays_visible() -> None:
    _, lease = a_lost_job()
    lifecycle.stop([lease.job_id], StopKind.KILL, actor="api:bob")
    lifecycle.abandon([lease.job_id], actor="api:ada")
    job = ContainerJob.objects.get()
    assert (job.status, job.kill_requested_by) == ("failed", "api:bob")
    assert job.kill_requested_at is not None


def test_what_no_living_worker_holds_and_none_can_go_on_with_may_be_abandoned() -> None:
    worker = a_worker()
    lease = held_by(worker)
    assert lifecycle.abandonable([lease.job_id]) == {lease.job_id}
    row = living(worker)
    assert lifecycle.abandonable([lease.job_id]) == set()
    Worker.objects.filter(pk=row.pk).update(last_beat_at=timezone.now() - timedelta(hours=1))
    assert lifecycle.abandonable([lease.job_id]) == {lease.job_id}
    living(a_worker("other"), alias="renamed")
    assert lifecycle.abandonable([lease.job_id]) == {lease.job_id}
    living(a_worker("away"), reaches=False)
    assert lifecycle.abandonable([lease.job_id]) == {lease.job_id}
    living(a_worker("next"))
    assert lifecycle.abandonable([lease.job_id]) == set()


def test_a_job_whose_engine_answers_is_refused_with_what_to_do_instead() -> None:
    worker = a_worker()
    living(worker)
    lease = held_by(worker)
    assert lifecycle.abandon([lease.job_id]) == {lease.job_id: Stopped.REFUSED}
    with pytest.raises(
        StillReached, match=r"engine process answers \(worker w1\).*kill it"
    ) as caught:
        lifecycle.abandon_one(lease.job_id)
    told = caught.value
    assert (told.entity.pk, told.old, told.new) == (lease.job_id, "running", "failed")
    assert path_of(lease.job_id)[-1] == "running"


@pytest.mark.parametrize("status", sorted(set(JobStatus) - {JobStatus.RUNNING}))
def test_only_a_running_job_is_abandoned(status: str) -> None:
    job = JobFactory(status=status)
    assert lifecycle.abandon([job.pk]) == {job.pk: Stopped.REFUSED}
    with pytest.raises(InvalidTransition, match=f"from {status} to failed"):
        lifecycle.abandon_one(job.pk)


def test_a_job_that_runs_by_hand_is_nobodys_to_abandon() -> None:
    job = JobFactory(status="running")
    with pytest.raises(
        StillReached, match=r"^No worker holds it: cancel and kill act at once$"
    ) as caught:
        lifecycle.abandon_one(job.pk)
    assert caught.value.entity == job


def test_one_job_may_be_abandoned_at_the_revision_that_was_read() -> None:
    _, lease = a_lost_job()
    job = ContainerJob.objects.get()
    with pytest.raises(StaleState):
        lifecycle.abandon_one(lease.job_id, revision="other")
    lifecycle.abandon_one(lease.job_id, revision=job.revision)
    assert path_of(lease.job_id)[-1] == "failed"


def test_of_many_jobs_each_gets_its_result() -> None:
    _, lost = a_lost_job()
    ended, unknown = JobFactory(status="completed"), uuid4()
    came = list(bulk.act(Verb.ABANDON, [lost.job_id, ended.pk, unknown], actor="cli:root"))
    assert [(each.job_id, each.word, each.good) for each in came] == [
        (lost.job_id, "done", True),
        (ended.pk, "refused", False),
        (unknown, "unknown", False),
    ]
    assert "from completed to failed" in came[1].detail


def test_an_owner_is_refused_and_an_operator_is_not() -> None:
    owner = a_person()
    _, lost = a_lost_job(created_by=owner)
    (result,) = bulk.act(Verb.ABANDON, [lost.job_id], actor="api:x", user=owner)
    assert (result.word, result.detail) == ("refused", "only operators may abandon a job")
    (result,) = bulk.act(Verb.ABANDON, [lost.job_id], actor="api:x", user=a_person())
    assert result.word == "unknown"
    (result,) = bulk.act(Verb.ABANDON, [lost.job_id], actor="api:x", user=an_operator())
    assert result.word == "done"


def test_lost_after_seconds_ends_jobs_in_the_same_way() -> None:
    worker, lease = a_lost_job(max_retries=5)
    chunk = LogChunk(**lease.key, stream="stderr", offset=0, data=b"abc")
    lifecycle.keep_chunks(worker, [chunk])
    assert lifecycle.give_up_unproven(7200) == 0
    assert lifecycle.give_up_unproven(60) == 1
    attempt = JobAttempt.objects.get()
    assert (attempt.reason, attempt.lease_epoch, attempt.stderr_bytes) == ("unproven", 2, 3)
    move = last_move(lease.job_id)
    assert (move.actor, move.metadata) == ("upkeep", {"lost_after_seconds": 60})
    assert contradictions() == []


def test_what_nobody_reaches_is_told_by_alias_and_engine() -> None:
    """A worker that has the engine under another name cannot go on with the job."""
    gone = a_worker()
    held_by(gone)
    living(a_worker("other"), alias="renamed")
    assert lifecycle.note_unreachable(()) == 1
    assert JobAttempt.objects.get().unreachable_since is not None


# Together -----------------------------------------------------------------------------------------


@together
def test_of_two_operators_one_gives_it_up() -> None:
    _, lease = a_lost_job()
    give_up = partial(lifecycle.abandon, [lease.job_id])
    came = at_once(give_up, give_up)
    assert sorted(each[lease.job_id] for each in came) == [Stopped.DONE, Stopped.REFUSED]
    assert path_of(lease.job_id).count("failed") == 1
    assert contradictions() == []


@together
@pytest.mark.parametrize("round_", range(5))
def test_an_end_and_an_abandon_at_once_end_in_one_truthful_state(round_: int) -> None:
    worker, lease = a_lost_job(max_retries=0)
    came = at_once(
        lambda: lifecycle.abandon([lease.job_id])[lease.job_id] == Stopped.DONE,
        lambda: bool(lifecycle.finish(worker, [lifecycle.ending(lease, Outcome(0), None)])),
    )
    assert sorted(came) == [False, True]
    assert path_of(lease.job_id)[-1] == ("failed" if came[0] else "completed")
    assert contradictions() == []


@together
def test_the_remains_of_an_abandoned_attempt_are_killed_when_its_engine_is_back(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """I2's exception: for a while they run beside the next attempt, which is left alone."""
    monkeypatch.setattr(Reaper, "EVERY_SECONDS", 0.05)
    monkeypatch.setattr(Reaper, "AFTER", timedelta(seconds=1))
    world.runs_until_stopped = True
    job = queued()
    with working(name="cut off"):
        wait_until(lambda: world.times("attach"), "it to run")
        JobAttempt.objects.update(unreachable_since=timezone.now())
        assert lifecycle.abandon([job.pk])[job.pk] == Stopped.DONE
        lifecycle.retry([job.pk])
        wait_for(job, "running")
        first, second = f"cm-{job.pk}-1", f"cm-{job.pk}-2"
        wait_until(lambda: first not in world.executions, "the remains to be removed")
        wait_until(lambda: JobAttempt.objects.get(attempt=1).cleaned_up, "that to be noted")
        assert world.executions[second].running
        assert ("stop 0", second) not in world.calls
        lifecycle.stop([job.pk], StopKind.KILL)
        wait_for(job, "killed")
    assert contradictions() == []


@together
def test_a_worker_that_lost_its_attempt_to_an_operator_goes_on_with_others(world: World) -> None:
    world.runs_until_stopped = True
    job = queued()
    with working():
        wait_until(lambda: world.times("attach"), "it to run")
        JobAttempt.objects.update(unreachable_since=timezone.now())
        lifecycle.abandon([job.pk])
        world.end(f"cm-{job.pk}-1", Outcome(0))
        world.runs_until_stopped = False
        other = queued()
        wait_for(other, "completed")
    assert path_of(job)[-1] == "failed"
    assert contradictions() == []


@together
def test_a_worker_has_room_again_for_what_was_abandoned_though_its_engine_stays_silent(
    world: World,
) -> None:
    world.runs_until_stopped = True
    jobs = [queued() for _ in range(4)]
    with working() as worker:
        wait_until(lambda: world.times("attach") == 4, "all its room to be taken")
        JobAttempt.objects.update(unreachable_since=timezone.now())
        lifecycle.abandon([job.pk for job in jobs])
        world.runs_until_stopped = False
        wait_for(queued(), "completed")
        assert worker._free > 0
        for job in jobs:
            world.end(f"cm-{job.pk}-1", Outcome(0))
    assert {path_of(job)[-1] for job in jobs} == {"failed"}
    assert contradictions() == []
