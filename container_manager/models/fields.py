"""Fields that Django does not have."""

from __future__ import annotations

from typing import Any

from django.db import models


class OrderedJSONField(models.JSONField):
    """JSON whose keys keep the order in which they were written: `jsonb` sorts them.

    PostgreSQL cannot compare such values, nor look into them by an index.
    """

    def db_type(self, connection: Any) -> str | None:
        return "json" if connection.vendor == "postgresql" else super().db_type(connection)

    def from_db_value(self, value: Any, expression: Any, connection: Any) -> Any:
        if isinstance(value, str):
            return super().from_db_value(value, expression, connection)
        return value  # psycopg reads this type itself

    def get_db_prep_value(self, value: Any, connection: Any, prepared: bool = False) -> Any:
        if connection.vendor != "postgresql" or hasattr(value, "resolve_expression"):
            return super().get_db_prep_value(value, connection, prepared)
        from psycopg.types.json import Json

        return None if value is None else Json(value)
