"""What goes wrong in a worker's upkeep stops none of its jobs."""

from __future__ import annotations

import pytest
from django.db import Error

from container_manager.models import ContainerJob
from container_manager.worker.loop import WorkerLoop
from tests.support.loops import work
from tests.support.spine import queued

pytestmark = pytest.mark.django_db(transaction=True)


def fail(_duty):
    raise Error("no such table")


def test_a_bug_in_the_upkeep_does_not_keep_a_worker_from_its_jobs(world, monkeypatch):
    monkeypatch.setattr(WorkerLoop, "_renew_offers", _once_and_then_fail(WorkerLoop._renew_offers))
    for duty in ("RequeueRetries", "ExpireWaiting", "GiveUpUnproven", "ForgetKeys"):
        monkeypatch.setattr(f"container_manager.worker.loop.{duty}.__call__", fail)
    jobs = [queued() for _ in range(5)]
    assert work() == 0
    assert set(ContainerJob.objects.values_list("status", flat=True)) == {"completed"}
    assert len(jobs) == 5


def _once_and_then_fail(method):
    calls = []

    def run(self):
        calls.append(1)
        if len(calls) > 1:
            raise RuntimeError("a bug")
        method(self)

    return run
