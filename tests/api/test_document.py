"""The OpenAPI document: valid, complete, and as strict as the API itself."""

from __future__ import annotations

import io
import re
from typing import Any

import jsonschema
import pytest
from django.core.management import call_command
from django.test import Client

from container_manager.api import job_schemas, workflow_schemas
from container_manager.api.job_query import FILTERS
from container_manager.api.operations import COMPONENTS
from container_manager.models import ContainerJob
from tests.api.test_job_submit import BAD, PLAIN
from tests.factories import AttemptFactory, JobFactory
from tests.support.api import Api, an_operator
from tests.support.flows import flow
from tests.workflows.driving import begun, made, play, started, task, task_of

pytestmark = pytest.mark.django_db

DOCUMENT = workflow_schemas.DAG_DOCUMENT["$ref"].rpartition("/")[2]
CHAIN = {"first": task(), "many": task("first", array=3), "last": task("many")}

METHODS = ("get", "post", "put", "patch", "delete")


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    answer = Client().get("/api/v1/schema/")
    assert answer.status_code == 200
    assert answer.headers["Content-Type"] == "application/vnd.oai.openapi+json"
    told: dict[str, Any] = answer.json()
    return told


def operations(document: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    return [
        (method, path, found[method])
        for path, found in document["paths"].items()
        for method in METHODS
        if method in found
    ]


def test_the_document_is_valid_and_made_without_a_warning():
    said = io.StringIO()
    call_command("spectacular", "--validate", "--fail-on-warn", stdout=said)
    assert "openapi: 3.1.1" in said.getvalue()


def test_every_operation_says_what_it_is_and_how_it_can_be_refused(document):
    for method, path, told in operations(document):
        assert told["summary"], (method, path)
        wanted = {"400", "500"} | ({"404"} if "{" in path else set())
        wanted |= {"401"} if {"token": []} in told["security"] else set()
        wanted |= {"413", "415"} if "requestBody" in told else set()
        assert wanted <= set(told["responses"]), (method, path)
        for status, answer in told["responses"].items():
            if int(status) >= 400 and not path.startswith("/health/"):
                assert list(answer["content"]) == ["application/problem+json"]


def test_what_belongs_to_jobs_is_documented(document):
    found = {(method, path.removeprefix("/api/v1")) for method, path, _ in operations(document)}
    one = "/jobs/{id}/"
    assert {("get", "/jobs/"), ("post", "/jobs/"), ("post", "/jobs/bulk/")} <= found
    assert {("get", one), ("patch", one), ("delete", one)} <= found
    for verb in ("queue", "cancel", "kill", "retry"):
        assert ("post", f"{one}{verb}/") in found
    for record in ("history", "attempts", "explain"):
        assert ("get", f"{one}{record}/") in found
    jobs = document["paths"]["/api/v1/jobs/"]
    assert "422" in jobs["post"]["responses"]
    assert {"Location", "ETag"} <= set(jobs["post"]["responses"]["201"]["headers"])
    assert {"409", "412"} <= set(document["paths"]["/api/v1/jobs/{id}/"]["patch"]["responses"])
    named = {parameter["name"] for parameter in jobs["get"]["parameters"]}
    assert named == {"limit", "offset", "ordering", *(parameter.name for parameter in FILTERS)}


def test_every_reference_leads_somewhere(document):
    references = set(re.findall(r"#/components/schemas/(\w+)", str(document)))
    assert references <= set(document["components"]["schemas"])
    assert set(document["components"]["securitySchemes"]) == {"token", "cookieAuth", "scraper"}


def test_the_page_to_try_it_runs_no_inline_script():
    answer = Client().get("/api/v1/docs/")
    page = answer.content.decode()
    scripts = re.findall(r"<script([^>]*)>(.*?)</script>", page, re.DOTALL)
    assert len(scripts) == 3
    assert all("src=" in attributes and not inside.strip() for attributes, inside in scripts)
    assert "<style" not in page
    script = Client().get(re.findall(r'src="(/api/v1/docs[^"]*)"', page)[0].replace("&amp;", "&"))
    assert script.headers["Content-Type"].startswith("application/javascript")
    assert "/api/v1/schema" in script.content.decode()


# As strict as the API -----------------------------------------------------------------------------


def allowed_by(name: str, value: Any) -> bool:
    schema = {"$ref": f"#/components/schemas/{name}", "components": {"schemas": COMPONENTS}}
    return bool(jsonschema.Draft202012Validator(schema).is_valid(value))


# What no JSON schema can say: of a time, that it exists; of texts together, how many bytes.
UNSAID = {("command", 10), ("environment", 9), ("working_dir", 3), ("scheduled_for", 1)}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        pytest.param(field, value, id=f"{field}-{number}")
        for field, values in BAD.items()
        for number, value in enumerate(values)
        if (field, number) not in UNSAID
    ],
)
def test_what_is_refused_by_a_validator_is_refused_by_the_schema(field, value):
    assert not allowed_by("NewJob", {**PLAIN, field: value})


