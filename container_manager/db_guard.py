"""Compiles the transition tables into constraints and triggers for SQLite and PostgreSQL.

Four walls, for every guarded table and whatever client writes:

1. an UPDATE that makes an illegal move, moves without raising `version` by one, raises it without
   a move, or changes an id or another part of the row's identity, is refused;
2. every move and every INSERT writes its row into `state_history`;
3. `state_history` is append-only while the entity exists, and a row written by hand must say what
   the entity's state and version are;
4. an INSERT begins at version 1 with an id not in use; a row whose work is under way is not
   deleted.

And beside the walls, for tables that are counted: every write keeps the counters of its rows. And
a move wakes whoever waits to give it its place in the sequence of events.

Out of reach: an owner who disables triggers, `session_replication_role`, PRAGMAs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from django.db import models, transaction

from container_manager.states import StateMachine

HISTORY_TABLE = "state_history"
COUNTS_TABLE = "job_counts"
DURATIONS_TABLE = "job_durations"
CHANGES_TABLE = "job_changes"
SEQUENCER_TABLE = "event_sequencer"

AWAITED = "event_awaited"
"""A sequence of PostgreSQL, as a flag that everybody sees at once and that never bloats: 2 while
somebody waits for a move, else 1."""

MOVES_CHANNEL = "container_manager_moves"
"""PostgreSQL's NOTIFY channel: a move was made while somebody waited for one; only a hint."""

PREFIX = "cm_"


@dataclass(frozen=True)
class Counted:
    """How the rows of a table are counted; dimensions are columns of the same name."""

    owner: str
    duration: str
    timed_state: str
    """Of rows in this state the durations are counted, too."""


@dataclass(frozen=True)
class GuardedTable:
    """What the guard must know of one table."""

    table: str
    entity_type: str
    machine: StateMachine
    state_column: str
    attempt_column: str | None = None
    counted: Counted | None = None
    identity: tuple[tuple[str, ...], ...] = ()
    """Sets of columns that no two rows share, and that never change."""
    sequenced: bool = True
    """Its history gets its place in the sequence of events."""

    @property
    def id_columns(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(["id", *(name for names in self.identity for name in names)]))


@dataclass(frozen=True)
class Piece:
    """One trigger or function, with the statement that makes it."""

    name: str
    table: str
    sql: str
    function_body: str = ""
    """Set for functions: the text between the dollar quotes, as the database keeps it."""
    settings: str = ""
    """Set for functions: the parameters and rights they run with, as the database keeps them."""


# Constraints ---------------------------------------------------------------------------------


def state_is_known(machine: StateMachine, field: str, name: str) -> models.CheckConstraint:
    """The state is a word of the table."""
    return models.CheckConstraint(
        condition=models.Q(**{f"{field}__in": [str(state) for state in machine.states]}), name=name
    )


def null_follows_state(
    column: str, *, field: str, null_in: Iterable[str], set_in: Iterable[str], name: str
) -> models.CheckConstraint:
    """`column` is null in the states `null_in`, set in `set_in`, and free in all others."""
    null = models.Q(**{f"{column}__isnull": True})
    return models.CheckConstraint(
        condition=(~models.Q(**{f"{field}__in": sorted(map(str, null_in))}) | null)
        & (~models.Q(**{f"{field}__in": sorted(map(str, set_in))}) | ~null),
        name=name,
    )


# Expressions that both databases read alike -----------------------------------------------------


def _words(states: Iterable[str]) -> str:
    return ", ".join(f"'{state}'" for state in states)


def _legal_moves(guarded: GuardedTable) -> str:
    column = guarded.state_column
    return " OR ".join(
        f"(OLD.{column} = '{old}' AND NEW.{column} IN ({_words(targets)}))"
        for old, targets in guarded.machine.table.items()
        if targets
    )


def _new_identity(guarded: GuardedTable) -> str:
    return " OR ".join(f"OLD.{name} <> NEW.{name}" for name in guarded.id_columns)


def _bad_update(guarded: GuardedTable) -> str:
    column = guarded.state_column
    return (
        f"{_new_identity(guarded)}"
        f" OR (OLD.{column} = NEW.{column} AND OLD.version <> NEW.version)"
        f" OR (OLD.{column} <> NEW.{column} AND (NEW.version <> OLD.version + 1"
        f" OR NOT ({_legal_moves(guarded)})))"
    )


HISTORY_COLUMNS = (
    "id, entity_type, entity_id, old_state, new_state, version, attempt,"
    " actor, reason, metadata, changed_at, commit_order"
)

# Counting: what both databases read alike ---------------------------------------------------------
#
# A write appends to `job_changes`: "so many more (or fewer) jobs that look like this". One write in
# `FOLD_EVERY` changes then folds them into the counters. So no two writers ever wait for the same
# counter, and counters plus changes are exact at every moment.

EVERYBODY = "*"
"""The scope of all jobs; the scope of one owner is `=` and its key. Of no owner there is none."""

DIMENSIONS = "status, queue, executor, isolation"
CHANGE_COLUMNS = f"owner, {DIMENSIONS}, duration_ms"
COUNT_KEY = f"scope, {DIMENSIONS}"
DURATION_KEY = "scope, width, from_ms"

WIDTHS = (1_000_000, 10_000, 100, 1)
"""Durations are counted by the stretch of so many milliseconds in which they fall."""

LONGEST_MS = 10**14
"""Three thousand years; what claims to have taken longer must not make a sum overflow."""

FOLD_EVERY = 1_000


def _change(counted: Counted, row: str) -> dict[str, str]:
    """What `row` counts as, by column of CHANGE_COLUMNS."""
    timed = f"{row}.status = '{counted.timed_state}'"
    duration = f"{row}.{counted.duration}"
    return {
        "owner": f"coalesce('=' || {row}.{counted.owner}, '')",
        **{name: f"{row}.{name}" for name in DIMENSIONS.split(", ")},
        "duration_ms": f"CASE WHEN {timed} AND {duration} > {LONGEST_MS} THEN {LONGEST_MS}"
        f" WHEN {timed} THEN {duration} END",
    }


