"""The JSON schemas of DAGs, runs and tasks: what the document shows, and what bodies are read by.

A DAG's own document is read by `workflows.spec`; that it is a graph, no schema can say.
"""

from __future__ import annotations

from typing import Any

from django.db import models

from container_manager.api.job_schemas import INPUT, PATTERNS, or_empty, typed, whole
from container_manager.api.operations import UUID_SCHEMA, component
from container_manager.api.parameters import MOMENT, Schema
from container_manager.api.parsing import NO_NUL
from container_manager.api.workflow_fields import DAG_COLUMNS, NEXT_RUNS, RUN_COLUMNS, TASK_COLUMNS
from container_manager.models import Dag, DagRun, TaskInstance, validators
from container_manager.states import MissedRuns, WorkflowState
from container_manager.workflows import dags, spec
from container_manager.workflows.graph import TriggerRule

_COUNT: Schema = {"type": "integer", "minimum": 0}
_DATE = {"type": "string", "format": "date", "pattern": "^(?:19[7-9][0-9]|2[01][0-9]{2})-"}
_TIME = {"type": "string", "format": "date-time", "pattern": PATTERNS["scheduled_for"]}


def _or_null(schema: Schema) -> Schema:
    if "anyOf" in schema:
        return {**schema, "anyOf": [*schema["anyOf"], {"type": "null"}]}
    enum = {"enum": [*schema["enum"], None]} if "enum" in schema else {}
    return {**schema, "type": [schema["type"], "null"], **enum}


def _object(properties: dict[str, Schema]) -> Schema:
    return {"type": "object", "required": list(properties), "properties": properties}


# A DAG's document ---------------------------------------------------------------------------------

_TASK_ID: Schema = {"type": "string", "pattern": whole(spec.TASK_ID)}
_SOURCE = rf"^(?:{spec.TASK_ID.pattern})\.(?:output|exit_code)$"


def _in_a_task(name: str) -> Schema:
    """A job's field; where neither task nor defaults name it, it is what a job has."""
    return {word: said for word, said in INPUT[name].items() if word != "default"}


_DEFAULTS: dict[str, Schema] = {
    **{name: _in_a_task(name) for name in INPUT if name in spec.JOB_FIELDS},
    "trigger_rule": _or_null({"type": "string", "enum": TriggerRule.values}),
    "skip_exit_codes": _or_null(
        {
            "type": "array",
            "items": {"type": "integer", "minimum": 1, "maximum": 255},
            "description": "Exit codes that mean: skip what waits for it.",
        }
    ),
}
_TASK: dict[str, Schema] = {
    **_DEFAULTS,
    "depends_on": {
        "anyOf": [
            {"type": "array", "items": _TASK_ID, "uniqueItems": True},
            _TASK_ID,
            {"type": "null"},
        ],
        "description": "The tasks that it waits for.",
    },
    "array": _or_null(
        {
            "type": "integer",
            "minimum": 1,
            "maximum": spec.MAX_TASKS,
            "description": "So many tasks, each with its CM_ARRAY_INDEX.",
        }
    ),
    "environment_from": _or_null(
        {
            "type": "object",
            "propertyNames": INPUT["environment"]["propertyNames"],
            "additionalProperties": {"type": "string", "pattern": _SOURCE},
            "description": "Variables from what a task printed, `task.output`, or how it ended,"
            " `task.exit_code`; it must be in `depends_on`.",
        }
    ),
}


def _closed(properties: dict[str, Schema]) -> Schema:
    return {"type": "object", "additionalProperties": False, "properties": properties}


