"""Every refusal of the API as a problem document (RFC 9457): one shape, no trace, no SQL.

    {"type", "title", "status", "code", "detail", "errors": {field: [message, …]}, …}

`code` is the word for programs; `errors` is empty unless fields are at fault.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from functools import singledispatch
from typing import Any

from django.core.exceptions import (
    ObjectDoesNotExist,
    PermissionDenied,
    RequestDataTooBig,
    SuspiciousOperation,
    ValidationError,
)
from django.db import InterfaceError, OperationalError
from django.http import Http404, HttpRequest, HttpResponse
from django.views import defaults
from rest_framework import exceptions as rest

from container_manager.events.base import Unavailable
from container_manager.exceptions import (
    ContainerManagerError,
    KeyReused,
    ManagedByTask,
    MoveRefused,
    NameTaken,
    NotChangeable,
    RunExists,
    SpecError,
    StaleState,
)
from container_manager.states import JOB

logger = logging.getLogger("container_manager")

CONTENT_TYPE = "application/problem+json"
RETRY_AFTER_SECONDS = 5


class Problem(Exception):
    """A refusal: `more` stands beside the standard members of the document."""

    def __init__(
        self,
        status: int,
        code: str,
        detail: str,
        *,
        errors: Mapping[str, list[str]] | None = None,
        headers: Mapping[str, str] | None = None,
        **more: Any,
    ) -> None:
        super().__init__(detail)
        self.status, self.code, self.detail = status, code, detail
        self.errors, self.headers, self.more = dict(errors or {}), dict(headers or {}), more

    def as_json(self) -> dict[str, Any]:
        return {
            "type": f"urn:container-manager:problem:{self.code}",
            "title": self.code.replace("_", " ").capitalize(),
            "status": self.status,
            "code": self.code,
            "detail": self.detail,
            "errors": self.errors,
            **self.more,
        }


def invalid(errors: Mapping[str, list[str]], detail: str = "") -> Problem:
    """What was sent cannot be: 400, with the messages of each field."""
    told = detail or f"Not valid: {', '.join(errors)}."
    return Problem(400, "invalid", told, errors=errors)


def not_found() -> Problem:
    """The one answer for what is not there and for what this person may not see."""
    return Problem(404, "not_found", "There is nothing here.")


def not_permitted(detail: str = "You may see this, but not change it.") -> Problem:
    """The person is known and may not do this."""
    return Problem(403, "permission_denied", detail)


def respond(problem: Problem) -> HttpResponse:
    """The problem as a response."""
    body = json.dumps(problem.as_json(), ensure_ascii=False, default=str).encode()
    return HttpResponse(
        body, status=problem.status, content_type=CONTENT_TYPE, headers=problem.headers
    )


# What each exception means ------------------------------------------------------------------------


def handle(error: Exception, context: Mapping[str, Any]) -> HttpResponse:
    """DRF's exception handler: every exception becomes a problem, a bug is also logged."""
    problem = problem_of(error)
    if problem.status >= 500:
        _log(error, context.get("request"), expected=problem.status != 500)
    return respond(problem)


def _log(error: Exception, request: Any, expected: bool) -> None:
    """A database that is away is one line for each request, not a page."""
    asked = (getattr(request, "method", ""), getattr(request, "path", ""))
    if expected:
        logger.warning("%s %s: %s", *asked, str(error).strip())
    else:
        logger.error("%s %s", *asked, exc_info=error)


@singledispatch
def problem_of(error: Exception) -> Problem:
    """What the client is told; an exception nobody expected says nothing about itself."""
    return Problem(500, "internal_error", "Something went wrong here; it was written to the log.")


@problem_of.register
def _(error: Problem) -> Problem:
    return error


@problem_of.register(Http404)
@problem_of.register(ObjectDoesNotExist)
@problem_of.register(rest.NotFound)
def _(error: Exception) -> Problem:
    return not_found()


@problem_of.register(PermissionDenied)
@problem_of.register(rest.PermissionDenied)
def _(error: Exception) -> Problem:
    return not_permitted(str(error) or "You may not do this.")


@problem_of.register
def _(error: ValidationError) -> Problem:
    if not hasattr(error, "error_dict"):
        return Problem(400, "invalid", " ".join(error.messages))
    by_field = dict(error.message_dict)
    general = by_field.pop("__all__", [])
    return invalid(by_field, " ".join(general))