def _values(counted: Counted, row: str) -> str:
    return ", ".join(_change(counted, row).values())


def _grouped_changes(counted: Counted, sources: dict[str, int]) -> str:
    """A SELECT: what comes of the rows of these sources, each of which counts as so many jobs."""
    named = ", ".join(f"{value} AS {name}" for name, value in _change(counted, "r").items())
    rows = " UNION ALL ".join(
        f"SELECT {named}, {jobs} AS jobs FROM {source} AS r" for source, jobs in sources.items()
    )
    return (
        f"SELECT {CHANGE_COLUMNS}, sum(jobs) AS jobs FROM ({rows}) AS each"
        f" GROUP BY {CHANGE_COLUMNS} HAVING sum(jobs) <> 0"
    )


def rows_as_changes(table: str, counted: Counted) -> str:
    """A SELECT: the rows as they stand, as if each had just been inserted."""
    return _grouped_changes(counted, {f'"{table}"': 1})


def counts_of(changes: str) -> str:
    """A SELECT: by COUNT_KEY, how many more `jobs` these changes come to."""
    return f"""
    SELECT {COUNT_KEY}, CAST(sum(jobs) AS bigint) AS jobs FROM (
      SELECT '{EVERYBODY}' AS scope, {DIMENSIONS}, jobs FROM {changes}
      UNION ALL SELECT owner, {DIMENSIONS}, jobs FROM {changes} WHERE owner <> '') AS each
    GROUP BY {COUNT_KEY} HAVING sum(jobs) <> 0"""


def durations_of(changes: str) -> str:
    """A SELECT: by DURATION_KEY, how many more `jobs` and `total_ms` these changes come to."""
    widths = " UNION ALL ".join(f"SELECT {width} AS width" for width in WIDTHS)
    return f"""
    SELECT {DURATION_KEY}, CAST(sum(jobs) AS bigint) AS jobs,
      CAST(sum(total_ms) AS bigint) AS total_ms
    FROM (
      SELECT scope, width, duration_ms / width * width AS from_ms, jobs,
        jobs * duration_ms AS total_ms
      FROM (
        SELECT '{EVERYBODY}' AS scope, duration_ms, jobs FROM {changes}
        UNION ALL SELECT owner, duration_ms, jobs FROM {changes} WHERE owner <> ''
      ) AS scoped CROSS JOIN ({widths}) AS widths
      WHERE duration_ms IS NOT NULL) AS each
    GROUP BY {DURATION_KEY} HAVING sum(jobs) <> 0 OR sum(total_ms) <> 0"""


# SQLite -----------------------------------------------------------------------------------------

_SQLITE_UUID7 = (
    "lower(printf('%012x', CAST((julianday('now') - 2440587.5) * 86400000.0 AS INTEGER))"
    " || '7' || substr(hex(randomblob(2)), 2) || substr('89AB', 1 + (random() & 3), 1)"
    " || substr(hex(randomblob(8)), 2))"
)


def _sqlite_trigger(name: str, table: str, event: str, when: str, body: str) -> Piece:
    condition = f" WHEN {when}" if when else ""
    sql = f'CREATE TRIGGER "{name}" {event} ON "{table}" FOR EACH ROW{condition} BEGIN {body}; END'
    return Piece(name, table, sql)


def _sqlite_refusal(name: str, table: str, event: str, when: str, message: str) -> Piece:
    return _sqlite_trigger(name, table, event, when, f"SELECT RAISE(ABORT, '{message}')")


# Before the INSERT, -1 stands for a rowid that was not given; so nobody may really have it.
_SAME_ROWID = "(rowid = NEW.rowid AND NEW.rowid <> -1)"


def _sqlite_rowid(table: str) -> Piece:
    return _sqlite_refusal(
        f"{PREFIX}guard_rowid_{table}",
        table,
        "AFTER INSERT",
        "NEW.rowid = -1",
        f"{table}: -1 is no rowid",
    )


def _sqlite_history(guarded: GuardedTable, event: str) -> Piece:
    state = f"NEW.{guarded.state_column}"
    moved = event == "update"
    info = "NEW.transition_info"
    told = f"json_extract({info}, '$.version') = NEW.version"
    values = [
        _SQLITE_UUID7,
        f"'{guarded.entity_type}'",
        "NEW.id",
        f"OLD.{guarded.state_column}" if moved else "NULL",
        state,
        "NEW.version",
        f"NEW.{guarded.attempt_column}" if guarded.attempt_column else "NULL",
        f"CASE WHEN {told} THEN coalesce(json_extract({info}, '$.actor'), 'db:sqlite')"
        " ELSE 'db:sqlite' END",
        f"CASE WHEN {told} THEN coalesce(json_extract({info}, '$.reason'), '') ELSE '' END",
        f"CASE WHEN {told} AND json_type({info}, '$.metadata') = 'object'"
        f" THEN json_extract({info}, '$.metadata') ELSE '{{}}' END",
        "strftime('%Y-%m-%d %H:%M:%f', 'now')",
        _sqlite_commit_order(guarded),
    ]
    when = f"OLD.{guarded.state_column} <> {state}" if moved else ""
    body = f"INSERT INTO {HISTORY_TABLE} ({HISTORY_COLUMNS}) VALUES ({', '.join(values)})"
    name = f"{PREFIX}history_{event}_{guarded.table}"
    return _sqlite_trigger(name, guarded.table, f"AFTER {event.upper()}", when, body)


