"""What all views of the API share; nothing here depends on the project's REST_FRAMEWORK.

Default deny: a view that says nothing else is for people who are logged in. Query parameters that a
handler does not declare are refused, and so is every body that is not strict JSON.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from typing import Any, ClassVar
from uuid import UUID

from django.http import HttpRequest
from rest_framework.negotiation import BaseContentNegotiation
from rest_framework.permissions import IsAuthenticated
from rest_framework.renderers import BaseRenderer
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView
from rest_framework.viewsets import ViewSetMixin

from container_manager import journal
from container_manager.api import errors
from container_manager.api.authentication import SessionAuthentication, TokenAuthentication
from container_manager.api.errors import Problem, not_found, not_permitted
from container_manager.api.operations import Schema31, operation_of
from container_manager.api.parameters import Schema, read_query
from container_manager.api.parsing import StrictJSONParser, StrictRequest
from container_manager.models import ContainerJob, access


class JSONRenderer(BaseRenderer):
    """Compact JSON; what is not JSON is shown as text (ids) or ISO 8601 (moments)."""

    media_type = "application/json"
    format = "json"
    charset = None

    def render(self, data: Any, media_type: Any = None, renderer_context: Any = None) -> bytes:
        if data is None:
            return b""
        text = json.dumps(data, default=plain, ensure_ascii=False, separators=(",", ":"))
        return text.encode()


def plain(value: Any) -> str:
    """A value that JSON does not have, as a string."""
    return str(value.isoformat()) if hasattr(value, "isoformat") else str(value)


class FirstRenderer(BaseContentNegotiation):
    """There is one form of each answer; what the client would rather have does not matter."""

    def select_parser(self, request: Request, parsers: Any) -> Any:
        return parsers[0]

    def select_renderer(self, request: Request, renderers: Any, format_suffix: Any = None) -> Any:
        return renderers[0], renderers[0].media_type


class BaseView(APIView):
    """One resource; its handlers are declared with `@operation`."""

    authentication_classes: Sequence[Any] = (TokenAuthentication, SessionAuthentication)
    permission_classes: Sequence[Any] = (IsAuthenticated,)
    parser_classes = (StrictJSONParser,)
    renderer_classes: Sequence[Any] = (JSONRenderer,)
    content_negotiation_class = FirstRenderer
    throttle_classes: Sequence[Any] = ()
    versioning_class = None
    metadata_class = None
    schema = Schema31()
    http_method_names = ["get", "head", "post", "patch", "delete"]

    tag: ClassVar[str] = ""
    """Under which heading the document shows it."""
    undocumented: ClassVar[bool] = False
    path_parameters: ClassVar[dict[str, Schema]] = {}
    """JSON schemas of the parts of the path that are no ids."""

    query: dict[str, Any]
    """The query parameters that the handler declared, read."""

    def initialize_request(self, request: HttpRequest, *args: Any, **kwargs: Any) -> Request:
        return StrictRequest(
            request,
            parsers=self.get_parsers(),
            authenticators=self.get_authenticators(),
            negotiator=self.get_content_negotiator(),
            parser_context=self.get_parser_context(request),
        )

    def initial(self, request: Request, *args: Any, **kwargs: Any) -> None:
        _refuse_nul_in_headers(request)
        super().initial(request, *args, **kwargs)
        declared = operation_of(self, request.method or "")
        if declared is not None:
            self.query = read_query(dict(request.query_params.lists()), declared.query)

    def perform_authentication(self, request: Request) -> None:
        super().perform_authentication(request)
        journal.note(user=request.user.get_username())

    def get_exception_handler(self) -> Callable[..., Any]:
        return errors.handle

    def finalize_response(self, request: Request, response: Any, *args: Any, **kwargs: Any) -> Any:
        response = super().finalize_response(request, response, *args, **kwargs)
        response.headers.setdefault("Cache-Control", "private, no-cache")
        return response

    def get_view_name(self) -> str:
        return type(self).__name__


class BaseViewSet(ViewSetMixin, BaseView):
    """A collection and its members."""


class NothingHere(BaseView):
    """Every address below the API that leads nowhere."""

    undocumented = True
    http_method_names = ["get", "head", "post", "put", "patch", "delete", "options"]

    def http_method_not_allowed(self, request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
        raise not_found()


def _refuse_nul_in_headers(request: Request) -> None:
    for name, value in request.META.items():
        if name.startswith("HTTP_") and "\0" in str(value):
            raise Problem(400, "bad_request", "A header contains a NUL character.")


# What this person may see -------------------------------------------------------------------------

_UUID = re.compile(r"[0-9a-f]{8}-?(?:[0-9a-f]{4}-?){3}[0-9a-f]{12}", re.IGNORECASE)


def is_id(text: str) -> bool:
    """Could it be the id of something?"""
    return _UUID.fullmatch(text) is not None


def read_id(text: str) -> UUID:
    """The id that an address names. Raises Problem (404)."""
    if not is_id(text):
        raise not_found()
    return UUID(text)


def find(request: Request, pk: str, rows: Any) -> Any:
    """The one of these rows, if this person may see it; else the same 404 as for an unknown id."""
    found = rows.visible_to(request.user).filter(pk=read_id(pk)).first()
    if found is None:
        raise not_found()
    return found


def find_job(request: Request, pk: str, jobs: Any = None) -> ContainerJob:
    """The job, if this person may see it. `jobs`: to read it with other columns than all."""
    of_all = ContainerJob.objects.select_related("created_by") if jobs is None else jobs
    return find(request, pk, of_all)  # type: ignore[no-any-return]


def find_changeable_job(request: Request, pk: str) -> ContainerJob:
    """The same, if this person may also change and move it. Raises Problem (403, 404)."""
    job = find_job(request, pk)
    refuse_unless_changeable(request, job)
    return job


def refuse_unless_changeable(request: Request, row: Any) -> None:
    """Only who may change this job or DAG goes on. Raises Problem (403)."""
    if not access.may_change(request.user, row):
        raise not_permitted()


def actor(request: Request) -> str:
    """Whom the history names."""
    return f"api:{request.user.get_username()}"


def refuse_unless_operator(request: Request) -> None:
    """Only operators go on. Raises Problem (403)."""
    if not access.operates(request.user):
        raise not_permitted("Only operators may do this.")


__all__ = [
    "BaseView",
    "BaseViewSet",
    "NothingHere",
    "Response",
    "actor",
    "find",
    "find_changeable_job",
    "find_job",
    "is_id",
    "read_id",
    "refuse_unless_changeable",
    "refuse_unless_operator",
]
