"""Moves and durations are counted for good: exact, once each, and never less than before."""

from __future__ import annotations

import random
from collections import Counter
from datetime import timedelta
from typing import Any

import pytest
from django.core.management import call_command
from django.utils import timezone

from container_manager import lifecycle
from container_manager.models import (
    ContainerJob,
    Event,
    MoveCount,
    MoveCounter,
    StateHistory,
    move_counts,
)
from container_manager.models.move_counts import UP_TO_MS, Durations, behind, count_moves, fold
from container_manager.models.sequencing import take_all
from container_manager.states import JobStatus
from tests.consistency.planting import behind_the_guard
from tests.factories import JobFactory, RunFactory, TaskFactory, TrialFactory
from tests.support.threads import in_threads

pytestmark = pytest.mark.django_db

Edge = tuple[str, str, str]


def lived(*states: str, **fields: Any) -> ContainerJob:
    job = JobFactory(**fields)
    for state in states:
        job.transition_to(state)
    return job


def told() -> dict[Edge, int]:
    return dict(count_moves().by_edge)


def of_history() -> dict[Edge, int]:
    rows = StateHistory.objects.values_list("entity_type", "old_state", "new_state")
    return dict(Counter((kind, old or "", new) for kind, old, new in rows))


def dated(job: ContainerJob, **seconds_after: float) -> None:
    """As if its move to each of these states had come so long after the one before."""
    moment = timezone.now() - timedelta(days=30)
    with behind_the_guard():
        for row in StateHistory.objects.of(job):
            moment += timedelta(seconds=seconds_after.get(row.new_state, 0))
            StateHistory.objects.filter(pk=row.pk).update(changed_at=moment)


def waited() -> Durations:
    return count_moves().waited


def only(durations: Durations, upto: int | None) -> bool:
    """One was counted, in the stretch that ends there; None: in the last one."""
    place = len(UP_TO_MS) if upto is None else UP_TO_MS.index(upto)
    return durations.counts == [int(number == place) for number in range(len(UP_TO_MS) + 1)]


# Moves


def test_every_move_of_every_entity_is_counted_by_where_it_went() -> None:
    lived("queued", "running", "completed")
    lived("queued", "cancelled")
    RunFactory().transition_to("running")
    TaskFactory(state="success")
    TrialFactory()
    take_all()
    assert told() == of_history()
    assert told()["job", "", "pending"] == 2
    assert told()["task_instance", "", "success"] == 1


@pytest.mark.parametrize("limit", [1, 3, 10_000])
def test_what_is_folded_and_what_is_not_add_up_at_every_moment(limit: int) -> None:
    for _ in range(4):
        lived("queued", "running", "failed", "retrying", "queued")
        take_all()
        assert told() == of_history()
        fold(limit)
        assert told() == of_history()
    while fold(limit):
        assert told() == of_history()
    assert behind() == 0
    assert sum(MoveCount.objects.values_list("moves", flat=True)) == Event.objects.newest()


def test_what_has_no_place_yet_is_not_counted_yet() -> None:
    lived("queued")
    assert told() == {}
    assert fold() == 0
    take_all()
    assert fold() == 2
    assert fold() == 0


def test_they_stay_when_jobs_histories_and_events_are_pruned() -> None:
    jobs = [lived("queued", "running", "completed") for _ in range(3)]
    take_all()
    before, ran = told(), count_moves().ran["completed"]
    assert lifecycle.prune([job.pk for job in jobs])
    assert not ContainerJob.objects.exists()
    Event.objects.all().delete()
    assert told() == before
    assert count_moves().ran["completed"] == ran
    lived("queued")
    take_all()
    assert told()["job", "", "pending"] == 4
    fold()
    assert told()["job", "", "pending"] == 4


@pytest.mark.django_db(transaction=True)
def test_events_that_were_pruned_before_they_were_folded_are_left_out() -> None:
    lived("queued")
    take_all()
    Event.objects.all().delete()
    lived("queued")
    take_all()
    while fold(1):
        pass
    assert told() == {("job", "", "pending"): 1, ("job", "pending", "queued"): 1}


@pytest.mark.django_db(transaction=True)
def test_many_who_fold_at_once_count_each_move_once() -> None:
    for _ in range(20):
        lived("queued", "running", "completed")
    take_all()
    expected = of_history()
    seen: list[dict[Edge, int]] = []

    def fold_all() -> None:
        for _ in range(40):
            fold(random.randint(1, 7))
            seen.append(told())

    in_threads(*[fold_all] * 3)
    assert behind() == 0
    assert [each for each in seen if each != expected] == []


