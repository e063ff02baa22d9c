"""What `explain` says is what the claim does; and what a person reads is a sentence."""

from __future__ import annotations

import json
import random
from datetime import timedelta

import pytest
from django.utils import timezone

from container_manager import lifecycle
from container_manager.executors.base import Outcome
from container_manager.models import ContainerJob, JobAttempt, Queue, lanes
from container_manager.models.outcomes import Progress
from container_manager.reports.explain import Code, explain
from container_manager.states import JobStatus, Phase, Reason, StopKind
from tests.factories import AttemptFactory, JobFactory, UserFactory
from tests.support.fleet import LOCAL, claim, claimant_of, engine, worker_row
from tests.support.spine import LOST, ending, failed, queued

pytestmark = pytest.mark.django_db

ENDED_AT = timezone.now()


def told(job):
    """The explanation of the job as it stands now; always something that JSON has."""
    found = explain(ContainerJob.objects.get(pk=job.pk))
    json.dumps(found.as_json())
    return found


def taken_by(row, limit=None):
    return {lease.job_id for lease in claim(row, limit)}


def test_a_pending_job_was_queued_by_nobody():
    found = told(JobFactory())
    assert found.code == "not_queued"
    assert found.sentence == "Nobody has queued it."


def test_what_is_next_is_claimed_next():
    row = worker_row()
    job = queued()
    found = told(job)
    assert found.code == "next"
    assert found.sentence == (
        "A worker takes it at its next look: 2 slots are free and nothing is before it."
    )
    assert found.details["position"] == 1
    assert taken_by(row) == {job.pk}


def test_a_scheduled_job_says_until_when_and_is_not_claimed():
    row = worker_row()
    due = timezone.now() + timedelta(hours=2)
    job = queued(scheduled_for=due)
    found = told(job)
    assert found.code == "scheduled"
    assert found.details["scheduled_for"] == due.isoformat()
    assert "in 1 h 59 min" in found.sentence or "in 2 h" in found.sentence
    assert taken_by(row) == set()


def test_a_job_of_a_paused_queue_says_so_and_is_not_claimed():
    row = worker_row()
    job = queued(queue="nightly")
    Queue.objects.create(name="nightly", paused=True)
    assert told(job).code == "queue_paused"
    assert taken_by(row) == set()
    lifecycle.steer_queue("nightly", paused=False)
    assert told(job).code == "next"
    assert taken_by(row) == {job.pk}


def test_a_full_queue_says_its_limit_and_who_fills_it():
    row = worker_row(concurrency=5)
    Queue.objects.create(name="licensed", max_running=1)
    running, job = queued(queue="licensed"), queued(queue="licensed")
    assert taken_by(row) == {running.pk}
    found = told(job)
    assert found.code == "queue_full"
    assert found.sentence == "Its queue licensed is full: 1 job of it run and 1 may."
    assert found.details["held_by"] == [str(running.pk)]
    assert (found.details["max_running"], found.details["running"]) == (1, 1)
    assert taken_by(row) == set()


def test_a_job_behind_the_one_that_fills_its_queue_is_not_next():
    row = worker_row(concurrency=5)
    Queue.objects.create(name="licensed", max_running=1)
    first, second = queued(queue="licensed"), queued(queue="licensed", priority=10)
    assert told(first).code == "next"
    assert told(second).code == "queue_full"
    assert taken_by(row) == {first.pk}


def test_everything_that_keeps_it_is_told_at_once():
    Queue.objects.create(name="nightly", paused=True)
    found = told(queued(queue="nightly", scheduled_for=timezone.now() + timedelta(days=3)))
    assert found.code == "scheduled"
    assert found.details["also"] == ["queue_paused", "no_worker"]
    assert "is paused" in found.sentence
    assert "No worker is alive" in found.sentence


def test_without_a_worker_it_says_how_to_start_one():
    found = told(queued())
    assert found.code == "no_worker"
    assert "run_worker" in found.sentence
    assert found.details["workers_alive"] == 0


def test_a_worker_that_does_not_beat_is_none():
    worker_row(beat_ago=120)
    assert told(queued()).code == "no_worker"


def test_a_worker_that_shuts_down_takes_nothing():
    worker_row(draining=True)
    found = told(queued())
    assert found.code == "no_worker"
    assert "shutting down" in found.sentence


def test_a_worker_of_other_queues_does_not_count():
    row = worker_row(queues=["fast", "default"])
    job = queued(queue="slow")
    found = told(job)
    assert found.code == "no_worker"
    assert found.sentence == ("No living worker serves its queue slow; they serve default, fast.")
    assert taken_by(row) == set()


