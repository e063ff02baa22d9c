"""Small pieces of SQL that read alike on both databases."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any
from uuid import UUID

from django.utils import timezone


def given_rows(
    connection: Any, rows: Iterable[Mapping[str, Any]], columns: Mapping[str, str]
) -> tuple[str, str]:
    """A FROM item `g` made of `rows`, as SQL and its one parameter.

    `columns` maps each name to its PostgreSQL type. NULL is where a row has no such key.
    """
    if connection.vendor == "postgresql":
        typed = ", ".join(f"{name} {kind}" for name, kind in columns.items())
        sql = f"jsonb_to_recordset(%s::jsonb) AS g({typed})"
        return sql, _as_json(rows, _for_postgresql)
    picked = ", ".join(f"json_extract(value, '$.{name}') AS {name}" for name in columns)
    return f"(SELECT {picked} FROM json_each(%s)) AS g", _as_json(rows, _for_sqlite)


def clock(connection: Any) -> str:
    """The database's clock as an SQL expression, in the form that Django reads."""
    if connection.vendor == "postgresql":
        return "clock_timestamp()"
    # SQLite's own clock stops at milliseconds; it is the same machine's, so Python may read it.
    return f"'{_for_sqlite(timezone.now())}'"


def seconds_later(connection: Any, seconds: str) -> str:
    """The database's clock plus an expression in seconds."""
    if connection.vendor == "postgresql":
        return f"clock_timestamp() + ({seconds}) * interval '1 second'"
    return f"strftime('%%Y-%%m-%%d %%H:%%M:%%f', 'now', ({seconds}) || ' seconds')"


def milliseconds_since(connection: Any, column: str) -> str:
    """Whole milliseconds from `column` to the database's clock, never below 0."""
    if connection.vendor == "postgresql":
        passed = f"EXTRACT(EPOCH FROM (clock_timestamp() - {column})) * 1000"
        return f"GREATEST(0, ROUND({passed}))::bigint"
    days = f"julianday('now') - julianday({column})"
    return f"MAX(0, CAST(ROUND(({days}) * 86400000.0) AS INTEGER))"


def milliseconds_between(connection: Any, start: str, end: str) -> str:
    """Whole milliseconds from one moment to another, never below 0; NULL where one is unknown."""
    if connection.vendor == "postgresql":
        passed = f"ROUND(EXTRACT(EPOCH FROM ({end} - {start})) * 1000)::bigint"
        return f"CASE WHEN {end} < {start} THEN 0 ELSE {passed} END"
    days = f"julianday({end}) - julianday({start})"
    return f"MAX(0, CAST(ROUND(({days}) * 86400000.0) AS INTEGER))"


def json_object(connection: Any, pairs: Mapping[str, str]) -> str:
    """A JSON object with the given SQL expressions as values."""
    function = "jsonb_build_object" if connection.vendor == "postgresql" else "json_object"
    members = ", ".join(f"'{key}', {value}" for key, value in pairs.items())
    return f"{function}({members})"


def storable(text: str) -> str:
    """Text as both databases can keep it: NUL and lone surrogates are replaced."""
    return text.replace("\x00", "\ufffd").encode("utf-8", "replace").decode("utf-8")


def _as_json(rows: Iterable[Mapping[str, Any]], convert: Any) -> str:
    return json.dumps(list(rows), default=convert)


def _for_postgresql(value: Any) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)


def _for_sqlite(value: Any) -> str:
    if isinstance(value, datetime):
        return timezone.make_naive(value, timezone.get_default_timezone()).isoformat(" ")
    return value.hex if isinstance(value, UUID) else str(value)
