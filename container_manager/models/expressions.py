"""Expressions that Django does not have, for both databases."""

from __future__ import annotations

from typing import Any

from django.db import models


class MillisecondsBetween(models.Func):
    """Whole milliseconds from the first moment to the second, never below 0."""

    output_field = models.BigIntegerField()

    def as_postgresql(self, compiler: Any, connection: Any, **extra: Any) -> Any:
        start, end = (compiler.compile(item) for item in self.get_source_expressions())
        took = f"ROUND(EXTRACT(EPOCH FROM ({end[0]} - {start[0]})) * 1000)::bigint"
        # Not GREATEST(0, …): that would make 0 of a job that never started.
        sql = f"CASE WHEN {end[0]} < {start[0]} THEN 0 ELSE {took} END"
        return sql, (*end[1], *start[1]) * 2

    def as_sqlite(self, compiler: Any, connection: Any, **extra: Any) -> Any:
        start, end = (compiler.compile(item) for item in self.get_source_expressions())
        days = f"(julianday({end[0]}) - julianday({start[0]}))"
        return f"MAX(0, CAST(ROUND({days} * 86400000.0) AS INTEGER))", (*end[1], *start[1])


class HasLabel(models.Func):
    """True for rows with exactly this label; a key is a key, also when it looks like a number."""

    output_field = models.BooleanField()
    conditional = True

    def __init__(self, key: str, value: str, column: str = "labels") -> None:
        self.key, self.value = key, value
        super().__init__(models.F(column))

    def as_postgresql(self, compiler: Any, connection: Any, **extra: Any) -> Any:
        labels, parameters = compiler.compile(self.source_expressions[0])
        sql = f"{labels} @> jsonb_build_object(%s::text, %s::text)"
        return sql, (*parameters, self.key, self.value)

    def as_sqlite(self, compiler: Any, connection: Any, **extra: Any) -> Any:
        labels, parameters = compiler.compile(self.source_expressions[0])
        each = f"json_each({labels}) AS l WHERE l.key = %s AND l.value = %s"
        return f"EXISTS (SELECT 1 FROM {each})", (  # noqa: S608
            *parameters,
            self.key,
            self.value,
        )


class CommandLine(models.Func):
    """The items of a job's command, with blanks between them."""

    output_field = models.TextField()

    def as_postgresql(self, compiler: Any, connection: Any, **extra: Any) -> Any:
        command, parameters = compiler.compile(self.source_expressions[0])
        items = f"array_to_string(ARRAY(SELECT jsonb_array_elements_text({command})), ' ')"
        is_list = f"jsonb_typeof({command}) = 'array'"
        return f"CASE WHEN {is_list} THEN {items} ELSE '' END", (*parameters, *parameters)

    def as_sqlite(self, compiler: Any, connection: Any, **extra: Any) -> Any:
        command, parameters = compiler.compile(self.source_expressions[0])
        return f"(SELECT group_concat(value, ' ') FROM json_each({command}))", parameters  # noqa: S608
