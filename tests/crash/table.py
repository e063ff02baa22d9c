"""What a sweep found, for people."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

Result = dict[str, Any]


def markdown(results: list[Result]) -> str:
    """One row for each point; in each cell runs and violations."""
    columns = _in_order((each["case"]["executor"], each["database"]) for each in results)
    rows = _in_order(kind_of(each["case"]["point"]) for each in results)
    titles = [f"{executor}, {database}" for executor, database in columns]
    lines = [_line(["point", *titles]), _line(["---"] * (len(columns) + 1))]
    for row in rows:
        of_row = [each for each in results if kind_of(each["case"]["point"]) == row]
        lines.append(_line([f"`{row}`", *(_cell(of_row, *column) for column in columns)]))
    return "\n".join(lines) + "\n"


def _cell(results: list[Result], executor: str, database: str) -> str:
    here = [
        each
        for each in results
        if each["case"]["executor"] == executor and each["database"] == database
    ]
    return f"{len(here)} / {_violated(here)}" if here else "–"  # noqa: RUF001


def verdict(results: list[Result]) -> str:
    missed = sum(not each["reached"] for each in results)
    slowest = max(results, key=lambda each: each["seconds"])
    where = f"{slowest['case']['point']}, {slowest['case']['executor']}, {slowest['database']}"
    return (
        f"{len(results)} runs, {_violated(results)} violated; {missed} ended before their moment"
        f" came; the slowest took {slowest['seconds']:.1f} s ({where})"
    )


def kind_of(point: str) -> str:
    """Its row: all statements of a life together are one."""
    what, colon, rest = point.partition(":")
    if not colon or what == "stop":
        return point
    return f"{what}:N{rest.lstrip('0123456789')}"


def _violated(results: list[Result]) -> int:
    return sum(bool(each["violations"]) for each in results)


def _in_order(values: Iterable[Any]) -> list[Any]:
    return list(dict.fromkeys(values))


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"