GOOD: dict[str, list[Any]] = {
    "name": ["", "a", " a ", "ä😀", "n" * 255],
    "labels": [{}, {"a/b.c_d-e": ""}, {"A": "ä\n"}],
    "image": ["a", "a.b:5000/c/d__e:T_1.2-x", "Host-1.example.:1/x", f"a@sha256:{'0' * 64}"],
    "command": [["a"], ["a", "", "\n"], "a", " a 'b c' \"d\\\"e\" f\\ g ''", "''a", "\"a\"'b'"],
    "working_dir": ["", "/", "/a//b", "/ä b"],
    "environment": [{}, {"_": ""}, {"C": "", "CM": "", "CMX": "", "cm_x": "", "a1": "\t"}],
    "network": ["none", "jobs", "a.b-c_d", "hostess", "Host"],
    "queue": ["default", "a.b-c_d", "0"],
    "cpu_limit": [None, 0.01, 1, 1024],
    "memory_limit_mb": [None, 6, 2**24],
    "retry_policy": ["default", {}, {"rules": []}, {"strategy": "fixed", "jitter": 1}],
    "scheduled_for": [None, "2030-01-31T08:00:00Z", "2030-01-31t08:00:00.123456789+14:00"],
    "priority": [0, 100, 50.0],
}


@pytest.mark.parametrize(
    ("field", "value"), [(field, value) for field, values in GOOD.items() for value in values]
)
def test_what_the_schema_allows_the_api_takes(field, value):
    wanted = {**PLAIN, field: value}
    assert allowed_by("NewJob", wanted)
    assert Api(an_operator()).post("jobs/", wanted).status_code == 201


def test_the_schema_knows_when_an_image_is_needed():
    for chosen in ({"executor": "process"}, {"isolation": "process"}, {"image": "a"}):
        assert allowed_by("NewJob", {"command": "true", **chosen})
    assert not allowed_by("NewJob", {"command": "true"})
    assert not allowed_by("NewJob", {"command": "true", "isolation": "auto", "image": ""})


@pytest.mark.parametrize("text", ["a 'b", "a \\", "''", '""', " ", "", '"a\\', "'a", '"'])
def test_a_command_line_that_no_shell_would_split_is_not_allowed(text):
    assert not allowed_by("NewJob", {**PLAIN, "command": text})


def test_answers_are_as_the_schema_says():
    api = Api(an_operator())
    job = AttemptFactory(job=JobFactory(status="running", retry_policy="default")).job
    for status in ContainerJob.Status:
        JobFactory(status=status, labels={"a": "b"})
    told = {
        "Job": api.get(f"jobs/{job.pk}/"),
        "JobPage": api.get("jobs/"),
        "MovePage": api.get(f"jobs/{job.pk}/history/"),
        "AttemptPage": api.get(f"jobs/{job.pk}/attempts/"),
        "Explanation": api.get(f"jobs/{job.pk}/explain/"),
        "BulkAnswer": api.post("jobs/bulk/", {"verb": "kill", "ids": [str(job.pk)]}),
        "Problem": api.get("jobs/x/"),
    }
    for name, answer in told.items():
        assert allowed_by(name, answer.json()), name


