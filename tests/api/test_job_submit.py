"""Submitting a job: what is accepted, what is refused by field, and keys that act once."""

from __future__ import annotations

import json
from typing import Any

import pytest
from django.test import Client
from django.utils import timezone

from container_manager import lifecycle
from container_manager.api.job_fields import READ_ONLY
from container_manager.api.job_schemas import CHANGES, NEW
from container_manager.models import ContainerJob, IdempotencyKey, StateHistory
from tests.factories import JobFactory
from tests.support.api import Api, a_person, problem
from tests.support.spine import at_once, path_of

pytestmark = pytest.mark.django_db

PLAIN = {"image": "busybox:latest", "command": ["/bin/true"]}


@pytest.fixture
def ada() -> Any:
    return a_person(username="ada")


@pytest.fixture
def api(ada) -> Api:
    return Api(ada)


def refused(answer: Any, status: int = 400, code: str = "invalid") -> dict[str, Any]:
    told = problem(answer, status, code)
    assert not ContainerJob.objects.exists()
    return told


# What becomes of it -------------------------------------------------------------------------------


def test_a_new_job_is_pending_and_its_owner_s(api, ada):
    answer = api.post("jobs/", PLAIN)
    told, job = answer.json(), ContainerJob.objects.get()
    assert answer.status_code == 201
    assert (told["status"], told["owner"], job.created_by) == ("pending", "ada", ada)
    assert StateHistory.objects.of(job).get().actor == "api:ada"


def test_the_answer_says_where_it_is_and_at_which_revision(api):
    answer = api.post("jobs/", {**PLAIN, "queue_now": True})
    again = api.client.get(answer.headers["Location"])
    assert again.status_code == 200
    assert again.headers["ETag"] == answer.headers["ETag"]
    assert again.json() == answer.json()


def test_it_can_be_queued_at_once(api):
    told = api.post("jobs/", {**PLAIN, "queue_now": True}).json()
    assert told["status"] == "queued"
    assert path_of(ContainerJob.objects.get()) == ["pending", "queued"]


def test_everything_that_may_be_said_is_kept(api):
    wanted = {
        "name": "all of it",
        "labels": {"team": "data", "empty": ""},
        "image": "registry.example.org:5000/team/tool:1.2",
        "command": ["/bin/sh", "-c", "echo $A"],
        "working_dir": "/tmp",
        "environment": {"A": "1", "lower": "ä\n"},
        "pull_policy": "never",
        "isolation": "container",
        "executor": "docker",
        "network": "jobs",
        "cpu_limit": 0.5,
        "memory_limit_mb": 64,
        "pids_limit": 10,
        "timeout_seconds": 60,
        "start_timeout_seconds": 61,
        "queue_timeout_seconds": 62,
        "stop_grace_seconds": 0,
        "queue": "night",
        "priority": 100,
        "scheduled_for": "2030-01-31T08:00:00+01:00",
        "max_retries": 0,
        "retry_policy": {"rules": [{"on_exit_codes": [2], "action": "fail"}]},
    }
    assert set(wanted) == set(NEW) - {"queue_now"}
    told = api.post("jobs/", wanted).json()
    changed = {
        "environment": {"A": "***", "lower": "***"},
        "scheduled_for": "2030-01-31T07:00:00+00:00",
    }
    assert {name: told[name] for name in wanted} == wanted | changed
    assert ContainerJob.objects.get().environment == wanted["environment"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("echo hello", ["echo", "hello"]),
        ("sh -c 'echo \"a b\"; exit 3'", ["sh", "-c", 'echo "a b"; exit 3']),
        ("a\\ b ''", ["a b", ""]),
    ],
)
def test_a_command_that_is_one_string_is_split_as_a_shell_would(text, words, api):
    assert api.post("jobs/", {**PLAIN, "command": text}).json()["command"] == words


def test_a_local_process_needs_no_image(api):
    for chosen in ({"executor": "process"}, {"isolation": "process"}):
        assert api.post("jobs/", {"command": "true", **chosen}).status_code == 201


NAMES = ["‮evil‬", "zero​width", "😀", "<script>alert(1)</script>", "../../etc/passwd"]


@pytest.mark.parametrize("name", [*NAMES, "n" * 255, "' OR 1=1; --", "{{ settings.SECRET_KEY }}"])
def test_a_strange_name_is_kept_as_it_is(name, api):
    assert api.post("jobs/", {**PLAIN, "name": name}).json()["name"] == name
    assert ContainerJob.objects.get().name == name


# What is refused by field -------------------------------------------------------------------------

OF_TYPE: dict[str, Any] = {
    "null": None,
    "boolean": True,
    "integer": 1,
    "number": 1.5,
    "string": "text",
    "array": ["a"],
    "object": {"A": "b"},
}