@pytest.mark.django_db(transaction=True)
def test_after_a_flush_they_begin_again() -> None:
    lived("queued")
    take_all()
    fold()
    call_command("flush", interactive=False, verbosity=0)
    assert told() == {}
    lived("queued")
    take_all()
    assert told() == of_history()
    assert fold() == 2
    assert told() == of_history()
    assert MoveCounter.objects.get().counted == 2


# Durations


@pytest.mark.parametrize(
    ("seconds", "upto"),
    [(0.0, 100), (0.1, 100), (0.101, 500), (0.5, 500), (86_400, 86_400_000), (86_400.5, None)],
)
@pytest.mark.parametrize("folded", [True, False])
def test_a_wait_is_counted_where_it_belongs(seconds: float, upto: int | None, folded: bool) -> None:
    dated(lived("queued", "running"), running=seconds)
    take_all()
    if folded:
        fold()
    assert only(waited(), upto)
    assert waited().total_ms == round(seconds * 1000)


def test_a_job_that_was_not_due_did_not_wait() -> None:
    job = lived("queued", "running", "completed")
    dated(job, running=3600, completed=50)
    due = StateHistory.objects.of(job).get(new_state="running").changed_at - timedelta(seconds=20)
    ContainerJob.objects.filter(pk=job.pk).update(scheduled_for=due)
    take_all()
    assert waited().total_ms == 20_000
    assert count_moves().ran["completed"].total_ms == 50_000


def test_a_date_that_came_later_says_nothing_about_this_wait() -> None:
    """Its next attempt waits for it."""
    job = lived("queued", "running")
    dated(job, running=7)
    ContainerJob.objects.filter(pk=job.pk).update(scheduled_for=timezone.now())
    take_all()
    assert waited().total_ms == 7_000


def test_runs_are_told_by_how_they_ended() -> None:
    for state in ("completed", "failed", "failed", "cancelled", "killed"):
        dated(lived("queued", "running", state), **{state: 2.0})
    take_all()
    ran = count_moves().ran
    assert {state: sum(each.counts) for state, each in ran.items()} == {
        "completed": 1,
        "failed": 2,
        "cancelled": 1,
        "killed": 1,
    }
    assert ran["failed"].total_ms == 4_000
    assert set(ran) == set(map(str, ContainerJob.machine.get_next_states(JobStatus.RUNNING)))


def test_every_attempt_is_counted_and_no_other_stay() -> None:
    job = lived("queued", "running", "failed", "retrying", "queued", "running", "completed")
    dated(job, queued=100, running=1, failed=5, retrying=77, completed=6)
    take_all()
    moves = count_moves()
    assert (sum(moves.waited.counts), moves.waited.total_ms) == (2, 2_000)
    assert moves.ran["failed"].total_ms == 5_000
    assert moves.ran["completed"].total_ms == 6_000


def test_a_clock_that_stepped_back_makes_no_negative_time() -> None:
    dated(lived("queued", "running", "completed"), running=-60, completed=-60)
    take_all()
    fold()
    assert only(waited(), 100)
    assert count_moves().ran["completed"].total_ms == 0


@pytest.mark.parametrize("keep_history", [True, False])
def test_who_prunes_folds_before_so_that_nothing_falls(keep_history: bool) -> None:
    job = lived("queued", "running", "completed", scheduled_for=timezone.now())
    dated(job, running=30, completed=7)
    take_all()
    before = count_moves()
    lifecycle.prune([job.pk], keep_history=keep_history)
    assert count_moves() == before
    assert before.ran["completed"].total_ms == 7_000


def test_what_was_deleted_past_all_verbs_is_a_move_of_unknown_length() -> None:
    job = lived("queued", "running", "completed")
    take_all()
    ContainerJob.objects.filter(pk=job.pk).delete()
    StateHistory.objects.all().delete()
    assert told()["job", "running", "completed"] == 1
    assert sum(waited().counts) == 0
    fold()
    assert told()["job", "running", "completed"] == 1


def test_a_fold_takes_no_more_than_it_was_asked_to(monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(3):
        lived("queued")
    take_all()
    assert [fold(4), fold(4), fold(4)] == [4, 2, 0]
    assert move_counts.behind() == 0
