"""The JSON schemas of jobs: what the document shows, and what bodies are read by.

Types, lengths, ranges and choices come from the model; the patterns say what `models.validators`
checks.
"""

from __future__ import annotations

import re
from typing import Any

from django.db import models

from container_manager import conf, retries
from container_manager.api.job_fields import LIST_COLUMNS, WANTED
from container_manager.api.operations import component
from container_manager.api.parameters import MOMENT, Schema
from container_manager.api.parsing import NO_NUL
from container_manager.models import ContainerJob, validators
from container_manager.models.validators import InRange
from container_manager.states import JobStatus, Reason

_BLANK = r"\t-\r\x1c-\x20\x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
_ONE_LINE = rf"^(?:[^\r\n\x00]*[^{_BLANK}\x00][^\r\n\x00]*)?$"

# A command line that a shell would split into words, the first of which is not empty.
_ESCAPED, _IN_QUOTES = r"\\[^\x00]", r"(?:[^\"\\\x00]|\\[^\x00])"
_SHELL_WORDS = (
    rf"^[ \t\r\n]*(?:''|\"\")*"
    rf"(?:[^ \t\r\n'\"\\\x00]|{_ESCAPED}|'[^'\x00]+'|\"{_IN_QUOTES}+\")"
    rf"(?:[^'\"\\\x00]|{_ESCAPED}|'[^'\x00]*'|\"{_IN_QUOTES}*\")*$"
)

# The years of `validators.moment`; whether a month has so many days is for the format to say.
_DAY = r"(?:19[7-9][0-9]|2[01][0-9]{2})-(?:0[1-9]|1[0-2])-(?:0[1-9]|[12][0-9]|3[01])"
_HOUR = r"(?:[01][0-9]|2[0-3])"
_OFFSET = rf"(?:[Zz]|[+-]{_HOUR}:[0-5][0-9])"
_MOMENT = rf"^{_DAY}[Tt]{_HOUR}(?::[0-5][0-9]){{2}}(?:\.[0-9]+)?{_OFFSET}$"

TEXT: Schema = {"type": "string", "pattern": NO_NUL}


def whole(pattern: re.Pattern[str], *, but: str = "") -> str:
    """A validator's pattern as JSON schema has it: of the whole text; `but` what it begins with."""
    unless = f"(?!{but})" if but else ""
    return f"^{unless}(?:{pattern.pattern})$"


def or_empty(pattern: str) -> str:
    return f"^(?:{pattern[1:-1]})?$"


_RULE: Schema = {
    "type": "object",
    "required": ["action"],
    "additionalProperties": False,
    "properties": {
        "action": {"type": "string", "enum": list(retries.ACTIONS)},
        "on_exit_codes": {
            "type": "array",
            "items": {"type": "integer"},
            "maxItems": retries.MOST_WORDS,
        },
        "on_reason": {
            "type": "array",
            "items": {"type": "string", "enum": Reason.values},
            "maxItems": retries.MOST_WORDS,
        },
        "memory_factor": {"type": "number", "minimum": 1, "maximum": 64},
    },
}
_SECONDS: Schema = {"type": "number", "minimum": 0, "maximum": retries.LONGEST_WAIT}
_POLICY: Schema = {
    "type": "object",
    "additionalProperties": False,
    "properties": {
        "strategy": {"type": "string", "enum": list(retries.STRATEGIES)},
        "base_seconds": _SECONDS,
        "max_seconds": _SECONDS,
        "jitter": {"type": "number", "minimum": 0, "maximum": 1},
        "rules": {"type": "array", "items": _RULE, "maxItems": retries.MOST_RULES},
    },
}

PATTERNS = {
    "name": _ONE_LINE,
    "image": or_empty(whole(validators.IMAGE)),
    "working_dir": r"^(?:/[^/\x00]{0,255})*$",
    "network": whole(validators.QUEUE, but="container|host$"),
    "queue": whole(validators.QUEUE),
    "scheduled_for": _MOMENT,
}

_SPECIAL: dict[str, Schema] = {
    "labels": {
        "type": "object",
        "propertyNames": {"pattern": whole(validators.LABEL), "maxLength": 128},
        "additionalProperties": {**TEXT, "maxLength": validators.MAX_LABEL_LENGTH},
        "maxProperties": validators.MAX_LABELS,
    },
    "environment": {
        "type": "object",
        "propertyNames": {"pattern": whole(validators.VARIABLE, but=validators.RESERVED_PREFIX)},
        "additionalProperties": TEXT,
        "maxProperties": validators.MAX_ENVIRONMENT_VARIABLES,
        "description": "Variables. Their values can be written, never read: in their place stands"
        f" `{validators.MASK}`, which in a change means the value that is there.",
        "writeOnly": False,
    },
    "command": {
        "description": "The program and its arguments; a string is split as a shell would.",
        "anyOf": [
            {
                "type": "array",
                "prefixItems": [{**TEXT, "minLength": 1}],
                "items": TEXT,
                "minItems": 1,
            },
            {
                "type": "string",
                "pattern": _SHELL_WORDS,
                "maxLength": validators.MAX_COMMAND_BYTES,
            },
        ],
    },
    "retry_policy": {
        "description": "The name of a policy, or a policy.",
        "anyOf": [
            {"type": "string", "enum": [*retries.BUILT_IN, *conf.settings.RETRY_POLICIES]},
            _POLICY,
        ],
    },
    "executor": {
        "type": "string",
        "enum": ["", *sorted(conf.executors())],
        "description": "An alias; empty: any that offers the isolation.",
    },
}