_DAG: dict[str, Schema] = {
    "name": {"type": "string", "pattern": whole(spec.NAME)},
    "description": _or_null(
        {"type": "string", "pattern": NO_NUL, "maxLength": spec.MAX_DESCRIPTION}
    ),
    "schedule": _or_null(
        {
            "type": "string",
            "format": "cron",
            "description": "Cron: minute, hour, day of month, month, day of week, as `0 2 * * *`."
            " Left out: only by hand.",
        }
    ),
    "timezone": _or_null(
        {
            "type": "string",
            "format": "timezone",
            "minLength": 1,
            "default": "UTC",
            "description": "On whose clock the schedule is meant, as `Europe/Berlin`.",
        }
    ),
    "start_date": {
        "anyOf": [_DATE, _TIME, {"type": "null"}],
        "description": "No slot before it. A date, or a time; without an offset it is meant in"
        " `timezone`.",
    },
    "end_date": {"anyOf": [_DATE, _TIME, {"type": "null"}], "description": "No slot after it."},
    "missed_runs": _or_null(
        {"type": "string", "enum": MissedRuns.values, "default": MissedRuns.LATEST.value}
    ),
    "max_active_runs": _or_null(
        {"type": "integer", "minimum": 1, "maximum": spec.MAX_ACTIVE_RUNS, "default": 16}
    ),
    "tags": _or_null(INPUT["labels"]),
    "params": _or_null(
        {
            **{
                word: INPUT["environment"][word]
                for word in ("type", "propertyNames", "additionalProperties", "maxProperties")
            },
            "description": "Variables of all tasks, which a trigger may change. They are shown.",
        }
    ),
    "defaults": _or_null({**_closed(_DEFAULTS), "description": "What every task begins with."}),
    "tasks": {
        "type": "object",
        "propertyNames": {"pattern": whole(spec.TASK_ID)},
        "additionalProperties": _or_null(_closed(_TASK)),
        "minProperties": 1,
        "maxProperties": spec.MAX_TASKS,
        "description": "What each task runs, by its id.",
    },
}
DAG_DOCUMENT = component("DagDocument", {**_closed(_DAG), "required": ["name", "tasks"]})

PAUSED: dict[str, Schema] = {"is_paused": {"type": "boolean"}}
DAG_CHANGES = component("DagChanges", {**_closed({**_DAG, **PAUSED}), "minProperties": 1})

# Other bodies -------------------------------------------------------------------------------------

TRIGGERING_FIELDS: dict[str, Schema] = {
    "params": {
        "type": "object",
        "additionalProperties": {"type": "string", "pattern": NO_NUL},
        "description": "Other values for some of the DAG's `params`.",
    },
    "execution_date": {**_TIME, "description": "The instant that it stands for; else now."},
    "run_id": {
        "type": "string",
        "pattern": or_empty(whole(dags.RUN_ID)),
        "description": "Its name in its DAG; else made of type and date.",
    },
}
TRIGGERING = component("Triggering", _closed(TRIGGERING_FIELDS))

STRETCH_FIELDS: dict[str, Schema] = {
    "first": {**_TIME, "description": "The first slot that may get a run."},
    "last": {**_TIME, "description": "The last one; none of the future gets one."},
    "dry_run": {"type": "boolean", "default": False, "description": "Only tell which."},
}
STRETCH = component("Backfill", {**_closed(STRETCH_FIELDS), "required": ["first", "last"]})

# What is told -------------------------------------------------------------------------------------


def _columns(model: type[models.Model], names: tuple[str, ...]) -> dict[str, Any]:
    return {name: typed(model._meta.get_field(name)) for name in names if name not in _AS_TOLD}


_STATES: Schema = {"type": "array", "items": {"type": "string", "enum": WorkflowState.values}}
_COUNTS: Schema = _object(dict.fromkeys(WorkflowState.values, _COUNT))
_TEXTS: Schema = {"type": "object", "additionalProperties": {"type": "string"}}
_AS_TOLD: dict[str, Schema] = {
    "tags": _TEXTS,
    "params": _TEXTS,
    "dag": UUID_SCHEMA,
    "dag_run": UUID_SCHEMA,
    "job": {
        "type": ["string", "null"],
        "format": "uuid",
        "description": "Its job, with its log; null until that is queued.",
    },
}
_DAG_NAME: dict[str, Schema] = {"dag_name": {"type": "string"}}
_TRANSITIONS: dict[str, Schema] = {
    "allowed_transitions": {**_STATES, "description": "The states it may go to."}
}


