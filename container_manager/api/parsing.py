"""Bodies: strict JSON in UTF-8, or none. What two readers could read differently is refused."""

from __future__ import annotations

import json
import math
from typing import Any, NoReturn

from django.http import HttpRequest
from django.http.request import RawPostDataException
from django.utils.datastructures import MultiValueDict
from rest_framework.parsers import BaseParser
from rest_framework.request import Request

from container_manager.api.errors import Problem
from container_manager.workflows import documents

MEDIA_TYPE, YAML = "application/json", "application/yaml"
DEEPEST = 32
NO_NUL = r"^[^\x00]*$"
"""The pattern of any text that is accepted here."""


class StrictRequest(Request):
    """DRF's request, whose `data` is read by `read_json` whatever the headers promise."""

    def _parse(self) -> tuple[Any, Any]:
        return read_body(self._request), MultiValueDict()


class StrictJSONParser(BaseParser):
    """Says in the OpenAPI document what is read here."""

    media_type = MEDIA_TYPE

    def parse(self, stream: Any, media_type: Any = None, parser_context: Any = None) -> Any:
        return read_json(stream.read())


def read_body(request: HttpRequest) -> Any:
    """What the body says; an empty body is an empty object. Raises Problem (400, 413, 415)."""
    _refuse_compressed(request)
    if not _is(MEDIA_TYPE, request):
        # Before the body is looked at: a form may have been read by somebody else already.
        if _is_empty(request) or _is_empty_form(request):
            return {}
        _refuse_media(f"Send {MEDIA_TYPE} in UTF-8.")
    return read_json(request.body) if request.body else {}


def read_document(request: Request) -> tuple[Any, bytes | None]:
    """What a body says that may also be YAML, and the text if it is. As `read_body`; SpecError."""
    asked = request._request
    _refuse_compressed(asked)
    if _is(YAML, asked):
        return documents.read(asked.body), asked.body
    if not (_is(MEDIA_TYPE, asked) or _is_empty(asked)):
        _refuse_media(f"Send {MEDIA_TYPE} or {YAML} in UTF-8.", f"{MEDIA_TYPE}, {YAML}")
    return request.data, None


def _refuse_compressed(request: HttpRequest) -> None:
    if request.headers.get("Content-Encoding", "identity").strip().lower() != "identity":
        _refuse_media("Content-Encoding is not supported here.")


def _is(media_type: str, request: HttpRequest) -> bool:
    charset = (request.content_params or {}).get("charset", "utf-8")
    return request.content_type == media_type and charset.lower() in ("utf-8", "utf8")


def _is_empty(request: HttpRequest) -> bool:
    chunked = "Transfer-Encoding" in request.headers
    return _length(request) == "0" and not chunked


def _is_empty_form(request: HttpRequest) -> bool:
    """A form without any field, which some clients send where there is nothing to send."""
    boundary = (request.content_params or {}).get("boundary", "")
    if request.content_type != "multipart/form-data" or len(_length(request)) > 2:
        return False
    try:
        return request.body.strip() == f"--{boundary}--".encode()
    except RawPostDataException:
        return False


def _length(request: HttpRequest) -> str:
    return str(request.META.get("CONTENT_LENGTH") or "0")


def _refuse_media(detail: str, accepted: str = MEDIA_TYPE) -> NoReturn:
    raise Problem(415, "unsupported_media_type", detail, headers={"Accept-Post": accepted})


def read_json(body: bytes) -> Any:
    """The value of a JSON document. Raises Problem (400 `parse_error`)."""
    try:
        value = json.loads(
            body.decode(),
            object_pairs_hook=_object,
            parse_constant=_constant,
            parse_float=_finite,
        )
        _refuse_unstorable(value)
    except UnicodeDecodeError:
        raise _parse_error("it is not UTF-8") from None
    except RecursionError:
        raise _parse_error("it is nested too deeply") from None
    except ValueError as error:
        raise _parse_error(str(error)) from None
    return value


def _parse_error(why: str) -> Problem:
    return Problem(400, "parse_error", f"The body is not JSON as it is read here: {why}.")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("an object has the same key twice")
    return found


def _constant(word: str) -> NoReturn:
    raise ValueError(f"{word} is not a number of JSON")


def _finite(digits: str) -> float:
    value = float(digits)
    if math.isinf(value):
        raise ValueError("a number is too large")
    return value


def _refuse_unstorable(value: Any) -> None:
    """NUL and lone surrogates, which no database keeps; and what is nested too deeply."""
    level = [value]
    for _ in range(DEEPEST):
        if not level:
            return
        below: list[Any] = []
        for item in level:
            if isinstance(item, str):
                _refuse_unstorable_text(item)
            elif isinstance(item, list):
                below += item
            elif isinstance(item, dict):
                below += [*item, *item.values()]
        level = below
    if level:
        raise ValueError("it is nested too deeply")


def _refuse_unstorable_text(text: str) -> None:
    if "\0" in text:
        raise ValueError("a string contains a NUL character")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("a string contains a lone surrogate") from None
