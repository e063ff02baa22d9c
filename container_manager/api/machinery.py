"""Statistics, queues, executors and workers: what the machinery is doing, and how it is steered."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rest_framework.request import Request

from container_manager import lifecycle
from container_manager.api.base import (
    BaseView,
    Response,
    read_id,
    refuse_unless_operator,
)
from container_manager.api.bodies import read_object
from container_manager.api.errors import invalid, not_found
from container_manager.api.operations import component, operation
from container_manager.api.pagination import PAGE, page, page_of
from container_manager.api.parameters import MOMENT, Schema
from container_manager.models import access, validators
from container_manager.models.job_counts import job_stats
from container_manager.reports import machinery
from container_manager.states import Isolation, JobStatus

COUNT: Schema = {"type": "integer", "minimum": 0}
COUNTS: Schema = {"type": "object", "additionalProperties": COUNT}
SECONDS: Schema = {"type": "number", "minimum": 0}
NAMES: Schema = {"type": "array", "items": {"type": "string"}}


def closed(properties: dict[str, Schema]) -> Schema:
    """An object with exactly these members."""
    return {
        "type": "object",
        "required": list(properties),
        "additionalProperties": False,
        "properties": properties,
    }


# Statistics ---------------------------------------------------------------------------------------

STATS = component(
    "Stats",
    closed(
        {
            "total": COUNT,
            "by_status": closed(dict.fromkeys(JobStatus.values, COUNT)),
            "by_isolation": {**COUNTS, "required": Isolation.values},
            "by_executor": {
                **COUNTS,
                "description": "By what jobs ask for; `any` where they leave it open.",
            },
            "by_queue": COUNTS,
            "avg_duration_ms": {**COUNT, "description": "Of completed jobs; 0 when none."},
            "p50_duration_ms": COUNT,
            "p95_duration_ms": COUNT,
            "queue_depth": {**COUNT, "description": "Jobs that are `queued`."},
            "oldest_queued_seconds": SECONDS,
        }
    ),
)


class StatsView(BaseView):
    """How many jobs stand where."""

    tag = "stats"

    @operation("Statistics of jobs", answers={200: STATS})
    def get(self, request: Request) -> Response:
        """Exact counts and durations of the jobs that you may see; every state is there."""
        return Response(job_stats(access.scope(request.user)))


# Queues -------------------------------------------------------------------------------------------

STEERED: dict[str, Schema] = {
    "paused": {"type": "boolean", "description": "Nothing of a paused queue is started."},
    "max_running": {
        "type": ["integer", "null"],
        "minimum": 1,
        "maximum": 1_000_000,
        "description": "Jobs of it that run at once over all workers; null: no limit.",
    },
}
QUEUE = component(
    "Queue",
    closed(
        {
            "name": {"type": "string"},
            **STEERED,
            **dict.fromkeys(("pending", "queued", "running", "retrying"), COUNT),
            "oldest_queued_seconds": SECONDS,
        }
    ),
)


QUEUE_NAME: Schema = {
    "type": "string",
    "maxLength": 100,
    "pattern": f"^{validators.QUEUE.pattern}$",
}


class QueuesView(BaseView):
    """All queues."""

    tag = "queues"

    @operation("List queues", answers={200: page_of(QUEUE)}, query=PAGE)
    def get(self, request: Request) -> Response:
        """Every queue that was steered or has jobs that you may see, by name."""
        return listed(self, request, machinery.queues(access.scope(request.user)))


class QueueView(BaseView):
    """One queue."""

    tag = "queues"
    path_parameters = {"name": QUEUE_NAME}

    @operation("One queue", answers={200: QUEUE})
    def get(self, request: Request, name: str) -> Response:
        """Whether it is paused, its limit, and how many jobs that you may see are in it."""
        return Response(_queue(request, name))

    @operation(
        "Pause, resume or limit a queue",
        answers={200: QUEUE},
        body={
            "type": "object",
            "additionalProperties": False,
            "minProperties": 1,
            "properties": STEERED,
        },
    )
    def patch(self, request: Request, name: str) -> Response:
        """For operators. A queue that nobody has steered before needs no other step."""
        refuse_unless_operator(request)
        decided = read_object(request.data, STEERED)
        if not decided:
            raise invalid({}, "There is nothing to change.")
        lifecycle.steer_queue(name, **decided)
        return Response(_queue(request, name))


def _queue(request: Request, name: str) -> dict[str, Any]:
    found = machinery.queue(name, access.scope(request.user))
    if found is None:
        raise not_found()
    return found.as_json()


# Executors and workers ----------------------------------------------------------------------------

EXECUTOR = component(
    "Executor",
    closed(
        {
            "alias": {"type": "string"},
            "path": {
                "type": "string",
                "description": "Its class in the settings; empty when only a worker knows it.",
            },
            "available": {"type": "boolean", "description": "It answers on a living worker."},
            "isolations": {**NAMES, "description": "What is offered, the weakest first."},
            "engine": {"type": "string"},
            "outlives_worker": {
                "type": ["boolean", "null"],
                "description": "Do its jobs go on when their worker stops? null: nobody knows.",
            },
            "workers": {**COUNT, "description": "Living workers on which it answers."},
            "unavailable_since": {
                "type": ["string", "null"],
                "format": "date-time",
                "description": "Since when it answers no living worker.",
            },
        }
    ),
)


class ExecutorsView(BaseView):
    """Where jobs can run."""

    tag = "executors"

    @operation("List executors", answers={200: page_of(EXECUTOR)}, query=PAGE)
    def get(self, request: Request) -> Response:
        """The executors of the settings, and what the living workers found of them."""
        return listed(self, request, machinery.executors())


WORKER = component(
    "Worker",
    closed(
        {
            "id": {"type": "string", "format": "uuid"},
            "name": {"type": "string"},
            "hostname": {"type": "string"},
            "pid": COUNT,
            "alive": {"type": "boolean", "description": "It beat within LEASE_SECONDS."},
            "draining": {"type": "boolean", "description": "It shuts down and takes nothing more."},
            "seconds_since_beat": SECONDS,
            "concurrency": COUNT,
            "running": {**COUNT, "description": "Jobs that it holds."},
            "queues": {**NAMES, "description": "Empty: all."},
            "executors": NAMES,
            "version": {"type": "string"},
            "started_at": MOMENT,
        }
    ),
)


class OperatorsView(BaseView):
    """For operators only."""

    tag = "workers"

    def check_permissions(self, request: Request) -> None:
        super().check_permissions(request)
        refuse_unless_operator(request)


class WorkersView(OperatorsView):
    """All worker processes."""

    @operation("List workers", answers={200: page_of(WORKER)}, query=PAGE)
    def get(self, request: Request) -> Response:
        """For operators: every worker and its last sign of life, newest first."""
        return listed(self, request, machinery.workers())


class WorkerView(OperatorsView):
    """One worker process."""

    @operation("One worker", answers={200: WORKER})
    def get(self, request: Request, pk: str) -> Response:
        """For operators."""
        found = machinery.worker(read_id(pk))
        if found is None:
            raise not_found()
        return Response(found.as_json())


def listed(view: BaseView, request: Request, rows: Sequence[Any]) -> Response:
    """The page of these reports that was asked for."""
    limit, offset = view.query["limit"], view.query["offset"]
    shown = [row.as_json() for row in rows[offset : offset + limit]]
    return Response(page(request, len(rows), limit, offset, shown))
