"""Jobs that really run, on each kind of executor, and a look at what lives behind the records."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from container_manager.models import ContainerJob, JobAttempt, JobLog
from container_manager.models.attempt import attempt_name
from tests.factories import JobFactory
from tests.support import docker_engine

DOCKER_MARKS = [
    pytest.mark.docker,
    pytest.mark.skipif(bool(docker_engine.why_not()), reason=docker_engine.why_not()),
]
KINDS = ["process", pytest.param("docker", marks=DOCKER_MARKS)]


def queue_job(kind: str, script: str | list[str], **fields: Any) -> ContainerJob:
    """A queued job that runs a shell script, or a command given as a list."""
    isolation = {"process": "process", "docker": "container"}[kind]
    given = {
        "executor": kind,
        "isolation": isolation,
        "command": ["/bin/sh", "-c", script] if isinstance(script, str) else script,
        "status": "queued",
        "max_retries": 0,
        "stop_grace_seconds": 1,
    }
    return JobFactory(**{**given, **fields})


def lives(job: ContainerJob, attempt: int = 1) -> bool:
    """Does anything of it run? Judged by the engine or the process table, not by the records."""
    if job.executor == "docker":
        return _container_runs(attempt_name(job.pk, attempt))
    return bool(processes_of(job))


def _container_runs(name: str) -> bool:
    with docker_engine.engine() as http:
        reply = http.call("GET", f"/containers/{name}/json")
        return bool(reply.ok and reply.json()["State"]["Running"])


def processes_of(job: ContainerJob) -> list[int]:
    """All processes that were given this job's id."""
    marker = f"CM_JOB_ID={job.pk}".encode()
    return [
        int(entry.name)
        for entry in Path("/proc").iterdir()
        if entry.name.isdigit() and marker in _environ(entry)
    ]


def _environ(entry: Path) -> list[bytes]:
    try:
        return (entry / "environ").read_bytes().split(b"\0")
    except OSError:
        return []


def stdout(job: ContainerJob, attempt: int = 1) -> bytes:
    return JobLog.objects.content(job.pk, "stdout", attempt)


def stderr(job: ContainerJob, attempt: int = 1) -> bytes:
    return JobLog.objects.content(job.pk, "stderr", attempt)


def attempt_of(job: ContainerJob, number: int = 1) -> JobAttempt:
    return JobAttempt.objects.get(job=job.pk, attempt=number)
