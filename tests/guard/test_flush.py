"""flush and TransactionTestCase empty guarded tables, and the guard stands afterwards."""

from __future__ import annotations

import io

import pytest
from django.core.management import CommandError, call_command, get_commands
from django.db import IntegrityError, connection, transaction
from django.test import TransactionTestCase

from container_manager import db_guard, guarding
from container_manager.models import ContainerJob, StateHistory
from container_manager.models.base import guarded_tables
from tests.factories import AttemptFactory, JobFactory, TrialFactory
from tests.models.ways import execute, stored

emptied = pytest.mark.django_db(transaction=True)


def differences():
    return db_guard.differences(connection, guarded_tables())


def assert_the_guard_stands():
    assert differences() == []
    job = JobFactory()
    with pytest.raises(IntegrityError), transaction.atomic():
        execute("UPDATE container_jobs SET status = 'completed', version = version + 1")
    with pytest.raises(IntegrityError), transaction.atomic():
        execute("DELETE FROM state_history")
    assert stored(job)["status"] == "pending"


def fill():
    JobFactory(status="completed"), TrialFactory(), AttemptFactory(), JobFactory().delete()


def flush(**options):
    call_command(
        "flush", **{"verbosity": 0, "interactive": False, "stdout": io.StringIO(), **options}
    )


def test_flush_is_ours():
    assert get_commands()["flush"] == "container_manager"


@emptied
@pytest.mark.parametrize(
    "options",
    [{}, {"inhibit_post_migrate": True}, {"reset_sequences": False, "allow_cascade": True}],
    ids=str,
)
def test_flush_empties_every_table_and_the_guard_stands(options):
    fill()
    flush(**options)
    assert not ContainerJob.objects.exists()
    assert not StateHistory.objects.exists()
    assert_the_guard_stands()


@emptied
def test_a_flush_that_fails_leaves_rows_and_guard_as_they_were(monkeypatch):
    fill()
    real = connection.ops.execute_sql_flush

    def break_off(sql_list):
        real(sql_list)
        raise OSError("the machine went away")

    monkeypatch.setattr(connection.ops, "execute_sql_flush", break_off)
    with pytest.raises(CommandError):
        flush()
    assert ContainerJob.objects.count() == 2
    assert ContainerJob.objects.running().count() == 1
    assert_the_guard_stands()


@emptied
@pytest.mark.parametrize(("answer", "left"), [("yes", 0), ("no", 2), ("", 2), ("YES", 2)])
def test_flush_asks_before_anything_is_lifted(monkeypatch, answer, left):
    fill()
    asked = []

    def reply(question):
        assert not connection.in_atomic_block
        assert differences() == []
        asked.append(question)
        return answer

    monkeypatch.setattr("builtins.input", reply)
    flush(interactive=True)
    assert len(asked) == 1
    assert str(connection.settings_dict["NAME"]) in asked[0]
    assert ContainerJob.objects.count() == left
    assert_the_guard_stands()


@emptied
def test_the_guard_is_down_inside_lifted_and_up_after_it_and_after_an_error():
    job = JobFactory()
    with pytest.raises(OSError, match="half way"), guarding.lifted("default"):
        assert len(differences()) > 10
        execute("UPDATE container_jobs SET version = 7")
        raise OSError("half way")
    assert stored(job)["version"] == 1
    assert_the_guard_stands()
    with guarding.lifted("default"):
        execute("DELETE FROM state_history")
    assert_the_guard_stands()


@emptied
def test_a_guard_that_cannot_be_lifted_leaves_no_open_transaction(monkeypatch):
    def refuse(_):
        raise OSError("not allowed")

    monkeypatch.setattr(db_guard, "uninstall", refuse)
    with pytest.raises(OSError, match="not allowed"), guarding.lifted("default"):
        pytest.fail("entered")
    assert not connection.in_atomic_block


class EachTestOfATransactionTestCaseBeginsEmpty(TransactionTestCase):
    """Two tests that each fill the guarded tables: the flush between them works."""

    def fill_and_look(self):
        assert ContainerJob.objects.count() == StateHistory.objects.count() == 0
        fill()
        assert ContainerJob.objects.count() == 2
        assert differences() == []

    def test_first(self):
        self.fill_and_look()

    def test_second(self):
        self.fill_and_look()
