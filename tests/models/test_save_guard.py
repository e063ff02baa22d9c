"""What save() writes, and when it refuses."""

from __future__ import annotations

import copy
from datetime import timedelta

import pytest
from django.core.exceptions import FieldDoesNotExist, ValidationError
from django.db import DatabaseError, IntegrityError, connection, transaction
from django.utils import timezone
from django_fsm import ConcurrentTransition

from container_manager.exceptions import HeldByWorker, InvalidTransition, StaleState
from container_manager.models import ContainerJob, JobAttempt, StateHistory, acting_as
from container_manager.states import JOB, Phase
from tests.factories import AttemptFactory, JobFactory, TrialFactory
from tests.models import ways
from tests.models.ways import name_of, stored, told
from tests.trials.models import Trial

pytestmark = pytest.mark.django_db


def again(job):
    """A second copy of the same row, as another process would read it."""
    return type(job).objects.get(pk=job.pk)


# Stale copies


@pytest.mark.parametrize(
    ("change", "new"),
    [
        (lambda job: job.transition_to("running"), "running"),
        (lambda job: ways.assign_and_save(job, "running"), "running"),
        (lambda job: ways.assign_and_save_only_the_state(job, "running"), "running"),
        (lambda job: ways.bulk_update(job, "running"), "running"),
        (lambda job: setattr(job, "name", "new") or job.save(), "pending"),
        (lambda job: setattr(job, "name", "new") or job.save(update_fields=["name"]), "pending"),
        (lambda job: job.save(), "pending"),
    ],
    ids=["transition_to", "save", "save status", "bulk_update", "name", "save name", "nothing"],
)
def test_a_copy_that_missed_a_move_writes_nothing(change, new):
    job = JobFactory()
    stale = again(job)
    job.transition_to("queued")
    before = stored(job)
    with pytest.raises(StaleState, match="is at version 2: it moved since it was read") as refused:
        change(stale)
    assert stored(job) == before
    assert len(told(job)) == 2
    assert refused.value.code == "stale_state"
    assert refused.value.entity == stale
    assert (refused.value.old, refused.value.new) == ("pending", new)
    assert isinstance(refused.value, ValueError)
    assert isinstance(refused.value, ConcurrentTransition)


def test_there_and_back_again_is_seen():
    trial = TrialFactory(state="failed")
    stale = Trial.objects.get(pk=trial.pk)
    trial.transition_to("running")
    trial.transition_to("failed")
    stale.state = "retrying"
    with pytest.raises(StaleState):
        stale.save()
    assert stored(trial)["version"] == 3


def test_a_full_save_of_an_old_copy_cannot_erase_a_kill_request():
    job = JobFactory(status="running")
    old_copy = again(job)
    ContainerJob.objects.filter(pk=job.pk).update(kill_requested_at=timezone.now())
    old_copy.name = "renamed"
    old_copy.save()
    assert stored(job)["name"] == "renamed"
    assert stored(job)["kill_requested_at"] is not None


def test_a_full_save_writes_json_that_was_changed_in_place():
    job = again(JobFactory(labels={"a": "1"}))
    job.labels["b"] = "2"
    job.save()
    assert stored(job)["labels"] == {"a": "1", "b": "2"}


@pytest.mark.parametrize(
    "change",
    [
        lambda job: job.save(),
        lambda job: job.save(update_fields=["name"]),
        lambda job: job.transition_to("queued"),
    ],
)
def test_a_row_that_was_deleted_is_not_inserted_again(change):
    job = JobFactory()
    ContainerJob.objects.filter(pk=job.pk).delete()
    with pytest.raises(ContainerJob.DoesNotExist, match="was deleted"):
        change(job)
    assert not ContainerJob.objects.filter(pk=job.pk).exists()
    assert job.status == "pending"


def test_a_row_that_was_deleted_before_its_state_was_read_is_not_inserted_again():
    job = ContainerJob.objects.only("name").get(pk=JobFactory().pk)
    ContainerJob.objects.filter(pk=job.pk).delete()
    job.name = "too late"
    with pytest.raises(ContainerJob.DoesNotExist, match="was deleted"):
        job.save()
    assert not ContainerJob.objects.exists()


def test_a_row_that_is_loaded_from_a_fixture_again_is_guarded_by_the_database():
    job = JobFactory(name="old")
    job.name = "new"
    job.save_base(raw=True)
    assert ContainerJob.objects.get().name == "new"
    job.status = "completed"
    with pytest.raises(IntegrityError), transaction.atomic():
        job.save_base(raw=True)


# A worker holds it


