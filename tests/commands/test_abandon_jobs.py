from __future__ import annotations

import pytest
from django.utils import timezone

from container_manager.models import ContainerJob, StateHistory
from tests.commands.shell import run
from tests.factories import AttemptFactory, JobFactory
from tests.support.spine import a_worker, held_by
from tests.test_abandon import living

pytestmark = pytest.mark.django_db


def a_lost_job() -> ContainerJob:
    made: ContainerJob = AttemptFactory(unreachable_since=timezone.now()).job
    return made


def a_reached_job() -> ContainerJob:
    worker = a_worker()
    living(worker)
    return ContainerJob.objects.get(pk=held_by(worker).job_id)


def test_what_nobody_reaches_is_given_up() -> None:
    job = a_lost_job()
    answer = run("abandon_jobs", job.pk)
    assert (answer.code, answer.lines) == (
        0,
        [f"{job.pk}: done (failed; what is left is killed when its engine is back)"],
    )
    move = StateHistory.objects.of(job).last()
    assert move is not None
    assert move.actor.startswith("cli:")
    assert move.new_state == "failed"


def test_what_an_engine_answers_for_is_refused_with_what_to_do_instead() -> None:
    lost, reached = a_lost_job(), a_reached_job()
    answer = run("abandon_jobs", lost.pk, reached.pk)
    assert answer.code == 1
    assert answer.lines[1].startswith(f"{reached.pk}: refused (Its engine process answers")
    assert answer.err == "1 of 2 jobs could not be abandoned\n"


def test_all_means_those_that_run() -> None:
    a_lost_job()
    JobFactory(status="queued")
    answer = run("abandon_jobs", "--all", "--json")
    assert answer.code == 0
    assert answer.json["counts"] == {"done": 1}


def test_a_rehearsal_says_what_would_be_done() -> None:
    lost, reached = a_lost_job(), a_reached_job()
    answer = run("abandon_jobs", lost.pk, reached.pk, "--dry-run")
    assert (answer.code, answer.lines) == (
        0,
        [
            f"{lost.pk}: dry run (is running, would be abandoned)",
            f"{reached.pk}: dry run (is running, would be refused)",
        ],
    )
    assert {job.status for job in ContainerJob.objects.all()} == {"running"}


def test_nothing_to_do_and_nothing_said() -> None:
    assert run("abandon_jobs", "--all").code == 3
    assert run("abandon_jobs").code == 2