def _sqlite_commit_order(guarded: GuardedTable) -> str:
    """Never one that was dealt with: the newest rows may have been deleted since."""
    newest = f"(SELECT coalesce(max(commit_order), 0) FROM {HISTORY_TABLE})"
    if not guarded.sequenced:
        return f"{newest} + 1"
    dealt_with = f"(SELECT coalesce(max(last_order), 0) FROM {SEQUENCER_TABLE})"
    return f"max({newest}, {dealt_with}) + 1"


def _same(columns: Iterable[str]) -> str:
    return " AND ".join(f"{name} = NEW.{name}" for name in columns)


def _sqlite_table(guarded: GuardedTable) -> list[Piece]:
    table, machine = guarded.table, guarded.machine
    # An INSERT OR REPLACE would delete the row that it collides with, silently.
    same = " OR ".join(f"({_same(names)})" for names in (("id",), *guarded.identity))
    in_use = f'EXISTS (SELECT 1 FROM "{table}" WHERE {same} OR {_SAME_ROWID})'
    return [
        _sqlite_refusal(
            f"{PREFIX}guard_update_{table}",
            table,
            "BEFORE UPDATE",
            f"OLD.rowid <> NEW.rowid OR {_bad_update(guarded)}",
            f"{table}: illegal move of {guarded.state_column}, version or id",
        ),
        _sqlite_refusal(
            f"{PREFIX}guard_insert_{table}",
            table,
            "BEFORE INSERT",
            f"NEW.version <> 1 OR {in_use}",
            f"{table}: a new row has version 1 and an id not in use",
        ),
        _sqlite_refusal(
            f"{PREFIX}guard_delete_{table}",
            table,
            "BEFORE DELETE",
            f"OLD.{guarded.state_column} = '{machine.active}'",
            f"{table}: a {machine.active} row cannot be deleted",
        ),
        _sqlite_rowid(table),
        _sqlite_history(guarded, "insert"),
        _sqlite_history(guarded, "update"),
        *(_sqlite_counting(table, guarded.counted) if guarded.counted else []),
    ]


def _sqlite_entity(guarded: GuardedTable, row: str, *, as_told: bool) -> str:
    same = f" AND version = {row}.version AND {guarded.state_column} = {row}.new_state"
    return (
        f"({row}.entity_type = '{guarded.entity_type}' AND EXISTS"
        f' (SELECT 1 FROM "{guarded.table}" WHERE id = {row}.entity_id{same if as_told else ""}))'
    )


def _sqlite_history_walls(tables: Sequence[GuardedTable]) -> list[Piece]:
    exists = " OR ".join(_sqlite_entity(table, "OLD", as_told=False) for table in tables)
    truthful = " OR ".join(_sqlite_entity(table, "NEW", as_told=True) for table in tables)
    taken = (
        f"EXISTS (SELECT 1 FROM {HISTORY_TABLE} WHERE id = NEW.id OR {_SAME_ROWID}"
        " OR (entity_type = NEW.entity_type AND entity_id = NEW.entity_id"
        " AND version = NEW.version))"
    )
    wall = f"{PREFIX}history_is_append_only"
    return [
        _sqlite_rowid(HISTORY_TABLE),
        _sqlite_refusal(
            f"{wall}_update", HISTORY_TABLE, "BEFORE UPDATE", "", "state_history is append-only"
        ),
        _sqlite_refusal(
            f"{wall}_delete",
            HISTORY_TABLE,
            "BEFORE DELETE",
            exists,
            "state_history: the entity still exists",
        ),
        _sqlite_refusal(
            f"{wall}_insert",
            HISTORY_TABLE,
            "BEFORE INSERT",
            f"NOT ({truthful}) OR {taken}",
            "state_history: not what the entity says, or told before",
        ),
    ]


def _sqlite_counting(table: str, counted: Counted) -> list[Piece]:
    """Row by row, so what looks alike is added up at once: there is one writer at a time."""

    def trigger(event: str, when: str, **rows: int) -> Piece:
        values = ", ".join(f"({_values(counted, row)}, {jobs})" for row, jobs in rows.items())
        body = (
            f"INSERT INTO {CHANGES_TABLE} ({CHANGE_COLUMNS}, jobs) VALUES {values}"
            " ON CONFLICT DO UPDATE SET jobs = jobs + excluded.jobs"
        )
        name = f"{PREFIX}count_{event.lower()}_{table}"
        return _sqlite_trigger(name, table, f"AFTER {event}", when, body)

    alike = f"{PREFIX}alike_{CHANGES_TABLE}"
    columns = CHANGE_COLUMNS.replace("duration_ms", "coalesce(duration_ms, -1)")
    differs = f"({_values(counted, 'NEW')}) IS NOT ({_values(counted, 'OLD')})"
    return [
        Piece(
            alike, CHANGES_TABLE, f'CREATE UNIQUE INDEX "{alike}" ON "{CHANGES_TABLE}" ({columns})'
        ),
        trigger("INSERT", "", NEW=1),
        trigger("UPDATE", differs, OLD=-1, NEW=1),
        trigger("DELETE", "", OLD=-1),
        _sqlite_fold(),
    ]


def _sqlite_fold() -> Piece:
    steps = [
        *_sqlite_add(COUNTS_TABLE, COUNT_KEY, counts_of(CHANGES_TABLE), "jobs"),
        *_sqlite_add(DURATIONS_TABLE, DURATION_KEY, durations_of(CHANGES_TABLE), "jobs, total_ms"),
        f"DELETE FROM {CHANGES_TABLE}",
    ]
    return _sqlite_trigger(
        f"{PREFIX}fold_{CHANGES_TABLE}",
        CHANGES_TABLE,
        "AFTER INSERT",
        f"NEW.id % {FOLD_EVERY} = 0",
        "; ".join(steps),
    )