@pytest.mark.parametrize(
    "way",
    [*ways.ORM_WAYS, ways.update_state, lambda job, new: job.fail() or job.save()],
    ids=[*map(name_of, ways.ORM_WAYS), "update_state", "fail()"],
)
@pytest.mark.parametrize("phase", [phase for phase in Phase if phase != Phase.DONE])
def test_a_running_job_is_moved_only_by_the_worker_that_holds_it(way, phase):
    job = again(AttemptFactory(phase=phase).job)
    before = stored(job)
    with pytest.raises(HeldByWorker, match="held by a worker") as refused:
        ways.tried(way, job, "failed")
    assert (refused.value.entity, refused.value.old) == (job, "running")
    assert stored(job) == before
    assert len(told(job)) == 1


@pytest.mark.parametrize("way", ways.LEGAL_WAYS, ids=name_of)
def test_a_running_job_that_nobody_holds_is_moved_by_anybody(way):
    job = again(AttemptFactory(phase=Phase.DONE).job)
    way(job, "failed")
    assert stored(job)["status"] == "failed"


def test_other_fields_of_a_held_job_can_be_written():
    job = again(AttemptFactory().job)
    job.kill_requested_at = timezone.now()
    job.save()
    ContainerJob.objects.filter(pk=job.pk).update(name="by update", status="running")
    job.priority = 7
    ContainerJob.objects.bulk_update([job], ["priority"])
    assert stored(job)["kill_requested_at"] == job.kill_requested_at
    assert (stored(job)["name"], stored(job)["priority"]) == ("by update", 7)


def test_one_held_row_stops_the_update_of_all():
    free, held = JobFactory(status="running"), AttemptFactory().job
    with pytest.raises(HeldByWorker):
        ContainerJob.objects.filter(status="running").update(status="failed")
    assert stored(free)["status"] == stored(held)["status"] == "running"


# What memory says afterwards


def test_after_a_refused_save_a_legal_one_works():
    job = again(JobFactory())
    job.status = "completed"
    with pytest.raises(InvalidTransition, match="pending -> completed"):
        job.save()
    assert (job.version, job.completed_at, job.status) == (1, None, "completed")
    job.status = "queued"
    job.save()
    assert (job.version, stored(job)["version"], stored(job)["status"]) == (2, 2, "queued")


def test_after_a_failed_statement_the_same_save_can_be_tried_again():
    job = again(JobFactory())
    job.status = "queued"
    job.priority = 101
    with pytest.raises(DatabaseError):
        job.save()
    assert (job.version, job.queued_at, job.status) == (1, None, "queued")
    job.priority = 100
    job.save()
    assert (job.version, stored(job)["version"], stored(job)["status"]) == (2, 2, "queued")


def test_after_a_refused_transition_to_the_job_is_as_it_was():
    job = again(JobFactory())
    before = {**job.__dict__}
    with pytest.raises(InvalidTransition):
        job.transition_to("completed", exit_code=0, name="new")
    with pytest.raises(DatabaseError):
        job.transition_to("queued", priority=101)
    assert {**job.__dict__} == before
    job.transition_to("queued")
    assert stored(job)["name"] == before["name"]


def test_a_move_behind_one_that_is_not_saved_yet_is_refused():
    job = again(JobFactory())
    job.transition_to("queued", save=False)
    with pytest.raises(InvalidTransition, match="the move to queued is not saved yet") as refused:
        job.transition_to("running")
    told_of = (refused.value.entity, refused.value.old, refused.value.new)
    assert told_of == (job, "queued", "running")
    job.save()
    assert told(job)[1:] == [("pending", "queued", 2)]


def test_an_unknown_field_is_refused_before_anything_moves():
    job = JobFactory()
    with pytest.raises(FieldDoesNotExist):
        job.transition_to("queued", colour="red")
    assert job.status == stored(job)["status"] == "pending"


def test_after_a_refusal_in_an_atomic_block_the_block_goes_on():
    job, other = again(JobFactory()), JobFactory()
    stale = again(other)
    other.transition_to("queued")
    with transaction.atomic():
        job.name = "before"
        job.save()
        job.status = "completed"
        with pytest.raises(InvalidTransition):
            job.save()
        stale.name = "stale"
        with pytest.raises(StaleState):
            stale.save()
        with pytest.raises(InvalidTransition):
            ContainerJob.objects.filter(pk=other.pk).update(status="completed")
        assert stored(job)["name"] == "before"


