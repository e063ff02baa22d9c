"""Who asked for a stop stands with the request, in the history and in what people read."""

from __future__ import annotations

from typing import Any

import pytest

from container_manager import lifecycle
from container_manager.admin import job_page
from container_manager.models import ContainerJob, StateHistory
from container_manager.models.leases import Claimant, Lease
from container_manager.reports.explain import explain
from container_manager.states import StopKind
from tests.support.api import Api, an_operator
from tests.support.spine import LOST, a_worker, contradictions, failed, finish, held_by, queued

pytestmark = pytest.mark.django_db

DIED_OF_IT = failed(137)


def asked(kind: StopKind, *actors: str) -> tuple[Claimant, Lease]:
    """A job that a worker runs, and that these people asked to stop, one after the other."""
    worker = a_worker()
    lease = held_by(worker)
    for actor in actors:
        lifecycle.stop([lease.job_id], kind, actor=actor)
    return worker, lease


def last(job_id: Any) -> StateHistory:
    found = StateHistory.objects.filter(entity_id=job_id).order_by("-version").first()
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("kind", "status"), [(StopKind.KILL, "killed"), (StopKind.CANCEL, "cancelled")]
)
def test_the_worker_ends_it_and_the_person_is_named_beside_it(kind: StopKind, status: str) -> None:
    worker, lease = asked(kind, "api:ada", "api:too-late")
    job = finish(worker, lease, DIED_OF_IT, kind)
    move = last(job.pk)
    assert (move.new_state, move.actor) == (status, "worker:w1")
    assert move.metadata["requested_by"] == "api:ada"
    assert f"It was {status}" in explain(job).sentence
    assert explain(job).sentence.endswith("Asked by api:ada.")
    assert explain(job).details["requested_by"] == "api:ada"
    assert contradictions() == []


def test_a_stronger_request_has_an_asker_of_its_own() -> None:
    worker, lease = asked(StopKind.CANCEL, "api:ada")
    lifecycle.stop([lease.job_id], StopKind.KILL, actor="admin:bob")
    job = ContainerJob.objects.get()
    assert (job.cancel_requested_by, job.kill_requested_by) == ("api:ada", "admin:bob")
    assert "admin:bob asked for a kill at" in explain(job).sentence
    assert last(finish(worker, lease, DIED_OF_IT, StopKind.CANCEL).pk).metadata["requested_by"] == (
        "api:ada"
    )


def test_a_job_that_is_gone_is_told_as_asked_by_whom() -> None:
    worker, lease = asked(StopKind.KILL, "cli:root")
    job = finish(worker, lease, LOST)
    assert (job.status, last(job.pk).metadata["requested_by"]) == ("killed", "cli:root")


def test_an_end_that_came_before_names_nobody() -> None:
    worker, lease = asked(StopKind.KILL, "api:ada")
    job = finish(worker, lease, 0)
    assert job.status == "completed"
    assert last(job.pk).metadata["requested_by"] is None
    assert "Asked by" not in explain(job).sentence


def test_who_stops_what_does_not_run_is_the_actor() -> None:
    job = queued()
    lifecycle.stop([job.pk], StopKind.CANCEL, actor="api:ada")
    assert last(job.pk).actor == "api:ada"
    job.refresh_from_db()
    assert job.cancel_requested_by == ""


def test_a_job_that_is_queued_again_forgets_who_asked() -> None:
    worker, lease = asked(StopKind.CANCEL, "api:ada")
    job = finish(worker, lease, 1)
    assert (job.status, job.cancel_requested_by) == ("failed", "api:ada")
    lifecycle.retry([job.pk])
    job.refresh_from_db()
    assert (job.cancel_requested_at, job.cancel_requested_by) == (None, "")


def test_the_api_and_the_timeline_show_it() -> None:
    worker, lease = asked(StopKind.KILL, "api:ada")
    sentence = Api(an_operator()).get(f"jobs/{lease.job_id}/explain/").json()["sentence"]
    assert sentence.startswith("api:ada asked for a kill at")
    job = finish(worker, lease, DIED_OF_IT, StopKind.KILL)
    moves = Api(an_operator()).get(f"jobs/{job.pk}/history/").json()["results"]
    assert moves[0]["metadata"]["requested_by"] == "api:ada"
    assert "asked by api:ada" in job_page.history(job)[0]["told"]
