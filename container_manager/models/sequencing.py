"""Gives each move its place in one sequence without gaps: the cursor from which anybody goes on.

Rows of the history do not become visible in the order of their ids, nor of their times: a reader
that remembers the highest it saw skips what commits late, and one that waits for everything older
stands still behind any long transaction. So the sequencer remembers, as PostgreSQL's own snapshots
do, before which transaction all is dealt with, and which ones were still under way then. New is
what is visible now and was not then. On SQLite, where one writes after the other, a counter is
enough.

Any process may `take` at any time; whoever holds the one row of `event_sequencer` does, the others
go on. An entity's moves are told in their order, also by a clock that was set back between them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from django.db import ProgrammingError, connections, transaction
from django.db.models import Max, QuerySet

from container_manager.db_guard import AWAITED, HISTORY_TABLE
from container_manager.models.base import database_now
from container_manager.models.connections import briefly_atomic
from container_manager.models.event import Event, EventSequencer
from container_manager.models.history import StateHistory
from container_manager.models.sql import clock

LIMIT = 1_000
"""Moves that one pass takes, about: PostgreSQL takes whole transactions."""

EVENTS_CHANNEL = "container_manager_events"
"""PostgreSQL's NOTIFY channel: there are new events; only a hint."""

MARGIN = timedelta(days=1)
"""By so much the clocks of two servers may differ, between which a dump is carried."""


def take(limit: int = LIMIT, *, using: str = "default", wait: bool = False) -> int:
    """Give moves that have committed their places; returns how many, about `limit` at most.

    0: there are none, or somebody else is at it; with `wait` it is never the latter.
    """
    if not is_behind(using):
        return 0
    dialect = _dialect(using)
    within = connections[using].in_atomic_block
    with briefly_atomic(using):
        row = _hold(using, wait)
        if row is None:
            return 0
        count = dialect.tell(row, limit, within)
        if count:
            row.last_sequence += count
            row.told_at = database_now(using)
        row.save(using=using)
    return count


def take_all(*, using: str = "default") -> int:
    """The same for all that have committed by now, after whoever is at it; returns how many."""
    total = 0
    while True:
        taken = take(using=using, wait=True)
        total += taken
        if taken < LIMIT:
            return total


def is_behind(using: str = "default") -> bool:
    """Are there moves that have no place yet? Costs next to nothing where there are none."""
    found = _dialect(using).finds_some()
    if found is None:
        begin(using)
    return found is not False


def untold(using: str = "default") -> QuerySet[StateHistory]:
    """Moves that have no place yet, as they committed; for reports: a late one may be missing."""
    history = StateHistory.objects.using(using).order_by("commit_order")
    row = EventSequencer.objects.using(using).first()
    if row is None:
        return history
    if connections[using].vendor == "postgresql":
        return history.filter(commit_order__gte=Snapshot.of(row.snapshot).end)
    return history.filter(commit_order__gt=row.last_order)


def await_moves(using: str = "default") -> bool:
    """From now on the first move says so, on PostgreSQL: then look once more, and only then wait.

    False where nobody will say anything, and polling is all there is.
    """
    if connections[using].vendor != "postgresql":
        return False
    try:
        with transaction.atomic(using=using), connections[using].cursor() as cursor:
            cursor.execute(f"SELECT setval('{AWAITED}', 2) FROM {AWAITED} WHERE last_value <> 2")
    except ProgrammingError:  # not a role that may: the trigger reads it all the same
        return False
    return True


def begin(using: str = "default") -> None:
    """Make the one row where there is none, as after a flush: all of the history is new."""
    newest = Event.objects.using(using).aggregate(newest=Max("sequence"))["newest"]
    row = EventSequencer(last_sequence=newest or 0, snapshot=str(Snapshot(FIRST_TRANSACTION)))
    EventSequencer.objects.using(using).bulk_create([row], ignore_conflicts=True)