def _sqlite_add(table: str, key: str, more: str, sums: str) -> list[str]:
    """Add to the counters, and remove those that came to nothing."""
    names = sums.split(", ")
    added = ", ".join(f"{name} = {name} + excluded.{name}" for name in names)
    nothing = " AND ".join(f"{name} = 0" for name in names)
    return [
        f"INSERT INTO {table} ({key}, {sums}, part) SELECT {key}, {sums}, 0 FROM ({more}) AS more"
        f" WHERE true ON CONFLICT ({key}, part) DO UPDATE SET {added}",
        f"DELETE FROM {table} WHERE {nothing} AND ({key}) IN (SELECT {key} FROM ({more}) AS more)",
    ]


# PostgreSQL -------------------------------------------------------------------------------------

_REFUSE = """
BEGIN
  RAISE EXCEPTION USING ERRCODE = '23514', MESSAGE = TG_TABLE_NAME || ': ' || TG_ARGV[0],
    TABLE = TG_TABLE_NAME, CONSTRAINT = TG_NAME;
END
"""

_REFUSE_UPDATE = """
DECLARE
  was text := to_jsonb(OLD) ->> TG_ARGV[0];
  is_now text := to_jsonb(NEW) ->> TG_ARGV[0];
BEGIN
  RAISE EXCEPTION USING ERRCODE = '23514', TABLE = TG_TABLE_NAME, CONSTRAINT = TG_NAME, MESSAGE =
    CASE
      WHEN OLD.id <> NEW.id THEN TG_TABLE_NAME || ': an id never changes'
      WHEN was = is_now AND NEW.version = OLD.version
        THEN TG_TABLE_NAME || ': what a row is known by never changes'
      WHEN was = is_now THEN TG_TABLE_NAME || ': version changes only with a move'
      WHEN NEW.version <> OLD.version + 1 THEN TG_TABLE_NAME || ': a move raises version by one'
      ELSE 'Invalid status transition: ' || was || ' -> ' || is_now
    END;
END
"""


# What a client put on its own search_path must not stand in for what a function calls.
_PG_SETTINGS = {"search_path": "pg_catalog, pg_temp"}


def _pg_function(
    schema: str, name: str, body: str, *, as_owner: bool = False, **settings: str
) -> Piece:
    chosen = _PG_SETTINGS | settings
    options = "".join(f" SET {key} = {value}" for key, value in chosen.items())
    kept = ",".join(f"{key}={value}" for key, value in chosen.items())
    sql = (
        f'CREATE OR REPLACE FUNCTION "{schema}"."{name}"() RETURNS trigger LANGUAGE plpgsql'
        f"{' SECURITY DEFINER' if as_owner else ''}{options} AS $guard${body}$guard$"
    )
    if as_owner:  # else anybody could put it on a table of his own
        sql += f'; REVOKE ALL ON FUNCTION "{schema}"."{name}"() FROM PUBLIC'
        kept += " as owner"
    return Piece(name, "", sql, function_body=body, settings=kept)


def _pg_trigger(
    schema: str, name: str, table: str, event: str, call: str, *, each: str = "ROW", when: str = ""
) -> Piece:
    condition = f" WHEN ({when})" if when else ""
    target = f'"{schema}"."{table}"'
    sql = (
        f'CREATE TRIGGER "{name}" {event.format(table=target)}'
        f' FOR EACH {each}{condition} EXECUTE FUNCTION "{schema}".{call}'
    )
    return Piece(name, table, sql)


def _pg_history_body(schema: str, guarded: GuardedTable, *, moved: bool) -> str:
    state = guarded.state_column
    told = "n.transition_info ->> 'version' = n.version::text"
    source = "old_rows o JOIN new_rows n ON n.id = o.id" if moved else "new_rows n"
    condition = f" WHERE n.{state} <> o.{state}" if moved else ""
    attempt = f"n.{guarded.attempt_column}" if guarded.attempt_column else "NULL::integer"
    return f"""
DECLARE
  at timestamptz := clock_timestamp();
  stamp text := lpad(to_hex((extract(epoch FROM at) * 1000)::bigint), 12, '0');
  head text := substr(stamp, 1, 8) || '-' || substr(stamp, 9, 4) || '-7';
BEGIN
  INSERT INTO "{schema}".{HISTORY_TABLE} ({HISTORY_COLUMNS})
  SELECT (head || substr(gen_random_uuid()::text, 16))::uuid, '{guarded.entity_type}', n.id,
    {f"o.{state}" if moved else "NULL"}, n.{state}, n.version, {attempt},
    CASE WHEN {told} THEN left(coalesce(n.transition_info ->> 'actor', 'db:' || current_user), 200)
      ELSE 'db:' || current_user END,
    CASE WHEN {told} THEN left(coalesce(n.transition_info ->> 'reason', ''), 64) ELSE '' END,
    CASE WHEN {told} AND jsonb_typeof(n.transition_info -> 'metadata') = 'object'
      THEN n.transition_info -> 'metadata' ELSE '{{}}' END,
    at, pg_current_xact_id()::text::bigint
  FROM {source}{condition};
  RETURN NULL;
END
"""


def _pg_table(schema: str, guarded: GuardedTable) -> list[Piece]:
    counted = guarded.counted
    return [
        *_pg_walls(schema, guarded),
        *_pg_history(schema, guarded),
        *(_pg_counting(schema, guarded.table, counted) if counted else []),
    ]


