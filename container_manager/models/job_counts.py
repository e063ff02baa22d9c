"""How many jobs there are, by what they are counted by: exact, whatever the size of the table.

The triggers of `db_guard` keep the counters. Each answer is one statement over counters and the
changes that are not folded into them yet, and one statement sees one moment.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from django.contrib.auth import get_user_model
from django.db import connections

from container_manager.db_guard import EVERYBODY, WIDTHS
from container_manager.models.job_stats import DIMENSIONS, PERCENTILES, Figures
from container_manager.states import JobStatus

USING = "default"


def count_jobs(owner: Any = None, **among: Collection[str]) -> int:
    """How many jobs of `owner` (None: of everybody) have one of the given values in each dimension.

    `among`: status, queue, executor, isolation.
    """
    if unknown := set(among) - set(DIMENSIONS):
        raise TypeError(f"Jobs are not counted by {', '.join(sorted(unknown))}")
    if not all(among.values()):
        return 0
    chosen, parameters = _chosen(among)
    ((jobs,),) = _rows(
        USING,
        f"SELECT coalesce(sum(jobs), 0) FROM ({_COUNTED}) AS counted WHERE {chosen}",
        {**parameters, "scope": _scope(USING, owner)},
    )
    return int(jobs)


def _chosen(among: Mapping[str, Collection[str]]) -> tuple[str, dict[str, str]]:
    """A condition and its parameters."""
    conditions: list[str] = []
    parameters: dict[str, str] = {}
    for name, words in among.items():
        marked = {f"{name}_{number}": str(word) for number, word in enumerate(words)}
        conditions.append(f"{name} IN ({', '.join(f'%({mark})s' for mark in marked)})")
        parameters |= marked
    return " AND ".join(conditions) or "true", parameters


def counts_by_queue(owner: Any = None, queue: str | None = None) -> dict[str, dict[str, int]]:
    """By queue and status, how many jobs `owner` (None: everybody) has; those that are not 0.

    Of this queue only, if one is named.
    """
    only = "" if queue is None else "WHERE queue = %(queue)s"
    found: dict[str, dict[str, int]] = {}
    for name, status, jobs in _rows(
        USING,
        f"SELECT queue, status, sum(jobs) FROM ({_COUNTED}) AS counted {only}"
        " GROUP BY queue, status HAVING sum(jobs) <> 0",
        {"scope": _scope(USING, owner), "queue": queue},
    ):
        found.setdefault(name, {})[status] = int(jobs)
    return found


def job_stats(owner: Any = None, using: str = USING) -> dict[str, Any]:
    """The statistics of the jobs of `owner` (None: of everybody); the keys are those of the API."""
    return _figures(using, owner).as_stats()


def _scope(using: str, owner: Any) -> str:
    return EVERYBODY if owner is None else f"={_key(using, owner)}"


def _key(using: str, owner: Any) -> Any:
    """The owner's key as it stands in the job's row."""
    field = get_user_model()._meta.pk
    return field.get_db_prep_value(getattr(owner, "pk", owner), connections[using])


def _rows(using: str, sql: str, parameters: Any) -> list[tuple[Any, ...]]:
    with connections[using].cursor() as cursor:
        cursor.execute(sql, parameters)
        return cursor.fetchall()  # type: ignore[no-any-return]


# The statements -----------------------------------------------------------------------------------

_BY = ", ".join(DIMENSIONS)
_MINE = f"%(scope)s IN ('{EVERYBODY}', owner)"

_COUNTED = f"""
  SELECT {_BY}, jobs FROM job_counts WHERE scope = %(scope)s
  UNION ALL SELECT {_BY}, jobs FROM job_changes WHERE {_MINE}"""


def _figures(using: str, owner: Any) -> Figures:
    counts: dict[tuple[str, ...], int] = {}
    single: dict[str, int] = {}
    parameters = {"scope": _scope(using, owner)}
    if owner is not None:
        parameters["owner"] = _key(using, owner)
    for what, *values, number in _rows(using, _statement(using, owner), parameters):
        if what == "jobs":
            counts[*values,] = number
        elif number is not None:
            single[what] = number
    return Figures(
        counts=counts,
        timed=single.get("timed", 0),
        total_ms=single.get("total_ms", 0),
        percentiles={share: single.get(f"p{share}", 0) for share in PERCENTILES},
        oldest=_moment(single.get("oldest")),
    )


def _moment(microseconds: int | None) -> datetime | None:
    began = datetime(1970, 1, 1, tzinfo=UTC)
    return None if microseconds is None else began + timedelta(microseconds=microseconds)


def _statement(using: str, owner: Any) -> str:
    """All figures at once. A percentile is found from width to width, each within the one before:
    some hundred counters are read, however many jobs they count."""
    blanks = ", ".join(["''"] * len(DIMENSIONS))
    postgresql = connections[using].vendor == "postgresql"
    return f"""