def _hold(using: str, wait: bool) -> EventSequencer | None:
    rows = EventSequencer.objects.using(using)
    return rows.select_for_update(skip_locked=not wait).first()


# What is dealt with -------------------------------------------------------------------------------

FIRST_TRANSACTION = 3
"""PostgreSQL's own; the ones below it never write a row."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Transactions: all before `end`, but those under way. Its text is that of a pg_snapshot."""

    end: int
    under_way: frozenset[int] = frozenset()

    @classmethod
    def of(cls, text: str) -> Snapshot:
        _first, end, under_way = text.split(":")
        return cls(int(end), frozenset(map(int, filter(None, under_way.split(",")))))

    def __str__(self) -> str:
        late = sorted(self.under_way)
        return f"{late[0] if late else self.end}:{self.end}:{','.join(map(str, late))}"

    def moved_on(self, now: Snapshot, told_up_to: int, own: int) -> Snapshot:
        """What is dealt with when of all that is visible `now` that up to a transaction was told.

        `own`: the transaction that asks, which may still make moves; 0: it makes none.
        """
        end = max(self.end, min(told_up_to + 1, now.end))
        late = {each for each in self.under_way if each > told_up_to}
        late |= {each for each in now.under_way | {own} if FIRST_TRANSACTION <= each < end}
        return Snapshot(end, frozenset(late))


# The two databases --------------------------------------------------------------------------------

_COLUMNS = (
    "entity_type, entity_id, old_state, new_state, version, attempt, actor, reason, metadata,"
    " changed_at"
)

_OWNER = """
CASE entity_type
  WHEN 'job' THEN (SELECT created_by_id FROM container_jobs WHERE id = entity_id)
  WHEN 'dag_run' THEN (SELECT d.created_by_id FROM dag_runs r JOIN dags d ON d.id = r.dag_id
    WHERE r.id = entity_id)
  WHEN 'task_instance' THEN (SELECT d.created_by_id FROM task_instances t
    JOIN dag_runs r ON r.id = t.dag_run_id JOIN dags d ON d.id = r.dag_id WHERE t.id = entity_id)
END"""
"""As who may see it is decided: by its job, or by its DAG."""

# Not EXISTS: that may be planned as a hash of the whole table.
_UNTOLD = "(SELECT e.sequence FROM events e WHERE e.event_id = h.id) IS NULL"


def _insert(rows: str, order: str, now: str) -> str:
    """The statement that gives these rows of the history their places, in this order."""
    return f"""
    INSERT INTO events (sequence, event_id, {_COLUMNS}, owner_id, created_at)
    SELECT %(last)s + row_number() OVER (ORDER BY {order}), id, {_COLUMNS}, {_OWNER}, {now}
    FROM (
      SELECT h.*, max(changed_at) OVER (PARTITION BY entity_type, entity_id ORDER BY version) AS at
      FROM ({rows}) AS h
    ) AS h"""


class _Sqlite:
    """One writer at a time: what has a higher number committed later."""

    def __init__(self, using: str) -> None:
        self._connection = connections[using]

    def finds_some(self) -> bool | None:
        """None: the sequencer's row is missing."""
        newest = f"(SELECT coalesce(max(commit_order), 0) FROM {HISTORY_TABLE})"
        found = self._value(f"SELECT {newest} > last_order FROM event_sequencer")
        return None if found is None else bool(found)

    def tell(self, row: EventSequencer, limit: int, _within: bool) -> int:
        """Give places; changes `row`, not yet saved, to what is dealt with afterwards."""
        given = {"last": row.last_sequence, "after": row.last_order, "limit": limit}
        behind = f"FROM {HISTORY_TABLE} h WHERE commit_order > %(after)s AND {_UNTOLD}"
        first = f"SELECT commit_order {behind} ORDER BY commit_order LIMIT %(limit)s"
        given["up_to"] = self._value(f"SELECT max(commit_order) FROM ({first})", given)
        if given["up_to"] is None:
            return 0
        row.last_order = given["up_to"]
        rows = f"SELECT * {behind} AND commit_order <= %(up_to)s"
        with self._connection.cursor() as cursor:
            cursor.execute(_insert(rows, "commit_order", clock(self._connection)), given)
            return int(cursor.rowcount)

    def _value(self, sql: str, given: Mapping[str, Any] | None = None) -> Any:
        with self._connection.cursor() as cursor:
            cursor.execute(sql, given)
            found = cursor.fetchone()
        return found[0] if found else None


