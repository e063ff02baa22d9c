"""`jobs/{id}/abandon/` and the bulk verb: for operators, where nobody reaches the engine."""

from __future__ import annotations

from typing import Any

import pytest
from django.utils import timezone

from container_manager.models import ContainerJob, StateHistory
from tests.factories import AttemptFactory, JobFactory
from tests.support.api import Api, a_person, an_operator, problem
from tests.support.spine import a_worker, held_by
from tests.test_abandon import living

pytestmark = pytest.mark.django_db


def a_lost_job(**fields: Any) -> ContainerJob:
    given = {f"job__{name}": value for name, value in fields.items()}
    return AttemptFactory(unreachable_since=timezone.now(), **given).job


def test_an_operator_gives_it_up_and_is_named(an_api: Api) -> None:
    job = a_lost_job()
    answer = an_api.post(f"jobs/{job.pk}/abandon/")
    assert answer.status_code == 200
    assert (answer.json()["status"], answer.json()["reason"]) == ("failed", "unproven")
    assert answer.headers["ETag"] == f'"{answer.json()["revision"]}"'
    (move, *_) = an_api.get(f"jobs/{job.pk}/history/").json()["results"]
    assert move["metadata"] == {"abandoned": True}
    assert move["actor"].startswith("api:")


@pytest.fixture
def an_api() -> Api:
    return Api(an_operator())


def test_an_owner_may_not(an_api: Api) -> None:
    owner = a_person()
    job = a_lost_job(created_by=owner)
    told = problem(Api(owner).post(f"jobs/{job.pk}/abandon/"), 403, "permission_denied")
    assert "operators" in told["detail"]
    assert Api(a_person()).post(f"jobs/{job.pk}/abandon/").status_code == 404
    assert Api().post(f"jobs/{job.pk}/abandon/").status_code == 401
    assert ContainerJob.objects.get().status == "running"


def test_a_job_whose_engine_answers_is_a_conflict_that_says_so(an_api: Api) -> None:
    worker = a_worker()
    living(worker)
    lease = held_by(worker)
    told = problem(an_api.post(f"jobs/{lease.job_id}/abandon/"), 409, "still_reached")
    assert told["current_state"] == "running"
    assert "answers" in told["detail"]


def test_a_job_that_has_ended_is_a_conflict(an_api: Api) -> None:
    job = JobFactory(status="completed")
    problem(an_api.post(f"jobs/{job.pk}/abandon/"), 409, "invalid_transition")


def test_if_match_is_kept(an_api: Api) -> None:
    job = a_lost_job()
    stale = Api(an_operator(), **{"If-Match": '"old"'})
    problem(stale.post(f"jobs/{job.pk}/abandon/"), 412, "stale_state")
    assert StateHistory.objects.of(job).last().new_state == "running"


def test_many_at_once(an_api: Api) -> None:
    lost, ended = a_lost_job(), JobFactory(status="killed")
    body = {"verb": "abandon", "ids": [str(lost.pk), str(ended.pk)]}
    told = an_api.post("jobs/bulk/", body).json()
    assert [each["result"] for each in told["results"]] == ["done", "refused"]
    owner = a_person()
    own = a_lost_job(created_by=owner)
    told = Api(owner).post("jobs/bulk/", {"verb": "abandon", "ids": [str(own.pk)]}).json()
    assert told["results"][0]["detail"] == "only operators may abandon a job"
