"""Rows that were written past every validation must not stop the work on all others."""

from __future__ import annotations

import pytest

from container_manager import lifecycle
from container_manager.models import ContainerJob, JobAttempt, Queue
from tests.support.loops import work
from tests.support.spine import a_worker, queued

pytestmark = pytest.mark.django_db(transaction=True)


def claimed(limit: int = 10) -> set[object]:
    return {lease.job_id for lease in lifecycle.claim(a_worker(), limit)}


def test_a_job_that_was_moved_past_its_own_attempts_is_passed_over() -> None:
    odd, good = queued(priority=90), queued()
    JobAttempt.objects.create(job=odd, attempt=1, phase="done")
    assert claimed() == {good.pk}


def test_a_queued_job_that_some_worker_still_holds_is_passed_over() -> None:
    odd, good = queued(priority=90), queued()
    JobAttempt.objects.create(job=odd, attempt=7, phase="started")
    assert claimed() == {good.pk}


def test_what_the_model_calls_launch_failed_is_not_launched() -> None:
    spent, last = queued(retry_count=3, max_retries=2), queued(retry_count=2, max_retries=2)
    assert spent.queue_status == "launch_failed"
    assert claimed() == {last.pk}


@pytest.mark.parametrize("row", [{"environment": []}, {"command": 5}])
def test_a_row_that_cannot_be_read_fails_by_itself(world, row) -> None:
    odd, good = queued(priority=90), queued()
    ContainerJob.objects.filter(pk=odd.pk).update(**row)
    assert work() == 0
    odd.refresh_from_db()
    good.refresh_from_db()
    assert good.status == "completed"
    assert odd.is_settled


def test_until_idle_does_not_wait_for_a_queue_that_takes_nothing(world) -> None:
    Queue.objects.create(name="closed", max_running=0)
    waiting = queued(queue="closed")
    assert work() == 0
    waiting.refresh_from_db()
    assert waiting.status == "queued"
