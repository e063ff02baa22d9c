"""What is on record about a job: its moves, its attempts, and why it does not run."""

from __future__ import annotations

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from container_manager import lifecycle
from container_manager.models import JobAttempt
from container_manager.states import JobStatus
from tests.factories import AttemptFactory, JobFactory
from tests.support.api import Api, a_person, an_operator, problem
from tests.support.spine import a_worker, finish, held_by

pytestmark = pytest.mark.django_db


@pytest.fixture
def api() -> Api:
    return Api(an_operator())


def test_the_history_is_every_move_newest_first(api):
    ada = a_person(username="ada")
    job = JobFactory(created_by=ada)
    Api(ada).post(f"jobs/{job.pk}/queue/")
    told = api.get(f"jobs/{job.pk}/history/").json()
    moves = [(row["version"], row["old_state"], row["new_state"]) for row in told["results"]]
    assert moves == [(2, "pending", "queued"), (1, None, "pending")]
    assert told["results"][0]["actor"] == "api:ada"
    assert told["count"] == 2


def test_the_history_comes_in_pages(api):
    job = JobFactory()
    lifecycle.enqueue([job.pk])
    first = api.get(f"jobs/{job.pk}/history/", limit=1).json()
    second = api.client.get(first["next"]).json()
    assert [page["results"][0]["version"] for page in (first, second)] == [2, 1]
    assert (first["count"], second["next"]) == (2, None)


def test_the_attempts_are_every_start_and_its_evidence_newest_first(api):
    worker = a_worker("w1")
    lease = held_by(worker)
    finish(worker, lease, 3)
    AttemptFactory(job_id=lease.job_id, job=None, attempt=2, phase="done")
    told = api.get(f"jobs/{lease.job_id}/attempts/").json()
    assert [row["attempt"] for row in told["results"]] == [2, 1]
    first = told["results"][1]
    assert (first["exit_code"], first["reason"], first["blame"]) == (3, "exit_code", "user")
    assert (first["worker_name"], first["worker_id"]) == ("w1", str(worker.worker_id))


def test_many_attempts_cost_no_more_questions_than_one(api):
    job = JobFactory()

    def questions() -> int:
        with CaptureQueriesContext(connection) as asked:
            assert api.get(f"jobs/{job.pk}/attempts/", limit=100).status_code == 200
        return len(asked)

    JobAttempt.objects.create(job=job, attempt=1, phase="done")
    one = questions()
    for number in range(2, 30):
        JobAttempt.objects.create(job=job, attempt=number, phase="done")
    assert questions() == one


@pytest.mark.parametrize("status", JobStatus.values)
def test_every_job_is_explained_in_a_sentence(status, api):
    told = api.get(f"jobs/{JobFactory(status=status).pk}/explain/").json()
    assert set(told) == {"code", "sentence", "details"}
    assert told["sentence"].endswith(".")


@pytest.mark.parametrize("below", ["history", "attempts", "explain"])
def test_a_parameter_that_is_unknown_here_is_refused(below, api):
    answer = api.get(f"jobs/{JobFactory().pk}/{below}/", status="failed")
    assert list(problem(answer, 400, "invalid")["errors"]) == ["status"]


def test_an_explanation_does_not_name_other_people_s_jobs(api):
    ada, bob = a_person(), a_person()
    lifecycle.steer_queue("narrow", max_running=1)
    holder = held_by(a_worker(), created_by=bob, queue="narrow")
    job = JobFactory(created_by=ada, queue="narrow", status="queued")
    address = f"jobs/{job.pk}/explain/"
    assert str(holder.job_id) in api.get(address).content.decode()
    told = Api(ada).get(address)
    assert str(holder.job_id) not in told.content.decode()
    assert told.json()["details"]["held_by_others"] == 1
