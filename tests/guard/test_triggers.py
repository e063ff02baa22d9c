"""The database refuses by itself, whatever client writes: what holds on both databases."""

from __future__ import annotations

import json
import uuid
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
from django.db import DatabaseError, IntegrityError, connection, transaction
from django.utils import timezone

from container_manager import db_guard, ids
from container_manager.models import ContainerJob, JobAttempt, StateHistory
from container_manager.models.base import guarded_tables
from container_manager.states import JOB, Phase
from tests.factories import AttemptFactory, JobFactory, TrialFactory
from tests.models.ways import database_actor, execute, raw_id, stored, told
from tests.trials.models import Trial

pytestmark = pytest.mark.django_db


@contextmanager
def refused(match=None):
    """The database says no; the test's own transaction goes on."""
    with pytest.raises(IntegrityError, match=match), transaction.atomic():
        yield


def columns(row):
    return [field.column for field in row._meta.concrete_fields]


def insert(row, **changed):
    """The raw INSERT of another program: the row as it is stored, with some columns changed."""
    names = columns(row)
    picked = ", ".join(f"%({name})s" if name in changed else name for name in names)
    return execute(
        f"INSERT INTO {row._meta.db_table} ({', '.join(names)})"
        f" SELECT {picked} FROM {row._meta.db_table} WHERE id = %(from_id)s",
        {**changed, "from_id": raw_id(row)},
    )


def new_id():
    return StateHistory._meta.pk.get_db_prep_value(uuid.uuid4(), connection)


# INSERT


@pytest.mark.parametrize("factory", [JobFactory, TrialFactory])
@pytest.mark.parametrize("version", [0, 2, 99])
def test_a_row_begins_at_version_1(factory, version):
    row = factory()
    with refused("version 1"):
        insert(row, id=new_id(), version=version)
    assert insert(row, id=new_id(), version=1) == 1
    assert StateHistory.objects.count() == 2


@pytest.mark.parametrize("factory", [JobFactory, TrialFactory])
def test_an_id_in_use_cannot_be_used_again(factory):
    row = factory()
    before = stored(row)
    with refused():
        insert(row, version=1)
    assert stored(row) == before


def test_an_id_that_was_used_before_cannot_begin_a_second_life_over_the_old_history():
    job = JobFactory()
    twin = JobFactory()
    old_id = raw_id(job)
    job.delete()
    with refused():
        insert(twin, id=old_id)
    assert ContainerJob.objects.count() == 1


def test_a_row_of_another_program_begins_its_history_as_one_from_outside():
    job = JobFactory(status="running")
    fresh = new_id()
    insert(job, id=fresh, transition_info=json.dumps({}))
    row = StateHistory.objects.exclude(entity_id=job.pk).get()
    assert (row.old_state, row.new_state, row.version, row.attempt) == (None, "running", 1, 1)
    assert (row.actor, row.reason, row.metadata) == (database_actor(), "", {})


# UPDATE


@pytest.mark.parametrize("step", ["version", "version + 2", "version - 1", "7"])
def test_a_move_raises_the_version_by_one_and_by_no_other_step(step):
    job = JobFactory()
    with refused("version"):
        execute(
            f"UPDATE container_jobs SET status = 'queued', queued_at = created_at, version = {step}"
        )
    assert stored(job)["status"] == "pending"


@pytest.mark.parametrize("step", ["version + 1", "0", "version - 1"])
def test_the_version_changes_only_with_a_move(step):
    job = JobFactory()
    with refused("version"):
        execute(f"UPDATE container_jobs SET version = {step}")
    assert stored(job)["version"] == 1


@pytest.mark.parametrize("factory", [JobFactory, TrialFactory])
def test_an_id_never_changes(factory):
    row = factory()
    with refused("id"):
        execute(f"UPDATE {row._meta.db_table} SET id = %s", [new_id()])
    assert stored(row)["id"] == row.pk