def _asked(name: str) -> Schema:
    """What may be said in this field."""
    if name in _SPECIAL:
        return _SPECIAL[name]
    field: Any = ContainerJob._meta.get_field(name)
    schema = typed(field)
    for validator in field.validators:
        if isinstance(validator, InRange):
            schema |= {"minimum": validator.low, "maximum": validator.high}
    if name in PATTERNS:
        schema["pattern"] = PATTERNS[name]
    if field.has_default() and not callable(field.default):
        schema["default"] = field.default
    return schema


_TYPES: dict[type[models.Field[Any, Any]], Schema] = {
    models.UUIDField: {"type": "string", "format": "uuid"},
    models.DateTimeField: MOMENT,
    models.BooleanField: {"type": "boolean"},
    models.FloatField: {"type": "number"},
    models.IntegerField: {"type": "integer"},
    models.CharField: {"type": "string"},
    models.TextField: {"type": "string"},
    models.ForeignKey: {"type": ["integer", "string"]},
}


def typed(field: Any) -> Schema:
    schema = next(dict(schema) for kind, schema in _TYPES.items() if isinstance(field, kind))
    if field.choices:
        empty = [""] if field.blank else []
        schema["enum"] = [*empty, *(str(value) for value, _ in field.flatchoices)]
    elif getattr(field, "max_length", None) and "format" not in schema:
        schema["maxLength"] = field.max_length
    if field.null:
        named = schema["type"]
        schema["type"] = [*([named] if isinstance(named, str) else named), "null"]
    if field.help_text:
        schema["description"] = str(field.help_text)
    return schema


INPUT: dict[str, Schema] = {name: _asked(name) for name in WANTED}

NEEDS_NO_IMAGE = [
    {"required": ["image"], "properties": {"image": {"minLength": 1}}},
    {"required": ["executor"], "properties": {"executor": {"const": "process"}}},
    {"required": ["isolation"], "properties": {"isolation": {"const": "process"}}},
]
QUEUE_NOW: Schema = {"type": "boolean", "default": False, "description": "Queue it at once."}
NEW: dict[str, Schema] = {**INPUT, "queue_now": QUEUE_NOW}
CHANGES: dict[str, Schema] = {
    **INPUT,
    "status": {
        "type": "string",
        "enum": JobStatus.values,
        "description": "The verb of that name: `queued`, `cancelled`, `killed`, `retrying`; the "
        "others only while no worker holds the job.",
    },
}

NEW_JOB = component(
    "NewJob",
    {
        "type": "object",
        "required": ["command"],
        "additionalProperties": False,
        "properties": NEW,
        "anyOf": NEEDS_NO_IMAGE,
    },
)
JOB_CHANGES = component(
    "JobChanges",
    {
        "type": "object",
        "minProperties": 1,
        "additionalProperties": False,
        "properties": CHANGES,
    },
)

WHEN: dict[str, Schema] = {"scheduled_for": INPUT["scheduled_for"]}
QUEUEING = component(
    "Queueing", {"type": "object", "additionalProperties": False, "properties": WHEN}
)

_STATES: Schema = {"type": "array", "items": {"type": "string", "enum": JobStatus.values}}
_AS_TOLD: dict[str, Schema] = {
    "labels": {"type": "object", "additionalProperties": {"type": "string"}},
    "command": {"type": "array", "items": {"type": "string"}},
    "environment": {
        "type": "object",
        "additionalProperties": {"const": validators.MASK},
        "description": "The names of the variables; values are never shown.",
    },
    "retry_policy": {"type": ["string", "object"]},
}
_IN_LIST: dict[str, Schema] = {
    **{
        name: _AS_TOLD.get(name) or typed(ContainerJob._meta.get_field(name))
        for name in LIST_COLUMNS
    },
    "owner": {"type": ["string", "null"], "description": "The name of who submitted it."},
    "allowed_transitions": {**_STATES, "description": "The states it may go to."},
}
_ALONE: dict[str, Schema] = {
    **_IN_LIST,
    "output": {"type": "string", "description": "The last 64 KiB of stdout as text."},
    "revision": {"type": "string", "description": "What the `ETag` is made of."},
    "changeable": {
        "type": "array",
        "items": {"type": "string"},
        "description": "The fields that may be changed in this state.",
    },
}
LISTED_JOB = component(
    "ListedJob",
    {"type": "object", "required": list(_IN_LIST), "properties": _IN_LIST},
)
ONE_JOB = component("Job", {"type": "object", "required": list(_ALONE), "properties": _ALONE})