def _pg_walls(schema: str, guarded: GuardedTable) -> list[Piece]:
    """What is refused."""
    table, machine = guarded.table, guarded.machine
    return [
        _pg_trigger(
            schema,
            f"{PREFIX}guard_update_{table}",
            table,
            "BEFORE UPDATE ON {table}",
            f"{PREFIX}refuse_update('{guarded.state_column}')",
            when=_bad_update(guarded),
        ),
        _pg_trigger(
            schema,
            f"{PREFIX}guard_insert_{table}",
            table,
            "BEFORE INSERT ON {table}",
            f"{PREFIX}refuse('a new row has version 1')",
            when="NEW.version <> 1",
        ),
        _pg_trigger(
            schema,
            f"{PREFIX}guard_delete_{table}",
            table,
            "BEFORE DELETE ON {table}",
            f"{PREFIX}refuse('a {machine.active} row cannot be deleted')",
            when=f"OLD.{guarded.state_column} = '{machine.active}'",
        ),
        _pg_trigger(
            schema,
            f"{PREFIX}guard_truncate_{table}",
            table,
            "BEFORE TRUNCATE ON {table}",
            f"{PREFIX}refuse('TRUNCATE would erase lives')",
            each="STATEMENT",
        ),
    ]


def _pg_history(schema: str, guarded: GuardedTable) -> list[Piece]:
    """What is told."""
    table = guarded.table
    on_insert, on_update = f"{PREFIX}history_insert_{table}", f"{PREFIX}history_update_{table}"
    return [
        _pg_function(schema, on_insert, _pg_history_body(schema, guarded, moved=False)),
        # Planned once per session: after a one-row call the join of a large batch would run nested.
        _pg_function(
            schema, on_update, _pg_history_body(schema, guarded, moved=True), enable_nestloop="off"
        ),
        _pg_trigger(
            schema,
            on_insert,
            table,
            "AFTER INSERT ON {table} REFERENCING NEW TABLE AS new_rows",
            f"{on_insert}()",
            each="STATEMENT",
        ),
        _pg_trigger(
            schema,
            on_update,
            table,
            "AFTER UPDATE ON {table} REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows",
            f"{on_update}()",
            each="STATEMENT",
        ),
    ]


def _pg_counting(schema: str, table: str, counted: Counted) -> list[Piece]:
    """Whoever may write a job is counted: these run with the rights of who installed them."""
    events = {
        "INSERT": {"NEW TABLE AS new_rows": 1},
        "UPDATE": {"OLD TABLE AS old_rows": -1, "NEW TABLE AS new_rows": 1},
        "DELETE": {"OLD TABLE AS old_rows": -1},
    }
    pieces = []
    for event, given in events.items():
        rows = {transition.split()[-1]: jobs for transition, jobs in given.items()}
        name = f"{PREFIX}count_{event.lower()}_{table}"
        body = _pg_count_body(schema, counted, rows)
        # Planned once per session, for one row: sorting many by six texts would be slow.
        function = _pg_function(schema, name, body, as_owner=True, enable_sort="off")
        pieces += [function, _pg_after(schema, name, table, event, " ".join(given))]
    return [*pieces, *_pg_folding(schema)]


def _pg_folding(schema: str) -> list[Piece]:
    name, body = f"{PREFIX}fold_{CHANGES_TABLE}", _pg_fold_body(schema)
    return [
        _pg_function(schema, name, body, as_owner=True, plan_cache_mode="force_custom_plan"),
        _pg_after(schema, name, CHANGES_TABLE, "INSERT", "NEW TABLE AS new_rows"),
    ]


def _pg_after(schema: str, name: str, table: str, event: str, rows: str) -> Piece:
    when = f"AFTER {event} ON {{table}} REFERENCING {rows}"
    return _pg_trigger(schema, name, table, when, f"{name}()", each="STATEMENT")


def _pg_count_body(schema: str, counted: Counted, rows: dict[str, int]) -> str:
    return f"""
BEGIN
  INSERT INTO "{schema}".{CHANGES_TABLE} ({CHANGE_COLUMNS}, jobs)
  {_grouped_changes(counted, rows)};
  RETURN NULL;
END
"""


def _pg_fold_body(schema: str) -> str:
    """Takes changes, and the counters that they change, and writes the sums as new counters.

    What another transaction is folding is skipped, and so nobody waits: the counters of one key
    may then stand in several parts, which the next fold of that key makes one.
    """
    counts, durations = f'"{schema}".{COUNTS_TABLE}', f'"{schema}".{DURATIONS_TABLE}'
    changes = f'"{schema}".{CHANGES_TABLE}'
    return f"""
DECLARE
  added bigint;
  newest bigint;
BEGIN
  SELECT count(*), max(id) INTO added, newest FROM new_rows;
  IF added = 0 OR newest % {FOLD_EVERY} >= added
    OR current_setting('transaction_isolation') = 'serializable' THEN
    RETURN NULL;
  END IF;
  BEGIN
  WITH change AS MATERIALIZED (
    DELETE FROM {changes} WHERE ctid = ANY(ARRAY(SELECT ctid FROM {changes}
      LIMIT {10 * FOLD_EVERY} + 2 * added FOR UPDATE SKIP LOCKED))
    RETURNING {CHANGE_COLUMNS}, jobs
  ),
  count AS MATERIALIZED ({counts_of("change")}
  ),
  count_before AS ({_pg_taken(counts, "count", COUNT_KEY, "jobs")}
  ),
  counted AS (
    INSERT INTO {counts} ({COUNT_KEY}, jobs, part)
    SELECT {COUNT_KEY}, sum(jobs), newest
    FROM (TABLE count UNION ALL TABLE count_before) AS each
    GROUP BY {COUNT_KEY} HAVING sum(jobs) <> 0
  ),
  duration AS MATERIALIZED ({durations_of("change")}
  ),
  duration_before AS ({_pg_taken(durations, "duration", DURATION_KEY, "jobs, total_ms")}
  )
  INSERT INTO {durations} ({DURATION_KEY}, jobs, total_ms, part)
  SELECT {DURATION_KEY}, sum(jobs), sum(total_ms), newest
  FROM (TABLE duration UNION ALL TABLE duration_before) AS each
  GROUP BY {DURATION_KEY} HAVING sum(jobs) <> 0 OR sum(total_ms) <> 0;
  EXCEPTION WHEN serialization_failure THEN
    NULL;  -- REPEATABLE READ, and somebody else folded since our snapshot
  END;
  RETURN NULL;
END
"""


