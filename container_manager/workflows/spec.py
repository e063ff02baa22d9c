"""What is written of a DAG: read, checked, and kept in one form.

read(text)          a document, from YAML or JSON
validate(document)  a DagSpec, or SpecError with all that is wrong with it
DagSpec.document()  what is stored; DagSpec.stored(document) reads that again, unchecked

Strings are data: whatever looks like a template is kept as it is.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from difflib import get_close_matches
from functools import partial
from typing import Any
from zoneinfo import ZoneInfo

from django.core.exceptions import ValidationError
from django.db.models import CharField, FloatField, IntegerField

from container_manager.exceptions import Problem, SpecError
from container_manager.lifecycle import SUBMITTABLE
from container_manager.models import ContainerJob, validators
from container_manager.states import MissedRuns
from container_manager.workflows.cron import BadSchedule, Schedule, in_order, zone_of
from container_manager.workflows.documents import Place, dotted, is_too_deep, lines, read
from container_manager.workflows.graph import Graph, TriggerRule, find_cycle, instance_id

__all__ = ["DagSpec", "TaskSpec", "read", "validate"]

MAX_TASKS = 10_000
MAX_ACTIVE_RUNS = 1_000
MAX_PROBLEMS = 100
MAX_DESCRIPTION = 10_000

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,199}")
TASK_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,199}")
SOURCE = re.compile(r"(?P<task>.*)\.(?:output|exit_code)", re.DOTALL)

JOB_FIELDS = frozenset(SUBMITTABLE - {"created_by", "scheduled_for", "name"})
MERGED = {"environment": validators.environment, "labels": validators.labels}
"""A task's own are added to those of `defaults`; of all else its own word replaces theirs."""

DEFAULTS_KEYS = JOB_FIELDS | {"trigger_rule", "skip_exit_codes"}
TASK_KEYS = DEFAULTS_KEYS | {"depends_on", "array", "environment_from"}
DAG_KEYS = frozenset(
    {
        *("name", "description", "schedule", "timezone", "start_date", "end_date"),
        *("missed_runs", "max_active_runs", "tags", "params", "defaults", "tasks"),
    }
)


# What was written ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TaskSpec:
    """One task, or with `array` N of them."""

    id: str
    depends_on: tuple[str, ...]
    trigger_rule: TriggerRule
    skip_exit_codes: tuple[int, ...]
    array: int | None
    environment_from: dict[str, str]
    """{variable: "task.output" or "task.exit_code"}"""
    job: dict[str, Any]
    """The fields of its job, with those of `defaults`."""
    given: dict[str, Any]
    """What its own lines say."""

    @classmethod
    def of(cls, task_id: str, given: dict[str, Any], defaults: Mapping[str, Any]) -> TaskSpec:
        return cls(
            id=task_id,
            depends_on=tuple(given.get("depends_on", ())),
            trigger_rule=TriggerRule(_either("trigger_rule", given, defaults, "all_success")),
            skip_exit_codes=tuple(_either("skip_exit_codes", given, defaults, ())),
            array=given.get("array"),
            environment_from=given.get("environment_from", {}),
            job=merged(given, defaults),
            given=given,
        )

    def instances(self) -> list[tuple[str, int | None]]:
        """(task id, index) of each task it stands for: ("load", None), or ("load[0]", 0) and on."""
        indexes = [None] if self.array is None else range(self.array)
        return [(instance_id(self.id, index), index) for index in indexes]