def test_after_a_rollback_around_it_a_copy_is_stale_until_it_is_read_again():
    job = again(JobFactory())
    with pytest.raises(RuntimeError), transaction.atomic():
        job.transition_to("queued")
        raise RuntimeError
    assert stored(job)["version"] == 1
    assert told(job) == [(None, "pending", 1)]
    with pytest.raises(StaleState):
        job.save()
    job.refresh_from_db()
    job.transition_to("queued")
    assert told(job) == [(None, "pending", 1), ("pending", "queued", 2)]


def test_a_row_whose_insert_was_rolled_back_is_not_there():
    with pytest.raises(RuntimeError), transaction.atomic():
        job = JobFactory()
        raise RuntimeError
    with pytest.raises(ContainerJob.DoesNotExist):
        job.save()
    assert StateHistory.objects.of(job).count() == 0


# Deferred fields


@pytest.mark.parametrize(
    "fields", [["name"], ["status"], ["version"], ["id"], ["status", "version"]]
)
@pytest.mark.parametrize("way", ways.ORM_WAYS, ids=name_of)
def test_a_job_read_with_only_some_fields_obeys_the_same_rules(fields, way):
    pk = JobFactory().pk
    with pytest.raises(InvalidTransition):
        way(ContainerJob.objects.only(*fields).get(pk=pk), "completed")
    job = ContainerJob.objects.only(*fields).get(pk=pk)
    way(job, "queued")
    assert told(job) == [(None, "pending", 1), ("pending", "queued", 2)]
    assert stored(job)["queued_at"] is not None


@pytest.mark.parametrize("deferred", ["status", "version", "launched_at", "transition_info"])
def test_a_job_read_without_some_fields_obeys_the_same_rules(deferred):
    pk = JobFactory(status="running").pk
    job = ContainerJob.objects.defer(deferred).get(pk=pk)
    with pytest.raises(InvalidTransition):
        ways.assign_and_save(job, "queued")
    job = ContainerJob.objects.defer(deferred).get(pk=pk)
    ways.assign_and_save_only_the_state(job, "failed")
    assert stored(job)["duration_ms"] > 0
    assert told(job)[1:] == [("running", "failed", 2)]


def test_a_state_that_was_read_before_the_move_is_stale_even_when_the_version_is_read_later():
    job = JobFactory()
    for read_late in (lambda copy: None, lambda copy: copy.version):
        late = ContainerJob.objects.defer("version").get(pk=job.pk)
        again(job).transition_to(JOB.get_next_states(stored(job)["status"])[0])
        read_late(late)
        with pytest.raises(StaleState):
            ways.assign_and_save(late, "killed")
    assert stored(job)["status"] == "running"


def test_a_save_of_one_field_reads_no_deferred_one(django_assert_num_queries):
    job = ContainerJob.objects.only("name", "status", "version").get(pk=JobFactory().pk)
    job.name = "new"
    with django_assert_num_queries(3):  # savepoint, update, release
        job.save(update_fields=["name"])
    assert stored(job)["name"] == "new"


def test_a_deferred_field_that_is_emptied_is_written():
    pk = JobFactory(scheduled_for=timezone.now()).pk
    job = ContainerJob.objects.defer("scheduled_for").get(pk=pk)
    job.scheduled_for = None
    job.save()
    assert stored(job)["scheduled_for"] is None


# Reading again


def test_refresh_from_db_takes_over_state_and_version():
    job = JobFactory()
    again(job).transition_to("queued")
    job.status = "killed"
    job.refresh_from_db()
    assert (job.status, job.version) == ("queued", 2)
    job.transition_to("running")
    assert stored(job)["version"] == 3


@pytest.mark.parametrize("positional", [False, True])
def test_a_refresh_of_the_state_alone_does_not_make_an_old_copy_new(positional):
    job = JobFactory()
    again(job).transition_to("queued")
    if positional:
        job.refresh_from_db(None, ["status"])
    else:
        job.refresh_from_db(fields=["status"])
    assert job.status == "queued"
    with pytest.raises(StaleState):
        job.transition_to("running")


@pytest.mark.parametrize("positional", [False, True])
def test_a_refresh_of_some_fields_keeps_what_is_not_saved_of_others(positional):
    job = again(JobFactory())
    ContainerJob.objects.update(priority=7)
    job.name = "not saved yet"
    if positional:
        job.refresh_from_db(None, ["priority"])
    else:
        job.refresh_from_db(fields=["priority"])
    assert (job.name, job.priority) == ("not saved yet", 7)
    job.save()
    assert stored(job)["name"] == "not saved yet"


def test_copies_of_an_instance_do_not_share_what_they_remember():
    job = JobFactory()
    other = copy.copy(job)
    job.transition_to("queued")
    with pytest.raises(StaleState):
        other.transition_to("running")


