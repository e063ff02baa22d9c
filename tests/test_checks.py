"""`manage.py check` tells of a guard that is not whole, and of wrong settings."""

from __future__ import annotations

import io

import pytest
from django.core.checks import Warning as CheckWarning
from django.core.management import call_command
from django.core.management.base import SystemCheckError
from django.db import connection

from container_manager import checks, db_guard
from container_manager.models.base import guarded_tables
from tests.models.ways import execute

TRIGGER = "cm_guard_update_container_jobs"


def check(*databases):
    out = io.StringIO()
    call_command("check", databases=list(databases) or None, stdout=out, stderr=out)
    return out.getvalue()


def repair():
    call_command("migrate", verbosity=0, interactive=False)


def refused_check():
    with pytest.raises(SystemCheckError) as refused:
        check("default")
    return str(refused.value)


@pytest.fixture
def guard(db):
    """Each test leaves the guard whole."""
    assert "no issues" in check("default")
    yield
    repair()
    assert "no issues" in check("default")


def drop(trigger, table="container_jobs"):
    on = f' ON "{table}"' if connection.vendor == "postgresql" else ""
    execute(f'DROP TRIGGER "{trigger}"{on}')


@pytest.mark.parametrize(
    ("trigger", "table"),
    [
        (TRIGGER, "container_jobs"),
        ("cm_guard_delete_trials", "trials"),
        ("cm_history_update_container_jobs", "container_jobs"),
        ("cm_history_is_append_only_update", "state_history"),
        ("cm_count_update_container_jobs", "container_jobs"),
        ("cm_fold_job_changes", "job_changes"),
    ],
)
def test_a_missing_trigger_is_reported_and_migrate_repairs_it(guard, trigger, table):
    drop(trigger, table)
    report = refused_check()
    assert f"{trigger} is missing" in report
    assert "container_manager.E002" in report
    assert "manage.py migrate" in report
    repair()
    assert "no issues" in check("default")


def test_without_a_database_named_the_guard_is_not_looked_at(guard):
    drop(TRIGGER)
    assert "no issues" in check()


def make_trigger(name):
    if connection.vendor == "sqlite":
        execute(
            f'CREATE TRIGGER "{name}" BEFORE UPDATE ON container_jobs'
            " WHEN 1 = 2 BEGIN SELECT RAISE(ABORT, 'never'); END"
        )
    else:
        execute(
            f'CREATE TRIGGER "{name}" BEFORE UPDATE ON container_jobs FOR EACH ROW'
            " EXECUTE FUNCTION suppress_redundant_updates_trigger()"
        )


def test_a_trigger_whose_body_was_changed_is_reported(guard):
    drop(TRIGGER)
    make_trigger(TRIGGER)
    assert f"{TRIGGER} differs from the table of states" in refused_check()


def test_a_trigger_that_is_not_ours_by_our_prefix_is_reported_and_goes(guard):
    make_trigger("cm_extra")
    assert "cm_extra is not part of the guard" in refused_check()
    repair()
    assert "no issues" in check("default")


def test_a_trigger_of_somebody_else_is_left_alone(db):
    make_trigger("cmd_audit")
    assert "no issues" in check("default")
    drop(TRIGGER)
    repair()
    drop("cmd_audit")


@pytest.mark.postgres
@pytest.mark.parametrize("mode", ["DISABLE", "ENABLE REPLICA", "ENABLE ALWAYS"])
def test_a_trigger_that_was_switched_off_is_reported(guard, mode):
    execute(f"ALTER TABLE container_jobs {mode} TRIGGER {TRIGGER}")
    assert f"{TRIGGER} differs" in refused_check()
    repair()
    assert "no issues" in check("default")


@pytest.mark.postgres
def test_a_table_whose_triggers_are_all_off_is_reported(guard):
    execute("ALTER TABLE container_jobs DISABLE TRIGGER ALL")
    assert refused_check().count("differs") == 9
    execute("ALTER TABLE container_jobs ENABLE TRIGGER ALL")


@pytest.mark.postgres
@pytest.mark.parametrize(
    "function", ["cm_refuse", "cm_refuse_update", "cm_history_update_container_jobs"]
)
def test_a_function_whose_body_was_changed_is_reported(guard, function):
    execute(
        f"CREATE OR REPLACE FUNCTION {function}() RETURNS trigger LANGUAGE plpgsql"
        " AS $$ BEGIN RETURN NEW; END $$"
    )
    assert f"{function}() differs" in refused_check()
    repair()
    assert "no issues" in check("default")


@pytest.mark.postgres
def test_a_function_whose_settings_were_changed_is_reported(guard):
    execute("ALTER FUNCTION cm_refuse() RESET ALL")
    assert "cm_refuse() differs" in refused_check()


@pytest.mark.postgres
def test_a_comment_that_was_changed_cannot_hide_a_changed_trigger(guard):
    execute(f"COMMENT ON TRIGGER {TRIGGER} ON container_jobs IS 'all is well'")
    assert f"{TRIGGER} differs" in refused_check()


def test_installing_twice_does_nothing_the_second_time(guard, django_assert_max_num_queries):
    assert db_guard.install(connection, guarded_tables()) is False
    drop(TRIGGER)
    assert db_guard.install(connection, guarded_tables()) is True
    assert db_guard.install(connection, guarded_tables()) is False


# Settings


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"LEASE_SECOND": 3}, "CONTAINER_MANAGER['LEASE_SECOND']: no such key"),
        ({"LEASE_SECONDS": 0}, "must be greater than 0"),
        ({"RETRY_POLICIES": {"mine": {"strategy": "x"}}}, "RETRY_POLICIES'['mine']: strategy"),
        ({"RETRY_POLICIES": {"mine": "nobody"}}, "no policy 'nobody'"),
    ],
)
def test_wrong_settings_are_reported_with_their_place(settings, given, line):
    settings.CONTAINER_MANAGER = given
    with pytest.raises(SystemCheckError) as refused:
        check()
    assert line.replace("RETRY_POLICIES'['", "RETRY_POLICIES']['") in str(refused.value)
    assert "container_manager.E001" in str(refused.value)


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"class": "no.such.Publisher"}, "No module named 'no'"),
        ({"class": "logging.Logger", "options": {"name": "x"}}, "is no Publisher"),
        (
            {"class": "container_manager.events.log.LogPublisher", "options": {"level": "LOUD"}},
            "'LOUD' is not one of",
        ),
        (
            {"class": "container_manager.events.redis.RedisPublisher", "options": {"url": "x"}},
            "scheme",
        ),
        ({"class": "container_manager.events.redis.RedisPublisher"}, "'url'"),
    ],
)
def test_a_publisher_that_cannot_be_made_is_reported(settings, entry, words):
    settings.CONTAINER_MANAGER = {"PUBLISHERS": {"mine": entry}}
    (message,) = checks.settings_are_valid()
    assert message.msg.startswith(f"CONTAINER_MANAGER['PUBLISHERS']['mine']: {entry['class']}: ")
    assert words in message.msg


@pytest.mark.parametrize(
    ("debug", "process", "warned"),
    [(False, True, True), (False, False, False), (False, None, False), (True, True, False)],
)
def test_local_processes_in_production_are_warned_of(settings, debug, process, warned):
    settings.DEBUG = debug
    settings.CONTAINER_MANAGER = {"PROCESS_EXECUTOR": process}
    messages = checks.deployment_is_safe()
    assert [type(message) for message in messages] == [CheckWarning] * warned
    assert [message.id for message in messages] == ["container_manager.W001"] * warned
