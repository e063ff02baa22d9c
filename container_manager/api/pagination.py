"""Pages by limit and offset: `{"count", "next", "previous", "results"}`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from django.db.models import QuerySet
from django.http import QueryDict
from rest_framework.request import Request

from container_manager.api.parameters import Parameter, Schema, whole

DEFAULT_LIMIT, MAX_LIMIT = 20, 100
MAX_OFFSET = 2**53 - 1
"""The largest whole number that every reader of JSON agrees on."""

LIMIT = whole("limit", 1, MAX_LIMIT, "Rows on a page.", default=DEFAULT_LIMIT)
OFFSET = whole("offset", 0, MAX_OFFSET, "Rows to skip; beyond the end is an empty page.", default=0)
PAGE: tuple[Parameter, ...] = (LIMIT, OFFSET)


def page(request: Request, count: int, limit: int, offset: int, results: list[Any]) -> Any:
    """One page of `count` rows, with the addresses of its neighbours."""
    after = offset + limit
    return {
        "count": count,
        "next": _address(request, limit, after) if after < count else None,
        "previous": _address(request, limit, max(0, offset - limit)) if offset > 0 else None,
        "results": results,
    }


def page_of_rows(request: Request, query: Mapping[str, Any], rows: QuerySet[Any, Any]) -> Any:
    """The page of these rows that a query read by PAGE asks for."""
    limit, offset, count = query["limit"], query["offset"], rows.count()
    found = list(rows[offset : offset + limit]) if offset < count else []
    return page(request, count, limit, offset, found)


def _address(request: Request, limit: int, offset: int) -> str:
    query: QueryDict = request.query_params.copy()
    query["limit"], query["offset"] = str(limit), str(offset)
    if not offset:
        del query["offset"]
    return request.build_absolute_uri(f"{request.path}?{query.urlencode()}")


def page_of(item: Schema) -> Schema:
    """The JSON schema of a page of such items."""
    address = {"type": ["string", "null"], "format": "uri"}
    return {
        "type": "object",
        "required": ["count", "next", "previous", "results"],
        "properties": {
            "count": {"type": "integer", "minimum": 0},
            "next": address,
            "previous": address,
            "results": {"type": "array", "items": item, "maxItems": MAX_LIMIT},
        },
    }