# Beginning


def test_a_copy_by_an_empty_key_begins_a_life_of_its_own():
    job = JobFactory(status="failed")
    job.transition_to("retrying")
    first = job.pk
    job.pk = None
    job.save()
    assert job.pk != first
    assert told(job) == [(None, "retrying", 1)]
    job._state.adding = True
    job.pk = None
    job.save()
    assert ContainerJob.objects.count() == 3


def test_a_second_row_with_an_id_in_use_is_refused():
    job = JobFactory(status="completed")
    with pytest.raises(DatabaseError), transaction.atomic():
        ContainerJob(pk=job.pk, command=["x"]).save()
    with pytest.raises(DatabaseError), transaction.atomic():
        ContainerJob.objects.create(pk=job.pk, command=["x"])
    assert stored(job)["status"] == "completed"


@pytest.mark.parametrize("status", JOB.states)
@pytest.mark.parametrize(
    "create",
    [
        lambda **fields: ContainerJob.objects.create(**fields),
        lambda **fields: ContainerJob.objects.bulk_create([ContainerJob(**fields)])[0],
        lambda **fields: ContainerJob.objects.get_or_create(name="n", defaults=fields)[0],
        lambda **fields: ContainerJob.objects.update_or_create(name="n", defaults=fields)[0],
    ],
    ids=["create", "bulk_create", "get_or_create", "update_or_create"],
)
def test_a_job_may_begin_in_every_known_state_with_the_times_of_that_state(create, status):
    job = create(status=status, command=["x"])
    assert told(job) == [(None, status, 1)]
    assert stored(job)["version"] == 1
    row = stored(job)
    for column, states_with_it in WHEN_SET.items():
        if status in states_with_it:
            assert row[column] == getattr(job, column) is not None


WHEN_SET = {
    "queued_at": ["queued"],
    "launched_at": ["running", "completed", "failed", "retrying"],
    "completed_at": ["completed", "failed", "retrying", "cancelled", "killed"],
}


def test_times_that_are_given_at_the_beginning_are_kept():
    then = timezone.now() - timedelta(days=400)
    job = ContainerJob.objects.create(
        status="completed",
        queued_at=then,
        launched_at=then + timedelta(seconds=1),
        completed_at=then + timedelta(seconds=3),
    )
    row = stored(job)
    assert (row["queued_at"], row["launched_at"]) == (then, then + timedelta(seconds=1))
    assert (row["completed_at"], row["duration_ms"]) == (then + timedelta(seconds=3), 2000)


@pytest.mark.parametrize("status", ["", "x", "Running"])
@pytest.mark.parametrize("bulk", [False, True])
def test_a_job_cannot_begin_in_an_unknown_state(status, bulk):
    with pytest.raises(DatabaseError), transaction.atomic():
        if bulk:
            ContainerJob.objects.bulk_create([ContainerJob(status=status)])
        else:
            ContainerJob.objects.create(status=status)
    assert not ContainerJob.objects.exists()


@pytest.mark.parametrize("given", [None, timezone.now() - timedelta(days=400)])
def test_a_job_that_moves_before_it_is_saved_has_the_time_of_its_move_or_what_was_given(given):
    job = ContainerJob(command=["x"], queued_at=given)
    job.transition_to("queued", save=False)
    assert job.queued_at is not None
    assert given in (None, job.queued_at)
    job.save()
    assert stored(job)["queued_at"] == job.queued_at


@pytest.mark.parametrize("info", [{"actor": "carol"}, None, []])
def test_who_makes_a_job_may_be_told_with_it(info):
    job = ContainerJob(command=["x"], transition_info=info)
    with acting_as("ann"):
        job.save()
    actor = "carol" if info else "ann"
    assert StateHistory.objects.of(job).get().actor == actor
    assert stored(job)["transition_info"] == {"actor": actor, "version": 1}


def test_a_new_job_has_version_1_whatever_was_given():
    assert stored(ContainerJob.objects.create(version=9))["version"] == 1


# Plain assignment


@pytest.mark.parametrize("update_fields", [None, ["status"]])
def test_times_that_are_given_with_a_move_are_kept(update_fields):
    then = timezone.now() - timedelta(hours=1)
    job = again(JobFactory(status="queued"))
    job.status, job.launched_at = "running", then
    job.save(update_fields=update_fields)
    job.status, job.completed_at, job.duration_ms = "completed", then + timedelta(1), 5
    job.save(update_fields=update_fields)
    row = stored(job)
    assert (row["launched_at"], row["completed_at"]) == (then, then + timedelta(1))
    assert row["duration_ms"] == 5