@dataclass(frozen=True, slots=True)
class DagSpec:
    """A DAG without mistakes."""

    name: str
    description: str
    schedule: str | None
    timezone: str
    start_date: datetime | None
    end_date: datetime | None
    missed_runs: MissedRuns
    max_active_runs: int
    tags: dict[str, str]
    params: dict[str, str]
    defaults: dict[str, Any]
    tasks: dict[str, TaskSpec]

    @classmethod
    def stored(cls, document: Mapping[str, Any]) -> DagSpec:
        """Of what `document()` gave. Nothing is checked: what was right once may not be now."""
        defaults = document.get("defaults") or {}
        return cls(
            name=document["name"],
            description=document.get("description") or "",
            schedule=document.get("schedule"),
            timezone=document.get("timezone") or "UTC",
            start_date=_stored_moment(document.get("start_date")),
            end_date=_stored_moment(document.get("end_date")),
            missed_runs=MissedRuns(document.get("missed_runs") or MissedRuns.LATEST),
            max_active_runs=document.get("max_active_runs") or 16,
            tags=document.get("tags") or {},
            params=document.get("params") or {},
            defaults=defaults,
            tasks={
                task_id: TaskSpec.of(task_id, given, defaults)
                for task_id, given in document["tasks"].items()
            },
        )

    def document(self) -> dict[str, Any]:
        """As it is stored: plain JSON; `validate` and `stored` make the same DagSpec of it."""
        return {
            "name": self.name,
            "description": self.description,
            "schedule": self.schedule,
            "timezone": self.timezone,
            "start_date": self.start_date and self.start_date.isoformat(),
            "end_date": self.end_date and self.end_date.isoformat(),
            "missed_runs": self.missed_runs.value,
            "max_active_runs": self.max_active_runs,
            "tags": self.tags,
            "params": self.params,
            "defaults": self.defaults,
            "tasks": {task.id: task.given for task in self.tasks.values()},
        }

    def graph(self) -> Graph:
        """Over names: who depends on an array depends on all of its instances."""
        return Graph.of({task.id: task.depends_on for task in self.tasks.values()})

    @property
    def size(self) -> int:
        """How many tasks a run of it has."""
        return sum(task.array or 1 for task in self.tasks.values())

    def instances_of(self, name: str) -> list[str]:
        """The ids of the tasks that this name stands for."""
        return [task_id for task_id, _ in self.tasks[name].instances()]

    def parsed_schedule(self) -> Schedule | None:
        """None when it runs by hand only. Raises BadSchedule, when its zone is gone."""
        if self.schedule is None:
            return None
        return Schedule.parse(self.schedule, self.timezone, self.start_date, self.end_date)