def test_an_update_of_other_columns_is_free_and_leaves_no_history():
    job = JobFactory(status="running")
    execute("UPDATE container_jobs SET name = 'x', priority = 3, kill_requested_at = created_at")
    assert stored(job)["name"] == "x"
    assert len(told(job)) == 1


def test_one_illegal_row_stops_the_statement():
    pending, completed = JobFactory(), JobFactory(status="completed")
    with refused():
        execute(
            "UPDATE container_jobs SET status = 'cancelled', version = version + 1,"
            " completed_at = created_at"
        )
    assert stored(pending)["status"] == "pending"
    assert [len(told(job)) for job in (pending, completed)] == [1, 1]


def test_every_row_of_a_large_update_is_told():
    ContainerJob.objects.bulk_create(ContainerJob(command=["x"]) for _ in range(1000))
    execute("UPDATE container_jobs SET status = 'queued', version = 2, queued_at = created_at")
    moved = StateHistory.objects.filter(old_state="pending", new_state="queued", version=2)
    assert moved.count() == 1000
    assert moved.values("entity_id").distinct().count() == 1000


# The text of the history


def move(row, **columns):
    sets = "".join(f", {name} = %({name})s" for name in columns)
    execute(
        f"UPDATE {row._meta.db_table} SET {row.state_field} = 'running', version = version + 1"
        f"{', launched_at = created_at' if isinstance(row, ContainerJob) else ''}{sets}",
        columns,
    )
    return StateHistory.objects.of(row).last()


@pytest.mark.parametrize("factory", [JobFactory, TrialFactory])
def test_a_move_from_outside_is_visibly_one(factory):
    row = factory()
    history = move(row)
    assert history.actor == database_actor()
    assert (history.reason, history.metadata) == ("", {})
    assert history.version == 2
    assert abs((history.changed_at - timezone.now()).total_seconds()) < 60


def test_what_a_client_tells_of_its_move_is_taken_over():
    metadata = {"exit_code": 0, "nested": {"list": [1, None, "ü \U0001f600"]}}
    info = {"version": 2, "actor": "program", "reason": "because", "metadata": metadata}
    history = move(JobFactory(), transition_info=json.dumps(info))
    assert (history.actor, history.reason) == ("program", "because")
    assert history.metadata == metadata


@pytest.mark.parametrize("version", [1, 3, 0, None])
def test_what_was_told_of_another_version_is_not_believed(version):
    info = {"version": version, "actor": "liar", "reason": "lie", "metadata": {"a": 1}}
    history = move(JobFactory(), transition_info=json.dumps(info))
    assert (history.actor, history.reason, history.metadata) == (database_actor(), "", {})


@pytest.mark.parametrize(
    "info",
    ["[]", "[2]", "null", '"text"', "7", "{}", '{"version": []}', '{"version": {"version": 2}}'],
)
def test_info_of_any_other_shape_does_not_stop_a_move(info):
    history = move(JobFactory(), transition_info=info)
    assert (history.actor, history.reason, history.metadata) == (database_actor(), "", {})


@pytest.mark.parametrize("metadata", ["null", '"text"', "7", "[1]", "true"])
def test_metadata_that_is_no_object_is_left_out(metadata):
    history = move(JobFactory(), transition_info=f'{{"version": 2, "metadata": {metadata}}}')
    assert history.metadata == {}


@pytest.mark.parametrize("empty", ['{"version": 2}', '{"version": 2, "actor": null}'])
def test_info_without_an_actor_names_the_role(empty):
    history = move(JobFactory(), transition_info=empty)
    assert (history.actor, history.reason) == (database_actor(), "")


def test_info_that_is_no_json_is_refused_by_the_column():
    job = JobFactory()
    with pytest.raises(DatabaseError), transaction.atomic():
        move(job, transition_info="{not json")
    assert len(told(job)) == 1


def test_the_history_keeps_the_order_in_which_it_was_written():
    job = JobFactory()
    job.transition_to("queued")
    job.transition_to("running")
    rows = list(StateHistory.objects.of(job))
    assert [row.changed_at for row in rows] == sorted(row.changed_at for row in rows)
    assert [row.commit_order for row in rows] == sorted(row.commit_order for row in rows)
    assert {row.id.version for row in rows} == {7}
    assert {row.id.variant for row in rows} == {uuid.RFC_4122}


