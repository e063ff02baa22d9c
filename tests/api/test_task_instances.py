"""Tasks of runs: found, retried, cancelled, skipped; and their jobs, which are only theirs."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from container_manager.models import ContainerJob, TaskInstance
from container_manager.workflows import runs
from tests.factories import AttemptFactory, RunFactory, TaskFactory, UserFactory
from tests.support.api import ROOT, Api, a_person, an_operator, problem
from tests.workflows.driving import (
    advance,
    begun,
    end,
    job_of,
    play,
    states_of,
    task,
    task_of,
)

pytestmark = pytest.mark.django_db

CHAIN = {"first": task(), "many": task("first", array=3), "last": task("many")}


@pytest.fixture
def api() -> Api:
    return Api(an_operator())


def of(run: Any, task_id: str, below: str = "") -> str:
    return f"task-instances/{task_of(run, task_id).pk}/{below}"


# Finding ------------------------------------------------------------------------------------------


def test_a_task_says_where_it_stands_and_which_job_is_its(api):
    run = begun(CHAIN)
    first, last = (api.get(of(run, name)).json() for name in ("first", "last"))
    assert first["job"] == str(job_of(run, "first").pk)
    assert last["job"] is None, "there is none yet"
    assert (first["state"], first["task_id"], first["try_number"]) == ("queued", "first", 0)
    assert (first["dag"], first["dag_name"]) == (str(run.dag_id), "flow")
    assert (first["dag_run"], first["run_id"]) == (str(run.pk), run.run_id)
    assert (first["max_tries"], first["map_index"]) == (1, None)
    assert "running" in first["allowed_transitions"]
    assert api.get(f"jobs/{first['job']}/").json()["managed_by"] == f"task:{first['id']}"


def test_a_task_that_failed_says_why(api):
    run = begun(CHAIN)
    end(run, "first", exit_code=3)
    advance(run)
    told = api.get(of(run, "first")).json()
    assert (told["state"], told["exit_code"], told["error"]) == ("failed", 3, "said no")
    assert told["reason"] == "exit_code"


def test_the_tasks_of_one_run_come_in_the_order_of_its_document(api):
    run = begun(CHAIN)
    told = api.get("task-instances/", dag_run=run.pk).json()
    names = [row["task_id"] for row in told["results"]]
    assert names == ["first", "many[0]", "many[1]", "many[2]", "last"]
    assert told["results"][0] == api.get(of(run, "first")).json()


def test_tasks_are_found_by_what_they_are(api):
    run, other = begun(CHAIN), begun({"alone": task()}, name="other")
    end(run, "first")
    advance(run)
    found = {
        "": 6,
        f"dag_run={other.pk}": 1,
        f"dag_run={uuid4()}": 0,
        "dag=flow": 5,
        f"dag=flow,{other.dag_id}": 6,
        "task=many,alone": 4,
        "state=success": 1,
        f"dag_run={run.pk}&state=queued&task=many": 3,
        "started_after=2026-01-01T00:00:00Z": 1,
        "ended_before=2026-01-01T00:00:00Z": 0,
        "created_after=2026-01-01T00:00:00Z": 6,
        "ordering=-ended_at,name": 6,
        "limit=2&offset=5": 1,
    }
    for query, count in found.items():
        told = api.client.get(f"{ROOT}task-instances/?{query}").json()
        shown = len(told["results"]) if "offset" in query else told["count"]
        assert shown == count, query


@pytest.mark.parametrize(
    "query",
    [
        *({"dag_run": "flow"}, {"task": "a[0]"}, {"state": "pending"}, {"job": str(uuid4())}),
        {"started_after": "2026-02-01T00:00:00Z", "started_before": "2026-01-01T00:00:00Z"},
    ],
)
def test_a_filter_that_is_none_is_refused(query, api):
    assert problem(api.get("task-instances/", **query), 400, "invalid")["errors"]


def test_many_tasks_cost_no_more_questions_than_one(api):
    def questions(run: Any) -> int:
        query = {"dag_run": run.pk, "dag": run.dag.name, "limit": 100}
        with CaptureQueriesContext(connection) as asked:
            assert api.get("task-instances/", **query).status_code == 200
        return len(asked)

    few, many = begun({"a": task()}, name="few"), begun({"a": task(array=40)}, name="many")
    assert questions(few) == questions(many)


def test_the_list_reads_no_documents_and_only_the_rows_of_its_page(api):
    run = begun(CHAIN)
    with CaptureQueriesContext(connection) as asked:
        api.get("task-instances/", dag_run=run.pk, limit=2, offset=2)
    read = [each["sql"] for each in asked if 'FROM "task_instances"' in each["sql"]]
    assert len(read) == 2, "the count and the page"
    assert "LIMIT 2 OFFSET 2" in read[1]
    assert not any('"spec"' in sql for sql in read)


# Verbs --------------------------------------------------------------------------------------------


def test_a_failed_task_runs_again_with_those_behind_it(api):
    run = play(begun(CHAIN), fails=["many[1]"])
    told = api.post(of(run, "many[1]", "retry/"))
    assert (told.status_code, told.json()["state"]) == (200, "retrying")
    assert states_of(run)["last"] == "queued"
    assert play(run).state == "success"


def test_what_did_not_fail_is_not_retried(api):
    run = begun(CHAIN)
    told = problem(api.post(of(run, "first", "retry/")), 409, "invalid_transition")
    assert told["current_state"] == "queued"
    assert told["allowed_transitions"] == ["running", "skipped", "failed", "upstream_failed"]


def test_a_task_that_has_not_begun_is_skipped_and_those_behind_it_see_it(api):
    run = begun(CHAIN)
    told = api.post(of(run, "first", "skip/"))
    assert (told.status_code, told.json()["state"]) == (200, "skipped")
    assert job_of(run, "first").status == "cancelled"
    assert set(states_of(run).values()) == {"skipped"}
    problem(api.post(of(run, "first", "skip/")), 409, "invalid_transition")


def test_a_task_that_runs_is_not_skipped(api):
    run = begun(CHAIN)
    job_of(run, "first").mark_as_running()
    advance(run)
    problem(api.post(of(run, "first", "skip/")), 409, "invalid_transition")


def test_a_queued_task_is_cancelled_at_once_and_those_behind_it_never_run():
    ada = a_person(username="ada")
    run = begun(CHAIN)
    type(run.dag).objects.update(created_by=ada)
    answer = Api(ada).post(of(run, "first", "cancel/"))
    assert (answer.status_code, answer.json()["state"]) == (200, "failed")
    assert answer.json()["reason"] == "cancelled"
    assert states_of(run)["last"] == "upstream_failed"
    assert Api(ada).get(f"dag-runs/{run.pk}/").json()["state"] == "failed"
    moves = Api(ada).get(of(run, "first", "history/")).json()["results"]
    assert moves[0]["actor"] == "api:ada"
    assert Api(ada).post(of(run, "first", "retry/")).status_code == 200
    assert play(run).state == "success"


def test_a_task_whose_job_runs_is_cancelled_when_that_is_gone(api):
    run = begun(CHAIN)
    job = job_of(run, "first")
    job.mark_as_running()
    AttemptFactory(job=job, attempt=job.attempt)
    answer = api.post(of(run, "first", "cancel/"))
    assert (answer.status_code, answer.json()["state"]) == (202, "running")
    problem(api.post(of(run, "first", "cancel/")), 409, "stop_requested")


def test_a_task_without_a_job_and_one_that_is_over_are_not_cancelled(api):
    run = begun(CHAIN)
    told = problem(api.post(of(run, "last", "cancel/")), 409, "invalid_transition")
    assert "skip" in told["detail"]
    play(run)
    told = problem(api.post(of(run, "last", "cancel/")), 409, "invalid_transition")
    assert (told["current_state"], told["allowed_transitions"]) == ("success", [])


@pytest.mark.parametrize("verb", ["retry", "cancel", "skip"])
def test_a_verb_takes_no_body(verb, api):
    made = TaskFactory()
    problem(api.post(f"task-instances/{made.pk}/{verb}/", {"x": 1}), 400, "invalid")
    assert TaskInstance.objects.get().version == made.version


def test_the_history_of_a_task_is_every_move_newest_first(api):
    run = begun(CHAIN)
    end(run, "first", exit_code=3)
    advance(run)
    told = api.get(of(run, "first", "history/")).json()
    moves = [(move["old_state"], move["new_state"]) for move in told["results"]]
    assert moves == [("running", "failed"), ("queued", "running"), (None, "queued")]


# The job of a task --------------------------------------------------------------------------------


def test_the_job_of_a_task_is_retried_through_its_task(api):
    run = play(begun({"a": task()}), fails=["a"])
    made, job = task_of(run, "a"), job_of(run, "a")
    for answer in (
        api.post(f"jobs/{job.pk}/retry/"),
        api.patch(f"jobs/{job.pk}/", {"status": "retrying"}),
    ):
        told = problem(answer, 409, "managed_by_task")
        assert told["managed_by"] == f"task:{made.pk}"
        assert (told["current_state"], told["allowed_transitions"]) == (
            "failed",
            ["retrying", "cancelled"],
        )
    assert ContainerJob.objects.get(pk=job.pk).version == job.version


# Who ----------------------------------------------------------------------------------------------

CALLS = {
    ("GET", ""): 200,
    ("GET", "history/"): 200,
    ("POST", "retry/"): 409,
    ("POST", "cancel/"): 409,
    ("POST", "skip/"): 200,
}
EVERY_CALL = pytest.mark.parametrize(("method", "below"), CALLS)


def owned_by(user: Any) -> TaskInstance:
    return TaskFactory(dag_run=RunFactory(dag__created_by=user))  # type: ignore[return-value]


def unmoved(made: TaskInstance) -> bool:
    return TaskInstance.objects.get(pk=made.pk).version == made.version  # type: ignore[no-any-return]


@EVERY_CALL
def test_the_task_of_another_is_not_there(method, below):
    made, api = owned_by(UserFactory()), Api(a_person())
    foreign, unknown = (
        api.send(method, f"task-instances/{pk}/{below}") for pk in (made.pk, uuid4())
    )
    problem(foreign, 404, "not_found")
    assert foreign.content == unknown.content
    assert unmoved(made)


@EVERY_CALL
def test_its_owner_and_an_operator_get_what_they_ask_for(method, below):
    ada = a_person()
    for person in (ada, an_operator()):
        answer = Api(person).send(method, f"task-instances/{owned_by(ada).pk}/{below}")
        assert answer.status_code == CALLS[method, below], answer.content


@EVERY_CALL
def test_who_may_see_all_may_not_move_the_task_of_another(method, below):
    made = owned_by(UserFactory())
    api = Api(a_person("view_containerjob"))
    answer = api.send(method, f"task-instances/{made.pk}/{below}")
    if method == "GET":
        assert answer.status_code == 200
    else:
        problem(answer, 403, "permission_denied")
        assert unmoved(made)


@EVERY_CALL
def test_a_stranger_is_asked_who_he_is(method, below):
    answer = Api().send(method, f"task-instances/{TaskFactory().pk}/{below}")
    problem(answer, 401, "not_authenticated")


def test_the_list_has_only_what_the_person_may_see():
    ada = a_person()
    mine, other = owned_by(ada), owned_by(UserFactory())
    told = Api(ada).get("task-instances/").json()
    assert (told["count"], told["results"][0]["id"]) == (1, str(mine.pk))
    assert Api(ada).get("task-instances/", dag_run=other.dag_run_id).json()["count"] == 0
    assert Api(an_operator()).get("task-instances/").json()["count"] == 2


def test_who_moved_it_is_written_down(api):
    run = begun(CHAIN)
    api.post(of(run, "last", "skip/"))
    told = api.get(of(run, "last", "history/")).json()["results"]
    assert told[0]["reason"] == runs.SKIPPED_BY_HAND
    assert told[0]["actor"].startswith("api:")
