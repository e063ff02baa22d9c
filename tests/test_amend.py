"""The verbs that people use beside moving a job: changing what is wanted, and steering queues."""

from __future__ import annotations

from datetime import UTC, datetime
from uuid import uuid4

import pytest
from django.core.exceptions import ValidationError
from django.db import OperationalError

from container_manager import bulk, lifecycle
from container_manager.exceptions import (
    HeldByWorker,
    InvalidTransition,
    NotChangeable,
    StaleState,
)
from container_manager.lifecycle import Stopped
from container_manager.models import ContainerJob, Queue
from container_manager.states import JobStatus
from tests.factories import UserFactory
from tests.support.spine import a_worker, at_once, held_by, path_of, queued

pytestmark = pytest.mark.django_db

WAITING = ("pending", "queued", "retrying", "failed")
BEYOND = ("running", "completed", "cancelled", "killed")


# amend --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", WAITING)
def test_what_a_next_attempt_will_read_may_be_changed_before_it_starts(job, status):
    changed = lifecycle.amend(job(status=status).pk, {"priority": 90, "command": "echo new"})
    row = ContainerJob.objects.get()
    assert (row.priority, row.command, row.status) == (90, ["echo", "new"], status)
    assert changed.revision == row.revision


@pytest.mark.parametrize("status", BEYOND)
def test_later_only_its_name_and_labels_may_be_changed(job, status):
    one = job(status=status)
    lifecycle.amend(one.pk, {"name": "new", "labels": {"a": "b"}})
    with pytest.raises(NotChangeable, match=f"while {status}: priority. Changeable: labels, name"):
        lifecycle.amend(one.pk, {"name": "newer", "priority": 1})
    row = ContainerJob.objects.get()
    assert (row.name, row.labels, row.priority) == ("new", {"a": "b"}, 50)


@pytest.mark.parametrize("status", WAITING)
def test_max_retries_cannot_fall_below_what_was_used(job, status):
    """Such a job would wait in the queue for good: nobody claims it."""
    one = job(status=status, retry_count=2, max_retries=3)
    with pytest.raises(ValidationError, match="at least 2: so many retries were used"):
        lifecycle.amend(one.pk, {"max_retries": 1})
    assert lifecycle.amend(one.pk, {"max_retries": 2}).max_retries == 2


def test_a_change_moves_nothing_and_changes_the_revision(job):
    one = job(status="queued")
    before = (one.revision, path_of(one))
    after = lifecycle.amend(one.pk, {"name": "new"})
    assert path_of(one) == before[1]
    assert after.version == one.version
    assert after.revision != before[0]


def test_a_change_of_a_revision_that_has_passed_is_refused(job):
    one = job()
    lifecycle.amend(one.pk, {"name": "first"}, revision=one.revision)
    now = ContainerJob.objects.get()
    with pytest.raises(StaleState, match=f"^Job {one.pk} is at revision {now.revision}$") as caught:
        lifecycle.amend(one.pk, {"name": "second"}, revision=one.revision)
    assert (caught.value.entity, caught.value.old) == (one, "pending")
    assert now.name == "first"


def test_a_change_looks_at_what_is_changed_only(job):
    """A row that could not be submitted any more, as an import may leave it, still has a name."""
    one = job()
    ContainerJob.objects.filter(pk=one.pk).update(image="-v")
    assert lifecycle.amend(one.pk, {"name": "new", "priority": 7}).name == "new"
    stored = ContainerJob.objects.get()
    assert (stored.name, stored.priority, stored.image) == ("new", 7, "-v")


def test_what_may_still_be_changed_is_told(job):
    with pytest.raises(NotChangeable) as caught:
        lifecycle.amend(job(status="running").pk, {"image": "other", "name": "fine"})
    assert "image" in str(caught.value)
    assert "labels, name" in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"priority": 101}, "priority"),
        ({"name": "fine", "image": "-v"}, "image"),
        ({"image": ""}, "image"),
        ({"environment": {"CM_X": "1"}}, "environment"),
        ({"environment": "A=1"}, "environment"),
    ],
)
def test_a_change_that_cannot_be_is_told_by_field_and_changes_nothing(job, changes, field):
    one = job(name="old")
    with pytest.raises(ValidationError) as caught:
        lifecycle.amend(one.pk, changes)
    assert list(caught.value.message_dict) == [field]
    assert ContainerJob.objects.get().name == "old"


@pytest.mark.parametrize("field", ["status", "created_by", "exit_code", "version", "id"])
def test_what_is_not_asked_for_but_happens_is_never_changeable(job, field):
    with pytest.raises(NotChangeable):
        lifecycle.amend(job().pk, {field: None})


def test_changing_a_job_that_is_not_there_says_so():
    with pytest.raises(ContainerJob.DoesNotExist):
        lifecycle.amend(uuid4(), {"name": "x"})


# enqueue, move ------------------------------------------------------------------------------------


def test_a_job_that_waits_out_its_backoff_may_be_queued_at_once(job, time_ahead):
    one = job(status="retrying", scheduled_for=time_ahead, retry_count=1)
    assert lifecycle.enqueue([one.pk], actor="user:ada") == 1
    one.refresh_from_db()
    assert (one.status, one.scheduled_for, one.retry_count) == ("queued", None, 1)


def test_a_job_that_nobody_holds_may_be_moved_by_hand(job):
    one = lifecycle.move(job().pk, JobStatus.RUNNING, actor="user:ada")
    lifecycle.move(one.pk, JobStatus.COMPLETED, actor="user:ada")
    assert path_of(one) == ["pending", "running", "completed"]