@problem_of.register
def _(error: NameTaken) -> Problem:
    by_field = dict(error.message_dict)
    return Problem(409, error.code, " ".join(error.messages), errors=by_field)


@problem_of.register
def _(error: SpecError) -> Problem:
    """What concerns the document as a whole has no path: it is the detail."""
    errors: dict[str, list[str]] = {}
    for problem in error.problems:
        line = "" if problem.line is None else f"line {problem.line}: "
        errors.setdefault(problem.path, []).append(line + problem.message)
    detail = " ".join(errors.pop("", [])) or f"The document of the DAG has {_mistakes(error)}."
    return Problem(400, error.code, detail, errors=errors)


def _mistakes(error: SpecError) -> str:
    count = len(error.problems)
    return "1 mistake" if count == 1 else f"{count} mistakes"


@problem_of.register
def _(error: MoveRefused) -> Problem:
    return _refused(error)


@problem_of.register
def _(error: ManagedByTask) -> Problem:
    return _refused(error, managed_by=getattr(error.entity, "managed_by", ""))


def _refused(error: MoveRefused, **more: Any) -> Problem:
    """With where it stands, and where that lets it go by its own table."""
    row = error.entity
    state = error.old or getattr(row, getattr(row, "state_field", ""), "")
    allowed = list(getattr(row, "machine", JOB).get_next_states(state))
    return Problem(
        409, error.code, str(error), current_state=state, allowed_transitions=allowed, **more
    )


@problem_of.register
def _(error: RunExists) -> Problem:
    return Problem(409, error.code, str(error), run=error.details["run"])


@problem_of.register
def _(error: StaleState) -> Problem:
    current = {
        name: getattr(error.entity, attribute)
        for name, attribute in (("current_revision", "revision"), ("current_version", "version"))
        if hasattr(error.entity, attribute)
    }
    return Problem(412, error.code, str(error), **current)


@problem_of.register
def _(error: NotChangeable) -> Problem:
    refused = ["Cannot be changed in this state any more."]
    told = dict.fromkeys(error.details["fields"], refused)
    state = error.details["entity"].status
    return Problem(
        409,
        error.code,
        str(error),
        errors=told,
        current_state=state,
        allowed_transitions=list(JOB.get_next_states(state)),
        changeable=error.details["allowed"],
    )


@problem_of.register
def _(error: KeyReused) -> Problem:
    return Problem(422, error.code, str(error))


@problem_of.register
def _(error: ContainerManagerError) -> Problem:
    return Problem(409, error.code, str(error))


@problem_of.register
def _(error: RequestDataTooBig) -> Problem:
    return Problem(413, "too_large", "The body is larger than what is accepted here.")


@problem_of.register
def _(error: SuspiciousOperation) -> Problem:
    return Problem(400, "bad_request", "The request cannot be understood.")


@problem_of.register(OperationalError)
@problem_of.register(InterfaceError)
@problem_of.register(Unavailable)
def _(error: Exception) -> Problem:
    return Problem(
        503,
        "database_unavailable",
        "The database does not answer; try again.",
        headers={"Retry-After": str(RETRY_AFTER_SECONDS)},
    )


@problem_of.register
def _(error: rest.APIException) -> Problem:
    headers = {}
    if wait := getattr(error, "wait", None):
        headers["Retry-After"] = str(int(wait) + 1)
    if challenge := getattr(error, "auth_header", None):
        headers["WWW-Authenticate"] = challenge
    code = error.default_code if error.status_code != 401 else "not_authenticated"
    return Problem(error.status_code, code, str(error.detail), headers=headers)


# Django's own error pages, below the API's addresses ----------------------------------------------

PREFIX = "/api/"


def bad_request(request: HttpRequest, exception: Exception) -> HttpResponse:
    """handler400 of the project."""
    if request.path.startswith(PREFIX):
        return respond(Problem(400, "bad_request", "The request cannot be understood."))
    return defaults.bad_request(request, exception)


def page_not_found(request: HttpRequest, exception: Exception) -> HttpResponse:
    """handler404 of the project."""
    if request.path.startswith(PREFIX):
        return respond(not_found())
    return defaults.page_not_found(request, exception)


def server_error(request: HttpRequest) -> HttpResponse:
    """handler500 of the project."""
    if request.path.startswith(PREFIX):
        return respond(problem_of(Exception()))
    return defaults.server_error(request)
