"""What a run and a task are known by is theirs for good: no client takes it from them."""

from __future__ import annotations

import pytest
from django.db import IntegrityError, connection, transaction
from django.db.utils import DatabaseError

from container_manager.models import DagRun, StateHistory, TaskInstance
from tests.factories import RunFactory, TaskFactory
from tests.models.ways import execute, raw_id, stored

pytestmark = pytest.mark.django_db

IDENTITY = [
    (RunFactory, "dag_id"),
    (RunFactory, "run_id"),
    (RunFactory, "execution_date"),
    (TaskFactory, "dag_run_id"),
    (TaskFactory, "task_id"),
]


def copied(row, onto, verb="INSERT"):
    """The raw statement of another program: a second row with the identity of `row`."""
    names = [field.column for field in row._meta.concrete_fields]
    values = ["%(id)s" if name == "id" else name for name in names]
    table = row._meta.db_table
    execute(
        f"{verb} INTO {table} ({', '.join(names)}) SELECT {', '.join(values)} FROM {table}"
        " WHERE id = %(from)s",
        {"id": onto, "from": raw_id(row)},
    )


@pytest.mark.parametrize(("factory", "column"), IDENTITY)
def test_no_part_of_it_ever_changes(factory, column):
    row, other = factory(), factory()
    before = stored(row)
    taken = f"(SELECT {column} FROM {row._meta.db_table} WHERE id = %s)"
    with pytest.raises(IntegrityError), transaction.atomic():
        execute(
            f"UPDATE {row._meta.db_table} SET {column} = {taken} WHERE id = %s",
            [raw_id(other), raw_id(row)],
        )
    assert stored(row) == before


@pytest.mark.parametrize("factory", [RunFactory, TaskFactory])
def test_there_is_no_second_row_of_it(factory):
    row = factory()
    with pytest.raises(IntegrityError), transaction.atomic():
        copied(row, raw_id(factory.build()))
    assert type(row).objects.count() == 1


@pytest.mark.skipif(connection.vendor != "sqlite", reason="speaks of sqlite only")
@pytest.mark.parametrize("factory", [RunFactory, TaskFactory])
@pytest.mark.parametrize("verb", ["INSERT OR REPLACE", "REPLACE"])
def test_no_row_is_replaced_by_another_that_claims_to_be_it(factory, verb):
    row = factory(state="success")
    with pytest.raises(IntegrityError), transaction.atomic():
        copied(row, raw_id(factory.build()), verb)
    assert type(row).objects.get() == row
    assert StateHistory.objects.of(row).count() == 1


@pytest.mark.skipif(connection.vendor != "sqlite", reason="speaks of sqlite only")
def test_an_update_or_replace_takes_no_other_rows_place():
    first, second = RunFactory(), RunFactory()
    with pytest.raises(DatabaseError), transaction.atomic():
        execute(
            "UPDATE OR REPLACE dag_runs SET run_id = (SELECT run_id FROM dag_runs WHERE id = %s),"
            " dag_id = (SELECT dag_id FROM dag_runs WHERE id = %s) WHERE id = %s",
            [raw_id(first), raw_id(first), raw_id(second)],
        )
    assert DagRun.objects.count() == 2


@pytest.mark.parametrize(("factory", "model"), [(RunFactory, DagRun), (TaskFactory, TaskInstance)])
def test_only_a_running_one_cannot_be_deleted(factory, model):
    factory(state="running"), factory(state="failed")
    with pytest.raises(IntegrityError, match="cannot be deleted"), transaction.atomic():
        execute(f"DELETE FROM {model._meta.db_table}")
    execute(f"DELETE FROM {model._meta.db_table} WHERE state = 'failed'")
    assert model.objects.count() == 1
