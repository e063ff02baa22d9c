"""How many moves there were, and how long jobs stood where they came from: counted for good.

Events are folded into these counters after they got their place, by whoever has time for it; what
is not folded yet is added by whoever reads. So the numbers only ever rise, are exact up to the
newest event, and cost nothing to those who move. They stay when histories and events are pruned:
who prunes folds before.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from django.db import connections, models

from container_manager.models.connections import briefly_atomic
from container_manager.models.event import Event
from container_manager.models.sql import milliseconds_between
from container_manager.states import JOB, JobStatus

USING = "default"

UP_TO_MS = (
    *(100, 500, 1_000, 2_500, 5_000, 10_000, 30_000, 60_000),
    *(5 * 60_000, 15 * 60_000, 60 * 60_000, 4 * 60 * 60_000, 24 * 60 * 60_000),
)
"""The upper ends of what lengths of time are told apart; whatever took longer is the rest."""

LONGER = 2**62
NOT_TIMED = -1

FOLDED_AT_ONCE = 10_000


class MoveCount(models.Model):
    """So many moves from one state to another, of entities that had stood there for so long."""

    pk = models.CompositePrimaryKey("entity_type", "old_state", "new_state", "up_to_ms")
    entity_type = models.CharField(max_length=20)
    old_state = models.CharField(max_length=20, blank=True, help_text="Empty: it began there.")
    new_state = models.CharField(max_length=20)
    up_to_ms = models.BigIntegerField(help_text="-1: for how long is not counted.")
    moves = models.BigIntegerField()
    total_ms = models.BigIntegerField()

    class Meta:
        db_table = "move_counts"
        default_permissions = ()

    def __str__(self) -> str:
        return f"{self.entity_type} {self.old_state} -> {self.new_state}: {self.moves}"


class MoveCounter(models.Model):
    """One row: up to which event all are counted. Whoever holds it folds."""

    id = models.PositiveSmallIntegerField(primary_key=True, default=1)
    counted = models.BigIntegerField(default=0, help_text="The sequence of the last one.")

    class Meta:
        db_table = "move_counter"
        default_permissions = ()

    def __str__(self) -> str:
        return f"up to {self.counted}"


# Folding ------------------------------------------------------------------------------------------


def fold(limit: int = FOLDED_AT_ONCE, *, using: str = USING, wait: bool = False) -> int:
    """Add events to the counters, at most so many; returns how many.

    0: there are none, or another is at it; with `wait` it is never the latter.
    """
    if not behind(using):
        return 0
    with briefly_atomic(using):
        rows = MoveCounter.objects.using(using)
        if not rows.exists():  # after a flush
            rows.bulk_create([MoveCounter()], ignore_conflicts=True)
        held = rows.select_for_update(skip_locked=not wait).first()
        if held is None:
            return 0
        newest = Event.objects.using(using).newest()
        up_to = min(newest, held.counted + limit)
        if up_to <= held.counted:
            return 0
        _add(using, held.counted, up_to)
        rows.update(counted=up_to)
        return up_to - held.counted


def fold_all(*, using: str = USING) -> int:
    """Before histories or events are deleted: add all that have their place by now."""
    total = 0
    while folded := fold(using=using, wait=True):
        total += folded
    return total


def behind(using: str = USING) -> int:
    """How many events are not folded yet."""
    return max(0, Event.objects.using(using).newest() - counted(using))


def counted(using: str = USING) -> int:
    """The sequence up to which all events are folded."""
    return MoveCounter.objects.using(using).values_list("counted", flat=True).first() or 0


def _add(using: str, after: int, up_to: int) -> None:
    connection = connections[using]
    with connection.cursor() as cursor:
        cursor.execute(
            f"""
            INSERT INTO move_counts ({_KEY}, moves, total_ms)
            {_counted(connection, "e.sequence > %(after)s AND e.sequence <= %(up_to)s")}
            ON CONFLICT ({_KEY}) DO UPDATE SET moves = move_counts.moves + excluded.moves,
              total_ms = move_counts.total_ms + excluded.total_ms""",
            {"after": after, "up_to": up_to},
        )


_KEY = "entity_type, old_state, new_state, up_to_ms"

_WAITED = f"""e.entity_type = 'job' AND e.old_state = '{JobStatus.QUEUED}'
  AND e.new_state = '{JobStatus.RUNNING}'"""
_RAN = f"e.entity_type = 'job' AND e.old_state = '{JobStatus.RUNNING}'"


def _counted(connection: Any, which: str) -> str:
    """A SELECT: what these events come to, by _KEY."""
    # Not JOIN: that may be planned as a hash of the whole table.
    since = """(SELECT p.changed_at FROM state_history p WHERE p.entity_type = e.entity_type
        AND p.entity_id = e.entity_id AND p.version = e.version - 1)"""
    due = """(SELECT j.scheduled_for FROM container_jobs j
        WHERE j.id = e.entity_id AND j.scheduled_for <= e.changed_at)"""
    later = "greatest" if connection.vendor == "postgresql" else "max"
    waited = milliseconds_between(connection, f"{later}(since, coalesce(due, since))", "at")
    ends = " ".join(f"WHEN ms <= {end} THEN {end}" for end in UP_TO_MS)
    # Materialized: each row is looked up once, not once for each use of what is found.
    return f"""
    SELECT entity_type, old_state, new_state, up_to_ms, moves, total_ms FROM (
      WITH
        looked_up AS MATERIALIZED (
          SELECT e.entity_type, coalesce(e.old_state, '') AS old_state, e.new_state,
            e.changed_at AS at,
            CASE WHEN {_WAITED} OR {_RAN} THEN {since} END AS since,
            CASE WHEN {_WAITED} THEN {due} END AS due
          FROM events e WHERE {which}),
        timed AS MATERIALIZED (
          SELECT entity_type, old_state, new_state, {waited} AS ms FROM looked_up)
      SELECT entity_type, old_state, new_state,
        CASE WHEN ms IS NULL THEN {NOT_TIMED} {ends} ELSE {LONGER} END AS up_to_ms,
        count(*) AS moves, CAST(coalesce(sum(ms), 0) AS bigint) AS total_ms
      FROM timed GROUP BY 1, 2, 3, 4) AS counted WHERE true"""


# Reading ------------------------------------------------------------------------------------------


@dataclass
class Durations:
    """How long something took, how often: by the upper ends of UP_TO_MS, and the rest."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(UP_TO_MS) + 1))
    total_ms: int = 0

    def add(self, up_to_ms: int, moves: int, total_ms: int) -> None:
        self.counts[bisect_left(UP_TO_MS, up_to_ms)] += moves
        self.total_ms += total_ms


