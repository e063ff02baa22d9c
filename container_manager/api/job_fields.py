"""Which fields a job has in the API: what may be said of a new one, and what is told of any."""

from __future__ import annotations

from typing import Any

from django.contrib.auth import get_user_model
from django.db import models

from container_manager import lifecycle
from container_manager.models import ContainerJob
from container_manager.models.validators import MASK
from container_manager.states import JOB, JobStatus

WANTED = (
    *("name", "labels", "image", "command", "working_dir", "environment", "pull_policy"),
    *("isolation", "executor", "network", "cpu_limit", "memory_limit_mb", "pids_limit"),
    *("timeout_seconds", "start_timeout_seconds", "queue_timeout_seconds", "stop_grace_seconds"),
    *("queue", "priority", "scheduled_for", "max_retries", "retry_policy"),
)
"""What may be said of a job."""

LIST_COLUMNS = (
    *("id", "name", "status", "version", "created_by", "labels", "managed_by", "image", "command"),
    *("working_dir", "environment", "pull_policy", "isolation", "executor", "network"),
    *("cpu_limit", "memory_limit_mb", "pids_limit", "timeout_seconds", "start_timeout_seconds"),
    *("queue_timeout_seconds", "stop_grace_seconds", "queue", "priority", "queued_at"),
    *("scheduled_for", "max_retries", "retry_count", "infra_retry_count", "retry_policy"),
    *("attempt", "reason", "launched_at", "completed_at", "duration_ms", "kill_requested_at"),
    *("cancel_requested_at", "signalled_at", "exit_code", "error", "oom_killed", "created_at"),
    "updated_at",
)
"""What the list reads of each job; a job by itself also has its output."""

ALONE_ONLY = ("output", "revision", "changeable")
"""What a job by itself has beside that."""

READ_ONLY = {*LIST_COLUMNS, *ALONE_ONLY, "owner", "allowed_transitions"} - set(WANTED)
"""What is told of a job and cannot be said."""

# Telling ------------------------------------------------------------------------------------------

Told = dict[str, Any]

OWNER = f"created_by__{get_user_model().USERNAME_FIELD}"
_ALLOWED = {str(status): list(JOB.get_next_states(status)) for status in JobStatus}


ROWS = ContainerJob.objects.order_by().values(*LIST_COLUMNS, owner=models.F(OWNER))
"""All jobs as `tell_row` takes them; made once, since each request only narrows and orders it."""


def tell_row(row: Told) -> Told:
    """A job in a list."""
    row["environment"] = _masked(row["environment"])
    row["allowed_transitions"] = _ALLOWED[row["status"]]
    return row


def tell(job: ContainerJob) -> Told:
    """A job by itself."""
    row = {name: getattr(job, job._meta.get_field(name).attname) for name in LIST_COLUMNS}  # type: ignore[union-attr]
    owner = job.created_by.get_username() if job.created_by else None
    return tell_row({**row, "owner": owner}) | {
        "output": job.output,
        "revision": job.revision,
        "changeable": sorted(lifecycle.changeable(job.status)),
    }


def _masked(environment: Any) -> dict[str, str]:
    return dict.fromkeys(environment, MASK) if isinstance(environment, dict) else {}
