"""What the doors ask of one job: to come to a state, with other changes or not; and only once."""

from __future__ import annotations

from datetime import timedelta
from uuid import uuid4

import pytest
from django.utils import timezone

from container_manager import lifecycle
from container_manager.exceptions import (
    HeldByWorker,
    InvalidTransition,
    KeyReused,
    NotChangeable,
    StaleState,
    StopRequested,
)
from container_manager.lifecycle import Stopped
from container_manager.models import ContainerJob, IdempotencyKey, StateHistory
from container_manager.states import JobStatus
from container_manager.worker.upkeep import ForgetKeys
from tests.factories import AttemptFactory, JobFactory
from tests.support.spine import path_of

pytestmark = pytest.mark.django_db


def test_a_new_state_keeps_the_time_that_nobody_changed():
    when = timezone.now() + timedelta(hours=1)
    job = JobFactory(status="pending", scheduled_for=when)
    lifecycle.revise(job.pk, {"priority": 9}, JobStatus.QUEUED)
    job.refresh_from_db()
    assert (job.priority, job.status, job.scheduled_for) == (9, "queued", when)


# bring --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "wanted", "path"),
    [
        ("pending", "queued", ["queued"]),
        ("retrying", "queued", ["queued"]),
        ("failed", "retrying", ["retrying", "queued"]),
        ("queued", "cancelled", ["cancelled"]),
        ("failed", "cancelled", ["cancelled"]),
        ("running", "killed", ["killed"]),
        ("running", "completed", ["completed"]),
    ],
)
def test_a_job_comes_to_a_state_by_the_verb_of_that_name(status, wanted, path):
    job = JobFactory(status=status)
    assert lifecycle.bring(job.pk, JobStatus(wanted), actor="api:ada") == Stopped.DONE
    assert path_of(job)[1:] == path
    assert StateHistory.objects.of(job).last().actor == "api:ada"


def test_a_held_job_is_asked_to_stop_once():
    job = AttemptFactory().job
    assert lifecycle.bring(job.pk, JobStatus.CANCELLED) == Stopped.REQUESTED
    with pytest.raises(StopRequested) as caught:
        lifecycle.bring(job.pk, JobStatus.CANCELLED)
    assert (caught.value.old, caught.value.code) == ("running", "stop_requested")
    assert (caught.value.entity, caught.value.new) == (job, "cancelled")
    assert lifecycle.bring(job.pk, JobStatus.KILLED) == Stopped.REQUESTED


def test_a_job_comes_nowhere_that_its_state_does_not_allow():
    for status in JobStatus:
        job = JobFactory(status=status)
        for wanted in JobStatus:
            again = (status, wanted) == (JobStatus.RETRYING, JobStatus.RETRYING)
            if not job.can_transition_to(wanted) and not again:
                with pytest.raises(InvalidTransition):
                    lifecycle.bring(job.pk, wanted)
        assert path_of(job) == [status]


def test_what_is_held_is_not_moved_by_hand():
    with pytest.raises(HeldByWorker):
        lifecycle.bring(AttemptFactory().job.pk, JobStatus.COMPLETED)


@pytest.mark.parametrize("wanted", list(JobStatus))
def test_a_job_that_is_not_there_comes_nowhere(wanted):
    with pytest.raises(ContainerJob.DoesNotExist):
        lifecycle.bring(uuid4(), wanted)


# revise -------------------------------------------------------------------------------------------


def test_fields_and_state_change_together():
    job = JobFactory()
    lifecycle.revise(job.pk, {"priority": 7}, JobStatus.QUEUED)
    assert ContainerJob.objects.values_list("priority", "status").get() == (7, "queued")


@pytest.mark.parametrize(
    ("changes", "status", "revision", "error"),
    [
        ({"name": "new"}, JobStatus.COMPLETED, None, InvalidTransition),
        ({"version": 3}, JobStatus.QUEUED, None, NotChangeable),
        ({"name": "new"}, JobStatus.QUEUED, "1-0", StaleState),
        ({}, JobStatus.QUEUED, "1-0", StaleState),
    ],
)
def test_or_not_at_all(changes, status, revision, error):
    job = JobFactory(name="old")
    with pytest.raises(error):
        lifecycle.revise(job.pk, changes, status, revision=revision)
    assert ContainerJob.objects.values_list("name", "status").get() == ("old", "pending")


# once ---------------------------------------------------------------------------------------------


def test_the_first_acts_and_the_others_get_its_answer():
    answers = [lifecycle.once("s", "k", "h", lambda n=n: {"n": n}) for n in (1, 2)]
    assert answers == [({"n": 1}, True), ({"n": 1}, False)]


def test_a_key_means_one_request_in_one_scope():
    lifecycle.once("s", "k", "h", dict)
    with pytest.raises(KeyReused):
        lifecycle.once("s", "k", "another", dict)
    assert lifecycle.once("another", "k", "another", dict) == ({}, True)


def test_an_act_that_fails_leaves_the_key_free():
    def fails() -> None:
        JobFactory()
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        lifecycle.once("s", "k", "h", fails)
    assert not ContainerJob.objects.exists()
    assert lifecycle.once("s", "k", "another", dict) == ({}, True)


def test_a_key_is_kept_as_long_as_the_settings_say(settings):
    settings.CONTAINER_MANAGER = {**settings.CONTAINER_MANAGER, "IDEMPOTENCY_SECONDS": 60}
    lifecycle.once("s", "k", "h", dict)
    left = IdempotencyKey.objects.get().expires_at - timezone.now()
    assert timedelta(seconds=55) < left <= timedelta(seconds=60)


def test_expired_keys_are_free_and_forgotten():
    for key in ("old", "new"):
        lifecycle.once("s", key, "h", lambda: 1)
    IdempotencyKey.objects.filter(key="old").update(expires_at=timezone.now())
    ForgetKeys()()
    assert IdempotencyKey.objects.get().key == "new"
    assert lifecycle.once("s", "old", "another", lambda: 2) == (2, True)
