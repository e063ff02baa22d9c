"""Every way in which a client may try to move a row, and what the row and its history say."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest
from django.db import IntegrityError, connection, transaction

from container_manager import states
from container_manager.exceptions import InvalidTransition
from container_manager.models import ContainerJob, StateHistory
from container_manager.models.base import GuardedModel
from container_manager.states import StateMachine

Way = Callable[[GuardedModel, str], Any]


def pairs(machine: StateMachine) -> list[tuple[str, str]]:
    return [(str(old), str(new)) for old in machine.states for new in machine.states]


def legal(machine: StateMachine) -> list[tuple[str, str]]:
    return [(old, new) for old, new in pairs(machine) if machine.can_transition(old, new)]


def illegal(machine: StateMachine) -> list[tuple[str, str]]:
    return [
        (old, new)
        for old, new in pairs(machine)
        if old != new and not machine.can_transition(old, new)
    ]


def same(machine: StateMachine) -> list[tuple[str, str]]:
    return [(state, state) for state in map(str, machine.states)]


# The ways -----------------------------------------------------------------------------------------


def transition_to(row: GuardedModel, new: str) -> None:
    row.transition_to(new)


def assign_and_save(row: GuardedModel, new: str) -> None:
    setattr(row, row.state_field, new)
    row.save()


def assign_and_save_only_the_state(row: GuardedModel, new: str) -> None:
    setattr(row, row.state_field, new)
    row.save(update_fields=[row.state_field])


def queryset_update(row: GuardedModel, new: str) -> None:
    type(row).objects.filter(pk=row.pk).update(**{row.state_field: new})


def bulk_update(row: GuardedModel, new: str) -> None:
    setattr(row, row.state_field, new)
    type(row).objects.bulk_update([row], [row.state_field])


def update_state(row: GuardedModel, new: str) -> None:
    type(row).objects.update_state(row.pk, row._state_now(), new)


def raw_sql(row: GuardedModel, new: str) -> None:
    _raw_move(row, new, raising="version + 1")


def raw_sql_without_version(row: GuardedModel, new: str) -> None:
    _raw_move(row, new, raising="version")


ORM_WAYS: list[Way] = [
    transition_to,
    assign_and_save,
    assign_and_save_only_the_state,
    queryset_update,
    bulk_update,
]
LEGAL_WAYS: list[Way] = [*ORM_WAYS, update_state, raw_sql]
ILLEGAL_WAYS: list[Way] = [*LEGAL_WAYS, raw_sql_without_version]


def name_of(value: Any) -> str:
    """For parametrize: pairs and ways read as words."""
    return "-".join(value) if isinstance(value, tuple) else value.__name__


def refusal_by(way: Way) -> AbstractContextManager[Any]:
    """What such a client is told: the ORM's own error, or the database's."""
    if way in (raw_sql, raw_sql_without_version):
        return pytest.raises(IntegrityError, match=r"illegal move|Invalid status|raises version")
    return pytest.raises(InvalidTransition)


def tried(way: Way, row: GuardedModel, new: str) -> None:
    """Refusals by the database end only the attempt's own transaction."""
    with transaction.atomic():
        way(row, new)


def raw_version_alone(row: GuardedModel, _new: str) -> None:
    execute(f"UPDATE {row._meta.db_table} SET version = version + 1")


def _raw_move(row: GuardedModel, new: str, *, raising: str) -> None:
    table, column = row._meta.db_table, row.state_field
    times = _raw_times(new) if isinstance(row, ContainerJob) else _raw_workflow_times(new)
    execute(
        f"UPDATE {table} SET {column} = %s, version = {raising}{times} WHERE id = %s",
        [new, raw_id(row)],
    )


def _raw_times(new: str) -> str:
    """What another program must set so that no CHECK speaks before the triggers do."""
    now = "CURRENT_TIMESTAMP"
    launched = "launched_at"
    if new in states.NOT_LAUNCHED:
        launched = "NULL"
    elif new in states.LAUNCHED:
        launched = f"coalesce(launched_at, {now})"
    completed = f"coalesce(completed_at, {now})" if new in states.ENDED else "NULL"
    return (
        f", launched_at = {launched}, completed_at = {completed}, exit_code = NULL,"
        f" queued_at = coalesce(queued_at, {now})"
    )


def _raw_workflow_times(new: str) -> str:
    now = "CURRENT_TIMESTAMP"
    started = "NULL" if new == "queued" else f"coalesce(started_at, {now})"
    ended = f"coalesce(ended_at, {now})" if new in states.OVER else "NULL"
    return f", started_at = {started}, ended_at = {ended}"


# Looking ------------------------------------------------------------------------------------------


def execute(sql: str, params: Any = ()) -> int:
    with connection.cursor() as cursor:
        cursor.execute(sql, params)
        return cursor.rowcount


def raw_id(row: Any) -> Any:
    return row._meta.pk.get_db_prep_value(row.pk, connection)


def stored(row: Any) -> dict[str, Any]:
    return type(row)._base_manager.filter(pk=row.pk).values().get()


def told(row: GuardedModel) -> list[tuple[str | None, str, int]]:
    """The history of a row: old state, new state, version."""
    history = StateHistory.objects.of(row)
    return list(history.values_list("old_state", "new_state", "version"))


def database_actor() -> str:
    if connection.vendor == "sqlite":
        return "db:sqlite"
    with connection.cursor() as cursor:
        cursor.execute("SELECT current_user")
        return f"db:{cursor.fetchone()[0]}"
