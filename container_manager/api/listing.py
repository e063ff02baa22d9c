"""What the lists of jobs, DAGs, runs and tasks have in common: ranges of time, labels, order."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from django.db import models
from django.db.models.expressions import OrderBy

from container_manager.api.errors import invalid
from container_manager.api.parameters import (
    MOST_VALUES,
    Parameter,
    Unreadable,
    moment,
    words,
)
from container_manager.models import validators

SEVERAL = "Repeat it, or separate by commas, for several."

# Parameters ---------------------------------------------------------------------------------------


def dates(events: Mapping[str, str]) -> tuple[Parameter, ...]:
    """`created_after` and `created_before` of {"created": "Created"}, and so on."""
    sides = (("after", "at that moment or later"), ("before", "before that moment"))
    return tuple(
        moment(f"{event}_{side}", f"{happened} {meaning}.")
        for event, happened in events.items()
        for side, meaning in sides
    )


def labels(name: str, description: str) -> Parameter:
    """Labels as `key:value`; repeated for several."""
    pattern = f"^(?:{validators.LABEL.pattern}):[^\\x00]*$"
    item = {"type": "string", "pattern": pattern}
    schema = {"type": "array", "items": item, "maxItems": MOST_VALUES}
    return Parameter(name, _label, schema, description, many=True)


def _label(given: str) -> list[tuple[str, str]]:
    key, colon, value = given.partition(":")
    if not colon or not validators.LABEL.fullmatch(key):
        raise Unreadable("Must be a label as key:value.")
    return [(key, value)]


def ordering(columns: Iterable[str], unless_given: str = "Newest first unless given.") -> Parameter:
    """By which columns a list may be sorted."""
    allowed = [sign + name for name in columns for sign in ("", "-")]
    described = "Sort by these, `-` for descending; rows without a value come last."
    return words("ordering", lambda: allowed, f"{described} {unless_given}")


# What they select ---------------------------------------------------------------------------------


def in_ranges(rows: Any, query: Mapping[str, Any], columns: Mapping[str, str]) -> Any:
    """The rows in the ranges that `query` has; {event: column}. Raises Problem (400)."""
    for event, column in columns.items():
        after, before = query[f"{event}_after"], query[f"{event}_before"]
        if after and before and after > before:
            raise invalid({f"{event}_before": [f"Must not lie before {event}_after."]})
        rows = rows.filter(**{f"{column}__gte": after}) if after else rows
        rows = rows.filter(**{f"{column}__lt": before}) if before else rows
    return rows


def order_terms(model: type[models.Model], names: list[str]) -> list[Any]:
    """With the id at the end, so that no row is on two pages or on none."""
    tie_break = "-id" if names[0].startswith("-") else "id"
    return [*(_term(model, name) for name in names), tie_break]


def _term(model: type[models.Model], name: str) -> Any:
    column = name.removeprefix("-")
    if not model._meta.get_field(column).null:
        return name
    return OrderBy(models.F(column), descending=name.startswith("-"), nulls_last=True)


def read_rows(
    selected: Any, shown: Any, order: list[Any], limit: int, offset: int
) -> list[dict[str, Any]]:
    """One page of what is selected, as `shown` has the rows.

    The offset walks over ids alone, which an index answers however deep the page lies; only the
    rows of the page are read.
    """
    ids = selected.order_by(*order).values("pk")[offset : offset + limit]
    return list(shown.filter(pk__in=ids).order_by(*order))
