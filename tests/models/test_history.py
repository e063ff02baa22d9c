"""Asking the history."""

from __future__ import annotations

import uuid

import pytest

from container_manager.models import StateHistory
from container_manager.states import JOB
from tests.factories import JobFactory, TrialFactory

pytestmark = pytest.mark.django_db


def test_the_history_of_an_entity_is_its_whole_life_oldest_first():
    job, trial = JobFactory(), TrialFactory()
    for status in ("queued", "running", "failed", "retrying", "queued", "running", "completed"):
        job.transition_to(status)
    rows = list(StateHistory.objects.of(job))
    assert [row.version for row in rows] == list(range(1, 9)) == list(range(1, job.version + 1))
    assert [row.attempt for row in rows] == [0, 0, 1, 1, 1, 1, 2, 2]
    steps = [(row.old_state, row.new_state) for row in rows]
    assert steps[0] == (None, "pending")
    assert set(steps[1:]) <= set(JOB.edges)
    assert [new for _, new in steps[:-1]] == [old for old, _ in steps[1:]]
    assert rows[-1].new_state == job.status
    assert [row.new_state for row in StateHistory.objects.of(trial)] == ["queued"]


def test_get_history_is_newest_first_and_limited():
    job = JobFactory()
    job.transition_to("queued")
    job.transition_to("running")
    ask = StateHistory.objects.get_history
    assert [row.version for row in ask("job", job.pk)] == [3, 2, 1]
    assert [row.version for row in ask("job", str(job.pk), 2)] == [3, 2]
    assert ask("job", job.pk, limit=0) == []
    assert ask("trial", job.pk) == ask("job", uuid.uuid4()) == []


def test_a_history_row_reads_as_the_move_it_tells():
    job = JobFactory()
    job.transition_to("queued")
    assert str(StateHistory.objects.of(job).last()) == f"job {job.pk}: pending -> queued"
