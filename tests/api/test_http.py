"""What every address of the API does with requests that are not as they should be."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest
from django.db import OperationalError
from django.test import Client, override_settings
from django.test.client import MULTIPART_CONTENT, encode_multipart

from container_manager import lifecycle
from container_manager.api import jobs
from container_manager.models import ContainerJob
from tests.factories import JobFactory
from tests.support.api import ROOT, Api, an_operator, problem

pytestmark = pytest.mark.django_db

JSON = "application/json"
GOOD = b'{"image": "busybox", "command": ["true"]}'


@pytest.fixture
def api() -> Api:
    return Api(an_operator())


def send(api: Api, body: bytes, content_type: str = JSON, **headers: str) -> Any:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return api.client.generic("POST", f"{ROOT}jobs/", body, content_type, headers=named)


def refused(answer: Any, status: int, code: str) -> dict[str, Any]:
    told = problem(answer, status, code)
    assert not ContainerJob.objects.exists()
    return told


# Bodies -------------------------------------------------------------------------------------------

BAD_JSON = {
    "malformed": b'{"image": }',
    "cut off": GOOD[:-1],
    "trailing garbage": GOOD + b" x",
    "two documents": GOOD + GOOD,
    "the same key twice": b'{"image": "a", "image": "busybox", "command": ["true"]}',
    "the same key twice, deeper": b'{"image": "a", "command": ["true"], "labels": {"a":"","a":""}}',
    "NaN": b'{"image": "a", "command": ["true"], "cpu_limit": NaN}',
    "Infinity": b'{"image": "a", "command": ["true"], "cpu_limit": Infinity}',
    "-Infinity": b'{"image": "a", "command": ["true"], "cpu_limit": -Infinity}',
    "a number that becomes infinite": b'{"image": "a", "command": ["true"], "cpu_limit": 1e999}',
    "a number of 5,000 digits": b'{"image": "a", "priority": ' + b"9" * 5000 + b"}",
    "a byte order mark": b"\xef\xbb\xbf" + GOOD,
    "UTF-16": GOOD.decode().encode("utf-16"),
    "invalid UTF-8": b'{"image": "a", "command": ["\xff"]}',
    "an encoded surrogate": b'{"image": "a", "command": ["\xed\xa0\x80"]}',
    "a NUL": b'{"image": "a", "command": ["a\\u0000"]}',
    "a NUL in a key": b'{"image": "a", "command": ["a"], "environment": {"A\\u0000": ""}}',
    "a raw NUL": b'{"image": "a", "command": ["a\x00"]}',
    "a lone surrogate": b'{"image": "a", "command": ["\\ud800"]}',
    "a lone surrogate in a key": b'{"image": "a", "command": ["a"], "labels": {"\\udfff": ""}}',
    "a comment": b"/* */" + GOOD,
    "single quotes": GOOD.replace(b'"', b"'"),
    "100 levels": b'{"image": "a", "command": ' + b"[" * 100 + b"]" * 100 + b"}",
    "100,000 levels": b"[" * 100_000 + b"]" * 100_000,
    "100,000 objects": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "only blanks": b"   ",
}


@pytest.mark.parametrize("body", BAD_JSON.values(), ids=BAD_JSON)
def test_what_two_readers_could_read_differently_is_refused(body, api):
    told = refused(send(api, body), 400, "parse_error")
    assert told["detail"].startswith("The body is not JSON as it is read here: ")


def test_a_pair_of_surrogates_is_one_character(api):
    body = b'{"image": "a", "command": ["\\ud83d\\ude00"]}'
    assert send(api, body).json()["command"] == ["😀"]


@pytest.mark.parametrize(
    "content_type",
    [
        *("text/plain", "application/xml", "application/x-www-form-urlencoded", "text/json"),
        *("application/json; charset=utf-16", "application/json; charset=latin-1", "", "nonsense"),
        *("application/merge-patch+json", MULTIPART_CONTENT),
    ],
)
def test_another_content_type_or_charset_is_refused(content_type, api):
    answer = send(api, GOOD, content_type)
    refused(answer, 415, "unsupported_media_type")
    assert answer.headers["Accept-Post"] == JSON


@pytest.mark.parametrize(
    "content_type", [JSON, "application/json; charset=UTF-8", "Application/JSON"]
)
def test_json_in_utf_8_may_say_so(content_type, api):
    assert send(api, GOOD, content_type).status_code == 201


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "gzip, identity", "x"])
def test_a_compressed_body_is_refused_unread(coding, api):
    answer = send(api, b"\x1f\x8b" + b"\x00" * 1000, Content_Encoding=coding)
    refused(answer, 415, "unsupported_media_type")


def test_a_body_above_the_limit_is_refused(api, settings):
    settings.DATA_UPLOAD_MAX_MEMORY_SIZE = 1000
    body = json.dumps({"image": "a", "command": ["true"], "name": "n" * 1000}).encode()
    refused(send(api, body), 413, "too_large")


def test_a_form_is_refused_also_where_csrf_protection_has_read_it():
    client = Client(enforce_csrf_checks=True)
    client.force_login(an_operator())
    body = encode_multipart("boundary", {"csrfmiddlewaretoken": "x" * 32, "image": "a"})
    answer = client.post(f"{ROOT}jobs/", body, "multipart/form-data; boundary=boundary")
    refused(answer, 403, "permission_denied")


def test_a_form_without_fields_is_no_body(api):
    job = JobFactory()
    assert api.client.post(f"{ROOT}jobs/{job.pk}/kill/").status_code == 200
    assert api.client.post(f"{ROOT}jobs/{job.pk}/kill/", {"a": "b"}).status_code == 415


# Query strings, headers, addresses ----------------------------------------------------------------


@pytest.mark.parametrize(
    "query", ["search=%00", "search=a%00b", "%00=1", "label=a:%00", "limit=%00", "queue=%00"]
)
def test_a_nul_in_a_query_is_refused(query, api):
    problem(api.client.get(f"{ROOT}jobs/?{query}"), 400, "invalid")


@pytest.mark.parametrize("query", ["search=%ff", "search=%ed%a0%80", "search=%", "&&&", "=", "?"])
def test_a_query_that_is_not_text_breaks_nothing(query, api):
    assert api.client.get(f"{ROOT}jobs/?{query}").status_code in (200, 400)


def test_too_many_parameters_are_refused(api):
    query = "&".join(f"status=failed&x{n}=1" for n in range(1500))
    problem(api.client.get(f"{ROOT}jobs/?{query}"), 400, "bad_request")


@pytest.mark.parametrize("name", ["If-Match", "If-None-Match", "Idempotency-Key", "X-Anything"])
def test_a_nul_in_a_header_is_refused(name, api):
    answer = api.get(f"jobs/{JobFactory().pk}/", headers={name: "a\0b"})
    problem(answer, 400, "bad_request")


STRANGE_IDS = [
    *("1", "-1", "0", "9" * 400, "x", "%00", "%2e%2e%2f", "..%2f..", "null", "stats2", "%ff"),
    *("01a201a6-ff2c-7fa5-a94c-de54b1e7515", "01a201a6-ff2c-7fa5-a94c-de54b1e751599"),
    *("{01a201a6-ff2c-7fa5-a94c-de54b1e75159}", "urn:uuid:01a201a6-ff2c-7fa5-a94c-de54b1e75159"),
    *(
        "01a201a6-ff2c-7fa5-a94c-de54b1e75159%0a",
        "\u06601a201a6-ff2c-7fa5-a94c-de54b1e75159",
        "*",
        "'",
    ),
]


@pytest.mark.parametrize("job_id", STRANGE_IDS)
@pytest.mark.parametrize("below", ["", "/history", "/explain"])
def test_an_id_that_is_none_is_not_there(job_id, below, api):
    problem(api.client.get(f"{ROOT}jobs/{job_id}{below}"), 404, "not_found")


def test_an_id_may_be_written_in_capitals_and_without_dashes(api):
    job = JobFactory()
    for text in (str(job.pk).upper(), job.pk.hex):
        assert api.get(f"jobs/{text}/").json()["id"] == str(job.pk)


@pytest.mark.parametrize("address", ["jobs", "stats", "queues", "workers", "executors", "schema"])
def test_the_last_slash_is_optional(address, api):
    with_slash, without = (api.client.get(f"{ROOT}{address}{end}") for end in ("/", ""))
    assert with_slash.status_code == without.status_code == 200
    job = JobFactory()
    for below in ("", "/history", "/attempts", "/explain"):
        assert api.get(f"jobs/{job.pk}{below}").status_code == 200
    assert api.post(f"jobs/{job.pk}/kill").status_code == 200


@pytest.mark.parametrize("address", ["", "x", "jobs/x/y/z", "job", "v2/jobs", "jobs//", "%00", "."])
@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE", "OPTIONS", "HEAD", "NONSENSE"])
def test_an_address_that_leads_nowhere_is_a_problem_like_any_other(method, address, api):
    answer = api.client.generic(method, ROOT + address)
    if method == "HEAD":
        assert answer.status_code == 404
    else:
        problem(answer, 404, "not_found")


@override_settings(DEBUG=False)
def test_an_address_beside_the_api_is_a_problem_too(api):
    for address in ("/api/", "/api/v2/jobs/"):
        problem(api.client.get(address), 404, "not_found")
    assert api.client.get("/elsewhere").headers["Content-Type"].startswith("text/html")


# Methods ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "wrong", "allowed"),
    [
        ("jobs/", "PUT", "GET, HEAD, POST"),
        ("jobs/", "DELETE", "GET, HEAD, POST"),
        ("jobs/", "OPTIONS", "GET, HEAD, POST"),
        ("jobs/", "TRACE", "GET, HEAD, POST"),
        ("jobs/bulk/", "GET", "POST"),
        ("jobs/{}/", "PUT", "GET, HEAD, PATCH, DELETE"),
        ("jobs/{}/", "POST", "GET, HEAD, PATCH, DELETE"),
        ("jobs/{}/kill/", "GET", "POST"),
        ("jobs/{}/history/", "POST", "GET, HEAD"),
        ("jobs/{}/", "NONSENSE", "GET, HEAD, PATCH, DELETE"),
    ],
)
def test_a_method_that_a_resource_does_not_have_is_refused_with_those_it_has(
    address, wrong, allowed, api
):
    job = JobFactory()
    answer = api.send(wrong, address.format(job.pk))
    problem(answer, 405, "method_not_allowed")
    assert answer.headers["Allow"] == allowed
    job.refresh_from_db()
    assert job.version == 1


@pytest.mark.parametrize("header", ["X-HTTP-Method-Override", "X-HTTP-Method", "X-Method-Override"])
def test_no_header_makes_another_method_of_one(header, api):
    job = JobFactory()
    assert api.get(f"jobs/{job.pk}/", headers={header: "DELETE"}).status_code == 200
    answer = api.client.post(f"{ROOT}jobs/{job.pk}/", b"{}", JSON, headers={header: "PATCH"})
    problem(answer, 405, "method_not_allowed")
    job.refresh_from_db()
    assert job.status == "pending"


def test_head_is_get_without_a_body(api):
    job = JobFactory()
    answer = api.client.head(f"{ROOT}jobs/{job.pk}/")
    assert (answer.status_code, answer.content) == (200, b"")
    assert answer.headers["ETag"] == f'"{job.revision}"'


@pytest.mark.parametrize("accept", ["text/html", "application/xml", "*/*", "nonsense", "image/*"])
def test_there_is_one_form_of_an_answer_whatever_is_asked_for(accept, api):
    answer = api.get("jobs/", headers={"Accept": accept})
    assert (answer.status_code, answer.headers["Content-Type"]) == (200, JSON)
    problem(api.get("jobs/?format=xml"), 400, "invalid")


def test_no_answer_is_kept_by_a_cache_unasked(api):
    for answer in (api.get("jobs/"), api.get("jobs/x/")):
        assert answer.headers["Cache-Control"] == "private, no-cache"


# Errors of ours -----------------------------------------------------------------------------------


@pytest.mark.parametrize("debug", [True, False])
def test_a_bug_shows_nothing_of_itself_and_is_logged(debug, api, monkeypatch, caplog):
    def buggy(*_: Any) -> None:
        raise RuntimeError("SELECT secret FROM somewhere")

    monkeypatch.setattr(jobs, "read_page", buggy)
    with override_settings(DEBUG=debug), caplog.at_level(logging.ERROR, "container_manager"):
        answer = api.get("jobs/")
    problem(answer, 500, "internal_error")
    assert b"secret" not in answer.content
    assert b"Traceback" not in answer.content
    assert "SELECT secret FROM somewhere" in caplog.text


def test_a_database_that_is_away_is_503_with_a_time_to_come_back(api, monkeypatch):
    def away(*_: Any, **__: Any) -> None:
        raise OperationalError("connection refused at 10.0.0.1")

    monkeypatch.setattr(lifecycle, "submit", away)
    answer = send(api, GOOD)
    problem(answer, 503, "database_unavailable")
    assert answer.headers["Retry-After"] == "5"
    assert b"10.0.0.1" not in answer.content


@override_settings(ALLOWED_HOSTS=["good.example.org"])
def test_a_forged_host_is_refused_without_repeating_it():
    answer = Client().get(f"{ROOT}jobs/", headers={"Host": "evil.example.org"})
    problem(answer, 400, "bad_request")
    assert b"evil" not in answer.content