def test_answers_about_workflows_are_as_the_schema_says():
    api = Api(an_operator())
    dag = made(CHAIN, name="shown", schedule="0 2 * * *", tags={"a": "b"})
    run = play(started(dag), fails=["many[1]"])
    begun({"waits": task()}, name="other")
    failed = task_of(run, "many[1]")
    stretch = {"first": "2026-01-01T00:00:00Z", "last": "2026-01-02T00:00:00Z"}
    told = {
        "Dag": api.get(f"dags/{dag.pk}/"),
        "DagPage": api.get("dags/"),
        "DagRun": api.get(f"dag-runs/{run.pk}/"),
        "DagRunPage": api.get("dag-runs/"),
        "Graph": api.get(f"dag-runs/{run.pk}/graph/"),
        "WorkflowMovePage": api.get(f"dag-runs/{run.pk}/history/"),
        "TaskInstance": api.get(f"task-instances/{failed.pk}/"),
        "TaskInstancePage": api.get("task-instances/"),
        "Backfilled": api.post(f"dags/{dag.pk}/backfill/", stretch),
        "Problem": api.post("dags/", {"name": "shown"}),
    }
    for name, answer in told.items():
        assert allowed_by(name, answer.json()), name
    for name in ("Dag", "DagRun", "Graph", "TaskInstance"):
        assert set(told[name].json()) == set(COMPONENTS[name]["properties"])
    assert allowed_by(DOCUMENT, told["Dag"].json()["document"])


@pytest.mark.parametrize(
    "fields",
    [
        *({"name": "a b"}, {"name": None}, {"tasks": {}}, {"tasks": None}, {"tasks": {"a b": {}}}),
        *({"is_paused": True}, {"max_active_runs": 0}, {"missed_runs": "some"}, {"tags": {"": ""}}),
        *({"start_date": "2026"}, {"params": {"CM_X": ""}}, {"defaults": {"depends_on": []}}),
        {"tasks": {"a": {"command": "true", "name": "x"}}},
        {"tasks": {"a": {"command": "true", "trigger_rule": "never"}}},
        {"tasks": {"a": {"command": "true", "array": 10_001}}},
        {"tasks": {"a": {"command": "true", "cpu_limit": "1"}}},
        {"tasks": {"a": {"command": "true", "skip_exit_codes": [0]}}},
        {"tasks": {"a": {"command": "true", "environment_from": {"A": "a.b"}}}},
    ],
)
def test_a_dag_that_is_refused_for_a_single_value_is_refused_by_the_schema(fields):
    assert allowed_by(DOCUMENT, flow())
    assert not allowed_by(DOCUMENT, flow(**fields))
    assert Api(an_operator()).post("dags/", flow(**fields)).status_code == 400


def test_a_dag_with_everything_is_allowed_by_the_schema():
    everything = flow(
        description=None,
        schedule="0 2 * * *",
        timezone="Europe/Berlin",
        start_date="2026-01-01",
        end_date="2026-12-31T23:00:00+01:00",
        missed_runs="all",
        max_active_runs=2,
        tags={"team": "data"},
        params={"DAY": "monday"},
        tasks={
            "a": {"command": "true", "array": 3, "skip_exit_codes": [99], "priority": 1},
            "b": {
                "command": ["true"],
                "depends_on": "a",
                "trigger_rule": "all_done",
                "environment_from": {"A": "a.output", "B": "a.exit_code"},
            },
        },
    )
    assert allowed_by(DOCUMENT, everything)
    assert Api(an_operator()).post("dags/", everything).status_code == 201


def test_what_is_told_of_a_job_is_what_the_schema_lists():
    job = Api(an_operator()).get(f"jobs/{JobFactory().pk}/").json()
    assert set(job) == set(COMPONENTS["Job"]["properties"])
    assert set(job) >= set(job_schemas.INPUT)