def merged(given: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a task's job."""
    job = {name: value for name, value in (*defaults.items(), *given.items()) if name in JOB_FIELDS}
    for name in MERGED:
        if name in given and name in defaults:
            job[name] = {**defaults[name], **given[name]}
    return job


def _either(name: str, given: Mapping[str, Any], defaults: Mapping[str, Any], usual: Any) -> Any:
    return given.get(name, defaults.get(name, usual))


def _stored_moment(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)


# What is wrong with it ----------------------------------------------------------------------------


def validate(document: Any, source: str | bytes | None = None) -> DagSpec:
    """Raises SpecError with all problems, the first MAX_PROBLEMS of them; `source` gives the lines.

    `document` is plain data; dates and times may be Python's own.
    """
    checks = _Checks()
    try:
        checked = checks.dag(document)
    except _Enough:
        checked = {}
    if checks.problems:
        raise SpecError(_located(checks.problems, source))
    return DagSpec.stored(checked)


def _located(
    problems: Iterable[tuple[Place, str]], source: str | bytes | None
) -> Iterable[Problem]:
    line_of = {} if source is None else lines(source)
    for place, message in problems:
        known = next((place[:n] for n in range(len(place), 0, -1) if place[:n] in line_of), None)
        yield Problem(dotted(place), message, None if known is None else line_of[known])


class _Enough(Exception):
    """As many problems as are told."""


class _Wrong(Exception):
    """A value that cannot be taken; the message says why."""


class _Checks:
    """Goes through a document once and gathers what is wrong; gives it back in its one form.

    What is not given, or given as null, is left out; so is what is wrong.
    """

    def __init__(self) -> None:
        self.problems: list[tuple[Place, str]] = []
        self._fields = _FieldChecks()
        self._defaults_are_sound = True

    def _add(self, place: Place, message: str) -> None:
        self.problems.append((place, message))
        if len(self.problems) == MAX_PROBLEMS:
            raise _Enough

    # The DAG

    def dag(self, given: Any) -> dict[str, Any]:
        if not isinstance(given, Mapping):
            self._add((), "Must be a mapping with `name` and `tasks`.")
            return {}
        if is_too_deep(given):
            self._add((), "Is nested too deeply.")
            return {}
        self._unknown_keys((), given, DAG_KEYS)
        checked = {
            name: value
            for name, check in _DAG_VALUES.items()
            if (value := self._value((name,), given.get(name), check)) is not None
        }
        if given.get("name") is None:
            self._add(("name",), "Needed.")
        checked |= self._timing(given, checked)
        before = len(self.problems)
        defaults = self._fields_of(("defaults",), given.get("defaults"), DEFAULTS_KEYS)
        self._defaults_are_sound = len(self.problems) == before
        return {**checked, "defaults": defaults, "tasks": self._tasks(given, defaults)}

    def _timing(self, given: Mapping[str, Any], checked: Mapping[str, Any]) -> dict[str, Any]:
        zone = zone_of(checked.get("timezone", "UTC"))
        start = self._value(("start_date",), given.get("start_date"), partial(_moment, zone=zone))
        end = self._value(("end_date",), given.get("end_date"), partial(_last_moment, zone=zone))
        try:
            in_order(start, end)
            if "schedule" in checked:
                Schedule.parse(checked["schedule"], zone.key, start, end)
        except BadSchedule as error:
            self._add((error.field,), str(error))
        dates = {"start_date": start, "end_date": end}
        return {name: moment.isoformat() for name, moment in dates.items() if moment is not None}

    # Tasks

    def _tasks(self, given: Mapping[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
        tasks = given.get("tasks")
        if not isinstance(tasks, Mapping) or not tasks:
            self._add(("tasks",), "Must be a mapping of at least one task id to what it runs.")
            return {}
        if len(tasks) > MAX_TASKS:
            self._add(
                ("tasks",), f"Must not be more than {MAX_TASKS} tasks; there are {len(tasks)}."
            )
            return {}
        checked = {}
        for task_id, task in tasks.items():
            if self._is_id(task_id):
                checked[task_id] = self._task(task_id, task, defaults, tasks)
        self._count(checked)
        self._cycle(checked)
        return checked

    def _is_id(self, task_id: Any) -> bool:
        good = isinstance(task_id, str) and TASK_ID.fullmatch(task_id) is not None
        if not good:
            message = "Must be up to 200 letters, digits, _ and -, the first a letter or digit."
            self._add(("tasks", str(task_id)), message)
        return good

    def _task(
        self, task_id: str, given: Any, defaults: dict[str, Any], known: Collection[str]
    ) -> dict[str, Any]:
        place: Place = ("tasks", task_id)
        before = len(self.problems)
        task = self._fields_of(place, given, TASK_KEYS)
        if "depends_on" in task:
            task["depends_on"] = self._dependencies(place, task_id, task["depends_on"], known)
        if "environment_from" in task:
            self._environment_from(place, task)
        if self._defaults_are_sound and len(self.problems) == before:
            self._job(place, merged(task, defaults), defaults)
        return task

    def _dependencies(
        self, place: Place, task_id: str, needed: list[str], known: Collection[str]
    ) -> list[str]:
        sound: dict[str, None] = {}
        for index, other in enumerate(needed):
            problem = None
            if other == task_id:
                problem = "A task cannot depend on itself."
            elif other in sound:
                problem = f"{other!r} is named twice."
            elif other not in known:
                problem = f"There is no task {other[:80]!r}.{_nearest(other, known)}"
            if problem is None:
                sound[other] = None
            else:
                self._add((*place, "depends_on", index), problem)
        return list(sound)

    def _environment_from(self, place: Place, task: Mapping[str, Any]) -> None:
        for variable, source in task["environment_from"].items():
            here = (*place, "environment_from", variable)
            match = SOURCE.fullmatch(source)
            if match is None:
                self._add(here, f"{source[:80]!r} is not `task.output` or `task.exit_code`.")
            elif match["task"] not in task.get("depends_on", ()):
                self._add(here, f"{match['task'][:80]!r} must be in depends_on.")
            if variable in task.get("environment", {}):
                self._add(here, f"{variable!r} is in environment, too.")

    def _job(self, place: Place, job: dict[str, Any], defaults: Mapping[str, Any]) -> None:
        """What concerns several fields of a job, or a field that is merged, at once."""
        if "command" not in job:
            self._add((*place, "command"), "Needed, here or in defaults.")
        for name, check in MERGED.items():
            if defaults.get(name) and job[name] is not defaults[name]:
                self._value((*place, name), job[name], check)
        problem = self._fields.together(job)
        if problem is not None:
            self._add((*place, problem[0]), problem[1])

    def _count(self, tasks: Mapping[str, Mapping[str, Any]]) -> None:
        count = sum(task.get("array", 1) for task in tasks.values())
        if count > MAX_TASKS:
            self._add(
                ("tasks",),
                f"Must not be more than {MAX_TASKS} tasks; with their arrays there are {count}.",
            )

    def _cycle(self, tasks: Mapping[str, Mapping[str, Any]]) -> None:
        edges = {task_id: task.get("depends_on", ()) for task_id, task in tasks.items()}
        cycle = find_cycle(edges)
        if cycle is not None:
            self._add(("tasks", cycle[0], "depends_on"), f"A cycle: {_told(cycle)}.")

    # Fields of tasks and defaults

    def _fields_of(self, place: Place, given: Any, allowed: Collection[str]) -> dict[str, Any]:
        if given is None:
            return {}
        if not isinstance(given, Mapping):
            self._add(place, "Must be a mapping.")
            return {}
        self._unknown_keys(place, given, allowed)
        checked: dict[str, Any] = {}
        for name, value in given.items():
            if name in JOB_FIELDS:
                self._job_field(place, name, value, checked)
            elif name in allowed:
                read = self._value((*place, name), value, _TASK_VALUES[name])
                if read is not None:
                    checked[name] = read
        return checked

    def _job_field(self, place: Place, name: str, value: Any, checked: dict[str, Any]) -> None:
        try:
            checked[name] = self._fields.check(name, value)
        except _Wrong as error:
            self._add((*place, name), str(error))

    def _value(self, place: Place, value: Any, check: Any) -> Any:
        """What `check` makes of it; None when it is not given, or wrong."""
        try:
            return None if value is None else check(value)
        except _Wrong as error:
            self._add((*place, *error.args[1:]), str(error.args[0]))
        except ValidationError as error:
            self._add(place, " ".join(error.messages))
        return None

    def _unknown_keys(
        self, place: Place, given: Mapping[Any, Any], allowed: Collection[str]
    ) -> None:
        for key in given:
            if key in allowed:
                continue
            if not isinstance(key, str):
                self._add((*place, str(key)), "A key must be a string.")
            else:
                names = ", ".join(sorted(allowed))
                message = f"Unknown key.{_nearest(key, allowed)} There are {names}."
                self._add((*place, key), message)


class _FieldChecks:
    """A job's fields as ContainerJob checks them; equal values once."""

    def __init__(self) -> None:
        self._job = ContainerJob()
        self._seen: dict[tuple[str, str], Any] = {}
        self._seen_together: dict[tuple[Any, ...], tuple[str, str] | None] = {}

    def check(self, name: str, value: Any) -> Any:
        """The value as a job keeps it. Raises _Wrong."""
        key = (name, repr(value))
        if key not in self._seen:
            self._seen[key] = self._checked(name, value)
        seen = self._seen[key]
        if isinstance(seen, _Wrong):
            raise seen
        return seen

    def _checked(self, name: str, value: Any) -> Any:
        field = _FIELDS[name]
        if value is None and not field.null:
            return _Wrong("Must not be null.")
        if isinstance(field, CharField) and not isinstance(value, str):
            return _Wrong("Must be a string.")  # Django would make one of it
        if isinstance(field, IntegerField | FloatField) and isinstance(value, str):
            return _Wrong("Must be a number, not text.")  # and here, too
        setattr(self._job, name, value)
        try:
            self._job.clean_fields(exclude=_FIELDS.keys() - {name})
        except ValidationError as error:
            return _Wrong(" ".join(error.messages))
        return getattr(self._job, name)

    def together(self, job: Mapping[str, Any]) -> tuple[str, str] | None:
        """(field, what is wrong) of fields that depend on each other."""
        key = tuple(job.get(name, default) for name, default in _TOGETHER.items())
        if key not in self._seen_together:
            self._seen_together[key] = self._checked_together(key)
        return self._seen_together[key]

    def _checked_together(self, values: tuple[Any, ...]) -> tuple[str, str] | None:
        try:
            ContainerJob(**dict(zip(_TOGETHER, values, strict=True))).clean()
        except ValidationError as error:
            return next((name, told[0]) for name, told in error.message_dict.items())
        return None


_FIELDS = {field.name: field for field in ContainerJob._meta.concrete_fields}
_BLANK = ContainerJob()
_TOGETHER = {name: getattr(_BLANK, name) for name in ("image", "executor", "isolation")}


def _told(cycle: tuple[str, ...]) -> str:
    if len(cycle) <= 20:
        return " -> ".join(cycle)
    return f"{' -> '.join(cycle[:10])} -> … -> {cycle[-1]} ({len(cycle) - 1} tasks)"


def _nearest(word: str, known: Collection[str]) -> str:
    """Nothing among many: it is a comparison with each."""
    if len(known) > 500 or len(word) > 200:
        return ""
    near = get_close_matches(word, list(known), n=1)
    return f" Did you mean {near[0]!r}?" if near else ""


# Single values: each gives it in its one form, or raises _Wrong or ValidationError ----------------


def _name(value: Any) -> str:
    if not isinstance(value, str) or not NAME.fullmatch(value):
        raise _Wrong("Must be up to 200 letters, digits, _ . and -, the first a letter or digit.")
    return value


def _text(value: Any) -> str:
    validators.plain_text(value)
    if len(value) > MAX_DESCRIPTION:
        raise _Wrong(f"Must not be longer than {MAX_DESCRIPTION} characters.")
    return str(value)


def _cron(value: Any) -> str | None:
    validators.plain_text(value)
    try:
        return " ".join(value.split()) if value.strip() and Schedule.parse(value) else None
    except BadSchedule as error:
        raise _Wrong(str(error)) from error


def _zone(value: Any) -> str:
    validators.plain_text(value)
    try:
        return zone_of(value).key
    except BadSchedule as error:
        raise _Wrong(str(error)) from error


def _moment(value: Any, zone: ZoneInfo, of_day: time = time.min) -> datetime:
    """In UTC; what names no zone is meant on the clock of the DAG's."""
    read = _date_or_time(value)
    if not isinstance(read, datetime):
        read = datetime.combine(read, of_day)
    try:
        moment = (read if read.tzinfo else read.replace(tzinfo=zone)).astimezone(UTC)
    except OverflowError:
        moment = datetime.min.replace(tzinfo=UTC)
    validators.moment(moment)
    return moment


def _last_moment(value: Any, zone: ZoneInfo) -> datetime:
    """Of a date its last second, so that the day belongs to it."""
    return _moment(value, zone, time(23, 59, 59))


def _date_or_time(value: Any) -> date:
    if isinstance(value, date):
        return value
    message = "Must be a date or time such as 2026-01-31 or 2026-01-31T02:00."
    if not isinstance(value, str):
        raise _Wrong(message)
    try:
        return date.fromisoformat(value) if len(value) <= 10 else datetime.fromisoformat(value)
    except ValueError as error:
        raise _Wrong(message) from error


def _labels(value: Any) -> dict[str, str]:
    validators.labels(value)
    return dict(value)


def _params(value: Any) -> dict[str, str]:
    validators.environment(value)
    return dict(value)


def _word(value: Any, words: type[MissedRuns] | type[TriggerRule]) -> str:
    validators.plain_text(value)
    validators.one_of(value, words.values)
    return str(value)


def _whole_number(value: Any, low: int, high: int) -> int:
    if type(value) is not int or not low <= value <= high:
        raise _Wrong(f"Must be a whole number from {low} to {high}.")
    return value


def _exit_codes(value: Any) -> list[int]:
    codes = _list(value, "whole numbers from 1 to 255")
    for index, code in enumerate(codes):
        if type(code) is not int or not 1 <= code <= 255:
            raise _Wrong("Must be a whole number from 1 to 255.", index)
    return list(dict.fromkeys(codes))


def _task_ids(value: Any) -> list[str]:
    ids = [value] if isinstance(value, str) else _list(value, "task ids")
    for index, task_id in enumerate(ids):
        if not isinstance(task_id, str):
            raise _Wrong("Must be a task id.", index)
    return ids


def _sources(value: Any) -> dict[str, str]:
    if not isinstance(value, dict):
        raise _Wrong("Must be a mapping of variable to `task.output` or `task.exit_code`.")
    for variable, source in value.items():
        if not isinstance(variable, str) or not isinstance(source, str):
            raise _Wrong("Must be `task.output` or `task.exit_code`.", str(variable))
    validators.environment(value)
    return dict(value)


def _list(value: Any, of_what: str) -> list[Any]:
    if not isinstance(value, list | tuple):
        raise _Wrong(f"Must be a list of {of_what}.")
    return list(value)


_DAG_VALUES = {
    "name": _name,
    "description": _text,
    "schedule": _cron,
    "timezone": _zone,
    "missed_runs": partial(_word, words=MissedRuns),
    "max_active_runs": partial(_whole_number, low=1, high=MAX_ACTIVE_RUNS),
    "tags": _labels,
    "params": _params,
}
_TASK_VALUES = {
    "depends_on": _task_ids,
    "trigger_rule": partial(_word, words=TriggerRule),
    "skip_exit_codes": _exit_codes,
    "array": partial(_whole_number, low=1, high=MAX_TASKS),
    "environment_from": _sources,
}
