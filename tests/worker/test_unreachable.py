"""A job whose engine nobody reaches stays `running` and says so, until its time is over."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import pytest
from django.utils import timezone

from container_manager import ids, lifecycle
from container_manager.models import ContainerJob, JobAttempt, StateHistory, Worker
from container_manager.models.leases import Claimant
from container_manager.models.outcomes import Progress

pytestmark = pytest.mark.django_db
Make = Callable[..., ContainerJob]
EARLIER = timezone.now() - timedelta(hours=2)


def worker(**offer: object) -> Worker:
    return Worker.objects.create(
        id=ids.uuid7(),
        name="other",
        hostname="h",
        pid=1,
        concurrency=1,
        version="0",
        offers={"docker": {"engine_id": "far", "available": True, **offer}},
    )


def running(job: Make, **attempt: object) -> JobAttempt:
    values = {"phase": "started", "engine_id": "far", "executor": "docker", **attempt}
    return JobAttempt.objects.create(job=job(status="running"), attempt=1, **values)


def test_an_orphan_whose_engine_no_living_worker_reaches_says_since_when(job: Make) -> None:
    orphan = running(job, worker_id=ids.uuid7())
    assert lifecycle.note_unreachable([]) == 1
    orphan.refresh_from_db()
    assert orphan.unreachable_since is not None
    assert orphan.job.status == "running"
    assert lifecycle.note_unreachable([]) == 0


def test_an_orphan_whose_engine_some_worker_reaches_is_left_to_that_worker(job: Make) -> None:
    running(job, worker_id=ids.uuid7())
    worker()
    assert lifecycle.note_unreachable([]) == 0


@pytest.mark.parametrize("offer", [{"available": False}, {"engine_id": "another"}])
def test_a_worker_that_does_not_reach_the_engine_does_not_count(
    job: Make, offer: dict[str, object]
) -> None:
    running(job, worker_id=ids.uuid7())
    worker(**offer)
    assert lifecycle.note_unreachable([]) == 1


def test_what_a_living_worker_holds_is_its_own_to_tell(job: Make) -> None:
    running(job, worker_id=worker(available=False).pk)
    assert lifecycle.note_unreachable([]) == 0


def test_after_its_time_it_is_failed_as_unproven_and_its_worker_is_fenced(job: Make) -> None:
    long_ago = timezone.now() - timedelta(hours=2)
    holder = ids.uuid7()
    lost = running(job, worker_id=holder, unreachable_since=long_ago)
    fresh = running(job, worker_id=holder, unreachable_since=timezone.now())
    assert lifecycle.give_up_unproven(3600) == 1
    lost.refresh_from_db()
    fresh.refresh_from_db()
    assert (lost.phase, lost.reason, lost.blame, lost.cleaned_up) == (
        "done",
        "unproven",
        "infra",
        False,
    )
    assert (lost.job.status, lost.job.reason) == ("failed", "unproven")
    assert StateHistory.objects.of(lost.job).last().actor == "upkeep"
    assert (fresh.phase, fresh.job.status) == ("started", "running")
    late = Progress(lost.job_id, 1, 1, "stopping")
    assert lifecycle.progress(Claimant(holder, "late", ()), [late]) == set()


@pytest.mark.parametrize("dead", [True, False])
def test_an_orphan_whose_engine_is_back_is_left_to_who_reaches_it(job: Make, dead: bool) -> None:
    """Also where all workers stood still together for longer than jobs are waited for."""
    holder = worker()
    Worker.objects.filter(pk=holder.pk).update(last_beat_at=EARLIER if dead else timezone.now())
    orphan = running(job, worker_id=holder.pk, unreachable_since=EARLIER)
    reaches = worker()
    assert lifecycle.give_up_unproven(3600) == (0 if dead else 1)
    if dead:
        lifecycle.adopt(Claimant(reaches.pk, "next", ()), [orphan])
        assert lifecycle.give_up_unproven(3600) == 0


def test_a_stop_that_is_asked_meanwhile_does_not_make_it_reachable(job: Make) -> None:
    holder = Claimant(ids.uuid7(), "holder", ())
    held = running(job, worker_id=holder.worker_id)
    key = {"job_id": held.job_id, "attempt": 1, "epoch": 1}
    lifecycle.progress(holder, [Progress(**key, phase="started", unreachable=True)])
    lifecycle.progress(holder, [Progress(**key, phase="stopping", stop_kind="kill")])
    held.refresh_from_db()
    assert held.unreachable_since is not None
    lifecycle.progress(holder, [Progress(**key, phase="stopping", unreachable=False)])
    held.refresh_from_db()
    assert held.unreachable_since is None