class _PostgreSQL:
    """Transactions commit in any order: what is dealt with is a snapshot."""

    def __init__(self, using: str) -> None:
        self._connection = connections[using]

    def finds_some(self) -> bool | None:
        """None: the sequencer's row is missing."""
        found: bool | None = self._row(_PG_LOOK.format(cluster=self._cluster()))[0]
        return found

    def tell(self, row: EventSequencer, limit: int, within: bool) -> int:
        """Give places; changes `row`, not yet saved, to what is dealt with afterwards.

        Of a transaction that is taken only up to the limit, what comes before a move that is taken
        is taken along, so that no entity's moves are told out of order; the rest has its turn.
        """
        before = Snapshot.of(row.snapshot)
        given: dict[str, Any] = {"last": row.last_sequence, "limit": limit, "from": before.end}
        given |= {"late": sorted(before.under_way), "since": row.told_at - MARGIN}
        look = self._look(given)
        given |= {"up_to": look.up_to, "end": look.now.end, "own": look.own}
        given |= {"under_way": sorted(look.now.under_way)}
        up_to = max(look.now.end, look.up_to)
        if _is_another_server(row, before, look):
            before, rows = Snapshot(FIRST_TRANSACTION), _PG_WHOLE
        elif look.count < limit:
            rows = _PG_ALL
        else:
            up_to, rows = look.up_to, _PG_UP_TO_LIMIT
        row.snapshot = str(before.moved_on(look.now, up_to, look.own if within else 0))
        row.cluster = look.cluster
        return self._tell(rows, given)

    def _look(self, given: Mapping[str, Any]) -> _Look:
        now, own, *rest = self._row(_PG_FIRST.format(cluster=self._cluster()), given)
        return _Look(Snapshot.of(now), int(own), *rest)

    def _tell(self, rows: str, given: Mapping[str, Any]) -> int:
        with self._connection.cursor() as cursor:
            cursor.execute(
                _insert(rows, "at, version, commit_order, id", "clock_timestamp()"), given
            )
            count = int(cursor.rowcount)
            if count:
                cursor.execute("SELECT pg_notify(%s, '')", [EVENTS_CHANNEL])
        return count

    def _cluster(self) -> str:
        """An expression: the identity of the server, if this role may know it."""
        may = "SELECT has_function_privilege('pg_control_system()', 'execute')"
        if self._connection.alias not in _may_ask_for_cluster:
            _may_ask_for_cluster[self._connection.alias] = bool(self._row(may)[0])
        if not _may_ask_for_cluster[self._connection.alias]:
            return "NULL::bigint"
        return "(SELECT system_identifier FROM pg_control_system())"

    def _row(self, sql: str, given: Mapping[str, Any] | None = None) -> Any:
        with self._connection.cursor() as cursor:
            cursor.execute(sql, given)
            return cursor.fetchone() or (None,)


@dataclass(frozen=True, slots=True)
class _Look:
    """What is visible now, who asks whom, and of what is new how much, and up to where."""

    now: Snapshot
    own: int
    cluster: int | None
    count: int
    up_to: int


_may_ask_for_cluster: dict[str, bool] = {}