def _pg_taken(table: str, of: str, key: str, sums: str) -> str:
    return f"""
    DELETE FROM {table} WHERE ctid = ANY(ARRAY(SELECT b.ctid FROM {of} JOIN {table} b
      USING ({key}) FOR UPDATE OF b SKIP LOCKED))
    RETURNING {key}, {sums}"""


def _pg_entity(schema: str, tables: Sequence[GuardedTable], row: str, *, as_told: bool) -> str:
    """True for a history row whose entity exists, or also stands as the row says."""

    def case(guarded: GuardedTable) -> str:
        same = f"e.version = {row}.version AND e.{guarded.state_column} = {row}.new_state"
        return (
            f"WHEN '{guarded.entity_type}' THEN (SELECT {same if as_told else 'true'}"
            f' FROM "{schema}"."{guarded.table}" e WHERE e.id = {row}.entity_id)'
        )

    # Not EXISTS: that may be planned as a hash of the whole table, and the plan is kept.
    cases = "\n    ".join(case(guarded) for guarded in tables)
    return f"coalesce(CASE {row}.entity_type\n    {cases}\n    ELSE false END, false)"


def _pg_refusal_if(condition: str, message: str, result: str) -> str:
    return f"""
BEGIN
  IF ({condition}) THEN
    RAISE EXCEPTION USING ERRCODE = '23514', TABLE = TG_TABLE_NAME, CONSTRAINT = TG_NAME,
      MESSAGE = 'state_history: {message}';
  END IF;
  RETURN {result};
END
"""


def _pg_history_walls(schema: str, tables: Sequence[GuardedTable]) -> list[Piece]:
    wall = f"{PREFIX}history_is_append_only"
    truthful = _pg_entity(schema, tables, "h", as_told=True)
    forged = f"EXISTS (SELECT 1 FROM new_rows h WHERE NOT {truthful})"
    exists = _pg_entity(schema, tables, "OLD", as_told=False)
    refuse = f"{PREFIX}refuse('append-only')"

    def trigger(event: str, call: str, **options: str) -> Piece:
        name = f"{wall}_{event.lower()}"
        return _pg_trigger(
            schema, name, HISTORY_TABLE, f"BEFORE {event} ON {{table}}", call, **options
        )

    return [
        _pg_function(
            schema,
            f"{wall}_insert",
            _pg_refusal_if(forged, "not what the entity says", "NULL"),
            as_owner=True,  # who may write jobs need not be able to read runs
            enable_seqscan="off",
        ),
        _pg_function(
            schema,
            f"{wall}_delete",
            _pg_refusal_if(exists, "the entity still exists", "OLD"),
            as_owner=True,
        ),
        trigger("UPDATE", refuse),
        trigger("DELETE", f"{wall}_delete()"),
        trigger("TRUNCATE", refuse, each="STATEMENT"),
        # Also what triggers write is looked at: anybody may put one on a table of his own.
        _pg_trigger(
            schema,
            f"{wall}_insert",
            HISTORY_TABLE,
            "AFTER INSERT ON {table} REFERENCING NEW TABLE AS new_rows",
            f"{wall}_insert()",
            each="STATEMENT",
        ),
    ]


def _pg_pieces(schema: str, tables: Sequence[GuardedTable]) -> list[Piece]:
    shared = [
        _pg_function(schema, f"{PREFIX}refuse", _REFUSE),
        _pg_function(schema, f"{PREFIX}refuse_update", _REFUSE_UPDATE),
    ]
    own = [piece for table in tables for piece in _pg_table(schema, table)]
    wake = _pg_wake(schema) if any(table.sequenced for table in tables) else []
    return [*shared, *own, *_pg_history_walls(schema, tables), *wake]


def _pg_wake(schema: str) -> list[Piece]:
    """The first move while somebody waits wakes him: NOTIFY in each would queue up the commits.

    Who may write jobs need not be able to read or set the flag.
    """
    body = f"""
BEGIN
  IF (SELECT last_value FROM "{schema}".{AWAITED}) = 2 THEN
    PERFORM setval('"{schema}".{AWAITED}', 1);
    PERFORM pg_notify('{MOVES_CHANNEL}', '');
  END IF;
  RETURN NULL;
END
"""
    name = f"{PREFIX}wake_{HISTORY_TABLE}"
    return [
        _pg_function(schema, name, body, as_owner=True),
        _pg_trigger(
            schema, name, HISTORY_TABLE, "AFTER INSERT ON {table}", f"{name}()", each="STATEMENT"
        ),
    ]


# Installing and comparing -----------------------------------------------------------------------


class _Sqlite:
    """The guard on one SQLite database."""

    def __init__(self, connection: Any) -> None:
        self.connection = connection

    def compile(self, tables: Sequence[GuardedTable]) -> list[Piece]:
        own = [piece for table in tables for piece in _sqlite_table(table)]
        return [*own, *_sqlite_history_walls(tables)]

    def stored(self) -> dict[str, str]:
        with self.connection.cursor() as cursor:
            cursor.execute(
                "SELECT name, sql FROM sqlite_master"
                " WHERE type IN ('trigger', 'index') AND substr(name, 1, %s) = %s",
                [len(PREFIX), PREFIX],
            )
            return dict(cursor.fetchall())

    def fingerprint(self, piece: Piece) -> str:
        return piece.sql

    def drop_all(self, cursor: Any) -> None:
        for name, sql in self.stored().items():
            kind = "TRIGGER" if sql.startswith("CREATE TRIGGER") else "INDEX"
            cursor.execute(f'DROP {kind} "{name}"')

    def create(self, cursor: Any, piece: Piece) -> None:
        cursor.execute(piece.sql)

    def lock(self, cursor: Any, table: str) -> None:
        """There is one writer at a time."""

    def close(self, cursor: Any, table: str) -> None:
        """Who holds the transaction keeps the others out."""

    def open(self, cursor: Any) -> None:
        """The end of the transaction does."""