def test_what_nobody_offers_is_told_with_what_is_offered():
    row = worker_row()
    job = queued(isolation="microvm")
    found = told(job)
    assert found.code == "no_worker"
    assert "any executor with isolation microvm" in found.sentence
    assert found.details["offered"] == {
        "": ["auto", "process"],
        "process": ["auto", "process"],
    }
    assert taken_by(row) == set()


def test_an_engine_that_does_not_answer_is_named():
    row = worker_row(offers={**LOCAL, "docker": engine("container", available=False)})
    job = queued()
    found = told(job)
    assert found.code == "no_worker"
    assert "The engine of docker does not answer." in found.sentence
    assert taken_by(row) == set(), "auto is no plain process while docker is known"


def test_auto_waits_for_the_container_engine_of_another_worker():
    local = worker_row("local")
    worker_row("far", queues=["other"], offers={"docker": engine("container")})
    job = queued()
    assert told(job).code == "no_worker"
    assert taken_by(local) == set()


def test_a_busy_worker_is_told_with_what_it_runs_and_who_is_before():
    row = worker_row(concurrency=1)
    running = queued(priority=90)
    assert taken_by(row) == {running.pk}
    before, job = queued(priority=80), queued()
    found = told(job)
    assert found.code == "no_free_slot"
    assert found.sentence == (
        "The workers that would take it (w1) have none of 1 slots free, and 1 job is before it."
    )
    assert found.details["held_by"] == [{"job": str(running.pk), "worker": "w1"}]
    assert found.details["position"] == 2
    assert told(before).details["position"] == 1


def test_jobs_of_other_queues_are_before_it_when_the_same_worker_takes_them():
    row = worker_row(concurrency=1)
    urgent, job = queued(queue="urgent", priority=100), queued()
    found = told(job)
    assert (found.code, found.details["position"], found.details["ahead"]) == ("no_free_slot", 1, 1)
    assert taken_by(row) == {urgent.pk}


def test_a_job_retried_more_often_than_it_may_is_never_taken():
    row = worker_row()
    job = queued(retry_count=4, max_retries=3)
    assert told(job).code == "retries_used_up"
    assert taken_by(row) == set()


def test_a_row_that_contradicts_its_attempts_is_never_taken():
    row = worker_row()
    job = queued()
    JobAttempt.objects.create(job=job, attempt=5, phase=Phase.DONE)
    found = told(job)
    assert found.code == "barred"
    assert "check_jobs" in found.sentence
    assert taken_by(row) == set()


def test_a_job_that_moved_after_it_was_read_is_explained_as_it_stands():
    row = worker_row()
    seen_queued = ContainerJob.objects.get(pk=queued().pk)
    (lease,) = claim(row)
    assert explain(seen_queued).code == "starting"
    seen_running = ContainerJob.objects.get(pk=seen_queued.pk)
    lifecycle.finish(claimant_of(row), [ending(lease)])
    assert explain(seen_running).code == "settled"


# Running


@pytest.fixture
def held():
    """A worker and the job that it has claimed."""
    row = worker_row()
    queued(timeout_seconds=60)
    (lease,) = claim(row)
    return row, lease


def job_of(lease):
    return ContainerJob.objects.get(pk=lease.job_id)


def progress(held, phase, **more):
    row, lease = held
    lifecycle.progress(claimant_of(row), [Progress(**lease.key, phase=phase, **more)])
    return told(job_of(lease))


@pytest.mark.parametrize(
    ("phase", "says"),
    [("claimed", "created nothing"), ("pulling", "fetching"), ("created", "not started")],
)
def test_a_job_that_has_not_started_says_how_far_it_is(held, phase, says):
    found = progress(held, phase)
    assert found.code == "starting"
    assert says in found.sentence
    assert found.details["phase"] == phase


def test_a_running_job_says_where_and_since_when(held):
    found = progress(held, "started", started_at=ENDED_AT)
    assert found.code == "running"
    assert "on worker w1, attempt 1" in found.sentence
    assert found.details["since"] == ENDED_AT.isoformat()
    assert found.details["worker_alive"]


def test_a_running_job_whose_worker_is_silent_says_who_goes_on(held):
    row, lease = held
    row.last_beat_at -= timedelta(minutes=5)
    row.save()
    found = told(job_of(lease))
    assert "was last heard of 5 min" in found.sentence
    assert not found.details["worker_alive"]


def test_a_running_job_that_was_let_go_says_who_goes_on(held):
    row, lease = held
    lifecycle.release(claimant_of(row), [lease])
    assert "No worker holds it just now" in told(job_of(lease)).sentence


