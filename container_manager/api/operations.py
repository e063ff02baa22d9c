"""What each handler takes and answers, declared once: the view reads by it, the document shows it.

@operation("Kill the job", query=(WAIT,), answers={200: JOB, 202: JOB}, problems=(409,))
def kill(self, request: Request, pk: str) -> Response: …
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from inspect import cleandoc
from typing import Any, TypeVar

from drf_spectacular.openapi import AutoSchema
from drf_spectacular.utils import OpenApiParameter, OpenApiResponse
from rest_framework.permissions import AllowAny

from container_manager import sse
from container_manager.api.errors import CONTENT_TYPE
from container_manager.api.parameters import Parameter, Schema

F = TypeVar("F", bound=Callable[..., Any])

COMPONENTS: dict[str, Schema] = {}
"""The named schemas of the document."""


def component(name: str, schema: Schema) -> Schema:
    """Give a schema a name in the document; returns the reference to it."""
    COMPONENTS[name] = schema
    return {"$ref": f"#/components/schemas/{name}"}


PROBLEM = component(
    "Problem",
    {
        "type": "object",
        "description": "A refusal (RFC 9457). `code` is the word for programs.",
        "required": ["type", "title", "status", "code", "detail", "errors"],
        "properties": {
            "type": {"type": "string", "format": "uri"},
            "title": {"type": "string"},
            "status": {"type": "integer", "minimum": 400, "maximum": 599},
            "code": {"type": "string"},
            "detail": {"type": "string"},
            "errors": {
                "type": "object",
                "description": "The messages of each field that is at fault.",
                "additionalProperties": {"type": "array", "items": {"type": "string"}},
            },
            "current_state": {"type": "string", "description": "With 409."},
            "run": {
                "type": "string",
                "format": "uuid",
                "description": "With 409 `run_exists`: the run that there is.",
            },
            "managed_by": {
                "type": "string",
                "description": "With 409 `managed_by_task`: the task, as `task:…` with its id.",
            },
            "allowed_transitions": {
                "type": "array",
                "items": {"type": "string"},
                "description": "With 409: the states it may go to.",
            },
            "changeable": {
                "type": "array",
                "items": {"type": "string"},
                "description": "With 409 `not_changeable`: the fields that may change.",
            },
            "current_revision": {"type": "string", "description": "With 412."},
            "current_version": {"type": "integer", "description": "With 412."},
        },
    },
)

NO_BODY = component(
    "Nothing",
    {"type": "object", "additionalProperties": False, "description": "There is nothing to say."},
)

MEANINGS = {
    400: "The request cannot be: unknown or wrong parameters, fields or JSON.",
    401: "Nobody is logged in, or the token is not valid.",
    403: "This person may not do this.",
    404: "There is nothing here, or this person may not see it.",
    405: "The resource does not have this method.",
    409: "Its state does not allow it.",
    412: "It changed since it was read (`If-Match`).",
    413: "The body is too large.",
    415: "The body is not JSON in UTF-8.",
    416: "There is no such range.",
    422: "This Idempotency-Key was used for another request.",
    429: "Too many requests; see `Retry-After`.",
    500: "Something went wrong here.",
    501: "This server cannot stream: it does not run under ASGI.",
    503: "The database does not answer; see `Retry-After`.",
}
WITH_BODY = {400, 413, 415}
ALWAYS = {400, 500, 503}


@dataclass(frozen=True)
class Header:
    """A header of a request (`required` says whether it must be there) or of an answer."""

    name: str
    schema: Schema
    description: str
    statuses: tuple[int, ...] = ()
    """Of an answer: with which statuses it comes; empty: it belongs to the request."""


@dataclass(frozen=True)
class Operation:
    """One method of one resource."""

    summary: str
    answers: Mapping[int, Schema | None]
    """Schema of each good answer; None: no body."""
    query: tuple[Parameter, ...] = ()
    body: Schema | None = None
    body_required: bool = True
    problems: frozenset[int] = frozenset()
    headers: tuple[Header, ...] = ()
    media_type: str = "application/json"
    body_types: tuple[str, ...] = ("application/json",)
    tag: str = ""
    meanings: Mapping[int, str] = field(default_factory=dict)
    stream: Schema | None = None
    """What it may answer with 200 instead, as Server-Sent Events."""

    def all_problems(self, *, is_open: bool, has_path: bool) -> list[int]:
        """Every refusal that it can give."""
        found = ALWAYS | self.problems
        found |= WITH_BODY if self.body is not None else set()
        found |= set() if is_open else {401, 403}
        return sorted(found | ({404} if has_path else set()))


def operation(
    summary: str,
    *,
    answers: Mapping[int, Schema | None],
    query: Iterable[Parameter] = (),
    body: Schema | None = None,
    body_required: bool = True,
    problems: Iterable[int] = (),
    headers: Iterable[Header] = (),
    media_type: str = "application/json",
    body_types: Iterable[str] = ("application/json",),
    tag: str = "",
    meanings: Mapping[int, str] | None = None,
    stream: Schema | None = None,
) -> Callable[[F], F]:
    """Declare a handler; its docstring is the description."""
    declared = Operation(
        summary,
        answers,
        query=tuple(query),
        body=body,
        body_required=body_required,
        problems=frozenset(problems),
        headers=tuple(headers),
        media_type=media_type,
        body_types=tuple(body_types),
        tag=tag,
        meanings=meanings or {},
        stream=stream,
    )

    def declare(handler: F) -> F:
        handler.operation = declared  # type: ignore[attr-defined]
        return handler

    return declare


def operation_of(view: Any, method: str) -> Operation | None:
    """What the view declares for this HTTP method."""
    name = getattr(view, "action", method.lower())
    return getattr(getattr(view, name or "", None), "operation", None)


class Schema31(AutoSchema):
    """drf-spectacular's schema of a view, read from the declarations of its handlers."""

    @property
    def declared(self) -> Operation:
        found = operation_of(self.view, self.method)
        if found is None:
            raise TypeError(f"{type(self.view).__name__}: {self.method} has no @operation")
        return found

    def is_excluded(self) -> bool:
        return bool(getattr(self.view, "undocumented", False))

    def get_operation_id(self) -> str:
        parts = self.path.removeprefix(self.path_prefix.removeprefix("^")).strip("/").split("/")
        if hasattr(self.view, "action"):
            return f"{parts[0].replace('-', '_')}_{self.view.action}"
        words = [part.replace("-", "_") for part in parts if not part.startswith("{")]
        of_one = ["one"] if parts[-1].startswith("{") else []
        return "_".join([*words, self.method.lower(), *of_one])

    def get_summary(self) -> str:
        return self.declared.summary

    def get_description(self) -> str:  # type: ignore[override]
        action = getattr(self.view, "action", None) or self.method.lower()
        return cleandoc(getattr(self.view, action).__doc__ or "")

    def _is_list_view(self, serializer: Any = None) -> bool:
        return False  # pages are declared as what they are

    def get_tags(self) -> list[str]:
        return [self.declared.tag or getattr(self.view, "tag", "")]

    def get_request_serializer(self) -> Any:
        body = self.declared.body
        return None if body is None else dict.fromkeys(self.declared.body_types, body)

    def _get_request_body(self, *args: Any, **kwargs: Any) -> Any:
        body = super()._get_request_body(*args, **kwargs)  # type: ignore[no-untyped-call]
        return body and {**body, "required": self.declared.body_required}

    def get_response_serializers(self) -> Any:
        good = {
            (str(status), self.declared.media_type): OpenApiResponse(
                schema, description=self.declared.meanings.get(status, GOOD.get(status, "Done."))
            )
            for status, schema in self.declared.answers.items()
        }
        if self.declared.stream is not None:
            good["200", sse.MEDIA_TYPE] = OpenApiResponse(self.declared.stream)
        bad = {
            (str(status), CONTENT_TYPE): OpenApiResponse(
                PROBLEM, description=self.declared.meanings.get(status, MEANINGS[status])
            )
            for status in self.problems()
        }
        return dict(sorted((good | bad).items()))

    def problems(self) -> list[int]:
        """Every refusal of this operation."""
        is_open = AllowAny in self.view.permission_classes
        return self.declared.all_problems(is_open=is_open, has_path="{" in self.path)

    def get_override_parameters(self) -> list[Any]:
        query = [_query_parameter(parameter) for parameter in self.declared.query]
        return query + [_header_parameter(header) for header in self.declared.headers]

    def _resolve_path_parameters(self, variables: list[str]) -> list[Any]:
        known = getattr(self.view, "path_parameters", {})
        return [
            {"in": "path", "name": name, "required": True, "schema": known.get(name, UUID_SCHEMA)}
            for name in variables
        ]


