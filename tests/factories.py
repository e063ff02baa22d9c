"""Rows with coherent fields: a state brings the times and results that belong to it."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import factory
from django.contrib.auth import get_user_model
from django.utils import timezone

from container_manager import states
from container_manager.models import ContainerJob, Dag, DagRun, JobAttempt, TaskInstance
from container_manager.states import JobStatus, Phase, WorkflowState
from tests.trials.models import Trial

SET_AT = {
    "queued_at": (timedelta(minutes=3), (JobStatus.QUEUED, *states.LAUNCHED)),
    "launched_at": (timedelta(minutes=2), states.LAUNCHED),
    "completed_at": (timedelta(minutes=1), states.ENDED),
}
"""How long ago it happened, and in which states it has happened."""

EXIT_CODES = {JobStatus.COMPLETED: 0, JobStatus.FAILED: 1, JobStatus.RETRYING: 1}


def _happened(column: str) -> factory.LazyAttribute:
    ago, when_in = SET_AT[column]
    return factory.LazyAttribute(
        lambda made: timezone.now() - ago if made.status in when_in else None
    )


class UserFactory(factory.django.DjangoModelFactory[Any]):
    class Meta:
        model = get_user_model()

    username = factory.Sequence("user-{}".format)


class JobFactory(factory.django.DjangoModelFactory[ContainerJob]):
    class Meta:
        model = ContainerJob

    name = factory.Sequence("job {}".format)
    image = "busybox:latest"
    command = factory.LazyFunction(lambda: ["/bin/true"])
    status = JobStatus.PENDING
    queued_at = _happened("queued_at")
    launched_at = _happened("launched_at")
    completed_at = _happened("completed_at")
    attempt = factory.LazyAttribute(lambda made: int(made.launched_at is not None))
    exit_code = factory.LazyAttribute(lambda made: EXIT_CODES.get(made.status))


class AttemptFactory(factory.django.DjangoModelFactory[JobAttempt]):
    """An attempt that a worker holds, of a running job."""

    class Meta:
        model = JobAttempt

    job = factory.SubFactory(JobFactory, status=JobStatus.RUNNING)
    attempt = factory.LazyAttribute(lambda made: made.job.attempt)
    phase = Phase.STARTED
    executor = "process"


class TrialFactory(factory.django.DjangoModelFactory[Trial]):
    class Meta:
        model = Trial


class DagFactory(factory.django.DjangoModelFactory[Dag]):
    """A DAG of two tasks."""

    class Meta:
        model = Dag

    name = factory.Sequence("dag-{}".format)
    spec = factory.LazyAttribute(
        lambda made: {
            "name": made.name,
            "tasks": {
                "first": {"image": "busybox:latest", "command": ["/bin/true"]},
                "second": {
                    "image": "busybox:latest",
                    "command": ["/bin/true"],
                    "depends_on": ["first"],
                },
            },
        }
    )


def _passed(minutes: int, known_in: tuple[str, ...]) -> factory.LazyAttribute:
    return factory.LazyAttribute(
        lambda made: timezone.now() - timedelta(minutes=minutes) if made.state in known_in else None
    )


class RunFactory(factory.django.DjangoModelFactory[DagRun]):
    """A run without tasks."""

    class Meta:
        model = DagRun

    state = WorkflowState.QUEUED
    dag = factory.SubFactory(DagFactory)
    run_id = factory.Sequence("manual__{}".format)
    execution_date = factory.Sequence(lambda n: timezone.now() + timedelta(seconds=n))
    spec = factory.LazyAttribute(lambda made: made.dag.spec)
    started_at = _passed(2, states.STARTED)
    ended_at = _passed(1, states.OVER)


class TaskFactory(factory.django.DjangoModelFactory[TaskInstance]):
    """A task without a job."""

    class Meta:
        model = TaskInstance

    state = WorkflowState.QUEUED
    dag_run = factory.SubFactory(RunFactory)
    task_id = factory.Sequence("task-{}".format)
    name = factory.LazyAttribute(lambda made: made.task_id)
    position = factory.Sequence(int)
    started_at = _passed(2, states.STARTED)
    ended_at = _passed(1, states.OVER)
