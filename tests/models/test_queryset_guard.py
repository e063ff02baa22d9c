"""update(), bulk_update(), bulk_create() and update_state(): all or nothing, by the table."""

from __future__ import annotations

import uuid
from datetime import timedelta

import pytest
from django.db import DatabaseError, transaction
from django.db.models import F, Q, Value
from django.db.models.functions import Concat, Now
from django.utils import timezone

from container_manager.exceptions import HeldByWorker, InvalidTransition, StaleState
from container_manager.models import ContainerJob, StateHistory, base
from tests.factories import AttemptFactory, JobFactory, TrialFactory, UserFactory
from tests.models.ways import stored, told
from tests.trials.models import Trial

pytestmark = pytest.mark.django_db


# update()


def test_one_illegal_row_stops_the_update_of_all():
    jobs = [JobFactory(), JobFactory(status="completed"), JobFactory()]
    before = [stored(job) for job in jobs]
    with pytest.raises(InvalidTransition, match="completed -> queued"):
        ContainerJob.objects.update(status="queued", name="x")
    assert [stored(job) for job in jobs] == before
    assert StateHistory.objects.count() == 3


def test_rows_from_several_states_move_together_each_in_its_own_way():
    running, queued, cancelled = (
        JobFactory(status=status) for status in ("running", "queued", "cancelled")
    )
    assert ContainerJob.objects.update(status="cancelled", error="e") == 3
    assert [stored(job)["version"] for job in (running, queued, cancelled)] == [2, 2, 1]
    assert [stored(job)["error"] for job in (running, queued, cancelled)] == ["e"] * 3
    assert stored(running)["duration_ms"] > 0
    assert stored(queued)["duration_ms"] is None
    assert len(told(cancelled)) == 1


def test_given_values_and_expressions_go_before_the_stamps():
    job, then = JobFactory(status="running", name="a"), timezone.now() - timedelta(days=1)
    ContainerJob.objects.update(
        status="failed",
        completed_at=then,
        duration_ms=5,
        name=Concat(F("name"), Value("!")),
        retry_count=F("retry_count") + 1,
        reason="oom",
    )
    row = stored(job)
    assert (row["completed_at"], row["name"], row["retry_count"]) == (then, "a!", 1)
    assert row["duration_ms"] == 5
    assert StateHistory.objects.of(job).last().reason == "oom"


def test_a_time_of_the_move_may_be_an_expression():
    job = JobFactory(status="running")
    ContainerJob.objects.update(status="failed", completed_at=Now())
    assert stored(job)["duration_ms"] > 60_000


def test_a_state_must_be_a_word_not_an_expression():
    JobFactory()
    with pytest.raises(TypeError, match="not an expression"):
        ContainerJob.objects.update(status=F("name"))


def test_an_update_without_the_state_touches_updated_at_and_no_version():
    job = JobFactory()
    before = stored(job)
    assert ContainerJob.objects.update(name="x") == 1
    after = stored(job)
    assert after["updated_at"] > before["updated_at"]
    assert (after["version"], after["name"]) == (1, "x")


def test_an_update_of_the_version_alone_is_refused():
    job = JobFactory()
    with pytest.raises(DatabaseError), transaction.atomic():
        ContainerJob.objects.update(version=5)
    assert stored(job)["version"] == 1


def test_an_update_of_nothing_is_zero():
    assert ContainerJob.objects.none().update(status="queued") == 0
    assert ContainerJob.objects.filter(name="nobody").update(status="queued") == 0


def test_an_update_through_a_nullable_relation_moves_what_it_found():
    owner = UserFactory(username="ann")
    mine, free, other = JobFactory(created_by=owner), JobFactory(), JobFactory(name="other")
    found = ContainerJob.objects.filter(
        Q(created_by__username="ann") | Q(created_by=None) & ~Q(name="other")
    )
    assert found.update(status="queued") == 2
    assert [stored(job)["status"] for job in (mine, free, other)] == ["queued"] * 2 + ["pending"]


