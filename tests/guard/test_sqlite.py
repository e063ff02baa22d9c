"""The side doors of SQLite."""

from __future__ import annotations

import pytest
from django.db import IntegrityError, connection, transaction

from container_manager.models import ContainerJob, StateHistory
from tests.factories import JobFactory
from tests.guard.test_triggers import columns, new_id, refused
from tests.models.ways import execute, raw_id, stored, told

pytestmark = [pytest.mark.django_db, pytest.mark.sqlite]


def copied(job, verb, extra="", **changed):
    """INSERT … SELECT of a job's own row with some columns changed."""
    names = columns(job)
    picked = ", ".join(str(changed.get(name, name)) for name in names)
    head, values = ", ".join(names), picked
    if "rowid" in changed:
        head, values = f"rowid, {head}", f"{changed['rowid']}, {values}"
    execute(
        f"{verb} INTO container_jobs ({head}) SELECT {values} FROM container_jobs"
        f" WHERE id = %s{extra}",
        [raw_id(job)],
    )


@pytest.mark.parametrize(
    "verb", ["INSERT OR REPLACE", "REPLACE", "INSERT OR IGNORE", "INSERT OR FAIL"]
)
def test_no_insert_rewrites_a_life_by_its_id(verb):
    job = JobFactory(status="completed")
    before = stored(job)
    with refused("id not in use"):
        copied(job, verb, name="'rewritten'", version=1)
    assert stored(job) == before
    assert len(told(job)) == 1


@pytest.mark.parametrize("verb", ["INSERT OR REPLACE", "REPLACE"])
def test_no_insert_rewrites_a_life_by_its_rowid(verb):
    job = JobFactory(status="completed")
    with refused("id not in use"):
        copied(job, verb, id=f"'{new_id()}'", rowid="rowid")
    assert ContainerJob.objects.get() == job


@pytest.mark.parametrize("action", ["DO UPDATE SET status = 'queued'", "DO NOTHING"])
def test_no_upsert_rewrites_a_life(action):
    job = JobFactory(status="completed")
    with refused("id not in use"):
        copied(job, "INSERT", f" ON CONFLICT (id) {action}")
    assert stored(job)["status"] == "completed"


@pytest.mark.parametrize("way", ["OR IGNORE", "OR REPLACE", "OR FAIL", "OR ABORT"])
@pytest.mark.parametrize(
    "change",
    [
        "status = 'completed', version = version + 1, completed_at = created_at",
        "status = 'queued', queued_at = created_at",
        "version = version + 1",
        "rowid = rowid + 100",
        "id = hex(randomblob(16))",
    ],
)
def test_no_kind_of_update_goes_round_the_table(way, change):
    job = JobFactory()
    with refused("illegal move"):
        execute(f"UPDATE {way} container_jobs SET {change}")
    assert stored(job)["status"] == "pending"
    assert len(told(job)) == 1


@pytest.mark.parametrize("column", ["rowid", "id"])
def test_an_update_cannot_push_another_row_out(column):
    first, second = JobFactory(status="completed"), JobFactory(status="completed")
    with refused("illegal move"):
        execute(
            f"UPDATE OR REPLACE container_jobs SET {column} ="
            f" (SELECT {column} FROM container_jobs WHERE id = %s) WHERE id = %s",
            [raw_id(first), raw_id(second)],
        )
    assert ContainerJob.objects.count() == 2


@pytest.mark.parametrize("column", ["status", "version", "id"])
@pytest.mark.parametrize("way", ["", "OR REPLACE", "OR FAIL"])
def test_null_is_no_way_round(column, way):
    job = JobFactory()
    with pytest.raises(IntegrityError), transaction.atomic():
        execute(f"UPDATE {way} container_jobs SET {column} = NULL")
    assert stored(job)["status"] == "pending"


@pytest.mark.parametrize("way", ["OR IGNORE", "OR REPLACE"])
def test_a_legal_move_is_told_whatever_the_kind_of_update(way):
    job = JobFactory()
    execute(
        f"UPDATE {way} container_jobs SET status = 'queued', queued_at = created_at, version = 2"
    )
    assert told(job) == [(None, "pending", 1), ("pending", "queued", 2)]


@pytest.mark.parametrize("verb", ["INSERT OR REPLACE", "REPLACE", "INSERT OR IGNORE", "INSERT"])
@pytest.mark.parametrize("same", ["id", "rowid", "version"])
def test_told_history_cannot_be_replaced(verb, same):
    JobFactory()
    names = [field.column for field in StateHistory._meta.concrete_fields]
    values = [
        "'forger'" if name == "actor" else f"'{new_id()}'" if name == "id" != same else name
        for name in names
    ]
    if same == "rowid":
        names, values = ["rowid", *names], ["rowid", *values]
    with refused("told before"):
        execute(
            f"{verb} INTO state_history ({', '.join(names)})"
            f" SELECT {', '.join(values)} FROM state_history"
        )
    assert StateHistory.objects.get().actor == "system"


@pytest.mark.parametrize("way", ["OR IGNORE", "OR REPLACE"])
def test_history_cannot_be_changed_by_any_kind_of_update(way):
    JobFactory()
    with refused("append-only"):
        execute(f"UPDATE {way} state_history SET actor = 'forger'")


def test_a_temporary_table_of_the_same_name_cannot_capture_history():
    job = JobFactory()
    execute("CREATE TEMP TABLE state_history AS SELECT * FROM main.state_history WHERE 0")
    try:
        execute("UPDATE container_jobs SET status = 'queued', queued_at = created_at, version = 2")
        assert execute_count("SELECT count(*) FROM temp.state_history") == 0
        assert execute_count("SELECT count(*) FROM main.state_history") == 2
    finally:
        execute("DROP TABLE temp.state_history")
    assert len(told(job)) == 2


def execute_count(sql):
    with connection.cursor() as cursor:
        cursor.execute(sql)
        return cursor.fetchone()[0]


@pytest.mark.parametrize("verb", ["INSERT OR REPLACE", "INSERT"])
def test_nobody_takes_the_rowid_that_stands_for_none(verb):
    """Before an INSERT -1 means: not given. A row that had it would stop all others."""
    job = JobFactory()
    with refused("-1 is no rowid"):
        copied(job, verb, id=f"'{new_id()}'", rowid=-1)
    assert JobFactory().version == 1