# The planner cannot guess how rare what is looked for is: by min and max it looks at one row each.
_PG_LOOK = f"""
SELECT coalesce((SELECT max(commit_order) FROM {HISTORY_TABLE})
    >= pg_snapshot_xmax(last)::text::bigint, false)
  OR pg_snapshot_xmax(pg_current_snapshot()) < pg_snapshot_xmax(last)
  OR coalesce({{cluster}} <> cluster, false)
  OR EXISTS (
    SELECT 1 FROM pg_snapshot_xip(last) AS x, LATERAL (SELECT x::text::bigint AS late) AS l
    WHERE late = (SELECT min(commit_order) FROM {HISTORY_TABLE} WHERE commit_order >= late))
FROM (SELECT snapshot::pg_snapshot AS last, cluster FROM event_sequencer) AS s"""

_LATE = "h.commit_order = ANY(%(late)s::bigint[])"
_NEW = "h.commit_order >= %(from)s"

_PG_FIRST = f"""
SELECT pg_current_snapshot()::text, pg_current_xact_id()::text, {{cluster}}, count(*),
  coalesce(max(commit_order), 0)
FROM (
  SELECT commit_order FROM (
    (SELECT commit_order FROM {HISTORY_TABLE} h WHERE {_LATE} AND {_UNTOLD}
      ORDER BY commit_order LIMIT %(limit)s)
    UNION ALL
    (SELECT commit_order FROM {HISTORY_TABLE} h WHERE {_NEW} AND {_UNTOLD}
      ORDER BY commit_order LIMIT %(limit)s)
  ) AS each ORDER BY commit_order LIMIT %(limit)s
) AS first"""

_SEEN = (
    "(h.commit_order < %(end)s AND h.commit_order <> ALL(%(under_way)s::bigint[])"
    " OR h.commit_order = %(own)s)"
)
"""It was visible when we looked; more may be by now."""

_PG_ALL = f"""
SELECT * FROM {HISTORY_TABLE} h WHERE {_LATE} AND {_SEEN} AND {_UNTOLD}
UNION ALL SELECT * FROM {HISTORY_TABLE} h WHERE {_NEW} AND {_SEEN} AND {_UNTOLD}"""

# What comes before is looked for by its entity: `+ 0` keeps the planner from the index of orders,
# whose newest part it takes for empty.
_PG_UP_TO_LIMIT = f"""
WITH chosen AS MATERIALIZED (
  SELECT * FROM {HISTORY_TABLE} h
  WHERE {_LATE} AND h.commit_order <= %(up_to)s AND {_SEEN} AND {_UNTOLD}
  UNION ALL SELECT * FROM {HISTORY_TABLE} h
  WHERE {_NEW} AND h.commit_order <= %(up_to)s AND {_SEEN} AND {_UNTOLD}
)
SELECT * FROM chosen
UNION ALL
SELECT before.* FROM (
  SELECT entity_type, entity_id, max(version) AS version FROM chosen GROUP BY 1, 2
) AS c CROSS JOIN LATERAL (
  SELECT * FROM {HISTORY_TABLE} h
  WHERE h.entity_type = c.entity_type AND h.entity_id = c.entity_id AND h.version < c.version
    AND h.commit_order + 0 > %(up_to)s
    AND (h.commit_order + 0 = ANY(%(late)s::bigint[]) OR h.commit_order + 0 >= %(from)s)
    AND {_UNTOLD}
  OFFSET 0
) AS before"""

# What was made long before the last pass was told, and may be forgotten by now.
_PG_WHOLE = f"""
SELECT * FROM {HISTORY_TABLE} h
WHERE ({_LATE} OR {_NEW} OR h.changed_at >= %(since)s) AND {_UNTOLD}"""


def _is_another_server(row: EventSequencer, before: Snapshot, look: _Look) -> bool:
    """A dump was restored: the numbers of transactions say nothing about what is dealt with."""
    known = row.cluster is not None and look.cluster is not None
    return look.now.end < before.end or (known and row.cluster != look.cluster)


def _dialect(using: str) -> _Sqlite | _PostgreSQL:
    return _PostgreSQL(using) if connections[using].vendor == "postgresql" else _Sqlite(using)