def test_a_move_that_is_rolled_back_leaves_no_history():
    job = JobFactory()
    with pytest.raises(RuntimeError), transaction.atomic():
        move(job)
        raise RuntimeError
    assert len(told(job)) == 1


# DELETE


@pytest.mark.parametrize("status", JOB.states)
def test_only_a_running_job_cannot_be_deleted(status):
    job = JobFactory(status=status)
    if status != "running":
        execute("DELETE FROM container_jobs")
        assert not ContainerJob.objects.exists()
        return
    with refused("cannot be deleted"):
        execute("DELETE FROM container_jobs")
    with refused("cannot be deleted"):
        job.delete()
    with refused("cannot be deleted"):
        ContainerJob.objects.filter(pk=job.pk).delete()
    assert stored(job)["status"] == "running"


def test_the_attempts_of_a_running_job_survive_the_refused_delete():
    attempt = AttemptFactory(phase=Phase.DONE)
    with refused():
        attempt.job.delete()
    assert JobAttempt.objects.get() == attempt


def test_only_a_running_trial_cannot_be_deleted():
    TrialFactory(state="running"), TrialFactory(state="failed")
    with refused("cannot be deleted"):
        execute("DELETE FROM trials")
    Trial.objects.filter(state="failed").delete()
    assert Trial.objects.count() == 1


# state_history itself


def history_row(job, **changed):
    return StateHistory(
        **{
            "id": ids.uuid7(),
            "entity_type": "job",
            "entity_id": job.pk,
            "new_state": job.status,
            "version": job.version,
            "actor": "forger",
            "changed_at": timezone.now(),
            "commit_order": 1,
            **changed,
        }
    )


@pytest.mark.parametrize(
    "forged",
    [
        {},
        {"new_state": "queued"},
        {"version": 2, "new_state": "queued"},
        {"version": 0},
        {"version": 2},
        {"entity_id": uuid.UUID(int=1)},
        {"entity_type": "trial"},
        {"entity_type": "unknown"},
        {"entity_type": ""},
    ],
    ids=str,
)
def test_a_forged_history_row_is_refused(forged):
    job = JobFactory()
    with refused():
        history_row(job, **forged).save(force_insert=True)
    with refused():
        StateHistory.objects.bulk_create([history_row(job, **forged)])
    assert StateHistory.objects.count() == 1


def test_history_cannot_be_changed():
    job = JobFactory()
    with refused("append-only"):
        StateHistory.objects.update(actor="forger")
    with refused("append-only"):
        execute("UPDATE state_history SET metadata = metadata")
    assert StateHistory.objects.of(job).get().actor == "system"


def test_history_cannot_be_deleted_while_its_entity_exists():
    job, trial = JobFactory(status="completed"), TrialFactory()
    for _ in range(2):
        with refused("still exists"):
            StateHistory.objects.all().delete()
        with refused("still exists"):
            execute("DELETE FROM state_history")
    gone = job.pk
    job.delete()
    with refused("still exists"):
        execute("DELETE FROM state_history")
    assert StateHistory.objects.filter(entity_id=gone).delete()[0] == 1
    assert len(told(trial)) == 1


def test_history_may_go_when_its_entity_is_gone():
    JobFactory(status="completed").delete()
    assert StateHistory.objects.count() == 1
    execute("DELETE FROM state_history")
    assert not StateHistory.objects.exists()


def test_a_database_of_another_kind_has_no_guard_and_is_left_alone():
    other = SimpleNamespace(vendor="mysql", alias="default", introspection=connection.introspection)
    tables = guarded_tables()
    assert db_guard.differences(other, tables) == []
    assert not db_guard.install(other, tables)
    db_guard.recount(other, tables)
    db_guard.uninstall(other, door=tables)
    db_guard.open_door(other)
    assert db_guard.differences(connection, tables) == []