class _PostgreSQL:
    """The guard on one PostgreSQL schema.

    The server keeps a trigger as a parsed tree, so its text cannot be compared with ours. Its
    comment keeps two digests: of our text, and of the server's own rendering when it was made.
    """

    def __init__(self, connection: Any) -> None:
        self.connection = connection
        with connection.cursor() as cursor:
            cursor.execute("SELECT current_schema()")
            self.schema = cursor.fetchone()[0]

    def compile(self, tables: Sequence[GuardedTable]) -> list[Piece]:
        return _pg_pieces(self.schema, tables)

    def stored(self) -> dict[str, str]:
        with self.connection.cursor() as cursor:
            cursor.execute(_PG_STORED, {"schema": self.schema, "names": PREFIX})
            return dict(cursor.fetchall())

    def fingerprint(self, piece: Piece) -> str:
        if piece.function_body:
            return f"{piece.function_body}{piece.settings}"
        return f"O {_digest(piece.sql)} intact"

    def drop_all(self, cursor: Any) -> None:
        cursor.execute(_PG_TRIGGERS, {"schema": self.schema, "names": PREFIX})
        triggers = cursor.fetchall()
        self._lock_as_writers_do(cursor, {table for _, table in triggers})
        for name, table in triggers:
            cursor.execute(f'DROP TRIGGER "{name}" ON "{self.schema}"."{table}"')
        cursor.execute(_PG_FUNCTIONS, {"schema": self.schema, "names": PREFIX})
        for (name,) in cursor.fetchall():
            cursor.execute(f'DROP FUNCTION "{self.schema}"."{name}"()')

    def create(self, cursor: Any, piece: Piece) -> None:
        cursor.execute(piece.sql)
        if piece.function_body:
            return
        cursor.execute(
            "SELECT md5(pg_get_triggerdef(t.oid)) FROM pg_trigger t"
            " WHERE t.tgname = %s AND t.tgrelid = %s::regclass",
            [piece.name, f'"{self.schema}"."{piece.table}"'],
        )
        note = f"{_digest(piece.sql)} {cursor.fetchone()[0]}"
        cursor.execute(
            f'COMMENT ON TRIGGER "{piece.name}" ON "{self.schema}"."{piece.table}" IS \'{note}\''
        )

    def _lock_as_writers_do(self, cursor: Any, tables: set[str]) -> None:
        """First the tables of entities, then what their triggers write to: else it may deadlock."""
        written_to = (HISTORY_TABLE, CHANGES_TABLE)
        for table in sorted(tables, key=lambda table: (table in written_to, table)):
            cursor.execute(f'LOCK TABLE "{self.schema}"."{table}" IN ACCESS EXCLUSIVE MODE')

    def lock(self, cursor: Any, table: str) -> None:
        """From now on nobody else writes; what others wrote before is there to be seen."""
        cursor.execute(f'LOCK TABLE "{self.schema}"."{table}" IN SHARE ROW EXCLUSIVE MODE')

    def close(self, cursor: Any, table: str) -> None:
        cursor.execute(f"SET {_PG_MIGRATING} = 'on'")
        cursor.execute(_PG_DOOR.format(schema=self.schema))
        cursor.execute(
            f'CREATE TRIGGER "{PREFIX}door" BEFORE INSERT OR UPDATE OR DELETE'
            f' ON "{self.schema}"."{table}" FOR EACH STATEMENT'
            f' EXECUTE FUNCTION "{self.schema}"."{PREFIX}door"()'
        )

    def open(self, cursor: Any) -> None:
        cursor.execute(f'DROP FUNCTION IF EXISTS "{self.schema}"."{PREFIX}door"() CASCADE')
        cursor.execute(f"RESET {_PG_MIGRATING}")


_PG_MIGRATING = "container_manager.migrating"

_PG_DOOR = f"""
CREATE OR REPLACE FUNCTION "{{schema}}"."{PREFIX}door"() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF current_setting('{_PG_MIGRATING}', true) IS DISTINCT FROM 'on' THEN
    RAISE EXCEPTION 'A migration is at work on this table; try again later'
      USING ERRCODE = 'cannot_connect_now';
  END IF;
  RETURN NULL;
END $$
"""


_PG_TRIGGERS = """
SELECT t.tgname, c.relname FROM pg_trigger t
JOIN pg_class c ON c.oid = t.tgrelid JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = %(schema)s AND starts_with(t.tgname, %(names)s) AND NOT t.tgisinternal
"""

_PG_FUNCTIONS = """
SELECT p.proname FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
WHERE n.nspname = %(schema)s AND starts_with(p.proname, %(names)s) AND p.pronargs = 0
  AND p.prorettype = 'trigger'::regtype
"""

_PG_STORED = """
SELECT t.tgname, t.tgenabled::text || ' ' || coalesce(split_part(d.description, ' ', 1), '') ||
  CASE WHEN split_part(d.description, ' ', 2) = md5(pg_get_triggerdef(t.oid))
    THEN ' intact' ELSE ' changed' END
FROM pg_trigger t
JOIN pg_class c ON c.oid = t.tgrelid JOIN pg_namespace n ON n.oid = c.relnamespace
LEFT JOIN pg_description d ON d.objoid = t.oid AND d.classoid = 'pg_trigger'::regclass
WHERE n.nspname = %(schema)s AND starts_with(t.tgname, %(names)s) AND NOT t.tgisinternal
UNION ALL
SELECT p.proname || '()', p.prosrc || coalesce(array_to_string(p.proconfig, ','), '') ||
  CASE WHEN p.prosecdef THEN ' as owner' ELSE '' END
FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
WHERE n.nspname = %(schema)s AND starts_with(p.proname, %(names)s) AND p.pronargs = 0
  AND p.prorettype = 'trigger'::regtype
"""


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _dialect(connection: Any) -> _Sqlite | _PostgreSQL | None:
    if connection.vendor == "sqlite":
        return _Sqlite(connection)
    return _PostgreSQL(connection) if connection.vendor == "postgresql" else None