def test_a_job_that_a_worker_holds_is_not_moved_by_hand():
    queued()
    lease = held_by(a_worker())
    with pytest.raises(HeldByWorker):
        lifecycle.move(lease.job_id, JobStatus.COMPLETED)


def test_a_move_by_hand_obeys_the_table(job):
    with pytest.raises(InvalidTransition):
        lifecycle.move(job().pk, JobStatus.COMPLETED)


# steer_queue --------------------------------------------------------------------------------------


def test_a_queue_gets_its_row_when_somebody_first_decides_about_it():
    lifecycle.steer_queue("nightly", paused=True)
    lifecycle.steer_queue("nightly", max_running=3)
    assert Queue.objects.values_list("name", "paused", "max_running").get() == ("nightly", True, 3)
    lifecycle.steer_queue("nightly", paused=False, max_running=None)
    assert Queue.objects.values_list("paused", "max_running").get() == (False, None)


@pytest.mark.parametrize(
    ("name", "decided", "field"),
    [
        ("no good", {"paused": True}, "name"),
        ("nightly", {"max_running": 0}, "max_running"),
        ("nightly", {"max_running": -1}, "max_running"),
        ("nightly", {"paused": "perhaps"}, "paused"),
    ],
)
def test_a_decision_that_cannot_be_is_told_by_field_and_changes_nothing(name, decided, field):
    with pytest.raises(ValidationError) as caught:
        lifecycle.steer_queue(name, **decided)
    assert list(caught.value.message_dict) == [field]
    assert not Queue.objects.exists()


# Who sees what ------------------------------------------------------------------------------------


def test_people_see_their_own_jobs_and_operators_all(job, django_user_model):
    ada, operator = UserFactory(), django_user_model.objects.create_superuser("root")
    own = job(created_by=ada)
    job()
    assert list(ContainerJob.objects.visible_to(ada)) == [own]
    assert ContainerJob.objects.visible_to(operator).count() == 2


@pytest.mark.django_db(transaction=True)
def test_many_may_steer_a_new_queue_at_once():
    at_once(*[lambda: lifecycle.steer_queue("nightly", paused=True)] * 4)
    assert Queue.objects.values_list("name", "paused").get() == ("nightly", True)


# Together -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("status", "target"), [("retrying", "queued"), ("failed", "retrying")])
def test_a_moment_that_is_given_with_a_status_is_kept(job, time_ahead, status, target):
    one = job(status=status)
    lifecycle.revise(one.pk, {"scheduled_for": time_ahead}, JobStatus(target))
    one.refresh_from_db()
    assert (one.status, one.scheduled_for) == ("queued", time_ahead)


def test_queueing_for_now_takes_an_earlier_moment_back(job, time_ahead):
    one = job(scheduled_for=time_ahead)
    lifecycle.enqueue([one.pk], scheduled_for=None)
    one.refresh_from_db()
    assert one.scheduled_for is None


def test_a_status_may_be_asked_for_of_a_row_that_could_not_be_submitted(job):
    one = job(image="")
    lifecycle.amend(one.pk, {"name": "new"})
    assert lifecycle.revise(one.pk, {}, JobStatus.KILLED) == Stopped.DONE


def test_a_verb_for_a_revision_that_has_passed_is_refused(job):
    one = job()
    lifecycle.amend(one.pk, {"name": "new"})
    with pytest.raises(StaleState):
        lifecycle.bring(one.pk, JobStatus.KILLED, revision=one.revision)
    one.refresh_from_db()
    assert one.status == "pending"


def test_values_that_come_back_masked_are_those_that_are_there(job):
    one = job(environment={"TOKEN": "secret", "LEVEL": "info"})
    lifecycle.amend(one.pk, {"environment": {"TOKEN": "***", "LEVEL": "debug"}})
    one.refresh_from_db()
    assert one.environment == {"TOKEN": "secret", "LEVEL": "debug"}
    with pytest.raises(ValidationError):
        lifecycle.amend(one.pk, {"environment": {"OTHER": "***"}})


# Bounds -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("labels", {f"k{number}": "v" for number in range(65)}),
        ("labels", {"k": "v" * 1025}),
        ("environment", {"A": "***"}),
        ("retry_policy", {"rules": [{"action": "fail"}] * 101}),
        ("retry_policy", {"rules": [{"action": "fail", "on_exit_codes": [1] * 257}]}),
        ("scheduled_for", datetime(2200, 1, 1, tzinfo=UTC)),
        ("scheduled_for", datetime(1969, 12, 31, tzinfo=UTC)),
    ],
)
def test_rows_have_bounds(field, value):
    with pytest.raises(ValidationError) as caught:
        lifecycle.submit(image="busybox:latest", command=["/bin/true"], **{field: value})
    assert list(caught.value.message_dict) == [field]


def test_upkeep_bears_the_latest_moment_with_the_longest_patience(job):
    latest = datetime(2199, 12, 31, 23, 59, 59, tzinfo=UTC)
    job(status="queued", scheduled_for=latest, queue_timeout_seconds=366 * 24 * 3600)
    assert lifecycle.expire_waiting() == 0


# Many ---------------------------------------------------------------------------------------------


def test_a_database_that_goes_away_half_way_costs_only_what_was_not_done(job, monkeypatch):
    ids = [job().pk for _ in range(3)]
    monkeypatch.setattr(bulk, "BATCH", 1)
    stop, calls = lifecycle.stop, []

    def stop_until_it_is_away(*given, **named):
        calls.append(given)
        if len(calls) == 2:
            raise OperationalError("away")
        return stop(*given, **named)

    monkeypatch.setattr(lifecycle, "stop", stop_until_it_is_away)
    came = [result.word for result in bulk.act(bulk.Verb.KILL, ids, actor="user:ada")]
    assert came == ["done", "not_tried", "done"]
