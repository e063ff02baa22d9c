"""DAGs: created, found, changed, paused, triggered, backfilled and deleted."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any
from uuid import uuid4

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from container_manager.models import Dag, DagRun, IdempotencyKey, StateHistory, TaskInstance
from container_manager.workflows import dags
from tests.factories import DagFactory, RunFactory, UserFactory
from tests.support.api import ROOT, Api, a_person, an_operator, problem
from tests.support.flows import PLAIN, TASKS, flow
from tests.workflows.driving import fresh, play, started

pytestmark = pytest.mark.django_db

YAML = """
name: etl
defaults: {executor: process}
tasks:
  extract: {command: [/bin/true]}
  load: {command: [/bin/true], depends_on: extract}
"""


@pytest.fixture
def ada() -> Any:
    return a_person(username="ada")


@pytest.fixture
def api(ada) -> Api:
    return Api(ada)


@pytest.fixture
def dag(api) -> Dag:
    """The DAG of a person, made by the API."""
    return made(api)


def made(api: Api, **fields: Any) -> Dag:
    answer = api.post("dags/", flow(**fields))
    assert answer.status_code == 201, answer.content
    return Dag.objects.get(pk=answer.json()["id"])


def send_text(
    api: Api, text: str | bytes, address: str = "dags/", method: str = "POST", **headers: str
) -> Any:
    body = text if isinstance(text, bytes) else text.encode()
    content_type = headers.pop("content_type", "application/yaml")
    return api.client.generic(method, ROOT + address, body, content_type, headers=headers)


def listed(api: Api, **query: Any) -> list[str]:
    answer = api.get("dags/", **query)
    assert answer.status_code == 200, answer.content
    return [row["name"] for row in answer.json()["results"]]


def asked(act: Any) -> int:
    with CaptureQueriesContext(connection) as queries:
        assert act().status_code == 200
    return len(queries)


# Creating -----------------------------------------------------------------------------------------


def test_a_new_dag_is_its_maker_s_and_says_where_it_is_and_when_it_runs(api, ada):
    answer = api.post("dags/", flow(schedule="0 2 * * *", timezone="Europe/Berlin"))
    told = answer.json()
    assert (answer.status_code, told["owner"], told["created_by"]) == (201, "ada", ada.pk)
    assert Dag.objects.get().created_by == ada
    again = api.client.get(answer.headers["Location"])
    assert again.json() == told
    assert again.headers["ETag"] == answer.headers["ETag"] == f'"{told["revision"]}"'
    runs = [datetime.fromisoformat(moment) for moment in told["next_runs"]]
    assert len(runs) == 5
    assert timezone.now() < runs[0] == datetime.fromisoformat(told["next_slot_at"])
    assert all(later - one >= timedelta(hours=23) for one, later in pairwise(runs))


def test_a_dag_without_a_schedule_runs_by_hand_only(api):
    told = api.post("dags/", flow()).json()
    assert (told["schedule"], told["next_slot_at"], told["next_runs"]) == (None, None, [])


def test_a_dag_may_be_written_in_yaml(api):
    told = send_text(api, YAML).json()
    assert list(told["document"]["tasks"]) == ["extract", "load"]
    assert told["document"]["tasks"]["load"]["depends_on"] == ["extract"]
    answer = send_text(
        api, YAML.replace("etl", "new"), f"dags/{told['id']}/", "PUT", **{"If-Match": "*"}
    )
    assert (answer.status_code, answer.json()["name"]) == (200, "new")


def test_the_values_of_environments_are_kept_and_never_shown(api):
    params = {"DAY": "monday"}
    answer = api.post("dags/", flow(params=params))
    told = answer.json()["document"]
    assert told["defaults"]["environment"] == {"TOKEN": "***"}
    assert told["tasks"]["extract"]["environment"] == {"PASSWORD": "***"}
    assert told["params"] == params
    dag = Dag.objects.get()
    assert dag.spec["tasks"]["extract"]["environment"] == {"PASSWORD": "secret"}
    for shown in (answer, api.get("dags/"), api.get(f"dags/{dag.pk}/")):
        assert b"secret" not in shown.content


def test_a_key_that_comes_again_makes_no_second_dag(ada):
    api = Api(ada, **{"Idempotency-Key": "one"})
    first, second = (api.post("dags/", flow()) for _ in range(2))
    assert (first.status_code, second.status_code) == (201, 200)
    assert first.json() == second.json()
    assert (Dag.objects.count(), IdempotencyKey.objects.count()) == (1, 1)
    problem(api.post("dags/", flow(name="other")), 422, "idempotency_key_reuse")


def test_a_name_that_is_taken_is_refused(api, dag):
    assert list(problem(api.post("dags/", flow()), 409, "name_taken")["errors"]) == ["name"]
    assert Dag.objects.count() == 1


# Documents with mistakes --------------------------------------------------------------------------

MANY = {str(number): {} for number in range(10_001)}
BAD = {
    "nothing": ({}, {"name", "tasks"}),
    "a list": ([], set()),
    "an unknown key": (flow(tsaks={}), {"tsaks"}),
    "what only a row has": (flow(is_paused=True), {"is_paused"}),
    "a wrong type": (flow(max_active_runs="many"), {"max_active_runs"}),
    "a schedule that is none": (flow(schedule="every day"), {"schedule"}),
    "a cycle": (
        flow(tasks={"a": {**TASKS["load"], "depends_on": ["b"]}, "b": {"depends_on": ["a"]}}),
        {"tasks.a.depends_on", "tasks.b.command"},
    ),
    "a task that is not there": (
        flow(tasks={"a": {**TASKS["load"], "depends_on": ["x"]}}),
        {"tasks.a.depends_on[0]"},
    ),
    "a field of a job that is wrong": (
        flow(tasks={"a": {"command": ["x"], "memory_limit_mb": []}}),
        {"tasks.a.memory_limit_mb"},
    ),
    "a mask with nothing behind it": (
        flow(tasks={"a": {"command": ["x"], "environment": {"KEY": "***"}}}),
        {"tasks.a.environment"},
    ),
    "too many tasks": (flow(tasks=MANY), {"tasks"}),
    "too many tasks of an array": (
        flow(tasks={"a": {"command": ["x"], "array": 10_001}}),
        {"tasks.a.array"},
    ),
}


@pytest.mark.parametrize(("document", "places"), BAD.values(), ids=BAD)
def test_a_document_with_mistakes_is_refused_with_the_place_of_each(document, places, api):
    told = problem(api.post("dags/", document), 400, "invalid_dag")
    assert set(told["errors"]) == places
    assert told["detail"]
    assert not Dag.objects.exists()


def test_a_cycle_is_told_by_its_tasks(api):
    tasks = {
        name: {"command": ["x"], "depends_on": [needed]}
        for name, needed in {"a": "c", "b": "a", "c": "b"}.items()
    }
    told = problem(api.post("dags/", flow(tasks=tasks)), 400, "invalid_dag")
    (messages,) = told["errors"].values()
    assert all(f" {name} " in f" {messages[0].replace('.', ' ')}" for name in tasks)


BOMB = "\n".join(
    ["name: &a0 x", *(f"k{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12))]
)
BAD_YAML = {
    "a bomb of aliases": BOMB,
    "an object of Python's": "name: !!python/object/apply:os.system [id]",
    "an object of Python's, deeper": "name: a\ntasks: {a: !!python/object:x.Y {}}",
    "no YAML": "name: [",
    "a key twice": "name: a\nname: b",
    "two documents": "name: a\n---\nname: b",
    "not UTF-8": b"name: \xff",
    "a NUL": "name: 'a\0'",
    "nothing": "",
    "a text": "hello",
    "very deep": "[" * 10_000,
}


@pytest.mark.parametrize("text", BAD_YAML.values(), ids=BAD_YAML)
def test_yaml_that_is_no_plain_data_is_refused(text, api):
    told = problem(send_text(api, text), 400, "invalid_dag")
    assert told["detail"] or told["errors"]
    assert not Dag.objects.exists()


def test_a_mistake_in_yaml_is_told_with_its_line(api):
    text = YAML.replace("depends_on: extract", "depends_on: extrakt")
    told = problem(send_text(api, text), 400, "invalid_dag")
    ((message,),) = told["errors"].values()
    assert message.startswith("line 6: ")
    assert "extract" in message


@pytest.mark.parametrize("method", ["POST", "PUT"])
def test_a_document_above_the_limit_is_refused(method, api, dag, settings):
    settings.DATA_UPLOAD_MAX_MEMORY_SIZE = 1000
    address = "dags/" if method == "POST" else f"dags/{dag.pk}/"
    long = flow(name="long", description="x" * 1000)
    problem(api.send(method, address, long), 413, "too_large")
    problem(send_text(api, json.dumps(long), address, method), 413, "too_large")
    assert Dag.objects.get().name == "etl"


@pytest.mark.parametrize(
    "content_type", ["text/plain", "text/yaml", "application/yaml; charset=utf-16", ""]
)
def test_what_is_neither_json_nor_yaml_in_utf_8_is_refused(content_type, api):
    answer = send_text(api, YAML, content_type=content_type)
    problem(answer, 415, "unsupported_media_type")
    assert answer.headers["Accept-Post"] == "application/json, application/yaml"


def test_compressed_yaml_is_refused_unread(api):
    answer = send_text(api, b"\x1f\x8b", **{"Content-Encoding": "gzip"})
    problem(answer, 415, "unsupported_media_type")


# Finding ------------------------------------------------------------------------------------------


def test_the_list_is_newest_first_and_leaves_out_the_documents(api):
    for name in "abc":
        made(api, name=name)
    assert listed(api) == ["c", "b", "a"]
    row = api.get("dags/").json()["results"][0]
    one = api.get(f"dags/{row['id']}/").json()
    assert set(one) - set(row) == {"document", "next_runs", "revision"}
    assert row == {name: one[name] for name in row}


def test_dags_are_found_by_what_they_are(api):
    made(api, name="nightly", schedule="0 2 * * *", tags={"team": "data", "tier": "1"})
    made(api, name="by-hand", tags={"team": "data"}, description="Moves 100% of it")
    dags.pause(made(api, name="asleep").pk)
    found = {
        "name=nightly,asleep": ["asleep", "nightly"],
        "is_paused=true": ["asleep"],
        "is_paused=0": ["by-hand", "nightly"],
        "has_schedule=1": ["nightly"],
        "has_schedule=false": ["asleep", "by-hand"],
        "tag=team:data": ["by-hand", "nightly"],
        "tag=team:data&tag=tier:1": ["nightly"],
        "tag=team:DATA": [],
        "search=LY": ["nightly"],
        "search=100%25": ["by-hand"],
        "ordering=name": ["asleep", "by-hand", "nightly"],
        "ordering=-next_slot_at": ["nightly", "asleep", "by-hand"],
        "created_after=2026-01-01T00:00:00Z&limit=1": ["asleep"],
        "created_before=2026-01-01T00:00:00Z": [],
    }
    for query, names in found.items():
        told = api.client.get(f"{ROOT}dags/?{query}").json()
        assert [row["name"] for row in told["results"]] == names, query


@pytest.mark.parametrize(
    "query",
    [
        *({"owner": "ada"}, {"name": "a b"}, {"is_paused": "maybe"}, {"tag": "team"}),
        *({"ordering": "spec"}, {"search": ""}, {"created_after": "yesterday"}, {"limit": 101}),
        {"created_after": "2026-02-01T00:00:00Z", "created_before": "2026-01-01T00:00:00Z"},
    ],
)
def test_a_filter_that_is_none_is_refused(query, api):
    assert problem(api.get("dags/", **query), 400, "invalid")["errors"]


def test_many_dags_cost_no_more_questions_than_one(api):
    made(api, name="alpha", tags={"a": "b"})
    query = {"limit": 100, "search": "a", "tag": "a:b"}
    one = asked(lambda: api.get("dags/", **query))
    for number in range(20):
        made(api, name=f"a{number}", tags={"a": "b"})
    assert asked(lambda: api.get("dags/", **query)) == one


# Changing -----------------------------------------------------------------------------------------


def test_a_put_replaces_the_document_and_a_mask_means_what_is_there(api, dag):
    document = api.get(f"dags/{dag.pk}/").json()["document"]
    document["tasks"]["extract"]["environment"]["NEW"] = "n"
    document["tasks"]["again"] = {"command": ["/bin/true"], "depends_on": ["load"]}
    del document["tasks"]["load"]["depends_on"]
    answer = api.send("PUT", f"dags/{dag.pk}/", {**document, "description": "more"})
    assert answer.status_code == 200, answer.content
    assert answer.json()["document"]["tasks"]["extract"]["environment"] == {
        "PASSWORD": "***",
        "NEW": "***",
    }
    kept = Dag.objects.get()
    assert kept.description == "more"
    assert list(kept.spec["tasks"]) == ["extract", "load", "again"]
    assert kept.spec["tasks"]["extract"]["environment"] == {"PASSWORD": "secret", "NEW": "n"}
    assert kept.spec["defaults"]["environment"] == {"TOKEN": "secret"}
    assert kept.created_at == dag.created_at


def test_a_put_forgets_what_it_does_not_say(api):
    dag = made(api, description="old", tags={"a": "b"}, schedule="0 2 * * *")
    told = api.send("PUT", f"dags/{dag.pk}/", PLAIN).json()
    assert (told["description"], told["tags"], told["schedule"]) == ("", {}, None)


def test_a_patch_changes_the_keys_it_names(api):
    dag = made(api, description="old", tags={"a": "b"}, schedule="0 2 * * *")
    told = api.patch(f"dags/{dag.pk}/", {"description": "new", "schedule": None}).json()
    assert (told["description"], told["tags"], told["schedule"]) == ("new", {"a": "b"}, None)
    kept = Dag.objects.get()
    assert kept.spec["defaults"]["environment"] == {"TOKEN": "secret"}
    masked = {"executor": "process", "environment": {"TOKEN": "***", "B": "b"}}
    api.patch(f"dags/{dag.pk}/", {"defaults": masked})
    kept = Dag.objects.get()
    assert kept.spec["defaults"] == {**masked, "environment": {"TOKEN": "secret", "B": "b"}}


def test_a_patch_pauses_with_the_rest_or_alone(api, dag):
    told = api.patch(f"dags/{dag.pk}/", {"is_paused": True, "description": "x"}).json()
    assert (told["is_paused"], told["description"]) == (True, "x")
    assert api.patch(f"dags/{dag.pk}/", {"is_paused": False}).json()["is_paused"] is False
    refused = api.patch(f"dags/{dag.pk}/", {"is_paused": True, "schedule": "never"})
    problem(refused, 400, "invalid_dag")
    assert Dag.objects.get().is_paused is False


@pytest.mark.parametrize(
    ("changes", "code", "places"),
    [
        ({}, "invalid", []),
        ([], "invalid", []),
        ({"is_paused": "yes"}, "invalid", ["is_paused"]),
        ({"is_paused": None}, "invalid", ["is_paused"]),
        ({"id": "x"}, "invalid_dag", ["id"]),
        ({"created_at": "2026-01-01T00:00:00Z"}, "invalid_dag", ["created_at"]),
        ({"tasks": None}, "invalid_dag", ["tasks"]),
        ({"name": None}, "invalid_dag", ["name"]),
        ({"tasks": {"extract": None}}, "invalid_dag", ["tasks.extract.command"]),
    ],
)
def test_a_change_that_cannot_be_changes_nothing(changes, code, places, api, dag):
    told = problem(api.patch(f"dags/{dag.pk}/", changes), 400, code)
    assert list(told["errors"]) == places
    assert Dag.objects.get().updated_at == dag.updated_at


def test_a_name_that_another_has_is_refused(api, dag):
    other = made(api, name="other")
    for answer in (
        api.patch(f"dags/{other.pk}/", {"name": "etl"}),
        api.send("PUT", f"dags/{other.pk}/", PLAIN),
    ):
        assert list(problem(answer, 409, "name_taken")["errors"]) == ["name"]
    assert Dag.objects.get(pk=other.pk).name == "other"


def test_of_two_changes_at_once_neither_is_lost(api, dag, monkeypatch):
    """Between reading and writing somebody else was faster."""
    real = dags.replace

    def overtaken(*args, **kwargs):
        monkeypatch.setattr(dags, "replace", real)
        api.patch(f"dags/{dag.pk}/", {"tags": {"a": "b"}})
        return real(*args, **kwargs)

    monkeypatch.setattr(dags, "replace", overtaken)
    told = api.patch(f"dags/{dag.pk}/", {"description": "mine"}).json()
    assert (told["tags"], told["description"]) == ({"a": "b"}, "mine")


CHANGES = {
    "PUT": ("", PLAIN),
    "PATCH": ("", {"description": "x"}),
    "a PATCH that pauses": ("", {"is_paused": True}),
    "DELETE": ("", None),
    "pause": ("pause/", None),
    "unpause": ("unpause/", None),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_of_another_revision_is_refused(name, ada, dag):
    below, body = CHANGES[name]
    method = name if name in ("PUT", "DELETE") else "PATCH" if "PATCH" in name else "POST"
    stale = Api(ada, **{"If-Match": '"1.000000"'})
    told = problem(stale.send(method, f"dags/{dag.pk}/{below}", body), 412, "stale_state")
    assert told["current_revision"] == dag.revision
    assert Dag.objects.get().updated_at == dag.updated_at
    fitting = Api(ada, **{"If-Match": f'"{dag.revision}"'})
    answer = fitting.send(method, f"dags/{dag.pk}/{below}", body)
    assert answer.status_code == (204 if method == "DELETE" else 200)


def test_pausing_twice_is_pausing_once(api, dag):
    told = [api.post(f"dags/{dag.pk}/pause/").json() for _ in range(2)]
    assert told[0] == told[1]
    assert told[0]["is_paused"] is True
    assert api.post(f"dags/{dag.pk}/unpause/").json()["is_paused"] is False


# Deleting -----------------------------------------------------------------------------------------


def test_a_dag_takes_its_runs_along(api, dag):
    play(started(dag))
    answer = api.send("DELETE", f"dags/{dag.pk}/")
    assert (answer.status_code, answer.content) == (204, b"")
    assert [rows.objects.count() for rows in (Dag, DagRun, TaskInstance)] == [0, 0, 0]
    problem(api.get(f"dags/{dag.pk}/"), 404, "not_found")


def test_a_dag_with_a_run_under_way_stays(api, dag):
    started(dag)
    problem(api.send("DELETE", f"dags/{dag.pk}/"), 409, "dag_active")
    assert Dag.objects.exists()


# Triggering ---------------------------------------------------------------------------------------


def test_a_trigger_makes_a_queued_run_and_says_where(api, ada):
    dag = made(api, params={"DAY": "monday", "REGION": "eu"})
    body = {
        "params": {"DAY": "friday"},
        "execution_date": "2026-01-31T02:00:00+01:00",
        "run_id": "by.hand:1",
    }
    answer = api.post(f"dags/{dag.pk}/trigger/", body)
    told = answer.json()
    assert answer.status_code == 201
    assert (told["state"], told["run_type"], told["run_id"]) == ("queued", "manual", "by.hand:1")
    assert (told["dag"], told["dag_name"]) == (str(dag.pk), "etl")
    assert told["params"] == {"DAY": "friday", "REGION": "eu"}
    assert told["execution_date"] == "2026-01-31T01:00:00+00:00"
    assert told["tasks"]["queued"] == 2
    assert api.client.get(answer.headers["Location"]).json() == told
    assert StateHistory.objects.of(DagRun.objects.get()).get().actor == "api:ada"


def test_a_trigger_needs_no_body_and_is_then_of_now(api, dag):
    before = timezone.now() - timedelta(minutes=1)
    told = api.post(f"dags/{dag.pk}/trigger/").json()
    assert before < datetime.fromisoformat(told["execution_date"]) < timezone.now()
    assert told["run_id"].startswith("manual__")


def test_a_slot_and_a_name_have_one_run(api, dag):
    body = {"execution_date": "2026-01-31T02:00:00Z", "run_id": "one"}
    run = api.post(f"dags/{dag.pk}/trigger/", body).json()
    for again in ({"execution_date": body["execution_date"]}, {"run_id": "one"}):
        told = problem(api.post(f"dags/{dag.pk}/trigger/", again), 409, "run_exists")
        assert told["run"] == run["id"]
    assert DagRun.objects.count() == 1


def test_a_paused_dag_is_not_triggered(api, dag):
    dags.pause(dag.pk)
    problem(api.post(f"dags/{dag.pk}/trigger/"), 409, "dag_paused")
    stretch = {"first": "2026-01-01T00:00:00Z", "last": "2026-01-01T00:00:00Z"}
    problem(api.post(f"dags/{dag.pk}/backfill/", stretch), 409, "dag_paused")
    assert not DagRun.objects.exists()


def test_a_key_that_comes_again_triggers_nothing(api, ada, dag):
    other = made(api, name="other")
    keyed = Api(ada, **{"Idempotency-Key": "one"})
    first, second = (keyed.post(f"dags/{dag.pk}/trigger/") for _ in range(2))
    assert (first.status_code, second.status_code) == (201, 200)
    assert first.json() == second.json()
    assert keyed.post(f"dags/{other.pk}/trigger/").status_code == 201, "a key of each DAG"
    problem(keyed.post(f"dags/{dag.pk}/trigger/", {"run_id": "x"}), 422, "idempotency_key_reuse")
    assert DagRun.objects.count() == 2


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"params": {"DYA": "x"}}, "params"),
        ({"params": {"DAY": 1}}, "params"),
        ({"params": {"DAY": None}}, "params"),
        ({"params": {"DAY": "x" * 200_000}}, "params"),
        ({"params": []}, "params"),
        ({"execution_date": "2026-01-31"}, "execution_date"),
        ({"execution_date": "2026-02-30T00:00:00Z"}, "execution_date"),
        ({"execution_date": "1969-12-31T23:59:59Z"}, "execution_date"),
        ({"execution_date": "9999-12-31T23:59:59Z"}, "execution_date"),
        ({"execution_date": None}, "execution_date"),
        ({"run_id": "a b"}, "run_id"),
        ({"run_id": "a\n"}, "run_id"),
        ({"run_id": "x" * 251}, "run_id"),
        ({"run_id": 1}, "run_id"),
        ({"state": "running"}, "state"),
    ],
)
def test_a_trigger_that_cannot_be_makes_no_run(body, field, api):
    dag = made(api, params={"DAY": "monday"})
    told = problem(api.post(f"dags/{dag.pk}/trigger/", body), 400, "invalid")
    assert list(told["errors"]) == [field]
    assert not DagRun.objects.exists()


# Backfilling --------------------------------------------------------------------------------------

DAYS = {"first": "2026-01-01T00:00:00Z", "last": "2026-01-03T12:00:00Z"}


def test_a_backfill_makes_the_runs_that_are_missing_and_can_be_rehearsed(api):
    dag = made(api, schedule="0 2 * * *")
    there = api.post(f"dags/{dag.pk}/trigger/", {"execution_date": "2026-01-02T02:00:00Z"}).json()
    rehearsed = api.post(f"dags/{dag.pk}/backfill/", {**DAYS, "dry_run": True}).json()
    assert rehearsed["counts"] == {"would_create": 2, "exists": 1}
    assert DagRun.objects.count() == 1
    answer = api.post(f"dags/{dag.pk}/backfill/", DAYS)
    told = answer.json()
    assert (answer.status_code, told["counts"]) == (200, {"created": 2, "exists": 1})
    slots = [(slot["execution_date"][:10], slot["result"]) for slot in told["slots"]]
    assert slots == [
        ("2026-01-01", "created"),
        ("2026-01-02", "exists"),
        ("2026-01-03", "created"),
    ]
    assert told["slots"][1]["run"] == there["id"]
    assert {slot["run"] for slot in told["slots"]} == {
        str(pk) for pk in DagRun.objects.values_list("pk", flat=True)
    }


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        ({}, ["first", "last"]),
        ({**DAYS, "last": "2025-01-01T00:00:00Z"}, ["first"]),
        ({**DAYS, "first": "0001-01-01T00:00:00Z"}, ["first"]),
        ({**DAYS, "last": "9999-12-31T00:00:00Z"}, ["last"]),
        ({**DAYS, "first": "2020-01-01T00:00:00Z"}, []),
        ({**DAYS, "first": "2199-01-01T00:00:00Z", "last": "2199-01-02T00:00:00Z"}, ["first"]),
        ({**DAYS, "dry_run": 1}, ["dry_run"]),
        ({**DAYS, "limit": 1}, ["limit"]),
    ],
)
def test_a_backfill_that_cannot_be_makes_no_run(body, fields, api):
    dag = made(api, schedule="0 2 * * *")
    told = problem(api.post(f"dags/{dag.pk}/backfill/", body), 400, "invalid")
    assert list(told["errors"]) == fields
    assert not DagRun.objects.exists()


def test_a_dag_without_a_schedule_has_no_slots_to_fill(api, dag):
    told = problem(api.post(f"dags/{dag.pk}/backfill/", DAYS), 400, "invalid")
    assert "schedule" in told["detail"]


# Who ----------------------------------------------------------------------------------------------

CALLS = {
    ("GET", ""): (None, 200),
    ("PUT", ""): (PLAIN, 200),
    ("PATCH", ""): ({"description": "x"}, 200),
    ("DELETE", ""): (None, 204),
    ("POST", "pause/"): (None, 200),
    ("POST", "unpause/"): (None, 200),
    ("POST", "trigger/"): (None, 201),
    ("POST", "backfill/"): ({**DAYS, "dry_run": True}, 200),
}
EVERY_CALL = pytest.mark.parametrize(("method", "below"), CALLS)


def call(api: Api, method: str, below: str, pk: Any) -> Any:
    return api.send(method, f"dags/{pk}/{below}", CALLS[method, below][0])


def unchanged(dag: Dag) -> bool:
    return Dag.objects.get(pk=dag.pk).updated_at == dag.updated_at and not dag.runs.exists()


@EVERY_CALL
def test_the_dag_of_another_is_not_there(method, below):
    dag, api = DagFactory(created_by=UserFactory()), Api(a_person())
    foreign, unknown = (call(api, method, below, pk) for pk in (dag.pk, uuid4()))
    problem(foreign, 404, "not_found")
    assert foreign.content == unknown.content
    assert unchanged(dag)


@EVERY_CALL
def test_its_owner_and_an_operator_get_what_they_ask_for(method, below):
    ada = a_person()
    for person in (ada, an_operator()):
        dag = made(Api(ada), name=f"of-{person.pk}", schedule="0 2 * * *")
        answer = call(Api(person), method, below, dag.pk)
        assert answer.status_code == CALLS[method, below][1], answer.content
        Dag.objects.all().delete()


@EVERY_CALL
def test_who_may_see_all_may_not_change_the_dag_of_another(method, below):
    dag = DagFactory(created_by=UserFactory())
    answer = call(Api(a_person("view_containerjob")), method, below, dag.pk)
    if method == "GET":
        assert answer.status_code == 200
    else:
        problem(answer, 403, "permission_denied")
        assert unchanged(dag)


@EVERY_CALL
def test_a_stranger_is_asked_who_he_is(method, below):
    dag = DagFactory()
    problem(call(Api(), method, below, dag.pk), 401, "not_authenticated")
    assert unchanged(dag)


@EVERY_CALL
def test_an_id_that_is_none_is_not_there(method, below, api):
    problem(call(api, method, below, "etl"), 404, "not_found")


def test_the_list_has_only_what_the_person_may_see(ada):
    DagFactory(name="of-ada", created_by=ada)
    DagFactory(name="of-nobody")
    DagFactory(name="of-bob", created_by=UserFactory())
    assert listed(Api(ada)) == ["of-ada"]
    assert len(listed(Api(an_operator()))) == 3
    assert listed(Api(ada), name="of-bob") == []


def test_a_person_of_one_dag_learns_nothing_of_the_names_of_others_but_that_they_are_taken(api):
    RunFactory(dag=DagFactory(name="etl", created_by=UserFactory()))
    told = problem(api.post("dags/", flow()), 409, "name_taken")
    assert told["errors"] == {"name": ["There is a DAG 'etl' already."]}


def test_a_run_under_way_keeps_the_document_it_began_with(api, dag):
    run = started(dag)
    api.patch(f"dags/{dag.pk}/", {"description": "new"})
    assert fresh(run).spec["description"] == ""