def allowed_types(schema: dict[str, Any]) -> set[str]:
    if "anyOf" in schema:
        return set().union(*(allowed_types(each) for each in schema["anyOf"]))
    named = schema["type"]
    found = {named} if isinstance(named, str) else set(named)
    return found | ({"integer"} if "number" in found else set())


WRONG_TYPES = [
    pytest.param(field, OF_TYPE[kind], id=f"{field}-{kind}")
    for field, schema in NEW.items()
    for kind in OF_TYPE
    if kind not in allowed_types(schema)
]


@pytest.mark.parametrize(("field", "value"), WRONG_TYPES)
def test_a_value_of_a_wrong_type_is_refused_by_field(field, value, api):
    told = refused(api.post("jobs/", {**PLAIN, field: value}))
    assert list(told["errors"]) == [field]


@pytest.mark.parametrize("field", sorted(READ_ONLY))
@pytest.mark.parametrize("value", ["x", 1, None])
def test_what_happens_to_a_job_cannot_be_said(field, value, api):
    told = refused(api.post("jobs/", {**PLAIN, field: value}))
    assert told["errors"] == {field: ["Read-only field."]}


@pytest.mark.parametrize(
    "field",
    ["owner_id", "worker", "privileged", "cap_add", "mounts", "user", "devices", "pid", "x"],
)
def test_an_unknown_field_is_refused_and_those_that_exist_are_named(field, api):
    told = refused(api.post("jobs/", {**PLAIN, field: True}))
    (message,) = told["errors"][field]
    assert message.startswith("Unknown field; there are command, cpu_limit, ")


def test_every_field_that_is_wrong_is_told_at_once(api):
    wrong = {"image": "-v", "command": [], "priority": 101, "queue": "", "environment": {"A=": ""}}
    assert set(refused(api.post("jobs/", wrong))["errors"]) == set(wrong)


def test_what_is_missing_is_told_by_field(api):
    assert set(refused(api.post("jobs/", {}))["errors"]) == {"command", "image"}


BAD: dict[str, list[Any]] = {
    "name": [" ", "\t", "a\nb", "a\rb", "n" * 256],
    "image": [
        *("-v", "--privileged", "a b", "alpine;rm -rf /", "UPPER", "a" * 300, "a:", "a@sha256:x"),
        *("a" * 200 + "!", ""),
    ],
    "command": [
        [],
        "",
        "  ",
        "''",
        "'open",
        "trailing\\",
        [""],
        [1],
        [None],
        [["a"]],
        ["x" * 2**17],
    ],
    "working_dir": ["tmp", "../etc", "/" + "p" * 256],
    "environment": [
        *({"A=B": ""}, {"A B": ""}, {"": ""}, {"1A": ""}, {"CM_JOB_ID": ""}, {"A": 1}),
        *({"A": None}, {"A": ["x"]}, {f"V{n}": "" for n in range(1001)}, {"A": "x" * 2**17}),
    ],
    "labels": [{"": "x"}, {"a b": "x"}, {"-a": "x"}, {"a:b": "x"}, {"a": 1}, {"a" * 129: "x"}],
    "pull_policy": ["sometimes", "", "MISSING"],
    "isolation": ["vm", "", "Process"],
    "executor": ["nobody", "DOCKER"],
    "network": ["host", "container:other", "", "-x", "a b", "n" * 65],
    "cpu_limit": [0, -1, 0.001, 1025, 1e308],
    "memory_limit_mb": [0, -1, 5, 2**24 + 1, 2**63, 10**30],
    "pids_limit": [0, -1, 1_000_001, 1.5],
    "timeout_seconds": [0, -1, 366 * 24 * 3600 + 1, 2**31, 2**63],
    "start_timeout_seconds": [0, -1, 2**31],
    "queue_timeout_seconds": [0, -1, 2**31],
    "stop_grace_seconds": [-1, 3601],
    "queue": ["", " ", "no good", "q" * 101, "-q", "../q"],
    "priority": [-1, 101, 50.5, 2**31],
    "scheduled_for": [
        *("tomorrow", "2026-02-30T00:00:00Z", "2026-01-01T00:00:00", "", "2026-01-01"),
        *("2026-01-01 00:00:00Z", "1969-12-31T23:59:59Z", "2200-01-01T00:00:00Z"),
    ],
    "max_retries": [-1, 1001, 0.5],
    "retry_policy": [
        *("nobody", {"strategy": "hope"}, {"x": 1}, {"jitter": 2}, {"base_seconds": -1}),
        *({"rules": {}}, {"rules": [{}]}, {"rules": [{"action": "fail", "on_reason": ["x"]}]}),
        *([], ""),
    ],
    "queue_now": ["true", 1],
}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        pytest.param(field, value, id=f"{field}-{number}")
        for field, values in BAD.items()
        for number, value in enumerate(values)
    ],
)
def test_a_value_that_cannot_be_is_refused_by_field_and_nothing_is_written(field, value, api):
    told = refused(api.post("jobs/", {**PLAIN, field: value}))
    assert list(told["errors"]) == [field]
    assert all(isinstance(text, str) and text for text in told["errors"][field])


