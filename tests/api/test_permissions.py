"""Who may do what: every view says so, and every address of a job keeps it from strangers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest
from django.urls import URLPattern, URLResolver, get_resolver
from rest_framework.permissions import AllowAny, IsAuthenticated
from rest_framework.views import APIView

from container_manager.api.base import BaseView
from container_manager.models import ContainerJob
from tests.factories import JobFactory, UserFactory
from tests.support.api import Api, a_person, an_operator, problem

pytestmark = pytest.mark.django_db

OPEN = {"health", "live", "ready", "login", "schema", "docs"}
"""What anybody may ask, by the name of the address."""


def patterns(resolver: URLResolver, above: str = "") -> Iterator[tuple[str, URLPattern]]:
    for each in resolver.url_patterns:
        address = above + str(each.pattern)
        if isinstance(each, URLResolver):
            yield from patterns(each, address)
        else:
            yield address, each


API_PATTERNS = [
    pytest.param(pattern, id=address)
    for address, pattern in patterns(get_resolver())
    if address.startswith(("api/", "^health", "^metrics"))
]


@pytest.mark.parametrize("pattern", API_PATTERNS)
def test_every_view_says_who_may_use_it(pattern):
    view = getattr(pattern.callback, "cls", None)
    assert view is not None, "not a view of the API"
    assert issubclass(view, BaseView)
    said = [cls for cls in view.__mro__ if "permission_classes" in vars(cls)]
    assert said[0] is not APIView, "it has what the project happens to say"
    expected = AllowAny if pattern.name in OPEN else IsAuthenticated
    assert view.permission_classes[0] is expected


def test_the_project_s_own_defaults_change_nothing(settings):
    """DRF reads them when it is imported, so: nobody of ours has what APIView has."""
    policies = (
        *("authentication_classes", "permission_classes", "parser_classes", "renderer_classes"),
        *("throttle_classes", "content_negotiation_class", "versioning_class", "metadata_class"),
        "schema",
    )
    for name in policies:
        assert name in vars(BaseView), name


# Every address of one job, for everybody ----------------------------------------------------------

OF_A_JOB = {
    ("GET", ""): 200,
    ("PATCH", ""): 200,
    ("DELETE", ""): 200,
    ("POST", "queue/"): 200,
    ("POST", "cancel/"): 200,
    ("POST", "kill/"): 200,
    ("POST", "retry/"): 409,
    ("POST", "abandon/"): 409,
    ("GET", "history/"): 200,
    ("GET", "attempts/"): 200,
    ("GET", "explain/"): 200,
    ("GET", "logs/"): 200,
    ("GET", "logs/raw/"): 200,
}
"""What an operator gets of a pending job."""

EVERY_CALL = pytest.mark.parametrize(("method", "below"), OF_A_JOB)
UNSAFE_CALL = pytest.mark.parametrize(
    ("method", "below"), [call for call in OF_A_JOB if call[0] != "GET"]
)


def call(api: Api, method: str, below: str, job_id: Any) -> Any:
    body = {"name": "new"} if method == "PATCH" else None
    return api.send(method, f"jobs/{job_id}/{below}", body)


def unmoved(job: ContainerJob) -> bool:
    row = ContainerJob.objects.get(pk=job.pk)
    return (row.version, row.name) == (job.version, job.name)


def test_the_matrix_has_every_address_of_a_job():
    found = set()
    for address, pattern in patterns(get_resolver()):
        _, of_a_job, below = address.partition("(?P<pk>[^/]+)")
        if not of_a_job or "jobs" not in address:
            continue
        methods = getattr(pattern.callback, "actions", None) or {
            name
            for name in ("get", "post", "patch", "delete")
            if hasattr(pattern.callback.cls, name)
        }
        where = below.removesuffix("$").removesuffix("/?").strip("/")
        found |= {(name.upper(), f"{where}/" if where else "") for name in methods}
    assert {each for each in found if each[0] != "HEAD"} == set(OF_A_JOB)


@EVERY_CALL
def test_a_stranger_is_asked_who_he_is(method, below):
    job = JobFactory()
    for headers in ({}, {"Authorization": "Token 00"}, {"Authorization": "Basic eDp5"}):
        answer = call(Api(**headers), method, below, job.pk)
        problem(answer, 401, "not_authenticated")
        assert answer.headers["WWW-Authenticate"] == "Token"
    assert unmoved(job)


@EVERY_CALL
def test_the_job_of_another_is_not_there(method, below):
    api, job = Api(a_person()), JobFactory(created_by=UserFactory())
    foreign, unknown = (call(api, method, below, pk) for pk in (job.pk, uuid4()))
    problem(foreign, 404, "not_found")
    assert (foreign.status_code, foreign.content) == (unknown.status_code, unknown.content)
    told = [dict(answer.headers) for answer in (foreign, unknown)]
    assert all(len(each.pop("X-Request-ID")) == 36 for each in told)
    assert told[0] == told[1]
    assert unmoved(job)


@EVERY_CALL
def test_the_owner_and_an_operator_get_what_they_ask_for(method, below):
    ada = a_person()
    only_for_operators = below == "abandon/"
    for person in (ada, an_operator()):
        job = JobFactory(created_by=ada)
        expected = 403 if person is ada and only_for_operators else OF_A_JOB[method, below]
        assert call(Api(person), method, below, job.pk).status_code == expected


@EVERY_CALL
def test_who_may_see_every_job_may_not_change_one(method, below):
    job = JobFactory(created_by=UserFactory())
    answer = call(Api(a_person("view_containerjob")), method, below, job.pk)
    if method == "GET":
        assert answer.status_code == 200
    else:
        problem(answer, 403, "permission_denied")
        assert unmoved(job)


@UNSAFE_CALL
def test_a_session_changes_nothing_without_its_csrf_token(method, below):
    ada = a_person()
    job, api = JobFactory(created_by=ada), Api(ada)
    api.client.handler.enforce_csrf_checks = True
    problem(call(api, method, below, job.pk), 403, "permission_denied")
    assert unmoved(job)


def test_a_job_without_an_owner_is_for_operators():
    job = JobFactory(created_by=None)
    problem(Api(a_person()).get(f"jobs/{job.pk}/"), 404, "not_found")
    assert Api(an_operator()).get(f"jobs/{job.pk}/").status_code == 200


@pytest.mark.parametrize("address", ["jobs/", "jobs/bulk/", "jobs/stats/", "stats/", "x/"])
def test_collections_are_for_people_who_are_logged_in(address):
    for method in ("GET", "POST"):
        problem(Api().send(method, address), 401, "not_authenticated")
