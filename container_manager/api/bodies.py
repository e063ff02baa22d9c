"""Reading the object of a request's body by its JSON schema: which members, of which types.

What a value must be beyond its type is said once, by the model's validators, for all doors.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from container_manager.api.errors import Problem, invalid
from container_manager.api.parameters import Schema, read_moment


def read_object(
    body: Any,
    properties: Mapping[str, Schema],
    *,
    required: Collection[str] = (),
    read_only: Collection[str] = (),
) -> dict[str, Any]:
    """The members of `body`, each of a type that its schema has. Raises Problem (400) by field."""
    if not isinstance(body, dict):
        raise Problem(400, "invalid", "The body must be a JSON object.")
    values: dict[str, Any] = {}
    errors = {name: "This field is required." for name in required if name not in body}
    for name, given in body.items():
        if name in properties:
            try:
                values[name] = _read(given, properties[name])
            except ValueError as error:
                errors[name] = str(error)
        else:
            errors[name] = _why_not(name, properties, read_only)
    if errors:
        raise invalid({name: [message] for name, message in errors.items()})
    return values


def _why_not(name: str, properties: Mapping[str, Schema], read_only: Collection[str]) -> str:
    if name in read_only:
        return "Read-only field."
    known = ", ".join(sorted(properties)) or "none here"
    return f"Unknown field; there are {known}."


def _read(given: Any, schema: Schema) -> Any:
    allowed = types_of(schema)
    if not allowed & _json_types(given):
        raise ValueError(f"Must be {' or '.join(_IN_WORDS[word] for word in sorted(allowed))}.")
    if isinstance(given, str) and schema.get("format") == "date-time":
        return read_moment(given)
    return given


def types_of(schema: Schema) -> set[str]:
    """The JSON types that a schema allows."""
    if "type" not in schema:
        return set().union(*(types_of(each) for each in schema["anyOf"]))
    named = schema["type"]
    return {named} if isinstance(named, str) else set(named)


def _json_types(value: Any) -> set[str]:
    if value is None:
        return {"null"}
    if isinstance(value, bool):
        return {"boolean"}
    if isinstance(value, int | float):
        return {"number", "integer"} if value == value // 1 else {"number"}
    return {_OTHERS[type(value)]}


_OTHERS: dict[type, str] = {str: "string", list: "array", dict: "object"}
_IN_WORDS = {
    "array": "a list",
    "boolean": "true or false",
    "integer": "a whole number",
    "null": "null",
    "number": "a number",
    "object": "an object",
    "string": "a string",
}