WITH RECURSIVE
  change AS MATERIALIZED (SELECT {_BY}, duration_ms, jobs FROM job_changes WHERE {_MINE}),
  whole AS MATERIALIZED (
    SELECT CAST(coalesce(sum(jobs), 0) AS bigint) AS jobs,
      CAST(coalesce(sum(total_ms), 0) AS bigint) AS total_ms
    FROM (
      SELECT jobs, total_ms FROM job_durations WHERE scope = %(scope)s AND width = {WIDTHS[0]}
      UNION ALL SELECT jobs, jobs * duration_ms FROM change WHERE duration_ms IS NOT NULL) AS each
  ),
  wanted AS (
    {" UNION ALL ".join(f"SELECT {share} AS share, {_rank(share)}" for share in PERCENTILES)}
  ),
  {_POSTGRESQL_DESCENT if postgresql else _sqlite_descent()}
SELECT 'jobs', {_BY}, CAST(sum(jobs) AS bigint) FROM (
  SELECT {_BY}, jobs FROM job_counts WHERE scope = %(scope)s
  UNION ALL SELECT {_BY}, jobs FROM change) AS counted
GROUP BY {_BY} HAVING sum(jobs) <> 0
UNION ALL SELECT 'timed', {blanks}, jobs FROM whole
UNION ALL SELECT 'total_ms', {blanks}, total_ms FROM whole
UNION ALL SELECT 'p' || share, {blanks}, low FROM percentile
UNION ALL SELECT 'oldest', {blanks}, at FROM ({_oldest(using, owner)}) AS first
"""


def _rank(share: int) -> str:
    """Nearest rank: of the smallest that `share` percent do not exceed."""
    return f"(jobs * {share} + 99) / 100 AS rank, 0 AS low, {10**15} AS high FROM whole"


# LATERAL: the bounds are values to the planner, so that stretch of the index alone is read.
_POSTGRESQL_DESCENT = f"""
  found AS (
    SELECT share, {WIDTHS[0]} AS width, rank, CAST(low AS bigint) AS low, high FROM wanted
    UNION ALL SELECT f.share, f.width / {WIDTHS[0] // WIDTHS[1]}, n.rank, n.low, n.low + f.width
    FROM found f CROSS JOIN LATERAL (
      SELECT from_ms AS low, CAST(f.rank - upto + jobs AS bigint) AS rank FROM (
        SELECT from_ms, jobs, sum(jobs) OVER (ORDER BY from_ms) AS upto FROM (
          SELECT from_ms, sum(jobs) AS jobs FROM (
            SELECT d.from_ms, d.jobs FROM job_durations d WHERE d.scope = %(scope)s
              AND d.width = f.width AND d.from_ms >= f.low AND d.from_ms < f.high
            UNION ALL SELECT c.duration_ms / f.width * f.width, c.jobs FROM change c
              WHERE c.duration_ms >= f.low AND c.duration_ms < f.high) AS each
          GROUP BY from_ms) AS summed) AS ranked
      WHERE upto >= f.rank AND jobs > 0 ORDER BY from_ms LIMIT 1) AS n
    WHERE f.width > 0
  ),
  percentile AS (SELECT share, low FROM found WHERE width = 0)"""


def _sqlite_descent() -> str:
    """The same without LATERAL: a step for each width, which names the one before but twice."""
    steps, above = [], "wanted"
    for width in WIDTHS:
        steps.append(_sqlite_step(above, width))
        above = f"at_{width}"
    return ", ".join([*steps, f"percentile AS (SELECT share, low FROM {above})"])


def _sqlite_step(above: str, width: int) -> str:
    return f"""
  at_{width} AS MATERIALIZED (
    SELECT share, rank - upto + jobs AS rank, from_ms AS low, from_ms + {width} AS high FROM (
      SELECT *, sum(jobs) OVER (PARTITION BY share ORDER BY from_ms) AS upto FROM (
        SELECT share, rank, from_ms, sum(jobs) AS jobs FROM (
          SELECT w.share, w.rank, d.from_ms, d.jobs FROM {above} w JOIN job_durations d
            ON d.scope = %(scope)s AND d.width = {width}
            AND d.from_ms >= w.low AND d.from_ms < w.high
          UNION ALL SELECT w.share, w.rank, c.duration_ms / {width} * {width}, c.jobs
          FROM {above} w JOIN change c ON c.duration_ms >= w.low AND c.duration_ms < w.high)
        GROUP BY share, from_ms HAVING sum(jobs) > 0))
    WHERE upto >= rank AND rank > upto - jobs
  )"""


def _oldest(using: str, owner: Any) -> str:
    """The first entry of the index of those that wait, in microseconds."""
    if connections[using].vendor == "postgresql":
        at, hint = "CAST(extract(epoch FROM queued_at) * 1000000 AS bigint)", ""
    else:  # SQLite would read all that wait, by another index, and sort them
        at = "CAST((julianday(queued_at) - 2440587.5) * 86400000000.0 AS bigint)"
        hint = f"INDEXED BY jobs_oldest{'' if owner is None else '_of_owner'}"
    mine = "" if owner is None else "AND created_by_id = %(owner)s"
    return f"""
  SELECT {at} AS at FROM container_jobs {hint} WHERE status = '{JobStatus.QUEUED}' {mine}
  ORDER BY queued_at LIMIT 1"""
