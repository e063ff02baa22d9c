"""The CheckConstraints, one by one, by UPDATEs that no Python has seen."""

from __future__ import annotations

import io

import pytest
from django.core.management import call_command
from django.db import IntegrityError, models, transaction
from django.db.migrations.loader import MigrationLoader

from container_manager import states
from container_manager.models import ContainerJob
from container_manager.models.base import guarded_models
from container_manager.states import JOB
from tests.factories import JobFactory
from tests.models.ways import execute, stored

pytestmark = pytest.mark.django_db

LIMITS = (
    "cpu_limit",
    "memory_limit_mb",
    "pids_limit",
    "timeout_seconds",
    "start_timeout_seconds",
    "queue_timeout_seconds",
)


def accepts(job, change):
    try:
        with transaction.atomic():
            return execute(f"UPDATE container_jobs SET {change}") == 1
    except IntegrityError as error:
        if "constraint" not in str(error).lower():
            raise
        return False


@pytest.mark.parametrize("status", JOB.states)
def test_launched_at_matches_the_status(status):
    job = JobFactory(status=status)
    free = status in ("cancelled", "killed")
    assert accepts(job, "launched_at = created_at") == (free or status in states.LAUNCHED)
    assert accepts(job, "launched_at = NULL") == (free or status in states.NOT_LAUNCHED)


@pytest.mark.parametrize("status", JOB.states)
def test_what_has_ended_has_a_time_of_its_end_and_nothing_else_has(status):
    job = JobFactory(status=status)
    assert accepts(job, "completed_at = created_at") == (status in states.ENDED)
    assert accepts(job, "completed_at = NULL") == (status not in states.ENDED)


@pytest.mark.parametrize("status", JOB.states)
def test_a_queued_job_has_a_time_since_when(status):
    job = JobFactory(status=status)
    assert accepts(job, "queued_at = created_at")
    assert accepts(job, "queued_at = NULL") == (status != "queued")


def test_every_status_either_has_a_launch_or_has_none_or_is_free():
    assert {*states.LAUNCHED, *states.NOT_LAUNCHED, "cancelled", "killed"} == set(JOB.states)
    assert {*states.ENDED, *states.NOT_ENDED} == set(JOB.states)


@pytest.mark.parametrize("status", JOB.states)
def test_completed_means_exit_code_0_or_none(status):
    job = JobFactory(status=status)
    assert accepts(job, "exit_code = NULL")
    assert accepts(job, "exit_code = 0")
    for code in (1, -9, 137):
        assert accepts(job, f"exit_code = {code}") == (status != "completed")


@pytest.mark.parametrize(
    ("column", "good", "bad"),
    [
        ("priority", [0, 50, 100], [-1, 101, 1000]),
        ("retry_count", [0, 1, 1000], [-1]),
        ("infra_retry_count", [0, 1, 1000], [-1]),
        ("duration_ms", ["NULL", 0, 2**40], [-1]),
        *((limit, [1, 100], [0, -1]) for limit in LIMITS),
        *((limit, ["NULL"], []) for limit in LIMITS if limit != "start_timeout_seconds"),
        ("cpu_limit", ["0.01"], ["-0.5"]),
    ],
)
def test_numbers_stay_in_their_range(column, good, bad):
    job = JobFactory()
    assert [value for value in good if not accepts(job, f"{column} = {value}")] == []
    assert [value for value in bad if accepts(job, f"{column} = {value}")] == []


@pytest.mark.parametrize("limit", LIMITS)
def test_the_orm_meets_the_same_walls(limit):
    with pytest.raises(IntegrityError), transaction.atomic():
        JobFactory(**{limit: 0})
    job = JobFactory()
    setattr(job, limit, 0)
    with pytest.raises(IntegrityError):
        job.save()
    assert stored(job)[limit] != 0


def test_the_constraints_have_the_names_that_are_promised():
    names = {constraint.name for constraint in ContainerJob._meta.constraints}
    assert names >= {
        "status_is_known",
        "launched_at_matches_status",
        "completed_jobs_have_timestamp",
        "queued_jobs_have_queued_at",
    }


def test_the_constraint_on_the_status_knows_every_word_of_the_table_and_no_other():
    (known,) = [c for c in ContainerJob._meta.constraints if c.name == "status_is_known"]
    assert known.condition == models.Q(status__in=list(JOB.states))


def test_the_migrations_say_what_the_models_and_the_table_say():
    out = io.StringIO()
    call_command("makemigrations", "container_manager", check=True, dry_run=True, stdout=out)
    assert "No changes detected" in out.getvalue()


def test_the_frozen_constraints_of_the_migrations_use_the_words_of_the_table():
    state = MigrationLoader(None).project_state()
    for model in guarded_models():
        if model._meta.app_label != "container_manager":
            continue
        frozen = state.models["container_manager", model._meta.model_name]
        words = {
            word
            for constraint in frozen.options["constraints"]
            if isinstance(constraint, models.CheckConstraint)
            for word in state_words(constraint.condition, model.state_field)
        }
        assert words == set(model.machine.states)


def state_words(condition, field):
    """Every word that a condition compares the state with."""
    for child in condition.children:
        if isinstance(child, models.Q):
            yield from state_words(child, field)
        elif child[0] == field:
            yield child[1]
        elif child[0] == f"{field}__in":
            yield from child[1]