def test_there_is_bad_input_for_every_field():
    assert set(BAD) == set(NEW)
    assert set(CHANGES) == set(NEW) - {"queue_now"} | {"status"}


def test_a_refusal_shows_no_value_of_the_environment(api):
    answer = api.post("jobs/", {**PLAIN, "environment": {"KEY": "hunter2", "B B": "hunter2"}})
    assert "hunter2" not in str(refused(answer))


def test_a_body_that_is_no_object_is_refused(api):
    for body in ([], "text", 1, None, True):
        answer = api.client.post("/api/v1/jobs/", json.dumps(body), "application/json")
        assert refused(answer)["detail"] == "The body must be a JSON object."


# Idempotency-Key ----------------------------------------------------------------------------------


def with_key(api: Api, key: str, body: Any = PLAIN) -> Any:
    headers = {"Idempotency-Key": key}
    return api.client.post("/api/v1/jobs/", body, "application/json", headers=headers)


def test_the_same_key_and_body_give_the_first_answer_again(api):
    first = with_key(api, "k1")
    lifecycle.enqueue([first.json()["id"]])
    second = with_key(api, "k1")
    assert (first.status_code, second.status_code) == (201, 200)
    assert second.json() == first.json()
    for name in ("Location", "ETag"):
        assert second.headers[name] == first.headers[name]
    assert ContainerJob.objects.count() == 1


def test_the_same_key_with_another_body_is_refused(api):
    with_key(api, "k1")
    answer = with_key(api, "k1", {**PLAIN, "name": "another"})
    problem(answer, 422, "idempotency_key_reuse")
    assert ContainerJob.objects.count() == 1


def test_a_key_is_its_owner_s(api):
    with_key(api, "k1")
    assert with_key(Api(a_person()), "k1").status_code == 201
    assert ContainerJob.objects.count() == 2


def test_no_key_and_other_keys_make_other_jobs(api):
    assert [with_key(api, key).status_code for key in ("k1", "K1", "~" * 255)] == [201] * 3
    assert [api.post("jobs/", PLAIN).status_code for _ in range(2)] == [201] * 2


@pytest.mark.parametrize("key", ["", "x" * 256, "ä", "a\tb", "\x7f"])
def test_a_key_that_is_none_is_refused(key, api):
    assert list(refused(with_key(api, key))["errors"]) == ["Idempotency-Key"]


def test_a_refused_request_leaves_its_key_free(api):
    refused(with_key(api, "k1", {**PLAIN, "priority": 101}))
    assert not IdempotencyKey.objects.exists()
    assert with_key(api, "k1").status_code == 201


def test_an_expired_key_is_free_again(api):
    with_key(api, "k1")
    IdempotencyKey.objects.update(expires_at=timezone.now())
    assert with_key(api, "k1", {**PLAIN, "name": "another"}).status_code == 201
    assert ContainerJob.objects.count() == 2


def test_what_is_kept_of_an_answer_has_no_value_of_the_environment(api):
    with_key(api, "k1", {**PLAIN, "environment": {"KEY": "hunter2"}})
    assert "hunter2" not in str(IdempotencyKey.objects.get().answer)


def test_the_key_and_the_job_are_one_transaction(api, monkeypatch):
    def failing(**_: Any) -> None:
        JobFactory()
        raise RuntimeError("between the job and its key")

    monkeypatch.setattr(lifecycle, "submit", failing)
    problem(with_key(api, "k1"), 500, "internal_error")
    assert not ContainerJob.objects.exists()
    assert not IdempotencyKey.objects.exists()


@pytest.mark.django_db(transaction=True)
def test_the_same_key_fifty_times_at_once_makes_one_job():
    user = a_person()
    clients = [Client() for _ in range(50)]
    for client in clients:
        client.force_login(user)
    body, headers = json.dumps(PLAIN), {"Idempotency-Key": "k1"}

    def post(client: Client) -> Any:
        return client.post("/api/v1/jobs/", body, "application/json", headers=headers)

    answers = at_once(*(lambda client=client: post(client) for client in clients))
    assert sorted(answer.status_code for answer in answers) == [200] * 49 + [201]
    assert len({answer.content for answer in answers}) == 1
    assert ContainerJob.objects.count() == 1
