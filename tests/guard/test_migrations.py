"""Migrating there, back, again, and on: the guard stands after each."""

from __future__ import annotations

import textwrap
from importlib import import_module
from pathlib import Path

import pytest
from django.core.management import call_command
from django.db import IntegrityError, connection, transaction

from container_manager import db_guard
from container_manager.models import ContainerJob, StateHistory
from container_manager.models.base import guarded_tables
from tests.factories import JobFactory, TrialFactory
from tests.models.ways import execute, stored, told

pytestmark = pytest.mark.django_db(transaction=True)

MODULE = "container_manager.migrations"
OURS = sorted(path.stem for path in Path(import_module(MODULE).__file__).parent.glob("0*.py"))


def migrate(*target):
    call_command("migrate", *target, verbosity=0, interactive=False)


def assert_the_guard_stands(job):
    assert db_guard.differences(connection, guarded_tables()) == []
    with pytest.raises(IntegrityError), transaction.atomic():
        execute("UPDATE container_jobs SET status = 'completed', version = version + 1")
    with pytest.raises(IntegrityError), transaction.atomic():
        execute("DELETE FROM state_history")
    before = len(told(job))
    execute(
        "UPDATE container_jobs SET status = 'queued', queued_at = created_at,"
        " version = version + 1 WHERE status = 'pending'"
    )
    assert len(told(job)) == before + 1


def columns_of(table):
    with connection.cursor() as cursor:
        return {
            column.name: column
            for column in connection.introspection.get_table_description(cursor, table)
        }


@pytest.fixture
def later(tmp_path, monkeypatch, settings):
    """Adds migrations after ours, as a later release would, and takes them back at the end."""

    def add(*bodies):
        package = f"later_{tmp_path.name.replace('-', '_')}"
        folder = tmp_path / package
        folder.mkdir()
        (folder / "__init__.py").touch()
        for name in OURS:
            (folder / f"{name}.py").write_text(SAME.format(module=f"{MODULE}.{name}"))
        previous = OURS[-1]
        for number, body in enumerate(bodies, start=len(OURS) + 1):
            name = f"{number:04d}_later"
            (folder / f"{name}.py").write_text(LATER.format(previous=previous, body=body))
            previous = name
        monkeypatch.syspath_prepend(tmp_path)
        settings.MIGRATION_MODULES = {"container_manager": package}

    yield add
    migrate("container_manager", OURS[-1])


SAME = "from importlib import import_module\nMigration = import_module('{module}').Migration\n"

LATER = textwrap.dedent(
    """
    from django.db import migrations, models

    class Migration(migrations.Migration):
        dependencies = [("container_manager", "{previous}")]
        operations = [{body}]
    """
)

ADD_FIELD = (
    'migrations.AddField("containerjob", "colour", models.CharField(max_length=9, default="red"))'
)
REMOVE_FIELD = 'migrations.RemoveField("containerjob", "colour")'
ADD_CONSTRAINT = (
    'migrations.AddConstraint("containerjob", models.CheckConstraint('
    'condition=models.Q(attempt__lt=1000), name="attempts_are_few"))'
)
ALTER_FIELD = (
    'migrations.AlterField("containerjob", "name", models.CharField(max_length=300, blank=True))'
)
LONGER_STATUS = (
    'migrations.AlterField("containerjob", "status",'
    ' models.CharField(max_length=40, default="pending"))'
)
BIGGER_VERSION = (
    'migrations.AlterField("containerjob", "version", models.PositiveBigIntegerField(default=1))'
)
LONGER_HISTORY = (
    'migrations.AlterField("statehistory", "new_state", models.CharField(max_length=40))'
)
WRAPPED = (
    "migrations.SeparateDatabaseAndState(database_operations=["
    f"{LONGER_STATUS}], state_operations=[{LONGER_STATUS}])"
)
ADD_INDEX = (
    'migrations.AddIndex("containerjob", models.Index(fields=["attempt"], name="by_attempt"))'
)


@pytest.mark.parametrize(
    "operation",
    [
        ADD_FIELD,
        ADD_CONSTRAINT,
        ALTER_FIELD,
        LONGER_STATUS,
        BIGGER_VERSION,
        LONGER_HISTORY,
        WRAPPED,
        ADD_INDEX,
    ],
    ids=[
        *("add field", "add constraint", "alter field", "longer status", "bigger version"),
        *("longer history", "wrapped", "add index"),
    ],
)
def test_a_later_migration_runs_forward_and_back_and_the_guard_stands(later, operation):
    job, other = JobFactory(), JobFactory(status="running")
    later(operation)
    migrate()
    assert_the_guard_stands(job)
    migrate("container_manager", OURS[-1])
    ContainerJob.objects.filter(pk=job.pk).update(status="running")
    assert [new for _, new, _ in told(job)] == ["pending", "queued", "running"]
    assert stored(other)["version"] == 1
    assert db_guard.differences(connection, guarded_tables()) == []


def test_several_later_migrations_in_one_run_from_zero(later):
    later(ADD_FIELD, f"{ADD_CONSTRAINT}, {LONGER_STATUS}", REMOVE_FIELD)
    migrate("container_manager", "zero")
    migrate()
    assert "colour" not in columns_of("container_jobs")
    assert_the_guard_stands(JobFactory())


def test_to_zero_and_forward_again():
    JobFactory(status="running"), TrialFactory()
    migrate("container_manager", "zero")
    tables = connection.introspection.table_names()
    assert "container_jobs" not in tables
    assert "state_history" not in tables
    assert functions_left() == []
    migrate()
    assert_the_guard_stands(JobFactory())
    execute("DELETE FROM trials")


def functions_left():
    sql = "SELECT name FROM sqlite_master WHERE type = 'trigger'"
    if connection.vendor == "postgresql":
        sql = "SELECT proname FROM pg_proc WHERE proname LIKE 'cm_%'"
    with connection.cursor() as cursor:
        cursor.execute(sql)
        return cursor.fetchall()


def test_a_second_migrate_changes_nothing(monkeypatch):
    def fail(*_):
        pytest.fail("the guard was taken down although nothing had changed")

    monkeypatch.setattr(db_guard, "uninstall", fail)
    job = JobFactory()
    migrate()
    assert_the_guard_stands(job)


def test_a_migration_that_fails_is_repaired_by_the_next_run(later):
    job = JobFactory()
    later(LONGER_STATUS, 'migrations.RunSQL("SELECT no_such_column", "")')
    with pytest.raises(Exception, match="no_such_column"):
        migrate()
    migrate("container_manager", OURS[-1])
    assert_the_guard_stands(job)
    assert StateHistory.objects.of(job).count() == 2