def test_only_the_named_fields_and_those_of_the_move_are_written():
    job = again(JobFactory())
    job.status, job.name, job.priority = "queued", "unsaved", 9
    job.save(update_fields=["status", "priority"])
    assert (stored(job)["status"], stored(job)["priority"]) == ("queued", 9)
    assert stored(job)["name"] != "unsaved"
    job.save()
    assert stored(job)["name"] == "unsaved"


def test_a_state_that_is_not_among_the_named_fields_is_not_written():
    job = again(JobFactory())
    job.status, job.name = "queued", "saved"
    job.save(update_fields=["name"])
    assert (stored(job)["status"], stored(job)["name"]) == ("pending", "saved")
    assert len(told(job)) == 1
    job.save()
    assert told(job)[1:] == [("pending", "queued", 2)]


def test_save_with_no_fields_does_nothing(django_assert_num_queries):
    job = JobFactory()
    job.status = "completed"
    with django_assert_num_queries(0):
        job.save(update_fields=[])
    assert stored(job)["status"] == "pending"


def test_an_illegal_assignment_is_refused_before_any_sql(django_assert_num_queries):
    job = again(JobFactory())
    job.status = "completed"
    asking_the_clock = 1 if connection.vendor == "postgresql" else 0
    with django_assert_num_queries(asking_the_clock), pytest.raises(InvalidTransition):
        job.save()
    assert stored(job)["status"] == "pending"


@pytest.mark.parametrize("status", [None, 7, "x" * 300])
def test_an_assignment_that_is_no_word_is_refused(status):
    job = again(JobFactory())
    job.status = status
    with pytest.raises(InvalidTransition):
        job.save()
    assert stored(job)["status"] == "pending"


def test_a_command_given_as_text_is_split_as_a_shell_would():
    job = ContainerJob.objects.create(command="sh -c 'echo \"a b\"' x")
    assert job.command == stored(job)["command"] == ["sh", "-c", 'echo "a b"', "x"]
    job.command = "echo 'unbalanced"
    with pytest.raises(ValidationError, match="split"):
        job.save()
    assert stored(job)["command"] == ["sh", "-c", 'echo "a b"', "x"]


# Whom the history names


def test_the_history_names_who_acts():
    with acting_as("ann"):
        job = JobFactory()
        job.transition_to("queued")
        with acting_as("bob"):
            ContainerJob.objects.filter(pk=job.pk).update(status="running")
        job.refresh_from_db()
        job.status = "killed"
        ContainerJob.objects.bulk_update([job], ["status"])
    JobFactory()
    actors = StateHistory.objects.of(job).values_list("actor", "reason")
    assert list(actors) == [("ann", ""), ("ann", ""), ("bob", ""), ("ann", "killed")]
    assert set(StateHistory.objects.exclude(entity_id=job.pk).values_list("actor")) == {("system",)}


INFO = {"actor": "carol", "reason": "maintenance", "metadata": {"ticket": [1, {"a": None}]}}


@pytest.mark.parametrize(
    "move",
    [
        lambda job: job.transition_to("killed", transition_info=INFO),
        lambda job: setattr(job, "transition_info", INFO) or ways.assign_and_save(job, "killed"),
        lambda job: ContainerJob.objects.filter(pk=job.pk).update(
            status="killed", transition_info=INFO
        ),
    ],
    ids=["transition_to", "save", "update"],
)
def test_what_the_caller_tells_of_a_move_stands_in_the_history(move):
    job = again(JobFactory())
    move(job)
    row = StateHistory.objects.of(job).last()
    assert (row.actor, row.reason, row.metadata) == tuple(INFO.values())
    assert stored(job)["transition_info"] == {**INFO, "version": 2}


def test_what_was_told_of_one_move_is_not_told_again_of_the_next():
    job = again(JobFactory())
    job.transition_to("queued", transition_info=INFO)
    job.transition_to("running")
    row = StateHistory.objects.of(job).last()
    assert (row.actor, row.reason, row.metadata) == ("system", "", {})


def test_deleting_takes_the_attempts_along_and_a_running_job_stays():
    attempt = AttemptFactory()
    with pytest.raises(DatabaseError), transaction.atomic():
        attempt.job.delete()
    with pytest.raises(DatabaseError), transaction.atomic():
        ContainerJob.objects.all().delete()
    assert JobAttempt.objects.filter(pk=attempt.pk).exists()
    JobAttempt.objects.update(phase=Phase.DONE)
    ContainerJob.objects.update(status="failed")
    ContainerJob.objects.get().delete()
    assert not JobAttempt.objects.exists()
