"""What is on record about one job, run or task: moves, and attempts of a job; newest first."""

from __future__ import annotations

from typing import Any

from django.db.models import QuerySet

from container_manager.api.operations import component
from container_manager.api.parameters import MOMENT, Schema
from container_manager.models import ContainerJob, JobAttempt, StateHistory
from container_manager.models.base import GuardedModel
from container_manager.reports.explanation import Code
from container_manager.states import Blame, JobStatus, Phase, WorkflowState

MOVE_COLUMNS = (
    *("version", "old_state", "new_state", "attempt", "actor", "reason", "metadata", "changed_at"),
)
ATTEMPT_COLUMNS = (
    *("id", "attempt", "phase", "executor", "isolation", "worker_id", "worker_name", "lease_epoch"),
    *("engine_id", "execution_id", "image_digest", "resolved", "unreachable_since", "stop_kind"),
    *("started_at", "ended_at", "exit_code", "signal", "oom_killed", "reason", "blame", "error"),
    *("peak_memory_bytes", "cpu_seconds", "stdout_bytes", "stderr_bytes", "stdout_omitted"),
    *("stderr_omitted", "cleaned_up", "created_at", "updated_at"),
)


def moves_of(row: GuardedModel) -> QuerySet[Any, Any]:
    """The history of a job, a run or a task."""
    moves: QuerySet[Any, Any] = StateHistory.objects.of(row).order_by("-version")
    return moves.values(*MOVE_COLUMNS)


def attempts_of(job: ContainerJob) -> QuerySet[Any, Any]:
    """The attempts of a job."""
    attempts: QuerySet[Any, Any] = JobAttempt.objects.filter(job=job.pk).order_by("-attempt")
    return attempts.values(*ATTEMPT_COLUMNS)


# The schemas --------------------------------------------------------------------------------------

_TEXT: Schema = {"type": "string"}
_COUNT: Schema = {"type": "integer", "minimum": 0}


def _or_null(schema: Schema) -> Schema:
    return {**schema, "type": [schema["type"], "null"]}


def _object(properties: dict[str, Schema]) -> Schema:
    return {"type": "object", "required": list(properties), "properties": properties}


def _move(states: list[str]) -> Schema:
    state: Schema = {"type": "string", "enum": states}
    return _object(
        {
            "version": {"type": "integer", "minimum": 1},
            "old_state": {
                "anyOf": [state, {"type": "null"}],
                "description": "null: that is how it began.",
            },
            "new_state": state,
            "attempt": _or_null(_COUNT),
            "actor": {**_TEXT, "description": "Who moved it: `api:ada`, `worker:…`, `db:<role>`."},
            "reason": _TEXT,
            "metadata": {
                "description": "What else was told: exit code, worker, error; `requested_by`: who"
                " asked for the stop that the worker carried out; `abandoned`: an operator gave it"
                " up."
            },
            "changed_at": MOMENT,
        }
    )


_ATTEMPT: dict[str, Schema] = {
    "id": {"type": "string", "format": "uuid"},
    "attempt": _COUNT,
    "phase": {"type": "string", "enum": Phase.values},
    **dict.fromkeys(("executor", "isolation", "worker_name"), _TEXT),
    "worker_id": {"type": ["string", "null"], "format": "uuid"},
    "lease_epoch": {**_COUNT, "description": "Rises at claim and adoption."},
    **dict.fromkeys(("engine_id", "execution_id", "image_digest"), _TEXT),
    "resolved": {"description": "Limits as they were applied."},
    "unreachable_since": _or_null(MOMENT),
    "stop_kind": {**_TEXT, "description": "The strongest stop that was begun."},
    "started_at": _or_null(MOMENT),
    "ended_at": _or_null(MOMENT),
    "exit_code": {"type": ["integer", "null"]},
    "signal": _or_null(_COUNT),
    "oom_killed": {"type": "boolean"},
    "reason": _TEXT,
    "blame": {"type": "string", "enum": ["", *Blame.values]},
    "error": _TEXT,
    "peak_memory_bytes": _or_null(_COUNT),
    "cpu_seconds": {"type": ["number", "null"]},
    "stdout_bytes": {**_COUNT, "description": "Emitted, kept or not."},
    "stderr_bytes": _COUNT,
    "stdout_omitted": {**_COUNT, "description": "Left out by the cap."},
    "stderr_omitted": _COUNT,
    "cleaned_up": {"type": "boolean"},
    "created_at": MOMENT,
    "updated_at": MOMENT,
}
MOVE = component("Move", _move(JobStatus.values))
WORKFLOW_MOVE = component("WorkflowMove", _move(WorkflowState.values))
ATTEMPT = component("Attempt", _object(_ATTEMPT))
EXPLANATION = component(
    "Explanation",
    _object(
        {
            "code": {"type": "string", "enum": Code.values},
            "sentence": {**_TEXT, "description": "For people."},
            "details": {"type": "object", "description": "What the sentence is made of."},
        }
    ),
)
