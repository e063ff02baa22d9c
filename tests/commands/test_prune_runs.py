"""Runs that ended long ago are deleted with all that is theirs, and nothing else is."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.utils import timezone

from container_manager.models import ContainerJob, DagRun, JobAttempt, StateHistory, TaskInstance
from container_manager.workflows import runs
from tests.commands.shell import run
from tests.workflows.driving import begun, fresh, play, task

pytestmark = pytest.mark.django_db

TASKS = {"a": task(), "b": task("a")}


def old(name):
    ended = play(begun(TASKS, name=name), fails=["a"])
    DagRun.objects.filter(pk=ended.pk).update(ended_at=timezone.now() - timedelta(days=40))
    return fresh(ended)


def test_only_what_ended_before_goes_and_everything_of_it():
    gone, young, active = old("old"), play(begun(TASKS, name="young")), begun(TASKS, name="active")
    answer = run("prune_runs", "--older-than", "30d", "--dry-run")
    assert answer.out == "1 runs would be deleted\n"
    assert DagRun.objects.count() == 3
    answer = run("prune_runs", "--older-than", "30d", "--json")
    assert answer.json == {"found": 1, "deleted": 1}
    assert set(DagRun.objects.all()) == {young, active}
    assert not TaskInstance.objects.filter(dag_run=gone.pk).exists()
    assert not ContainerJob.objects.filter(name__startswith="old.").exists()
    assert not StateHistory.objects.of(gone).exists()
    assert run("prune_runs", "--older-than", "30d").code == 3


def test_only_of_the_dags_that_are_named():
    old("one"), old("two")
    assert run("prune_runs", "two", "--older-than", "1d").out == "1 of 1 runs deleted\n"
    assert DagRun.objects.get().dag.name == "one"


def test_a_run_that_left_something_on_an_engine_stays():
    run_of = old("old")
    job = ContainerJob.objects.get(name="old.a")
    JobAttempt.objects.create(job=job, attempt=1, phase="done")
    assert runs.prune([run_of.pk]) == set()
    assert run("prune_runs", "--older-than", "30d").out == "0 of 1 runs deleted\n"
    assert TaskInstance.objects.filter(dag_run=run_of).count() == 2
    JobAttempt.objects.update(cleaned_up=True)
    assert runs.prune([run_of.pk]) == {run_of.pk}


def test_the_history_can_be_kept():
    run_of = old("old")
    run("prune_runs", "--older-than", "30d", "--keep-history")
    assert StateHistory.objects.of(run_of).count() == 3


def test_jobs_of_tasks_are_not_pruned_by_themselves():
    old("old")
    ContainerJob.objects.update(completed_at=timezone.now() - timedelta(days=40))
    assert run("prune_jobs", "--older-than", "30d").code == 3
    assert ContainerJob.objects.count() == 1


@pytest.mark.parametrize(
    "arguments", [[], ["--older-than", "soon"], ["nobody", "--older-than", "1d"]]
)
def test_what_makes_no_sense_is_refused(arguments):
    old("old")
    assert run("prune_runs", *arguments).code == 2
    assert DagRun.objects.count() == 1


def test_an_age_before_the_beginning_of_time_is_one_line():
    answer = run("prune_runs", "--older-than", "999999d")
    assert answer.code == 2
    assert "beginning of time" in answer.err
