"""Bulk requests: one verb on many ids, or on what a filter selects; a result for each job."""

from __future__ import annotations

from collections import Counter
from typing import Any
from uuid import UUID

from rest_framework.request import Request

from container_manager import bulk
from container_manager.api.base import actor, read_id
from container_manager.api.bodies import read_object
from container_manager.api.errors import Problem, invalid
from container_manager.api.job_query import FILTERS, select
from container_manager.api.operations import UUID_SCHEMA, component
from container_manager.api.parameters import Parameter, Schema, read_query
from container_manager.bulk import Verb
from container_manager.lifecycle import Stopped

MOST = 10_000


def act(request: Request) -> dict[str, Any]:
    """Do what the body asks for. Raises Problem (400)."""
    verb, ids = _read(request)
    results = list(bulk.act(verb, ids, actor=actor(request), user=request.user))
    counts = Counter(str(result.word) for result in results)
    return {"results": [result.as_json() for result in results], "counts": counts}


def _read(request: Request) -> tuple[Verb, list[UUID]]:
    body = read_object(request.data, _BODY, required=["verb"])
    if body["verb"] not in Verb.values:
        raise invalid({"verb": [f"Must be one of {', '.join(Verb.values)}."]})
    if ("ids" in body) == ("filter" in body):
        raise Problem(400, "invalid", "Give either `ids` or `filter`.")
    ids = _named(body["ids"]) if "ids" in body else _selected(request.user, body["filter"])
    return Verb(body["verb"]), ids


def _named(given: list[Any]) -> list[UUID]:
    if not 1 <= len(given) <= MOST:
        raise invalid({"ids": [f"Must be from 1 to {MOST} ids."]})
    errors: dict[str, list[str]] = {}
    ids = []
    for index, text in enumerate(given):
        try:
            ids.append(read_id(text if isinstance(text, str) else ""))
        except Problem:
            errors[f"ids[{index}]"] = ["Must be the id of a job."]
    if errors:
        raise invalid(errors, "Some ids are none.")
    return ids


def _selected(user: Any, given: dict[str, Any]) -> list[UUID]:
    if not given:
        raise invalid({"filter": ["Must name at least one filter."]})
    try:
        jobs = select(user, read_query(_as_texts(given), FILTERS)).jobs
    except Problem as problem:
        errors = {f"filter.{name}": told for name, told in problem.errors.items()}
        raise invalid(errors) from None
    ids = list(jobs.order_by("pk").values_list("pk", flat=True)[: MOST + 1])
    if len(ids) > MOST:
        raise invalid({"filter": [f"Selects more than {MOST} jobs: narrow it."]})
    return ids


def _as_texts(given: dict[str, Any]) -> dict[str, list[str]]:
    """The members of a filter as a query string would give them."""
    texts = {name: value if isinstance(value, list) else [value] for name, value in given.items()}
    for name, values in texts.items():
        if not values or not all(isinstance(text, str) for text in values):
            raise invalid({name: ["Must be a string, or a list of strings."]})
    return texts


# The schemas --------------------------------------------------------------------------------------


def _as_member(parameter: Parameter) -> Schema:
    """What a query parameter is in a JSON object: one value, or a list where it may be repeated."""
    if not parameter.many:
        return parameter.schema
    items = parameter.schema["items"]
    return {"anyOf": [items, {**parameter.schema, "minItems": 1}]}


_BODY: dict[str, Schema] = {
    "verb": {"type": "string", "enum": Verb.values},
    "ids": {"type": "array", "items": UUID_SCHEMA, "minItems": 1, "maxItems": MOST},
    "filter": {
        "type": "object",
        "description": "The filters of the list of jobs.",
        "minProperties": 1,
        "additionalProperties": False,
        "properties": {parameter.name: _as_member(parameter) for parameter in FILTERS},
    },
}
REQUEST = component(
    "BulkRequest",
    {
        "type": "object",
        "required": ["verb"],
        "additionalProperties": False,
        "properties": _BODY,
        "oneOf": [{"required": ["ids"]}, {"required": ["filter"]}],
    },
)
ANSWER = component(
    "BulkAnswer",
    {
        "type": "object",
        "required": ["results", "counts"],
        "properties": {
            "results": {
                "type": "array",
                "items": {
                    "type": "object",
                    "required": ["id", "result", "detail"],
                    "properties": {
                        "id": UUID_SCHEMA,
                        "result": {"type": "string", "enum": [str(word) for word in Stopped]},
                        "detail": {"type": "string"},
                    },
                },
            },
            "counts": {
                "type": "object",
                "description": "How many results of each kind there are.",
                "additionalProperties": {"type": "integer", "minimum": 1},
            },
        },
    },
)