def _key(piece: Piece) -> str:
    return f"{piece.name}()" if piece.function_body else piece.name


def _present(connection: Any, tables: Sequence[GuardedTable]) -> list[GuardedTable]:
    """The tables that are there, as far as they can be guarded and counted already."""
    there = set(connection.introspection.table_names())
    if HISTORY_TABLE not in there:
        return []
    found = [table for table in tables if table.table in there]
    if SEQUENCER_TABLE not in there:
        found = [replace(table, sequenced=False) for table in found]
    if {COUNTS_TABLE, DURATIONS_TABLE, CHANGES_TABLE} <= there:
        return found
    return [replace(table, counted=None) for table in found]


def differences(connection: Any, tables: Sequence[GuardedTable]) -> list[str]:
    """One line for each trigger or function that is missing, differs or is not ours."""
    dialect, present = _dialect(connection), _present(connection, tables)
    if dialect is None or not present:
        return []
    stored = dialect.stored()
    wanted = {_key(piece): dialect.fingerprint(piece) for piece in dialect.compile(present)}
    missing = [f"{name} is missing" for name in wanted if name not in stored]
    changed = [
        f"{name} differs from the table of states"
        for name, text in wanted.items()
        if name in stored and stored[name] != text
    ]
    unknown = [f"{name} is not part of the guard" for name in stored if name not in wanted]
    return missing + changed + unknown


def install(connection: Any, tables: Sequence[GuardedTable]) -> bool:
    """Install the guard where it is missing or differs; True when something was done.

    What was written while it was not whole was not counted: all counters begin anew.
    """
    dialect, present = _dialect(connection), _present(connection, tables)
    if dialect is None or not differences(connection, tables):
        return False
    with transaction.atomic(using=connection.alias), connection.cursor() as cursor:
        dialect.drop_all(cursor)
        _forget_counters(cursor, present)
        for piece in dialect.compile(present):
            dialect.create(cursor, piece)
        _count_anew(dialect, cursor, present)
    return True


def recount(connection: Any, tables: Sequence[GuardedTable]) -> None:
    """Begin all counters anew from the rows."""
    if (dialect := _dialect(connection)) is not None:
        with transaction.atomic(using=connection.alias), connection.cursor() as cursor:
            _count_anew(dialect, cursor, _present(connection, tables))


def miscounts(connection: Any, tables: Sequence[GuardedTable]) -> list[str]:
    """One line for each counter that is not what the rows say; each kind seen at one moment."""
    lines = []
    for guarded in _present(connection, tables):
        if guarded.counted is not None:
            rows = rows_as_changes(guarded.table, guarded.counted)
            with connection.cursor() as cursor:
                for key, table, sums_of in _COUNTERS:
                    cursor.execute(_miscounted(rows, key, table, sums_of))
                    lines += [
                        f"{table} of {', '.join(map(str, values))}: {counted}, and {found} there"
                        for *values, counted, found in cursor.fetchall()
                    ]
    return lines


_COUNTERS = (
    (COUNT_KEY, COUNTS_TABLE, counts_of),
    (DURATION_KEY, DURATIONS_TABLE, durations_of),
)


def _miscounted(rows: str, key: str, table: str, sums_of: Callable[[str], str]) -> str:
    total = "total_ms" if table == DURATIONS_TABLE else "0"
    return f"""
    WITH there AS MATERIALIZED ({rows})
    SELECT {key}, sum(counted), sum(found) FROM (
      SELECT {key}, 0 AS counted, jobs AS found, -{total} AS ms FROM ({sums_of("there")}) AS r
      UNION ALL SELECT {key}, jobs, 0, {total} FROM {table}
      UNION ALL SELECT {key}, jobs, 0, {total} FROM ({sums_of(CHANGES_TABLE)}) AS c) AS each
    GROUP BY {key} HAVING sum(counted) <> sum(found) OR sum(ms) <> 0 ORDER BY {key}"""


def _count_anew(dialect: Any, cursor: Any, tables: Sequence[GuardedTable]) -> None:
    """The triggers stand; nobody writes between the lock and the end of the transaction."""
    for guarded in tables:
        if guarded.counted is not None:
            dialect.lock(cursor, guarded.table)
            _forget_counters(cursor, tables)
            rows = rows_as_changes(guarded.table, guarded.counted)
            cursor.execute(f"INSERT INTO {CHANGES_TABLE} ({CHANGE_COLUMNS}, jobs) {rows}")


def _forget_counters(cursor: Any, tables: Sequence[GuardedTable]) -> None:
    if any(guarded.counted for guarded in tables):
        for counters in (COUNTS_TABLE, DURATIONS_TABLE, CHANGES_TABLE):
            cursor.execute(f"DELETE FROM {counters}")


def uninstall(connection: Any, door: Sequence[GuardedTable] = ()) -> None:
    """Remove every trigger and function of the guard.

    `door`: on PostgreSQL nobody but this session writes these tables until `open_door` or
    `install`; who tries is told that the database is away. (On SQLite that takes a transaction.)
    """
    if (dialect := _dialect(connection)) is not None:
        with transaction.atomic(using=connection.alias), connection.cursor() as cursor:
            dialect.drop_all(cursor)
            for table in _present(connection, door):
                dialect.close(cursor, table.table)


def open_door(connection: Any) -> None:
    """Let everybody write again, guarded or not."""
    if (dialect := _dialect(connection)) is not None:
        with connection.cursor() as cursor:
            dialect.open(cursor)
