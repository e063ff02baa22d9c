"""Statistics, queues, executors and workers, as people of different rights see them."""

from __future__ import annotations

import pytest

from container_manager import lifecycle
from container_manager.models import Queue
from container_manager.models.job_counts import job_stats
from tests.factories import JobFactory
from tests.support.api import Api, a_person, an_operator, problem
from tests.support.fleet import worker_row
from tests.support.spine import queued

pytestmark = pytest.mark.django_db


@pytest.fixture
def member():
    return a_person()


@pytest.fixture
def operator():
    return an_operator()


# Statistics


@pytest.mark.parametrize("address", ["stats/", "stats", "jobs/stats/", "jobs/stats"])
def test_stats_are_those_of_what_one_may_see(address, member, operator):
    JobFactory(status="completed", created_by=member, duration_ms=10)
    JobFactory(status="failed")
    mine = Api(member).get(address).json()
    assert mine == job_stats(member)
    assert (mine["total"], mine["by_status"]["failed"], mine["avg_duration_ms"]) == (1, 0, 10)
    assert Api(operator).get(address).json()["total"] == 2


def test_stats_of_nothing_are_zeros(member):
    told = Api(member).get("stats/").json()
    assert set(told["by_status"].values()) == {0}
    assert told["p95_duration_ms"] == told["oldest_queued_seconds"] == 0


@pytest.mark.parametrize("address", ["stats/", "queues/", "executors/", "workers/"])
def test_unknown_parameters_are_refused(address, operator):
    told = problem(Api(operator).get(address, owner="x"), 400, "invalid")
    assert list(told["errors"]) == ["owner"]


@pytest.mark.parametrize("address", ["stats/", "queues/", "queues/a/", "executors/", "workers/"])
def test_without_a_login_there_is_nothing_to_see(address):
    told = Api().get(address)
    problem(told, 401, "not_authenticated")
    assert told.headers["WWW-Authenticate"] == "Token"


@pytest.mark.parametrize("address", ["stats/", "queues/", "executors/", "workers/"])
@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
def test_other_methods_are_refused(method, address, operator):
    answer = Api(operator).send(method, address, {})
    problem(answer, 405, "method_not_allowed")
    assert "GET" in answer.headers["Allow"]


# Queues


def test_everybody_sees_queues_and_counts_what_is_theirs(member, operator):
    lifecycle.steer_queue("nightly", paused=True, max_running=3)
    queued(queue="nightly")
    queued(queue="mine", created_by=member)
    queued(queue="private")
    told = Api(member).get("queues/").json()
    assert told["count"] == 2
    mine, nightly = told["results"]
    assert (mine["name"], mine["queued"], mine["paused"]) == ("mine", 1, False)
    assert (nightly["paused"], nightly["max_running"], nightly["queued"]) == (True, 3, 0)
    of_all = Api(operator).get("queues/").json()["results"]
    assert [(each["name"], each["queued"]) for each in of_all] == [
        ("mine", 1),
        ("nightly", 1),
        ("private", 1),
    ]


def test_queues_come_in_pages(operator):
    for number in range(5):
        lifecycle.steer_queue(f"q{number}")
    told = Api(operator).get("queues/", limit=2, offset=2).json()
    assert [each["name"] for each in told["results"]] == ["q2", "q3"]
    assert told["count"] == 5
    assert "offset=4" in told["next"]
    assert Api(operator).get("queues/", offset=99).json()["results"] == []
    problem(Api(operator).get("queues/", limit=0), 400, "invalid")


def test_a_queue_is_there_for_those_who_may_see_something_in_it(member, operator):
    queued(queue="private")
    assert Api(operator).get("queues/private/").json()["queued"] == 1
    problem(Api(member).get("queues/private/"), 404, "not_found")
    problem(Api(operator).get("queues/nothing/"), 404, "not_found")


def test_an_operator_pauses_limits_and_resumes_a_queue_that_had_no_row(operator):
    api = Api(operator)
    told = api.patch("queues/night.ly/", {"paused": True, "max_running": 2}).json()
    assert (told["name"], told["paused"], told["max_running"]) == ("night.ly", True, 2)
    assert api.get("queues/night.ly").json() == told
    told = api.patch("queues/night.ly", {"max_running": None}).json()
    assert (told["paused"], told["max_running"]) == (True, None)
    assert not api.patch("queues/night.ly", {"paused": False}).json()["paused"]
    assert Queue.objects.count() == 1


