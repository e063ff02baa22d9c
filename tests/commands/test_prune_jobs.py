from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import pytest
from django.utils import timezone

from container_manager import lifecycle
from container_manager.management import selection
from container_manager.models import ContainerJob, JobAttempt, JobLog, StateHistory
from container_manager.states import SETTLED, JobStatus
from tests.commands.shell import run

pytestmark = pytest.mark.django_db
Make = Callable[..., ContainerJob]

LONG_AGO = timezone.now() - timedelta(days=40)


def old(job: Make, status: str = "completed") -> ContainerJob:
    ended = {"completed_at": LONG_AGO} if status in JobStatus.values[3:] else {}
    return job(status=status, created_at=LONG_AGO, **ended)


def test_a_pruned_job_takes_attempts_output_and_history_along(job: Make) -> None:
    gone, young = old(job), job(status="completed")
    JobAttempt.objects.create(job=gone, attempt=1, phase="done", cleaned_up=True)
    JobLog.objects.create(job=gone, attempt=1, stream="stdout", offset=0, data=b"x")
    answer = run("prune_jobs", "--older-than", "30d")
    assert (answer.code, answer.lines) == (0, [f"{gone.pk}: done (deleted)"])
    assert [*ContainerJob.objects.values_list("pk", flat=True)] == [young.pk]
    assert not JobAttempt.objects.exists()
    assert not JobLog.objects.exists()
    assert not StateHistory.objects.filter(entity_id=gone.pk).exists()
    assert StateHistory.objects.filter(entity_id=young.pk).exists()


def test_the_history_may_stay(job: Make) -> None:
    gone = old(job)
    run("prune_jobs", "--older-than", "30d", "--keep-history")
    assert not ContainerJob.objects.exists()
    assert StateHistory.objects.filter(entity_id=gone.pk).count() == 1
    assert run("check_jobs").code == 0


def test_only_settled_jobs_are_ever_deleted(job: Make) -> None:
    made = {status: old(job, status) for status in JobStatus}
    run("prune_jobs", "--older-than", "1d", "--status", ",".join(JobStatus))
    left = set(ContainerJob.objects.values_list("status", flat=True))
    assert left == set(made) - set(SETTLED)


def test_a_named_job_that_is_not_settled_does_not_match(job: Make) -> None:
    waiting = old(job, "retrying")
    assert run("prune_jobs", waiting.pk, "--older-than", "1d").code == 3


def test_a_job_that_a_worker_holds_is_not_deleted(job: Make) -> None:
    held = old(job)
    JobAttempt.objects.create(job=held, attempt=1, phase="collecting")
    assert run("prune_jobs", "--older-than", "1d").code == 3
    old(job)
    assert run("prune_jobs", "--older-than", "1d").code == 0
    assert ContainerJob.objects.get() == held


def test_some_states_can_be_chosen(job: Make) -> None:
    old(job, "completed"), old(job, "failed")
    run("prune_jobs", "--older-than", "1d", "--status", "completed")
    assert ContainerJob.objects.get().status == "failed"


def test_it_must_be_said_how_old_they_are(job: Make) -> None:
    old(job)
    for arguments in ([], ["--all"], ["--status", "failed"], ["--newer-than", "1d"]):
        answer = run("prune_jobs", *arguments)
        assert answer.code == 2
        assert "--older-than is needed" in answer.err
    assert ContainerJob.objects.exists()


def test_a_dry_run_deletes_nothing(job: Make) -> None:
    old(job)
    assert "would be deleted" in run("prune_jobs", "--older-than", "1d", "--dry-run").out
    assert ContainerJob.objects.exists()


def test_a_job_that_is_retried_meanwhile_stays(job: Make) -> None:
    retried = old(job, "failed")
    retried.transition_to("retrying")
    assert lifecycle.prune([retried.pk]) == set()
    assert ContainerJob.objects.exists()


def test_many_are_deleted_in_batches(job: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selection, "BATCH", 2)
    for _ in range(5):
        old(job)
    assert len(run("prune_jobs", "--older-than", "1d", "--limit", 4).lines) == 4
    assert len(run("prune_jobs", "--older-than", "1d").lines) == 1


def test_a_job_that_left_something_on_an_engine_is_kept_until_that_is_swept(job: Make) -> None:
    ended = old(job)
    JobAttempt.objects.create(job=ended, attempt=1, phase="done", cleaned_up=False)
    assert run("prune_jobs", "--older-than", "30d").code == 3
    ended.refresh_from_db()
    JobAttempt.objects.update(cleaned_up=True)
    assert run("prune_jobs", "--older-than", "30d").code == 0