def test_the_update_of_a_related_manager_obeys_the_table():
    owner = UserFactory()
    mine, other = JobFactory(created_by=owner), JobFactory()
    owner.container_jobs.update(status="queued")
    assert [stored(job)["status"] for job in (mine, other)] == ["queued", "pending"]
    with pytest.raises(InvalidTransition):
        owner.container_jobs.update(status="completed")


def test_a_slice_cannot_be_updated_as_everywhere_in_django():
    JobFactory.create_batch(2)
    with pytest.raises(TypeError, match="slice"):
        ContainerJob.objects.all()[:1].update(status="queued")
    assert ContainerJob.objects.filter(status="pending").count() == 2


def test_more_rows_than_one_statement_takes_move_all_the_same(monkeypatch):
    monkeypatch.setattr(base.batched, "__defaults__", (2,))
    jobs = JobFactory.create_batch(5)
    assert ContainerJob.objects.update(status="queued") == 5
    jobs = list(ContainerJob.objects.all())
    for job in jobs:
        job.status = "running"
    assert ContainerJob.objects.bulk_update(jobs, ["status"]) == 5
    assert StateHistory.objects.count() == 15


# bulk_update()


def test_one_illegal_object_stops_the_bulk_update_of_all_and_restores_them():
    jobs = JobFactory.create_batch(3)
    for job, status in zip(jobs, ("queued", "completed", "running"), strict=True):
        job.status = status
    with pytest.raises(InvalidTransition):
        ContainerJob.objects.bulk_update(jobs, ["status"])
    assert {stored(job)["status"] for job in jobs} == {"pending"}
    assert [(job.version, job.queued_at, job.launched_at) for job in jobs] == [(1, None, None)] * 3
    jobs[1].status = "killed"
    jobs[1].name = "last words"
    assert ContainerJob.objects.bulk_update(jobs, ["status", "name"]) == 3
    assert [stored(job)["status"] for job in jobs] == ["queued", "killed", "running"]
    assert stored(jobs[1])["name"] == "last words"
    assert [job.version for job in jobs] == [2, 2, 2]


def test_the_stamps_of_one_object_are_not_written_to_another():
    queued, running = JobFactory(), JobFactory(status="running")
    failing = JobFactory(status="running")
    copies = [ContainerJob.objects.get(pk=job.pk) for job in (queued, running, failing)]
    ContainerJob.objects.running().update(kill_requested_at=timezone.now(), error="kept")
    copies[0].status, copies[2].status = "queued", "failed"
    ContainerJob.objects.bulk_update(copies, ["status"])
    for job in (running, failing):
        assert stored(job)["kill_requested_at"] is not None
        assert stored(job)["error"] == "kept"
    assert stored(running)["version"] == 1


def test_objects_remember_what_a_bulk_update_did_not_write():
    job = ContainerJob.objects.get(pk=JobFactory().pk)
    job.status, job.name = "queued", "later"
    ContainerJob.objects.bulk_update([job], ["status"])
    assert stored(job)["name"] != "later"
    job.save()
    assert stored(job)["name"] == "later"


def test_a_bulk_update_of_other_fields_does_not_write_them_twice():
    job = ContainerJob.objects.get(pk=JobFactory().pk)
    job.name = "first"
    ContainerJob.objects.bulk_update([job], ["name"])
    ContainerJob.objects.update(name="second")
    job.priority = 3
    job.save()
    assert (stored(job)["name"], stored(job)["priority"]) == ("second", 3)


def test_a_bulk_update_leaves_out_rows_that_are_gone():
    job, gone = JobFactory.create_batch(2)
    ContainerJob.objects.filter(pk=gone.pk).delete()
    job.status = gone.status = "queued"
    assert ContainerJob.objects.bulk_update([job, gone], ["status"]) == 1
    assert ContainerJob.objects.count() == 1


def test_a_bulk_update_refuses_a_stale_object():
    job, stale = JobFactory.create_batch(2)
    ContainerJob.objects.filter(pk=stale.pk).update(status="queued")
    job.status, stale.status = "queued", "running"
    with pytest.raises(StaleState):
        ContainerJob.objects.bulk_update([job, stale], ["status"])
    assert stored(job)["status"] == "pending"


