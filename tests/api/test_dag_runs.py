"""Runs: found, retried, cancelled; their graph and their history."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from container_manager.models import DagRun, TaskInstance
from container_manager.states import WorkflowState
from container_manager.workflows import runs
from tests.factories import AttemptFactory, DagFactory, RunFactory, TaskFactory, UserFactory
from tests.support.api import ROOT, Api, a_person, an_operator, problem
from tests.workflows.driving import begun, fresh, job_of, play, states_of, task

pytestmark = pytest.mark.django_db

DIAMOND = {
    "load": task(),
    "left": task("load", array=3),
    "right": task("load", trigger_rule="all_done"),
    "report": task("left", "right"),
}


@pytest.fixture
def api() -> Api:
    return Api(an_operator())


def got(api: Api, run: DagRun, below: str = "") -> dict[str, Any]:
    answer = api.get(f"dag-runs/{run.pk}/{below}")
    assert answer.status_code == 200, answer.content
    told: dict[str, Any] = answer.json()
    return told


def questions(api: Api, address: str, **query: Any) -> int:
    with CaptureQueriesContext(connection) as asked:
        assert api.get(address, **query).status_code == 200
    return len(asked)


# Finding ------------------------------------------------------------------------------------------


def test_a_run_says_where_it_stands_and_how_many_of_its_tasks_do(api):
    run = play(begun(DIAMOND, params={"DAY": "monday"}), fails={"left[1]": 3})
    told = got(api, run)
    assert (told["state"], told["reason"]) == ("failed", "task_failed")
    assert (told["dag"], told["dag_name"]) == (str(run.dag_id), "flow")
    assert told["allowed_transitions"] == ["retrying", "running"]
    assert told["params"] == {"DAY": "monday"}
    counts = {state: n for state, n in told["tasks"].items() if n}
    assert counts == {"success": 4, "failed": 1, "upstream_failed": 1}
    assert set(told["tasks"]) == set(WorkflowState.values)
    assert datetime.fromisoformat(told["ended_at"]) == run.ended_at


def test_a_row_says_the_same_but_the_counts(api):
    run = begun(DIAMOND)
    (row,) = api.get("dag-runs/").json()["results"]
    told = got(api, run)
    told.pop("tasks")
    assert row == told


def test_runs_are_found_by_what_they_are(api):
    nightly, other = DagFactory(name="nightly"), DagFactory(name="other")
    day = [datetime(2026, 1, number, tzinfo=UTC) for number in range(1, 5)]
    RunFactory(dag=nightly, run_id="a", execution_date=day[0], state="failed")
    RunFactory(dag=nightly, run_id="b", execution_date=day[2], run_type="scheduled")
    RunFactory(dag=other, run_id="c", execution_date=day[1], state="running")
    found = {
        "": "bca",
        "dag=nightly": "ba",
        f"dag={other.pk}": "c",
        f"dag=nightly,{other.pk}": "bca",
        "dag=unknown": "",
        f"dag={uuid4()}": "",
        "state=failed,running": "ca",
        "run_type=scheduled": "b",
        "execution_date_after=2026-01-02T00:00:00Z": "bc",
        "execution_date_before=2026-01-02T00:00:00Z": "a",
        "created_before=2026-01-02T00:00:00Z": "",
        "ordering=run_id": "abc",
        "ordering=-ended_at,run_id": "abc",
        "limit=1&offset=1": "c",
    }
    for query, names in found.items():
        told = api.client.get(f"{ROOT}dag-runs/?{query}").json()
        assert [row["run_id"] for row in told["results"]] == list(names), query


@pytest.mark.parametrize(
    "query",
    [
        *({"dag": "a b"}, {"state": "completed"}, {"run_type": "magic"}, {"status": "failed"}),
        *({"ordering": "dag__name"}, {"execution_date_after": "2026-02-30T00:00:00Z"}),
        {
            "execution_date_after": "2026-02-01T00:00:00Z",
            "execution_date_before": "2026-01-01T00:00:00Z",
        },
    ],
)
def test_a_filter_that_is_none_is_refused(query, api):
    assert problem(api.get("dag-runs/", **query), 400, "invalid")["errors"]


def test_many_runs_cost_no_more_questions_than_one(api):
    dag = RunFactory().dag
    query = {"dag": dag.name, "state": "queued", "limit": 100}
    one = questions(api, "dag-runs/", **query)
    for _ in range(20):
        RunFactory(dag=dag)
        RunFactory()
    assert questions(api, "dag-runs/", **query) == one


def test_the_list_reads_no_documents(api):
    run = RunFactory()
    with CaptureQueriesContext(connection) as asked:
        api.get("dag-runs/")
        api.get(f"dag-runs/{run.pk}/")
    read = [each["sql"] for each in asked if 'FROM "dag_runs"' in each["sql"]]
    assert len(read) == 3, "the count, the page, and the one"
    assert not any('"spec"' in sql for sql in read)


# Verbs --------------------------------------------------------------------------------------------


def test_a_failed_run_goes_on_from_what_failed():
    ada = a_person(username="ada")
    run = play(begun(DIAMOND), fails=["right"])
    type(run.dag).objects.update(created_by=ada)
    answer = Api(ada).post(f"dag-runs/{run.pk}/retry/")
    assert (answer.status_code, answer.json()["state"]) == (200, "running")
    assert answer.json()["tasks"]["success"] == 4
    assert play(run).state == WorkflowState.SUCCESS
    history = Api(ada).get(f"dag-runs/{run.pk}/history/").json()["results"]
    assert "api:ada" in {move["actor"] for move in history}


def test_what_did_not_fail_is_not_retried(api):
    run = begun(DIAMOND)
    told = problem(api.post(f"dag-runs/{run.pk}/retry/"), 409, "invalid_transition")
    assert told["current_state"] == "running"
    assert set(told["allowed_transitions"]) == {"success", "failed", "retrying", "upstream_failed"}


def test_a_run_of_which_all_was_skipped_has_nothing_to_retry(api):
    run = RunFactory()
    TaskFactory(dag_run=run)
    runs.cancel(run.pk, actor="ada")
    told = problem(api.post(f"dag-runs/{run.pk}/retry/"), 409, "nothing_to_retry")
    assert told["current_state"] == "failed"


def test_a_run_that_waits_is_cancelled_at_once(api):
    run = begun(DIAMOND)
    answer = api.post(f"dag-runs/{run.pk}/cancel/")
    told = answer.json()
    assert (answer.status_code, told["state"], told["reason"]) == (200, "failed", "cancelled")
    assert told["cancel_requested_by"].startswith("api:")
    assert states_of(run)["report"] == "skipped"
    problem(api.post(f"dag-runs/{run.pk}/cancel/"), 409, "invalid_transition")


def test_a_run_whose_jobs_run_is_cancelled_when_they_are_gone(api):
    run = begun(DIAMOND)
    job = job_of(run, "load")
    job.mark_as_running()
    runs.advance(run.pk)
    AttemptFactory(job=job, attempt=job.attempt)
    for _ in range(2):
        answer = api.post(f"dag-runs/{run.pk}/cancel/")
        assert (answer.status_code, answer.json()["state"]) == (202, "running")
    assert job_of(run, "load").cancel_requested_at is not None


@pytest.mark.parametrize("verb", ["retry", "cancel"])
def test_a_verb_takes_no_body(verb, api):
    run = RunFactory(state="failed")
    problem(api.post(f"dag-runs/{run.pk}/{verb}/", {"x": 1}), 400, "invalid")
    assert fresh(run).version == run.version


# Records ------------------------------------------------------------------------------------------


def test_the_graph_has_each_name_once_with_what_waits_for_what(api):
    run = play(begun(DIAMOND), fails={"left[1]": 3})
    told = got(api, run, "graph/")
    nodes = {node["task"]: node for node in told["nodes"]}
    assert list(nodes) == list(DIAMOND)
    assert (nodes["left"]["array"], nodes["left"]["state"]) == (3, "failed")
    assert nodes["left"]["counts"]["success"] == 2
    assert nodes["right"]["trigger_rule"] == "all_done"
    assert {(edge["from"], edge["to"]) for edge in told["edges"]} == {
        *(("load", "left"), ("load", "right"), ("left", "report"), ("right", "report")),
    }
    assert told["layers"] == [["load"], ["left", "right"], ["report"]]


def test_a_wide_graph_costs_no_more_questions_than_a_narrow_one(api):
    narrow = begun({"a": task()}, name="narrow")
    wide = begun({f"t{n}": task(*([f"t{n - 1}"] if n else [])) for n in range(50)}, name="wide")
    asked = {questions(api, f"dag-runs/{run.pk}/graph/") for run in (narrow, wide)}
    assert len(asked) == 1


def test_the_graph_of_a_run_that_nobody_has_read_yet_is_that_of_its_own_document(api):
    run = RunFactory(state="running")
    type(run.dag).objects.update(spec={"name": run.dag.name, "tasks": {"other": {}}})
    assert [node["task"] for node in got(api, run, "graph/")["nodes"]] == ["first", "second"]


def test_the_history_of_a_run_is_every_move_newest_first(api):
    run = begun(DIAMOND)
    told = got(api, run, "history/")
    moves = [(move["old_state"], move["new_state"]) for move in told["results"]]
    assert moves == [("queued", "running"), (None, "queued")]
    assert told["results"][0]["actor"] == runs.SCHEDULER


# Who ----------------------------------------------------------------------------------------------

CALLS = {
    ("GET", ""): 200,
    ("GET", "graph/"): 200,
    ("GET", "history/"): 200,
    ("POST", "retry/"): 409,
    ("POST", "cancel/"): 200,
}
EVERY_CALL = pytest.mark.parametrize(("method", "below"), CALLS)


@EVERY_CALL
def test_the_run_of_another_is_not_there(method, below):
    run, api = RunFactory(dag__created_by=UserFactory()), Api(a_person())
    foreign, unknown = (api.send(method, f"dag-runs/{pk}/{below}") for pk in (run.pk, uuid4()))
    problem(foreign, 404, "not_found")
    assert foreign.content == unknown.content
    assert fresh(run).version == run.version


@EVERY_CALL
def test_its_owner_and_an_operator_get_what_they_ask_for(method, below):
    ada = a_person()
    for person in (ada, an_operator()):
        run = RunFactory(dag__created_by=ada)
        TaskFactory(dag_run=run)
        answer = Api(person).send(method, f"dag-runs/{run.pk}/{below}")
        assert answer.status_code == CALLS[method, below], answer.content


@EVERY_CALL
def test_who_may_see_all_may_not_move_the_run_of_another(method, below):
    run = RunFactory(dag__created_by=UserFactory())
    answer = Api(a_person("view_containerjob")).send(method, f"dag-runs/{run.pk}/{below}")
    if method == "GET":
        assert answer.status_code == 200
    else:
        problem(answer, 403, "permission_denied")
        assert fresh(run).version == run.version


@EVERY_CALL
def test_a_stranger_is_asked_who_he_is(method, below):
    problem(Api().send(method, f"dag-runs/{RunFactory().pk}/{below}"), 401, "not_authenticated")


def test_the_list_has_only_what_the_person_may_see():
    ada = a_person()
    mine = RunFactory(dag__created_by=ada)
    RunFactory(dag__created_by=UserFactory())
    told = Api(ada).get("dag-runs/").json()
    assert (told["count"], told["results"][0]["id"]) == (1, str(mine.pk))
    assert Api(an_operator()).get("dag-runs/").json()["count"] == 2
    foreign = DagRun.objects.exclude(pk=mine.pk).get().dag
    assert Api(ada).get("dag-runs/", dag=foreign.name).json()["count"] == 0


@pytest.mark.parametrize("method", ["PUT", "PATCH", "DELETE", "POST"])
def test_a_run_is_made_and_changed_by_verbs_only(method, api):
    run = RunFactory()
    address = "dag-runs/" if method == "POST" else f"dag-runs/{run.pk}/"
    problem(api.send(method, address, {}), 405, "method_not_allowed")
    assert TaskInstance.objects.count() == 0
