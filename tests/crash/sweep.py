"""The sweep on one database: `python -m tests.crash` starts it with the settings that name it."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import django

django.setup()

from tests.crash import points  # noqa: E402
from tests.crash.driver import Driver, driver  # noqa: E402
from tests.crash.points import Case  # noqa: E402
from tests.crash.table import kind_of  # noqa: E402

NUMBERED_LIVES = ("done", "retried", "killed")
SAMPLE = 10


def cases(sweep: Driver, executor: str, wanted: dict[str, Any]) -> Iterator[Case]:
    """What is to be played with this executor."""
    only = set(wanted["point"])
    if wanted["small"]:
        yield from points.named(executor)
        counts = sweep.counted(executor, "done")
        yield from points.spread(list(points.numbered(executor, "done", counts)), SAMPLE)
        return
    fixed = [*points.named(executor), *points.further(executor)]
    yield from (case for case in fixed if not only or case.point in only)
    for life in NUMBERED_LIVES:
        if not only or any(is_counted(point, life) for point in only):
            yield from numbered(sweep, executor, life, only)


def is_counted(point: str, life: str) -> bool:
    """Does `sql:17` or `sql:17/killed` lie in that life?"""
    moment, _, of_life = point.partition("/")
    return moment.partition(":")[0] in points.COUNTED and (of_life or "done") == life


def numbered(sweep: Driver, executor: str, life: str, only: set[str]) -> Iterator[Case]:
    counts = sweep.counted(executor, life)
    for case in points.numbered(executor, life, counts):
        if not only or case.point in only or kind_of(case.point) in only:
            yield case


def main() -> None:
    wanted = json.loads(sys.argv[1])
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    with driver(Path(wanted["directory"]), wanted["executor"], wanted["parallel"]) as sweep:
        once = [case for executor in wanted["executor"] for case in cases(sweep, executor, wanted)]
        results = sweep.play(
            replace(case, number=number) for number in range(wanted["repeat"]) for case in once
        )
    Path(wanted["results"]).write_text(json.dumps([asdict(result) for result in results]))


if __name__ == "__main__":
    main()