@dataclass(frozen=True)
class Moves:
    """All moves there ever were."""

    by_edge: Mapping[tuple[str, str, str], int]
    """Entity type, from (empty: it began), to."""
    waited: Durations
    """Of jobs that were started, since they were due."""
    ran: Mapping[str, Durations]
    """Of jobs, by where they went from `running`."""


def count_moves(using: str = USING) -> Moves:
    """Every move that has its place, counted in one statement: it sees one moment."""
    connection = connections[using]
    counted = "(SELECT counted FROM move_counter)"
    with connection.cursor() as cursor:
        cursor.execute(
            f"SELECT {_KEY}, moves, total_ms FROM move_counts UNION ALL"
            f" {_counted(connection, f'e.sequence > coalesce({counted}, 0)')}"
        )
        return _moves(cursor.fetchall())


def _moves(rows: Iterable[tuple[str, str, str, int, int, int]]) -> Moves:
    by_edge: dict[tuple[str, str, str], int] = {}
    waited, ran = Durations(), {new: Durations() for new in JOB.get_next_states(JobStatus.RUNNING)}
    for entity_type, old, new, up_to_ms, moves, total_ms in rows:
        edge = (entity_type, old, new)
        by_edge[edge] = by_edge.get(edge, 0) + moves
        if up_to_ms != NOT_TIMED:
            found = ran.setdefault(new, Durations()) if old == JobStatus.RUNNING else waited
            found.add(up_to_ms, moves, total_ms)
    return Moves(by_edge, waited, ran)