@pytest.mark.parametrize("kind", [StopKind.KILL, StopKind.CANCEL])
def test_a_job_that_was_asked_to_stop_says_when(held, kind):
    row, lease = held
    lifecycle.stop([lease.job_id], kind)
    found = told(job_of(lease))
    assert found.code == "stopping"
    assert kind in found.sentence
    assert "about to act" in found.sentence
    lifecycle.signalled(claimant_of(row), [lease], kind)
    found = told(job_of(lease))
    assert "it was signalled at" in found.sentence
    assert ("before force" in found.sentence) == (kind == StopKind.CANCEL)


@pytest.mark.parametrize(
    ("kind", "says"), [(StopKind.TIMEOUT, "longer than 60 s"), (StopKind.DRAIN, "shuts down")]
)
def test_a_job_that_is_stopped_by_the_machinery_says_why(held, kind, says):
    row, lease = held
    lifecycle.signalled(claimant_of(row), [lease], kind)
    found = told(job_of(lease))
    assert (found.code, found.details["stop"]) == ("stopping", str(kind))
    assert says in found.sentence


def test_an_unreachable_job_stays_unreachable_when_it_is_killed(held):
    row, lease = held
    row.delete()
    lifecycle.note_unreachable([])
    assert told(job_of(lease)).code == "unreachable"
    lifecycle.stop([lease.job_id], StopKind.KILL)
    found = told(job_of(lease))
    assert found.code == "unreachable"
    assert "A kill was asked for" in found.sentence


def test_output_that_is_still_read_is_running(held):
    assert "its output is being read" in progress(held, "collecting").sentence


def test_a_job_made_running_by_hand_says_so():
    assert told(JobFactory(status=JobStatus.RUNNING)).code == "unheld"
    assert told(AttemptFactory().job).code == "running"


# Ended


def finished(held, outcome, **how):
    row, lease = held
    lifecycle.finish(claimant_of(row), [ending(lease, outcome, **how)])
    return told(job_of(lease))


def test_a_failed_attempt_waits_for_its_retry(held):
    found = finished(held, failed(3))
    assert found.code == "backoff"
    assert "Exit code 3." in found.sentence
    assert "retry 1 of 3" in found.sentence
    assert found.details["blame"] == "user"
    assert found.details["seconds_left"] > 0


def test_a_lost_worker_costs_no_retry_of_the_jobs_own(held):
    found = finished(held, LOST)
    assert found.code == "backoff"
    assert "retry after a failure of the machinery 1 of 3" in found.sentence
    assert found.details["infra"]


def test_a_backoff_that_nobody_will_end_says_so(held):
    row, _ = held
    finished(held, failed(3))
    row.delete()
    assert "No worker is alive" in told(ContainerJob.objects.get()).sentence


def test_a_completed_job_is_settled(held):
    found = finished(held, 0)
    assert found.code == "settled"
    assert found.sentence.startswith("It completed after ")
    assert found.details["exit_code"] == 0


def test_a_failed_job_says_why_and_who_is_to_blame(held):
    found = finished(held, Outcome(None, reason=Reason.IMAGE_NOT_FOUND))
    assert found.code == "settled"
    assert found.sentence == (
        "It failed. The image does not exist or may not be pulled."
        " Nothing more happens by itself; it can be retried."
    )
    assert (found.details["reason"], found.details["blame"]) == ("image_not_found", "user")


def test_a_cancelled_job_says_why():
    job = queued()
    lifecycle.stop([job.pk], StopKind.CANCEL)
    assert told(job).sentence == "It was cancelled. Somebody withdrew it."


@pytest.mark.parametrize("status", JobStatus.values)
def test_a_job_in_any_state_can_be_explained(status):
    assert told(JobFactory(status=status)).sentence


# The claim is the judge


def random_world(dice):
    """Queues with and without limits, workers of all kinds, jobs of all kinds."""
    names = ["a", "b", "c"]
    for name in names:
        if dice.random() < 0.6:
            limit = dice.choice([None, 1, 2, 3])
            Queue.objects.create(name=name, paused=dice.random() < 0.3, max_running=limit)
    offers = [LOCAL, {"docker": engine("container")}, {**LOCAL, "docker": engine("container")}]
    rows = [
        worker_row(
            f"w{number}",
            concurrency=dice.randint(1, 4),
            queues=dice.choice([[], dice.sample(names, 2)]),
            offers=dice.choice(offers),
        )
        for number in range(dice.choice([1, 1, 3]))
    ]
    for _ in range(dice.randint(1, 14)):
        executor, isolation = dice.choice(
            [("", "auto"), ("", "process"), ("docker", "auto"), ("", "container"), ("", "gvisor")]
        )
        queued(
            queue=dice.choice(names),
            executor=executor,
            isolation=isolation,
            priority=dice.choice([0, 50, 100]),
            scheduled_for=dice.choice([None, None, timezone.now() + timedelta(hours=1)]),
            retry_count=dice.choice([0, 0, 0, 4]),
        )
    return rows


