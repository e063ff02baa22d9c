"""Lives of jobs as they should be, and how to plant a contradiction behind the guard's back."""

from __future__ import annotations

import threading
from datetime import timedelta
from typing import Any

from django.db import connection, models
from django.utils import timezone

from container_manager import consistency, guarding
from container_manager.consistency import FINDING
from container_manager.executors.base import Execution
from container_manager.models import (
    ContainerJob,
    JobAttempt,
    JobLog,
    StateHistory,
    Worker,
)
from container_manager.models.attempt import attempt_name
from container_manager.models.base import acting_as
from tests.commands.shell import run
from tests.support.fake_executor import World

LONG_AGO = timedelta(days=1)


def a_living_worker(**fields: Any) -> Worker:
    """Its row, as if it had beaten just now."""
    given = {"name": "w", "hostname": "h", "pid": 1, "concurrency": 1, "version": "1"}
    return Worker.objects.get_or_create(name="w", defaults={**given, **fields})[0]


def lived(*states: str, worker: bool = True, **fields: Any) -> ContainerJob:
    """A job that went through these states after `queued`, each start with its attempt."""
    job = ContainerJob.objects.create(**{"image": "x", "command": ["a"], **fields})
    with acting_as("worker:w" if worker else "system"):
        for state in ("queued", *states):
            ends = {"completed": {"exit_code": 0}, "failed": {"exit_code": 1}}.get(state, {})
            job.attempts.exclude(phase="done").update(phase="done", **{"exit_code": 137, **ends})
            job.transition_to(state, **ends)
            if state == "running" and worker:
                _begin_attempt(job)
    return job


def _begin_attempt(job: ContainerJob) -> None:
    holder = a_living_worker()
    JobAttempt.objects.create(
        job=job,
        attempt=job.attempt,
        phase="started",
        worker_id=holder.pk,
        worker_name=holder.name,
        executor="fake",
        engine_id="fake",
    )


def behind_the_guard() -> Any:
    """A block in which nothing is refused."""
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            cursor.execute("SET CONSTRAINTS ALL IMMEDIATE")
    return guarding.lifted("default")


def plant(rows: models.QuerySet[Any], **columns: Any) -> None:
    """An UPDATE behind the guard's back."""
    with behind_the_guard():
        models.QuerySet(model=rows.model).filter(
            pk__in=list(rows.values_list("pk", flat=True))
        ).update(**columns)


def of(job: ContainerJob) -> models.QuerySet[ContainerJob]:
    return ContainerJob.objects.filter(pk=job.pk)


def codes(level: str = FINDING, **options: Any) -> set[str]:
    """What the records say against each other."""
    found = consistency.findings(**options)
    return {each.code for each in found if each.level == level}


def told(*arguments: Any) -> list[dict[str, Any]]:
    """What `check_jobs` finds, engines included."""
    found: list[dict[str, Any]] = run("check_jobs", "--json", *arguments).json["findings"]
    return found


def history(job: ContainerJob, version: int) -> models.QuerySet[StateHistory]:
    return StateHistory.objects.of(job).filter(version=version)


def chunk(job: ContainerJob, offset: int, data: bytes, **fields: Any) -> None:
    JobLog.objects.create(
        **{"job": job, "attempt": 1, "stream": "stdout", "offset": offset, "data": data, **fields}
    )


def age(job: ContainerJob, by: timedelta = LONG_AGO) -> None:
    """As if nothing had happened to its attempts for so long."""
    job.attempts.update(updated_at=timezone.now() - by)


def on_engine(engine: World, job: ContainerJob, attempt: int = 1, **state: bool) -> str:
    """The engine has an execution of this attempt; returns its name."""
    return put(engine, attempt_name(job.pk, attempt), **state)


def put(engine: World, name: str, **state: bool) -> str:
    engine.executions[name] = Execution(
        name, f"id-{name}", **{"running": True, "started": True, **state}
    )
    engine.ended[name] = threading.Event()
    return name