def test_others_may_not_steer_a_queue(member):
    queued(queue="a", created_by=member)
    problem(Api(member).patch("queues/a/", {"paused": True}), 403, "permission_denied")
    viewer = a_person("view_containerjob")
    problem(Api(viewer).patch("queues/a/", {"paused": True}), 403, "permission_denied")
    assert not Queue.objects.exists()


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"paused": "yes"}, "paused"),
        ({"paused": 1}, "paused"),
        ({"paused": None}, "paused"),
        ({"max_running": 0}, "max_running"),
        ({"max_running": -1}, "max_running"),
        ({"max_running": 1.5}, "max_running"),
        ({"max_running": 10**9}, "max_running"),
        ({"max_running": 10**30}, "max_running"),
        ({"max_running": "2"}, "max_running"),
        ({"max_running": True}, "max_running"),
        ({"max_running": [2]}, "max_running"),
        ({"name": "other"}, "name"),
        ({"paused": True, "colour": "red"}, "colour"),
    ],
)
def test_what_cannot_be_is_refused_and_nothing_is_written(body, field, operator):
    told = problem(Api(operator).patch("queues/a/", body), 400, "invalid")
    assert list(told["errors"]) == [field]
    assert not Queue.objects.exists()


def test_a_body_that_is_no_object_is_refused(operator):
    problem(Api(operator).patch("queues/a/", [True]), 400, "invalid")


@pytest.mark.parametrize("name", ["-a", "a%00b", "a%2Fb", "%2e%2e", "a b", "ä", "a%0A"])
def test_a_name_that_no_queue_can_have_is_not_there(name, operator):
    problem(Api(operator).get(f"queues/{name}/"), 404, "not_found")
    problem(Api(operator).patch(f"queues/{name}/", {"paused": True}), 404, "not_found")


def test_a_name_that_is_too_long_cannot_be_steered(operator):
    told = problem(Api(operator).patch(f"queues/{'a' * 101}/", {"paused": True}), 400, "invalid")
    assert list(told["errors"]) == ["name"]


# Executors and workers


def test_everybody_sees_where_jobs_can_run(member):
    worker_row()
    told = Api(member).get("executors/").json()
    by_alias = {each["alias"]: each for each in told["results"]}
    assert by_alias["process"]["available"]
    assert by_alias["process"]["workers"] == 1
    assert not by_alias["docker"]["available"]


def test_operators_see_workers_and_their_last_sign_of_life(operator):
    worker_row("lives", beat_ago=5)
    dead = worker_row("dead", beat_ago=500)
    told = Api(operator).get("workers/").json()
    assert {each["name"]: each["alive"] for each in told["results"]} == {
        "lives": True,
        "dead": False,
    }
    one = Api(operator).get(f"workers/{dead.pk}/").json()
    assert one["name"] == "dead"
    assert one["seconds_since_beat"] >= 500


def test_others_do_not_see_workers(member):
    row = worker_row()
    viewer = a_person("view_containerjob")
    for user in (member, viewer):
        problem(Api(user).get("workers/"), 403, "permission_denied")
        problem(Api(user).get(f"workers/{row.pk}/"), 403, "permission_denied")


@pytest.mark.parametrize(
    "pk", ["1", "-1", "x", "%00", "%2e%2e%2f", "00000000-0000-0000-0000-000000000000"]
)
def test_a_worker_that_is_not_there_is_404(pk, operator):
    problem(Api(operator).get(f"workers/{pk}/"), 404, "not_found")


def test_lists_cost_no_query_per_row(operator, django_assert_max_num_queries):
    for number in range(30):
        worker_row(f"w{number}")
        queued(queue=f"q{number}")
    api = Api(operator)
    logging_in = 4  # session, user, permissions of the user and of groups
    for address in ("queues/", "executors/", "workers/"):
        with django_assert_max_num_queries(logging_in + 4):
            assert api.get(address, limit=100).status_code == 200


def test_steering_a_queue_towards_nothing_is_refused_and_makes_no_row():
    told = Api(an_operator()).patch("queues/nightly/", {})
    problem(told, 400, "invalid")
    assert not Queue.objects.exists()