def test_a_bulk_update_refuses_an_unsaved_move_to_elsewhere():
    job = JobFactory()
    job.enqueue()
    job.status = "running"
    with pytest.raises(InvalidTransition, match="in one save") as refused:
        ContainerJob.objects.bulk_update([job], ["status"])
    told = refused.value
    assert (told.entity, told.old, told.new) == (job, "pending", "running")


def test_a_bulk_update_of_one_held_job_stops_all():
    held, free = AttemptFactory().job, JobFactory()
    held.status, free.status = "failed", "queued"
    with pytest.raises(HeldByWorker):
        ContainerJob.objects.bulk_update([free, held], ["status"])
    assert stored(free)["status"] == "pending"


# Creating and changing


def test_get_or_create_creates_once():
    first, created = ContainerJob.objects.get_or_create(name="n", defaults={"command": ["x"]})
    second, again = ContainerJob.objects.get_or_create(name="n", defaults={"command": ["y"]})
    assert (created, again, first) == (True, False, second)
    assert len(told(first)) == 1


def test_update_or_create_moves_by_the_table():
    job = JobFactory(name="n")
    found, created = ContainerJob.objects.update_or_create(name="n", defaults={"status": "queued"})
    assert (found, created) == (job, False)
    assert stored(job)["queued_at"] is not None
    assert told(job)[1:] == [("pending", "queued", 2)]
    with pytest.raises(InvalidTransition):
        ContainerJob.objects.update_or_create(name="n", defaults={"status": "completed"})


def test_bulk_create_tells_the_beginning_of_each_row():
    jobs = ContainerJob.objects.bulk_create(
        [ContainerJob(command=["x"], status=status) for status in ContainerJob.Status]
    )
    for job in jobs:
        assert told(job) == [(None, job.status, 1)]
    jobs[0].transition_to("queued")
    assert stored(jobs[0])["version"] == 2


def test_bulk_create_cannot_rewrite_a_life():
    job = JobFactory(status="completed")
    twin = ContainerJob(pk=job.pk, command=["x"], status="queued")
    with pytest.raises(DatabaseError), transaction.atomic():
        ContainerJob.objects.bulk_create(
            [twin], update_conflicts=True, unique_fields=["id"], update_fields=["status"]
        )
    assert stored(job)["status"] == "completed"
    assert len(told(job)) == 1


# update_state()


@pytest.mark.parametrize(
    ("factory", "old", "new", "elsewhere"),
    [(JobFactory, "pending", "queued", "cancelled"), (TrialFactory, "queued", "running", "failed")],
)
def test_update_state_says_why_it_could_not(factory, old, new, elsewhere):
    objects = factory._meta.model.objects
    row = factory()
    with pytest.raises(factory._meta.model.DoesNotExist):
        objects.update_state(uuid.uuid4(), old, new)
    possible = ", ".join(factory._meta.model.machine.get_next_states(old))
    with pytest.raises(InvalidTransition, match=f"from {old} to nowhere.*: {possible}$"):
        objects.update_state(row.pk, old, "nowhere")
    assert objects.update_state(row.pk, old, new) is None
    with pytest.raises(StaleState, match=f"is {new}, not {old}") as stale:
        objects.update_state(row.pk, old, elsewhere)
    assert (stale.value.entity, stale.value.old, stale.value.new) == (row.pk, old, elsewhere)
    assert told(row) == [(None, old, 1), (old, new, 2)]


def test_update_state_refuses_a_move_that_the_table_lacks_even_when_the_row_stands_elsewhere():
    row = TrialFactory(state="success")
    with pytest.raises(InvalidTransition):
        Trial.objects.update_state(row.pk, "success", "running")
    with pytest.raises(StaleState):
        Trial.objects.update_state(row.pk, "running", "failed")
    assert stored(row)["state"] == "success"


def test_update_state_does_not_move_what_a_worker_holds():
    job = AttemptFactory().job
    with pytest.raises(HeldByWorker):
        ContainerJob.objects.update_state(job.pk, "running", "failed")