UUID_SCHEMA: Schema = {"type": "string", "format": "uuid"}
GOOD = {
    200: "Done.",
    201: "Made.",
    202: "Asked for; it is not done yet.",
    206: "A part of it.",
    304: "It is as it was (`If-None-Match`).",
}


def _query_parameter(parameter: Parameter) -> OpenApiParameter:
    return OpenApiParameter(
        parameter.name,
        parameter.schema,
        OpenApiParameter.QUERY,
        description=parameter.description,
        style="form" if parameter.many else None,
        explode=True if parameter.many else None,
    )


def _header_parameter(header: Header) -> OpenApiParameter:
    return OpenApiParameter(
        header.name,
        header.schema,
        OpenApiParameter.HEADER,
        description=header.description,
        response=list(header.statuses) or False,
    )


def finish_document(result: dict[str, Any], **_: Any) -> dict[str, Any]:
    """A postprocessing hook of drf-spectacular: named schemas, and ways on from what was made."""
    result["components"].setdefault("schemas", {}).update(COMPONENTS)
    for path, methods in result["paths"].items():
        made = methods.get("post", {}).get("responses", {}).get("201")
        if made is not None and (links := _links(result["paths"], f"{path}{{id}}/")):
            made["links"] = links
    return result


def _links(paths: dict[str, Any], below: str) -> dict[str, Any]:
    return {
        each["operationId"]: {
            "operationId": each["operationId"],
            "parameters": {"id": "$response.body#/id"},
        }
        for path, methods in paths.items()
        if path.startswith(below)
        for each in methods.values()
    }
