"""The django-fsm methods: they change the instance, save() stores it."""

from __future__ import annotations

import pytest
from django.db import transaction
from django_fsm import TransitionNotAllowed, can_proceed

from container_manager.exceptions import InvalidTransition
from container_manager.models import ContainerJob
from container_manager.states import JOB
from tests.factories import JobFactory
from tests.models.ways import stored, told

pytestmark = pytest.mark.django_db

METHODS = {
    "enqueue": "queued",
    "start": "running",
    "complete": "completed",
    "fail": "failed",
    "retry": "retrying",
    "requeue": "queued",
    "cancel": "cancelled",
    "kill": "killed",
}


def sources(method):
    return set(getattr(ContainerJob, method)._django_fsm.transitions)


def test_the_edges_of_all_methods_together_are_the_table():
    edges = [(old, new) for method, new in METHODS.items() for old in sources(method)]
    assert sorted(edges) == sorted(JOB.edges)


def test_enqueue_is_for_new_jobs_and_requeue_for_retries():
    assert sources("enqueue") == {"pending"}
    assert sources("requeue") == {"retrying"}


@pytest.mark.parametrize("status", JOB.states)
@pytest.mark.parametrize("method", METHODS)
def test_a_method_goes_where_it_may_and_refuses_elsewhere(method, status):
    job = JobFactory(status=status)
    go = getattr(job, method)
    assert can_proceed(go) == (status in sources(method))
    if status in sources(method):
        go()
        assert job.status == METHODS[method]
        assert stored(job)["status"] == status
        job.save()
        assert told(job) == [(None, status, 1), (status, METHODS[method], 2)]
    else:
        with pytest.raises(InvalidTransition, match=f"from {status} to {METHODS[method]}"):
            go()
        assert job.status == status
        assert told(job) == [(None, status, 1)]


def test_the_refusal_is_a_value_error_and_that_of_django_fsm():
    for kind in (ValueError, TransitionNotAllowed):
        with pytest.raises(kind):
            JobFactory(status="completed").start()


def test_django_fsm_lists_what_is_possible():
    job = JobFactory(status="running")
    available = {transition.target for transition in job.get_available_status_transitions()}
    assert available == set(JOB.get_next_states("running"))


@pytest.mark.parametrize(
    "second",
    [
        lambda job: job.start(),
        lambda job: job.cancel(),
        lambda job: job.transition_to("running", save=False),
        lambda job: job.transition_to("running"),
    ],
)
@pytest.mark.parametrize(
    "first",
    [
        lambda job: job.enqueue(),
        lambda job: job.transition_to("queued", save=False),
        lambda job: setattr(job, "status", "queued"),
    ],
)
def test_two_moves_before_one_save_are_refused(first, second):
    job = JobFactory()
    first(job)
    with pytest.raises(InvalidTransition, match="not saved yet"):
        second(job)
    assert job.status == "queued"
    job.save()
    assert told(job) == [(None, "pending", 1), ("pending", "queued", 2)]


@pytest.mark.parametrize(
    "save", [lambda job: job.save(), lambda job: job.save(update_fields=["status"])]
)
def test_a_plain_assignment_cannot_follow_an_unsaved_move(save):
    job = JobFactory()
    job.enqueue()
    job.status = "running"
    with pytest.raises(InvalidTransition, match="pending -> queued -> running in one save"):
        save(job)
    assert stored(job)["status"] == "pending"
    assert told(job) == [(None, "pending", 1)]


def test_a_new_move_is_possible_after_the_save_and_after_a_refresh():
    job = JobFactory()
    job.enqueue()
    job.refresh_from_db()
    job.enqueue()
    job.save()
    job.start()
    job.save()
    assert [new for _, new, _ in told(job)] == ["pending", "queued", "running"]


def test_a_job_that_was_never_saved_can_begin_by_a_move():
    job = JobFactory.build()
    job.enqueue()
    job.save()
    assert told(job) == [(None, "queued", 1)]
    assert job.queued_at is not None


def test_enqueue_keeps_or_sets_the_time_it_is_scheduled_for(time_ahead):
    job = JobFactory(scheduled_for=time_ahead)
    job.enqueue()
    assert job.scheduled_for == time_ahead
    later = time_ahead.replace(year=time_ahead.year + 1)
    other = JobFactory()
    other.enqueue(scheduled_for=later)
    other.save()
    assert stored(other)["scheduled_for"] == later


def test_a_move_made_in_memory_is_refused_when_the_row_has_moved_meanwhile():
    job = JobFactory()
    job.enqueue()
    ContainerJob.objects.get(pk=job.pk).transition_to("cancelled")
    with pytest.raises(ValueError, match="moved since it was read"), transaction.atomic():
        job.save()
    assert stored(job)["status"] == "cancelled"


def test_an_error_in_a_method_leaves_the_state_as_it_was(monkeypatch):
    job = JobFactory()

    def out_of_order(*_):
        raise ConnectionError("the clock cannot be read")

    monkeypatch.setattr("container_manager.models.base.database_now", out_of_order)
    with pytest.raises(ConnectionError):
        job.enqueue()
    assert job.status == "pending"
