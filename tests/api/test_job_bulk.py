"""One verb on many jobs: a result for each, whatever comes of the others."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from container_manager.api import job_bulk
from container_manager.models import ContainerJob, StateHistory
from tests.factories import AttemptFactory, JobFactory, UserFactory
from tests.support.api import Api, a_person, an_operator, problem

pytestmark = pytest.mark.django_db


@pytest.fixture
def api() -> Api:
    return Api(an_operator())


def ask(api: Api, verb: str, *jobs: Any, **more: Any) -> dict[str, Any]:
    named = {"ids": [str(getattr(job, "pk", job)) for job in jobs]} if jobs else {}
    answer = api.post("jobs/bulk/", {"verb": verb, **named, **more})
    assert answer.status_code == 200, answer.content
    told: dict[str, Any] = answer.json()
    assert sum(told["counts"].values()) == len(told["results"])
    return told


def results(told: dict[str, Any]) -> list[str]:
    return [each["result"] for each in told["results"]]


def states() -> dict[Any, str]:
    return dict(ContainerJob.objects.values_list("pk", "status"))


@pytest.mark.parametrize(
    ("verb", "status", "ends", "detail"),
    [
        ("queue", "pending", "queued", "queued"),
        ("queue", "retrying", "queued", "queued"),
        ("retry", "failed", "queued", "queued"),
        ("cancel", "queued", "cancelled", "cancelled"),
        ("kill", "pending", "killed", "killed"),
    ],
)
def test_a_verb_is_done_to_all_that_are_named(verb, status, ends, detail, api):
    made = [JobFactory(status=status) for _ in range(3)]
    told = ask(api, verb, *made)
    assert told["results"] == [
        {"id": str(job.pk), "result": "done", "detail": detail} for job in made
    ]
    assert told["counts"] == {"done": 3}
    assert set(states().values()) == {ends}
    assert StateHistory.objects.of(made[0]).last().actor.startswith("api:")


def test_half_of_them_illegal_costs_the_other_half_nothing(api):
    good, bad = [[JobFactory(status=status) for _ in range(3)] for status in ("pending", "killed")]
    mixed = [job for pair in zip(good, bad, strict=True) for job in pair]
    told = ask(api, "queue", *mixed)
    assert results(told) == ["done", "refused"] * 3
    assert told["counts"] == {"done": 3, "refused": 3}
    assert told["results"][1]["detail"].startswith("Invalid transition from killed to queued")
    assert [states()[job.pk] for job in mixed] == ["queued", "killed"] * 3


def test_a_held_job_is_asked_and_then_was_asked_before(api):
    job = AttemptFactory().job
    assert results(ask(api, "kill", job)) == ["requested"]
    assert results(ask(api, "kill", job)) == ["requested_before"]
    assert states()[job.pk] == "running"


def test_a_job_that_is_named_twice_is_told_once(api):
    job = JobFactory()
    told = ask(api, "kill", job, str(job.pk).upper(), job.pk.hex)
    assert results(told) == ["done"]


def test_the_jobs_of_others_are_unknown_like_those_that_are_not_there():
    ada = UserFactory()
    own, foreign = JobFactory(created_by=ada), JobFactory(created_by=UserFactory())
    told = ask(Api(ada), "kill", foreign, own, uuid4())
    assert results(told) == ["unknown", "done", "unknown"]
    assert told["results"][0]["detail"] == told["results"][2]["detail"]
    assert states()[foreign.pk] == "pending"


def test_who_may_only_look_changes_nothing():
    job = JobFactory(created_by=UserFactory())
    told = ask(Api(a_person("view_containerjob")), "kill", job)
    assert (results(told), states()[job.pk]) == (["refused"], "pending")


# By a filter --------------------------------------------------------------------------------------


def test_a_filter_selects_as_in_the_list(api):
    wanted = JobFactory(queue="night", labels={"team": "data"})
    JobFactory(queue="night")
    JobFactory(labels={"team": "data"})
    chosen = {"queue": "night", "label": ["team:data"], "status": ["pending", "queued"]}
    told = ask(api, "kill", filter=chosen)
    assert [each["id"] for each in told["results"]] == [str(wanted.pk)]


def test_a_filter_selects_own_jobs_only():
    ada = UserFactory()
    JobFactory(created_by=ada)
    JobFactory(created_by=UserFactory())
    assert results(ask(Api(ada), "kill", filter={"status": "pending"})) == ["done"]


def test_a_filter_that_selects_nothing_does_nothing(api):
    assert ask(api, "kill", filter={"status": "pending"}) == {"results": [], "counts": {}}


@pytest.mark.parametrize(
    ("chosen", "field"),
    [
        ({}, "filter"),
        ({"status": "done"}, "filter.status"),
        ({"status": []}, "filter.status"),
        ({"status": None}, "filter.status"),
        ({"status": [1]}, "filter.status"),
        ({"search": ["a", "b"]}, "filter.search"),
        ({"limit": "1"}, "filter.limit"),
        ({"created_by": "1"}, "filter.created_by"),
        ({"created_after": "2026-02-30T00:00:00Z"}, "filter.created_after"),
        (
            {
                "completed_after": "2026-02-01T00:00:00Z",
                "completed_before": "2026-01-01T00:00:00Z",
            },
            "filter.completed_before",
        ),
    ],
)
def test_a_filter_that_means_nothing_is_refused(chosen, field, api):
    job = JobFactory()
    answer = api.post("jobs/bulk/", {"verb": "kill", "filter": chosen})
    assert list(problem(answer, 400, "invalid")["errors"]) == [field]
    assert states()[job.pk] == "pending"


def test_a_filter_that_selects_too_many_is_refused(api, monkeypatch):
    monkeypatch.setattr(job_bulk, "MOST", 2)
    for _ in range(3):
        JobFactory()
    answer = api.post("jobs/bulk/", {"verb": "kill", "filter": {"status": "pending"}})
    assert list(problem(answer, 400, "invalid")["errors"]) == ["filter"]
    assert set(states().values()) == {"pending"}


# What is refused as a whole -----------------------------------------------------------------------

AN_ID = str(uuid4())


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        ({}, ["verb"]),
        ({"verb": "kill"}, []),
        ({"verb": "kill", "ids": [AN_ID], "filter": {"status": "failed"}}, []),
        ({"verb": "kill", "ids": []}, ["ids"]),
        ({"verb": "kill", "ids": AN_ID}, ["ids"]),
        ({"verb": "kill", "ids": [AN_ID] * 10_001}, ["ids"]),
        ({"verb": "kill", "ids": [AN_ID, "x", 1, None]}, ["ids[1]", "ids[2]", "ids[3]"]),
        ({"verb": "delete", "ids": [AN_ID]}, ["verb"]),
        ({"verb": None, "ids": [AN_ID]}, ["verb"]),
        ({"verb": "kill", "ids": [AN_ID], "force": True}, ["force"]),
        ({"verb": "kill", "filter": "all"}, ["filter"]),
    ],
)
def test_a_request_that_cannot_be_does_nothing(body, fields, api):
    JobFactory()
    answer = api.post("jobs/bulk/", body)
    assert list(problem(answer, 400, "invalid")["errors"]) == fields
    assert set(states().values()) == {"pending"}


def test_ten_thousand_ids_are_not_too_many(api):
    job = JobFactory()
    told = ask(api, "kill", job, *(uuid4() for _ in range(9_999)))
    assert told["counts"] == {"done": 1, "unknown": 9_999}


def test_many_jobs_cost_no_more_questions_than_few(api):
    def questions(count: int) -> int:
        made = [JobFactory(status="pending" if n % 2 else "killed") for n in range(count)]
        with CaptureQueriesContext(connection) as asked:
            ask(api, "queue", *made)
        return len(asked)

    questions(2)  # what is asked once in a process is asked now
    assert questions(40) == questions(2)