_LISTED_DAG: dict[str, Schema] = {
    **_columns(Dag, DAG_COLUMNS),
    "tags": _TEXTS,
    "owner": {"type": ["string", "null"], "description": "The name of who made it."},
    "schedule": {"type": ["string", "null"], "description": "Cron; null: by hand only."},
    "next_slot_at": {
        **_or_null(MOMENT),
        "description": "The slot that is looked at next, also of a paused DAG.",
    },
}
_ONE_DAG: dict[str, Schema] = {
    **_LISTED_DAG,
    "document": {
        "type": "object",
        "description": "What it is made of, as a PUT takes it. The values in each `environment`"
        f" are shown as `{validators.MASK}`, which sent back means the value that is there.",
    },
    "next_runs": {
        "type": "array",
        "items": MOMENT,
        "maxItems": NEXT_RUNS,
        "description": "The next slots of its schedule; none begins while it is paused.",
    },
    "revision": {"type": "string", "description": "What the `ETag` is made of."},
}
LISTED_DAG = component("ListedDag", _object(_LISTED_DAG))
ONE_DAG = component("Dag", _object(_ONE_DAG))

_LISTED_RUN: dict[str, Schema] = {
    **_columns(DagRun, RUN_COLUMNS),
    "dag": UUID_SCHEMA,
    "params": _TEXTS,
    **_DAG_NAME,
    **_TRANSITIONS,
}
LISTED_RUN = component("ListedDagRun", _object(_LISTED_RUN))
ONE_RUN = component(
    "DagRun",
    _object(
        {**_LISTED_RUN, "tasks": {**_COUNTS, "description": "How many of its tasks are in which."}}
    ),
)

TASK = component(
    "TaskInstance",
    _object(
        {
            **_columns(TaskInstance, TASK_COLUMNS),
            "dag_run": UUID_SCHEMA,
            "job": _AS_TOLD["job"],
            "dag": UUID_SCHEMA,
            "run_id": {"type": "string"},
            **_DAG_NAME,
            **_TRANSITIONS,
        }
    ),
)

BACKFILLED = component(
    "Backfilled",
    _object(
        {
            "slots": {
                "type": "array",
                "items": _object(
                    {
                        "execution_date": MOMENT,
                        "result": {
                            "type": "string",
                            "enum": ["created", "exists", "would_create"],
                        },
                        "run": {"type": ["string", "null"], "format": "uuid"},
                    }
                ),
                "maxItems": dags.MOST_IN_BACKFILL,
            },
            "counts": {"type": "object", "additionalProperties": _COUNT},
        }
    ),
)

GRAPH = component(
    "Graph",
    _object(
        {
            "run": UUID_SCHEMA,
            "nodes": {
                "type": "array",
                "items": _object(
                    {
                        "task": {"type": "string"},
                        "trigger_rule": {"type": "string", "enum": TriggerRule.values},
                        "array": {
                            "type": ["integer", "null"],
                            "description": "How many tasks it stands for; null: itself.",
                        },
                        "state": {
                            "type": "string",
                            "enum": WorkflowState.values,
                            "description": "The worst of its tasks'.",
                        },
                        "counts": _COUNTS,
                        "started_at": _or_null(MOMENT),
                        "ended_at": _or_null(MOMENT),
                    }
                ),
            },
            "edges": {
                "type": "array",
                "items": _object({"from": {"type": "string"}, "to": {"type": "string"}}),
            },
            "layers": {
                "type": "array",
                "items": {"type": "array", "items": {"type": "string"}},
                "description": "For drawing: each task right of all that it waits for.",
            },
        }
    ),
)
