"""From text to a document: YAML, and JSON as a part of it; nothing is built but plain data.

Plain words are read by the core schema of YAML 1.2: `yes`, `on`, `12:30` and `2026-01-01` are
strings. Keys are always strings, as written. Every mistake is a SpecError.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from typing import Any, NoReturn

import yaml
from yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    Event,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
)

from container_manager.exceptions import Problem, SpecError

MAX_BYTES = 2 * 1024 * 1024
MAX_DEPTH = 50
MAX_ALIASED = 100_000
"""Values that aliases may add to a document; their texts may not add more than MAX_BYTES."""
LONGEST_NUMBER = 40

Place = tuple[str | int, ...]
"""Keys and indexes from the root: ("tasks", "load", "depends_on", 0)."""

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def read(text: str | bytes) -> dict[str, Any]:
    """The document that a text holds. Raises SpecError."""
    text = _decoded(text)
    document = _plain_json(text)
    if document is None:
        document = _Composer(text).document()
    if not isinstance(document, dict):
        raise _mistake("Must be a mapping with `name` and `tasks`.")
    return document


def lines(text: str | bytes) -> dict[Place, int]:
    """In which line (from 1) each value begins, or its key; as far as the text can be read."""
    found: dict[Place, int] = {}
    with suppress(SpecError):
        _Composer(_decoded(text), found.setdefault).document()
    return found


def is_too_deep(document: Any) -> bool:
    """Deeper than MAX_DEPTH, looked at level by level."""
    level = [document]
    for _ in range(MAX_DEPTH):
        level = [inner for value in level for inner in _inside(value) if _holds(inner)]
        if not level:
            return False
    return True


def dotted(place: Place) -> str:
    """
    >>> dotted(("tasks", "load", "depends_on", 0))
    'tasks.load.depends_on[0]'
    """
    parts = (f"[{part}]" if isinstance(part, int) else f".{_shown(part)}" for part in place)
    return "".join(parts).removeprefix(".")


def _shown(key: str) -> str:
    """Also a key that no answer could be written with."""
    return key[:100] if key[:100].isprintable() else repr(key[:100])


def _holds(value: Any) -> bool:
    return isinstance(value, dict | list | tuple)


def _inside(value: Any) -> Collection[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if _holds(value) else ()


def _mistake(message: str, line: int | None = None, place: Place = ()) -> SpecError:
    return SpecError([Problem(dotted(place), message, line)])


def _decoded(text: str | bytes) -> str:
    try:
        size = len(text) if isinstance(text, bytes) else len(text.encode())
        text = text.decode() if isinstance(text, bytes) else text
    except UnicodeError as error:
        raise _mistake("Must be UTF-8.") from error
    if size > MAX_BYTES:
        raise _mistake(f"Must not be longer than {MAX_BYTES // 1024**2} MiB.")
    if "\0" in text:
        raise _mistake("Must not contain NUL characters.")
    return text.removeprefix("\ufeff")


# JSON: many times faster than as YAML -------------------------------------------------------------


def _plain_json(text: str) -> Any:
    """None when it is not sound JSON: read as YAML it is told what is wrong, and where."""
    if not text.lstrip().startswith("{"):
        return None
    try:
        document = json.loads(
            text, object_pairs_hook=_unique, parse_float=_finite, parse_constant=_no_constant
        )
    except SpecError:
        raise
    except (ValueError, RecursionError):
        return None
    return None if is_too_deep(document) else document


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("a key is given twice")
    return made


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise _mistake(f"{digits[:LONGEST_NUMBER]} is not a finite number.")
    return value


def _no_constant(word: str) -> NoReturn:
    raise _mistake(f"{word} is not a finite number.")


# YAML ---------------------------------------------------------------------------------------------

_STANDARD = "tag:yaml.org,2002:"
_WORDS = {
    **dict.fromkeys(["", "~", "null", "Null", "NULL"]),
    **dict.fromkeys(["true", "True", "TRUE"], True),
    **dict.fromkeys(["false", "False", "FALSE"], False),
}
_INTEGER = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)")
_NUMBERS_BEGIN_WITH = frozenset("+-.0123456789")


class _Open:
    """A mapping or a list whose end has not come yet."""

    __slots__ = ("anchor", "before", "key", "value")

    def __init__(self, value: Any, anchor: str | None, before: tuple[int, int]) -> None:
        self.value = value
        self.anchor = anchor
        self.before = before
        """Values and characters counted before it began."""
        self.key: str | None = None
        """Of a mapping, while its value has not come."""


class _Composer:
    """Makes plain data of the parser's events, one after the other: no depth is too deep for it."""

    def __init__(self, text: str, note: Callable[[Place, int], Any] | None = None) -> None:
        self._text = text
        self._note = note
        self._open: list[_Open] = []
        self._anchored: dict[str, tuple[Any, int, int]] = {}
        self._values = self._characters = 0
        self._aliased_values = self._aliased_characters = 0
        self._root: Any = None
        self._has_begun = False

    def document(self) -> Any:
        """The one document of the text; None when it is empty. Raises SpecError."""
        handlers: dict[type[Event], Callable[[Any], None]] = {
            ScalarEvent: self._scalar,
            MappingStartEvent: self._begin_mapping,
            MappingEndEvent: self._end,
            SequenceStartEvent: self._begin_list,
            SequenceEndEvent: self._end,
            AliasEvent: self._alias,
            DocumentStartEvent: self._begin_document,
        }
        for event in self._events():
            handler = handlers.get(type(event))
            if handler is not None:
                handler(event)
        return self._root

    def _events(self) -> Iterator[Event]:
        try:
            yield from yaml.parse(self._text, Loader=_LOADER)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            message = f"Not valid YAML: {error.problem or error.context}."
            raise _mistake(message, mark.line + 1 if mark else None) from error
        except yaml.YAMLError as error:
            raise _mistake(f"Not valid YAML: {str(error).splitlines()[0]}.") from error

    # What the events say

    def _scalar(self, event: ScalarEvent) -> None:
        self._values += 1
        self._characters += len(event.value)
        around = self._open[-1] if self._open else None
        if around is not None and around.key is None and isinstance(around.value, dict):
            self._begin_pair(around, event)
        else:
            value = self._value(event)
            self._remember(event.anchor, value, 1, len(event.value))
            self._put(value, event)

    def _begin_mapping(self, event: MappingStartEvent) -> None:
        self._begin({}, "map", event)

    def _begin_list(self, event: SequenceStartEvent) -> None:
        self._begin([], "seq", event)

    def _begin(self, value: Any, kind: str, event: Any) -> None:
        if event.tag not in (None, "!", _STANDARD + kind):
            raise self._refused(event)
        self._begin_value(event)
        if len(self._open) == MAX_DEPTH:
            raise self._wrong(f"Must not be nested deeper than {MAX_DEPTH}.", event)
        before = (self._values, self._characters)
        self._open.append(_Open(value, event.anchor, before))
        self._values += 1

    def _end(self, event: Event) -> None:
        ended = self._open.pop()
        values, characters = ended.before
        self._remember(
            ended.anchor, ended.value, self._values - values, self._characters - characters
        )
        self._put(ended.value, event)

    def _alias(self, event: AliasEvent) -> None:
        self._begin_value(event)
        if event.anchor not in self._anchored:
            raise self._wrong(
                f"*{str(event.anchor)[:80]} names nothing that stands before it.", event
            )
        value, values, characters = self._anchored[event.anchor]
        self._values += values
        self._characters += characters
        self._aliased_values += values
        self._aliased_characters += characters
        if self._aliased_values > MAX_ALIASED or self._aliased_characters > MAX_BYTES:
            raise self._wrong("Its aliases make too much of it.", event)
        self._put(value, event)

    def _begin_document(self, event: DocumentStartEvent) -> None:
        if self._has_begun:
            raise self._wrong("Must be one document.", event)
        self._has_begun = True

    # Putting it together

    def _remember(self, anchor: str | None, value: Any, values: int, characters: int) -> None:
        if anchor is not None:
            self._anchored[anchor] = (value, values, characters)

    def _begin_pair(self, around: _Open, event: ScalarEvent) -> None:
        key = event.value
        if key in around.value:
            raise self._wrong(f"{key[:80]!r} is given twice.", event)
        if event.tag not in (None, "!", _STANDARD + "str"):
            raise self._refused(event)
        self._remember(event.anchor, key, 1, len(key))
        around.key = key
        self._tell(event)

    def _begin_value(self, event: Any) -> None:
        """A mapping, a list or an alias begins; none of them may be a key."""
        around = self._open[-1] if self._open else None
        if around is not None and isinstance(around.value, list):
            self._tell(event)
        elif around is not None and around.key is None:
            raise self._wrong("A key must be a string.", event)

    def _put(self, value: Any, event: Any) -> None:
        if not self._open:
            self._root = value
            return
        around = self._open[-1]
        if around.key is None:
            if type(event) is ScalarEvent:
                self._tell(event)
            around.value.append(value)
        else:
            around.value[around.key] = value
            around.key = None

    def _value(self, event: ScalarEvent) -> Any:
        if event.tag not in (None, "!"):
            if event.tag != _STANDARD + "str":
                raise self._refused(event)
            return event.value
        if event.style not in (None, "") or event.tag == "!":
            return event.value
        return self._resolved(event)

    def _resolved(self, event: ScalarEvent) -> Any:
        word = event.value
        if word in _WORDS:
            return _WORDS[word]
        if word[0] not in _NUMBERS_BEGIN_WITH:
            return word
        if _INTEGER.fullmatch(word):
            if len(word) > LONGEST_NUMBER:
                raise self._wrong("The number has too many digits; quote what is text.", event)
            return int(word, 0) if word[:2] in ("0o", "0x") else int(word)
        if _NOT_FINITE.fullmatch(word):
            raise self._wrong(f"{word} is not a finite number.", event)
        return self._finite(word, event) if _FLOAT.fullmatch(word) else word

    def _finite(self, word: str, event: ScalarEvent) -> float:
        value = float(word)
        if not math.isfinite(value):
            raise self._wrong(f"{word[:LONGEST_NUMBER]} is not a finite number.", event)
        return value

    # Where it stands

    def _place(self) -> Place:
        return tuple(
            each.key if each.key is not None else len(each.value)
            for each in self._open
            if isinstance(each.value, list) or each.key is not None
        )

    def _tell(self, event: Any) -> None:
        if self._note is not None:
            self._note(self._place(), event.start_mark.line + 1)

    def _refused(self, event: Any) -> SpecError:
        tag = event.tag.removeprefix(_STANDARD)
        return self._wrong(f"The tag {tag[:80]!r} is not allowed: plain data only.", event)

    def _wrong(self, message: str, event: Any) -> SpecError:
        return _mistake(message, event.start_mark.line + 1, self._place())
