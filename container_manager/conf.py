"""The app's settings: one `CONTAINER_MANAGER` dict, typed, read when asked for.

    from container_manager.conf import settings
    settings.LEASE_SECONDS

A value may be given as text (from the environment); it is read as the key's type says.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from django.conf import settings as django_settings
from django.core.exceptions import ImproperlyConfigured

from container_manager import faults


def _positive(value: float) -> str:
    return "" if 0 < value < math.inf else "must be greater than 0 and finite"


def _not_negative(value: float) -> str:
    return "" if 0 <= value < math.inf else "must not be negative and finite"


def _anything(_value: object) -> str:
    return ""


def _secret(value: str) -> str:
    """It is never told itself."""
    good = not value or (len(value) >= 16 and value.isascii() and value.isprintable())
    return "" if good and " " not in value else "must be 16 or more ASCII characters, none a blank"


def _key(
    default: Any, doc: str, check: Callable[[Any], str] = _anything, kind: type | None = None
) -> Any:
    metadata = {"doc": doc, "check": check, "kind": kind or type(default)}
    return field(default_factory=lambda: default, metadata=metadata)


MAX_ALIAS = 64
_ALIAS = re.compile(rf"[A-Za-z0-9][A-Za-z0-9_.-]{{0,{MAX_ALIAS - 1}}}")

_EXECUTORS = {
    "docker": {"class": "container_manager.executors.docker.DockerExecutor", "options": {}},
    "process": {"class": "container_manager.executors.process.ProcessExecutor", "options": {}},
}


@dataclass(frozen=True)
class Settings:
    """Every key with its default, its meaning and what is a valid value."""

    INSTANCE_ID: str = _key(
        "", "Name of this installation in the labels of its containers; made up when empty."
    )
    EXECUTORS: dict[str, Any] = _key(
        _EXECUTORS, "Alias to `class` (dotted path) and `options` (keyword arguments)."
    )
    PROCESS_EXECUTOR: bool | None = _key(
        None, "Run jobs as local processes; unset means: only while DEBUG is on.", kind=bool
    )
    CONCURRENCY: int = _key(
        2 * (os.cpu_count() or 2), "Jobs that one worker runs at once.", _positive
    )
    CLAIM_BATCH: int = _key(200, "Jobs that one claim takes at most.", _positive)
    POLL_SECONDS: float = _key(
        1.0, "How often an idle worker looks for work (PostgreSQL also wakes it).", _positive
    )
    SQLITE_POLL_SECONDS: float = _key(
        0.2, "The same on SQLite, which cannot wake a worker.", _positive
    )
    REQUEST_POLL_SECONDS: float = _key(
        0.5, "How often a worker looks for kill and cancel requests.", _positive
    )
    LOG_FLUSH_SECONDS: float = _key(0.5, "How far a running job's log may be behind.", _positive)
    LEASE_SECONDS: float = _key(
        30.0, "A worker whose beat stood still for so long is taken for dead.", _positive
    )
    LOST_AFTER_SECONDS: float | None = _key(
        None,
        "Give up a job whose engine stays unreachable for so long; unset means never.",
        _positive,
        kind=float,
    )
    MAX_INFRA_RETRIES: int = _key(
        3, "Failures of the machinery in a row before a job is `poison`.", _not_negative
    )
    RETRY_POLICIES: dict[str, Any] = _key({}, "Named retry policies beside the built-in ones.")
    LOG_CAP_BYTES: int = _key(
        16 * 1024 * 1024,
        "Output kept of one attempt, per stream: half from its head, half from its tail.",
        _positive,
    )
    PUBLISHERS: dict[str, Any] = _key(
        {},
        "Whom `relay_events` tells what happens: alias to `class` (dotted path) and `options`"
        " (keyword arguments).",
    )
    EVENTS_KEEP_SECONDS: float = _key(
        7 * 24 * 3600.0,
        "How long events are kept for those who go on where they were; a publisher that cannot"
        " deliver for longer loses some.",
        _positive,
    )
    UPKEEP_SECONDS: float = _key(
        1.0, "How often retries that are due and waits that are too long are looked for.", _positive
    )
    IDEMPOTENCY_SECONDS: float = _key(
        24 * 3600.0, "How long the answer to an Idempotency-Key is kept.", _positive
    )
    DRAIN_SECONDS: float = _key(
        30.0, "How long a stopping worker waits for what it must still write.", _positive
    )
    METRICS_TOKEN: str = _key(
        "",
        "Who sends it as `Authorization: Bearer …` may read `/metrics`; unset: only operators.",
        _secret,
    )
    METRICS_OPEN: bool = _key(False, "Everybody may read `/metrics`, without a token.")
    CRASH_AT: str = _key(
        "",
        "For tests, only while DEBUG is on: kill this process at these crash points.",
        faults.problem_of,
    )


class LazySettings:
    """Reads CONTAINER_MANAGER at the first use, and again after `reload`."""

    def __init__(self) -> None:
        self._loaded: Settings | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.load(), name)

    def load(self) -> Settings:
        if self._loaded is None:
            given = getattr(django_settings, "CONTAINER_MANAGER", {})
            values, problems = read(given)
            if problems:
                raise ImproperlyConfigured("; ".join(problems))
            self._loaded = values
        return self._loaded

    def reload(self) -> None:
        self._loaded = None


settings = LazySettings()


def keys() -> dict[str, Any]:
    """Name of each key to its dataclass field."""
    return {key.name: key for key in fields(Settings)}


def read(given: Mapping[str, Any]) -> tuple[Settings, list[str]]:
    """The typed settings and one line for each mistake in `given`."""
    known, values, problems = keys(), {}, []
    if not isinstance(given, Mapping):
        return Settings(), ["CONTAINER_MANAGER: must be a dict"]
    for name, raw in given.items():
        if name not in known:
            problems.append(f"CONTAINER_MANAGER[{name!r}]: no such key")
            continue
        value, problem = _value_of(known[name], raw)
        if problem:
            problems.append(f"CONTAINER_MANAGER[{name!r}]: {problem}")
        else:
            values[name] = value
    result = Settings(**values)
    return result, problems + _across(result)


def _value_of(key: Any, raw: Any) -> tuple[Any, str]:
    if raw is None and key.default_factory() is None:
        return None, ""
    try:
        value = _convert(raw, key.metadata["kind"])
    except (ValueError, TypeError, OverflowError, KeyError):
        return None, f"{_shown(raw, key)} is not a valid {key.metadata['kind'].__name__}"
    return value, key.metadata["check"](value)


def _shown(raw: Any, key: Any) -> str:
    """A dict may hold secrets, also one that cannot be read."""
    return "what is given" if key.metadata["kind"] is dict else repr(raw)


_SWITCH = {
    **dict.fromkeys(("1", "true", "on", "yes"), True),
    **dict.fromkeys(("0", "false", "off", "no"), False),
}


def _convert(raw: Any, kind: type) -> Any:
    if kind is dict and isinstance(raw, str):
        raw = json.loads(raw)
    if kind is bool and isinstance(raw, str):
        return _SWITCH[raw.strip().lower()]
    if kind in (int, float) and isinstance(raw, bool):
        raise TypeError
    if kind is int and isinstance(raw, float) and not raw.is_integer():
        raise ValueError
    if kind in (str, dict, bool):
        if not isinstance(raw, kind):
            raise TypeError
        return raw
    return kind(raw)


def _across(values: Settings) -> list[str]:
    problems = [
        f"CONTAINER_MANAGER[{key!r}][{alias!r}]: needs a dict with `class` and `options`"
        for key in ("EXECUTORS", "PUBLISHERS")
        for alias, entry in getattr(values, key).items()
        if not isinstance(entry, dict) or not isinstance(entry.get("class"), str)
    ]
    problems += [
        f"CONTAINER_MANAGER['PUBLISHERS'][{alias!r}]: {problem}"
        for alias, entry in values.PUBLISHERS.items()
        if (problem := _wrong_with_publisher(alias, entry))
    ]
    if values.LEASE_SECONDS < 3 * values.REQUEST_POLL_SECONDS:
        problems.append(
            "CONTAINER_MANAGER['LEASE_SECONDS']: must be at least three times REQUEST_POLL_SECONDS"
        )
    if values.CRASH_AT and not django_settings.DEBUG:
        problems.append("CONTAINER_MANAGER['CRASH_AT']: kills this process; only while DEBUG is on")
    return problems


def _wrong_with_publisher(alias: str, entry: Any) -> str:
    if not isinstance(alias, str) or not _ALIAS.fullmatch(alias):
        return f"an alias has 1 to {MAX_ALIAS} characters: letters, digits, `_`, `.` and `-`"
    if not isinstance(entry, dict):
        return ""
    unknown = sorted(set(entry) - {"class", "options"})
    if unknown:
        return f"knows `class` and `options`, not {', '.join(map(repr, unknown))}"
    return "" if isinstance(entry.get("options", {}), dict) else "`options` must be a dict"


def executors() -> dict[str, dict[str, Any]]:
    """The executors that may be used here: alias to class path and options."""
    allowed = settings.PROCESS_EXECUTOR
    with_process = django_settings.DEBUG if allowed is None else allowed
    return {
        alias: entry
        for alias, entry in settings.EXECUTORS.items()
        if with_process or not entry["class"].endswith(".ProcessExecutor")
    }
