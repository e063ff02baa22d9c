"""Compiles the transition tables into constraints and triggers for SQLite and PostgreSQL.

Four walls, for every guarded table and whatever client writes:

1. an UPDATE that makes an illegal move, moves without raising `version` by one, raises it without
   a move, or changes an id, is refused;
2. every move and every INSERT writes its row into `state_history`;
3. `state_history` is append-only while the entity exists, and a row written by hand must say what
   the entity's state and version are;
4. an INSERT begins at version 1 with an id not in use; a row whose work is under way is not
   deleted.

Out of reach: an owner who disables triggers, `session_replication_role`, PRAGMAs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from django.db import models, transaction

from container_manager.states import StateMachine

HISTORY_TABLE = "state_history"
PREFIX = "cm_"


@dataclass(frozen=True)
class GuardedTable:
    """What the guard must know of one table."""

    table: str
    entity_type: str
    machine: StateMachine
    state_column: str
    attempt_column: str | None = None


@dataclass(frozen=True)
class Piece:
    """One trigger or function, with the statement that makes it."""

    name: str
    table: str
    sql: str
    function_body: str = ""
    """Set for functions: the text between the dollar quotes, as the database keeps it."""
    settings: str = ""
    """Set for functions: the parameters they run with, as the database keeps them."""


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


def _bad_update(guarded: GuardedTable) -> str:
    column = guarded.state_column
    return (
        f"OLD.id <> NEW.id"
        f" OR (OLD.{column} = NEW.{column} AND OLD.version <> NEW.version)"
        f" OR (OLD.{column} <> NEW.{column} AND (NEW.version <> OLD.version + 1"
        f" OR NOT ({_legal_moves(guarded)})))"
    )


HISTORY_COLUMNS = (
    "id, entity_type, entity_id, old_state, new_state, version, attempt,"
    " actor, reason, metadata, changed_at, commit_order"
)

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
        f"(SELECT coalesce(max(commit_order), 0) + 1 FROM {HISTORY_TABLE})",
    ]
    when = f"OLD.{guarded.state_column} <> {state}" if moved else ""
    body = f"INSERT INTO {HISTORY_TABLE} ({HISTORY_COLUMNS}) VALUES ({', '.join(values)})"
    name = f"{PREFIX}history_{event}_{guarded.table}"
    return _sqlite_trigger(name, guarded.table, f"AFTER {event.upper()}", when, body)


def _sqlite_table(guarded: GuardedTable) -> list[Piece]:
    table, machine = guarded.table, guarded.machine
    # An INSERT OR REPLACE would delete the row it collides with, by id or by rowid, silently.
    in_use = f'EXISTS (SELECT 1 FROM "{table}" WHERE id = NEW.id OR {_SAME_ROWID})'
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
      WHEN was = is_now THEN TG_TABLE_NAME || ': version changes only with a move'
      WHEN NEW.version <> OLD.version + 1 THEN TG_TABLE_NAME || ': a move raises version by one'
      ELSE 'Invalid status transition: ' || was || ' -> ' || is_now
    END;
END
"""


# What a client put on its own search_path must not stand in for what a function calls.
_PG_SETTINGS = {"search_path": "pg_catalog, pg_temp"}


def _pg_function(schema: str, name: str, body: str, **settings: str) -> Piece:
    chosen = _PG_SETTINGS | settings
    options = "".join(f" SET {key} = {value}" for key, value in chosen.items())
    kept = ",".join(f"{key}={value}" for key, value in chosen.items())
    sql = (
        f'CREATE OR REPLACE FUNCTION "{schema}"."{name}"() RETURNS trigger'
        f" LANGUAGE plpgsql{options} AS $guard${body}$guard$"
    )
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
    table, machine = guarded.table, guarded.machine
    # Planned once per session: after a one-row call the join of a large batch would run nested.
    options = {"enable_nestloop": "off"}
    on_insert, on_update = f"{PREFIX}history_insert_{table}", f"{PREFIX}history_update_{table}"
    return [
        _pg_function(schema, on_insert, _pg_history_body(schema, guarded, moved=False)),
        _pg_function(schema, on_update, _pg_history_body(schema, guarded, moved=True), **options),
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
            enable_seqscan="off",
        ),
        _pg_function(
            schema, f"{wall}_delete", _pg_refusal_if(exists, "the entity still exists", "OLD")
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
    return [*shared, *own, *_pg_history_walls(schema, tables)]


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
                " WHERE type = 'trigger' AND substr(name, 1, %s) = %s",
                [len(PREFIX), PREFIX],
            )
            return dict(cursor.fetchall())

    def fingerprint(self, piece: Piece) -> str:
        return piece.sql

    def drop_all(self, cursor: Any) -> None:
        for name in self.stored():
            cursor.execute(f'DROP TRIGGER "{name}"')

    def create(self, cursor: Any, piece: Piece) -> None:
        cursor.execute(piece.sql)


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
        for name, table in cursor.fetchall():
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
SELECT p.proname || '()', p.prosrc || coalesce(array_to_string(p.proconfig, ','), '')
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
    there = set(connection.introspection.table_names())
    return [table for table in tables if table.table in there] if HISTORY_TABLE in there else []


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
    """Install the guard where it is missing or differs; True when something was done."""
    dialect, present = _dialect(connection), _present(connection, tables)
    if dialect is None or not differences(connection, tables):
        return False
    with transaction.atomic(using=connection.alias), connection.cursor() as cursor:
        dialect.drop_all(cursor)
        for piece in dialect.compile(present):
            dialect.create(cursor, piece)
    return True


def uninstall(connection: Any) -> None:
    """Remove every trigger and function of the guard."""
    if (dialect := _dialect(connection)) is not None:
        with transaction.atomic(using=connection.alias), connection.cursor() as cursor:
            dialect.drop_all(cursor)
