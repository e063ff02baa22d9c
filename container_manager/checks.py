"""Django system checks: settings, deployment, and whether the guard stands."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from django.conf import settings as django_settings
from django.core.checks import CheckMessage, Error, Warning
from django.db import connections

from container_manager import conf, db_guard, retries
from container_manager.events.base import make
from container_manager.models.base import guarded_tables

_left_to_migrate: ContextVar[bool] = ContextVar("guard_left_to_migrate", default=False)


@contextmanager
def guard_left_to_migrate() -> Iterator[None]:
    """Inside, nobody asks for the guard: `migrate` is about to compare and install it."""
    token = _left_to_migrate.set(True)
    try:
        yield
    finally:
        _left_to_migrate.reset(token)


def settings_are_valid(**_: Any) -> list[CheckMessage]:
    """container_manager.E001: one error for each mistake in CONTAINER_MANAGER."""
    values, problems = conf.read(getattr(django_settings, "CONTAINER_MANAGER", {}))
    for name, policy in values.RETRY_POLICIES.items():
        try:
            retries.read_policy(policy)
        except retries.PolicyError as error:
            problems.append(f"CONTAINER_MANAGER['RETRY_POLICIES'][{name!r}]: {error}")
    problems += _wrong_with_publishers(values.PUBLISHERS)
    return [Error(problem, id="container_manager.E001") for problem in problems]


def _wrong_with_publishers(publishers: Mapping[str, Any]) -> Iterator[str]:
    for alias, entry in publishers.items():
        if isinstance(entry, dict) and isinstance(entry.get("class"), str):
            try:
                make(entry["class"], entry.get("options"))
            except ValueError as error:
                yield f"CONTAINER_MANAGER['PUBLISHERS'][{alias!r}]: {error}"


def deployment_is_safe(**_: Any) -> list[CheckMessage]:
    """container_manager.W001: local processes are on in production."""
    on = any("process" in alias for alias in conf.executors())
    if django_settings.DEBUG or not on:
        return []
    message = "PROCESS_EXECUTOR is on: jobs run unconfined on the worker's machine."
    return [Warning(message, id="container_manager.W001")]


def guard_is_installed(*, databases: Sequence[str] | None = None, **_: Any) -> list[CheckMessage]:
    """container_manager.E002: a trigger or function of the guard is missing or changed."""
    if _left_to_migrate.get():
        return []
    return [
        Error(
            f"Database {alias!r}: {line}",
            hint="Run `manage.py migrate`: it compares and installs the guard.",
            id="container_manager.E002",
        )
        for alias in databases or ()
        for line in db_guard.differences(connections[alias], guarded_tables())
    ]