@pytest.mark.parametrize("seed", range(25))
def test_what_is_told_is_what_the_claim_does(seed):
    dice = random.Random(seed)
    rows = random_world(dice)
    already = {job_id for row in rows[:1] for job_id in taken_by(row, 1)}
    codes = {
        job.pk: explain(job).code for job in ContainerJob.objects.filter(status=JobStatus.QUEUED)
    }
    taken = {
        job_id
        for row in dice.sample(rows, len(rows))
        for job_id in taken_by(row, row.concurrency - row_holds(row))
    } - already
    expected = {pk for pk, code in codes.items() if code == Code.NEXT}
    assert expected <= taken
    may_come_later = {Code.NEXT, Code.NO_FREE_SLOT, Code.QUEUE_FULL}
    assert {codes[pk] for pk in taken} <= may_come_later
    if len(rows) == 1:
        assert taken == expected


def row_holds(row):
    return JobAttempt.objects.held_by(row.pk).count()


# Cost


def test_an_explanation_costs_a_few_queries_however_long_the_line(django_assert_max_num_queries):
    worker_row(concurrency=1)
    Queue.objects.create(name="default", max_running=5)
    for number in range(30):
        queued(queue="default", priority=number)
    last = ContainerJob.objects.order_by("priority").first()
    with django_assert_max_num_queries(14):
        assert explain(last).details["position"] == 30


def many_lanes(count):
    for number in range(count):
        queued(queue=f"q{number:04}", priority=100)


@pytest.mark.parametrize("here", ["a", "q0150x", "z"])
def test_an_explanation_costs_a_few_queries_however_many_queues(
    here, django_assert_max_num_queries
):
    worker_row(concurrency=1)
    many_lanes(200)
    queued(queue=here, priority=100)
    job = queued(queue=here)
    with django_assert_max_num_queries(14):
        found = explain(job)
    assert found.code == "no_free_slot"
    assert found.details["ahead_is_at_least"] is True
    assert found.details["position"] == 2
    assert "at least" in found.sentence


@pytest.mark.parametrize("here", ["a", "q0003x", "z"])
def test_every_queue_is_looked_at_when_they_are_few(here):
    worker_row(concurrency=1)
    many_lanes(6)
    queued(queue=here, priority=100, executor="process")
    found = explain(queued(queue=here))
    assert (found.details["ahead"], found.details["ahead_is_at_least"]) == (7, False)


def test_a_queue_of_very_many_lanes_says_at_least(django_assert_max_num_queries):
    Queue.objects.create(name="default", paused=True)
    for number in range(lanes.LANES_COUNTED + 1):
        queued(executor=f"e{number:04}", priority=100)
    job = queued(executor="f")
    with django_assert_max_num_queries(8):
        found = explain(job)
    assert found.details["ahead_is_at_least"] is True
    assert found.details["position"] == lanes.LANES_COUNTED + 1


# What others may not know


@pytest.fixture
def owner():
    return UserFactory()


def test_of_a_full_queue_only_the_own_jobs_are_named(owner):
    row = worker_row(concurrency=5)
    Queue.objects.create(name="licensed", max_running=3)
    foreign = [queued(queue="licensed", created_by=by) for by in (UserFactory(), None)]
    mine = queued(queue="licensed", created_by=owner)
    assert len(taken_by(row)) == 3
    job = queued(queue="licensed", created_by=owner)
    found = explain(job, owner=owner)
    assert (found.code, found.details["running"]) == ("queue_full", 3)
    assert found.details["held_by"] == [str(mine.pk)]
    assert found.details["held_by_others"] == 2
    assert not any(str(each.pk) in json.dumps(found.as_json()) for each in foreign)
    everything = explain(job).details
    assert (len(everything["held_by"]), everything["held_by_others"]) == (3, 0)


def test_of_a_busy_worker_neither_name_nor_foreign_jobs_are_told(owner):
    row = worker_row("secret-host", concurrency=2)
    foreign, mine = queued(created_by=UserFactory()), queued(created_by=owner)
    assert len(taken_by(row)) == 2
    found = explain(queued(created_by=owner), owner=owner)
    assert found.code == "no_free_slot"
    assert found.details["held_by"] == [{"job": str(mine.pk)}]
    assert found.details["held_by_others"] == 1
    assert found.sentence.startswith("The workers that would take it have none of 2 slots free")
    told_in_all = json.dumps(found.as_json())
    assert "secret-host" not in told_in_all
    assert str(foreign.pk) not in told_in_all


def test_queues_of_others_are_not_listed(owner):
    worker_row(queues=["top-secret"])
    found = explain(queued(queue="slow", created_by=owner), owner=owner)
    assert found.sentence == "No living worker serves its queue slow."
    assert "top-secret" not in json.dumps(found.as_json())
