"""Query parameters, strictly: each is declared, typed and described once; others are a 400.

A handler declares its parameters in `@operation(query=(…))`; the base view reads them into
`self.query` before the handler runs, and the OpenAPI document is made from the same declarations.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from container_manager.api.errors import invalid

Schema = dict[str, Any]

_WHOLE = re.compile(r"[+-]?[0-9]{1,30}")
_MOMENT = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt][0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]+)?"
    r"([Zz]|[+-][0-9]{2}:[0-9]{2})"
)


MOST_VALUES = 50
"""Of a parameter that may be repeated."""


class Unreadable(ValueError):
    """This text is not a value of the parameter; the message says what is."""


@dataclass(frozen=True)
class Parameter:
    """One query parameter: `read` makes a value of its text, or raises Unreadable."""

    name: str
    read: Callable[[str], Any]
    schema: Schema
    description: str
    default: Any = None
    many: bool = False
    """It may be given several times: `read` gives a list, and the value is all of them."""

    def value_of(self, given: Sequence[str]) -> Any:
        """The value of what was given for it."""
        if not self.many and len(given) > 1:
            raise Unreadable("May be given once only.")
        values = [self.read(text) for text in given]
        if not self.many:
            return values[0]
        found = [
            item for value in values for item in (value if isinstance(value, list) else [value])
        ]
        if len(found) > MOST_VALUES:
            raise Unreadable(f"Must not have more than {MOST_VALUES} values.")
        return found


def read_query(
    given: Mapping[str, Sequence[str]], parameters: Iterable[Parameter]
) -> dict[str, Any]:
    """The value of every parameter, its default where it is not given. Raises Problem (400)."""
    known = {parameter.name: parameter for parameter in parameters}
    values = {name: parameter.default for name, parameter in known.items()}
    errors: dict[str, list[str]] = {}
    for name, texts in given.items():
        try:
            values[name] = _parameter(known, name).value_of([_plain(text) for text in texts])
        except Unreadable as error:
            errors[name.replace("\0", "\\0")] = [str(error)]
    if errors:
        raise invalid(errors)
    return values


def _parameter(known: Mapping[str, Parameter], name: str) -> Parameter:
    if name not in known:
        allowed = f"there are {', '.join(sorted(known))}" if known else "there are none here"
        raise Unreadable(f"Unknown parameter; {allowed}.")
    return known[name]


def _plain(text: str) -> str:
    if "\0" in text:
        raise Unreadable("Must not contain NUL characters.")
    return text


# Kinds of parameters ------------------------------------------------------------------------------


def whole(
    name: str, low: int, high: int, description: str, *, default: int | None = None
) -> Parameter:
    """A whole number from `low` to `high`."""

    def read(text: str) -> int:
        if not _WHOLE.fullmatch(text) or not low <= int(text) <= high:
            raise Unreadable(f"Must be a whole number from {low} to {high}.")
        return int(text)

    schema: Schema = {"type": "integer", "minimum": low, "maximum": high}
    if default is not None:
        schema["default"] = default
    return Parameter(name, read, schema, description, default)


def number(
    name: str, low: float, high: float, description: str, *, default: float | None = None
) -> Parameter:
    """A number from `low` to `high`."""

    def read(text: str) -> float:
        try:
            value = float(text) if text.isascii() and "_" not in text else float("nan")
        except ValueError:
            value = float("nan")
        if not low <= value <= high:
            raise Unreadable(f"Must be a number from {low:g} to {high:g}.")
        return value

    schema: Schema = {"type": "number", "minimum": low, "maximum": high}
    if default is not None:
        schema["default"] = default
    return Parameter(name, read, schema, description, default)


def flag(name: str, description: str, *, default: bool | None = False) -> Parameter:
    """1 or true, 0 or false."""
    words = {"1": True, "true": True, "0": False, "false": False}

    def read(text: str) -> bool:
        if text not in words:
            raise Unreadable("Must be 1, 0, true or false.")
        return words[text]

    schema: Schema = {"enum": list(words), "type": "string"}
    if default is not None:
        schema["default"] = str(int(default))
    return Parameter(name, read, schema, description, default)


def word(
    name: str, allowed: Iterable[str], description: str, *, default: str | None = None
) -> Parameter:
    """One of a closed list."""
    words = list(allowed)

    def read(text: str) -> str:
        if text not in words:
            raise Unreadable(f"Must be one of {', '.join(words)}.")
        return text

    schema: Schema = {"type": "string", "enum": words}
    if default is not None:
        schema["default"] = default
    return Parameter(name, read, schema, description, default)


def words(name: str, allowed: Callable[[], Iterable[str]], description: str) -> Parameter:
    """Several of a closed list: repeated, or separated by commas."""

    def read(text: str) -> list[str]:
        found, known = text.split(","), list(allowed())
        for item in found:
            if item not in known:
                raise Unreadable(f"{item[:80]!r} is not one of {', '.join(known)}.")
        return found

    item = {"type": "string", "enum": list(allowed())}
    schema: Schema = {"type": "array", "items": item, "maxItems": MOST_VALUES}
    return Parameter(name, read, schema, description, many=True)


def names(name: str, pattern: re.Pattern[str], most: int, description: str) -> Parameter:
    """Several names of a form: repeated, or separated by commas."""

    def read(text: str) -> list[str]:
        for item in text.split(","):
            if len(item) > most or not pattern.fullmatch(item):
                raise Unreadable(f"{item[:80]!r} is not such a name.")
        return text.split(",")

    item = {"type": "string", "pattern": f"^{pattern.pattern}$", "maxLength": most}
    schema: Schema = {"type": "array", "items": item, "maxItems": MOST_VALUES}
    return Parameter(name, read, schema, description, many=True)


def text(name: str, most: int, description: str) -> Parameter:
    """Any text that is not empty."""

    def read(value: str) -> str:
        if not 0 < len(value) <= most:
            raise Unreadable(f"Must have from 1 to {most} characters.")
        return value

    schema = {"type": "string", "minLength": 1, "maxLength": most}
    return Parameter(name, read, schema, description)


def moment(name: str, description: str) -> Parameter:
    """A moment with its offset from UTC."""

    def read(given: str) -> datetime:
        try:
            return read_moment(given)
        except ValueError as error:
            raise Unreadable(str(error)) from None

    return Parameter(name, read, MOMENT, description)


MOMENT: Schema = {
    "type": "string",
    "format": "date-time",
    "examples": ["2026-01-31T08:00:00Z"],
}


def read_moment(given: str) -> datetime:
    """ISO 8601 with its offset, as UTC. Raises ValueError with what is wrong."""
    example = "a moment such as 2026-01-31T08:00:00Z"
    if not _MOMENT.fullmatch(given):
        hint = " (in an address `+` is written %2B)" if " " in given else ""
        raise ValueError(f"Must be {example}, with its offset from UTC{hint}.")
    try:
        return datetime.fromisoformat(given.upper()).astimezone(UTC)
    except (ValueError, OverflowError):
        raise ValueError(f"There is no such moment; give {example}.") from None
