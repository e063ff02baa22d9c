"""Is this installation well? Open to everybody, so it tells numbers only.

`/health` looks at everything; `/health/live` says that this process answers, and `/health/ready`
whether it should be asked. The database gets two seconds to answer. It alone makes anything
unhealthy: Redis is a hint, and all others can be waited for.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from django.conf import settings
from rest_framework.permissions import AllowAny
from rest_framework.request import Request

from container_manager import __version__, guarding, schema
from container_manager.api.asking import Asking
from container_manager.api.base import BaseView, Response
from container_manager.api.machinery import COUNT, SECONDS, closed
from container_manager.api.operations import component, operation
from container_manager.models import ProcessKind
from container_manager.reports import machinery, publishers
from container_manager.reports.publishers import PublisherReport

logger = logging.getLogger("container_manager")

Fleet = dict[str, dict[str, Any]]

PATIENCE = 2.0
REDIS_PATIENCE = 1.0

EXECUTORS = closed({"configured": COUNT, "available": COUNT})
PUBLISHERS = closed(
    {
        "configured": COUNT,
        "failing": COUNT,
        "lag_events": {**COUNT, "description": "Of the one that is furthest behind."},
        "lag_seconds": {**SECONDS, "description": "For so long its oldest event has waited."},
    }
)
PROCESSES = closed({"total": COUNT, "alive": COUNT})
HEALTH = component(
    "Health",
    closed(
        {
            "status": {"type": "string", "enum": ["healthy", "unhealthy"]},
            "version": {"type": "string"},
            "service": {"type": "string"},
            "database": {"type": "boolean"},
            "redis": {"type": "boolean"},
            "executors": EXECUTORS,
            "workers": PROCESSES,
            "schedulers": PROCESSES,
            "relays": PROCESSES,
            "publishers": PUBLISHERS,
        }
    ),
)


LIVE = component(
    "Live",
    closed(
        {
            "status": {"type": "string", "enum": ["alive"]},
            "version": {"type": "string"},
            "service": {"type": "string"},
        }
    ),
)
READY = component(
    "Ready",
    closed(
        {
            "status": {"type": "string", "enum": ["ready", "not_ready"]},
            "database": {"type": "boolean"},
            "migrations": {"type": "boolean", "description": "All that this code needs are there."},
            "guard": {"type": "boolean", "description": "No trigger of it is missing."},
        }
    ),
)
NO_STORE = {"Cache-Control": "no-store"}
SERVICE = {"version": __version__, "service": "container-manager"}


class OpenView(BaseView):
    """For everybody, without a login."""

    authentication_classes = ()
    permission_classes = (AllowAny,)
    tag = "health"


class HealthView(OpenView):
    """Whether it can work."""

    @operation(
        "Is it well?",
        answers={200: HEALTH, 503: HEALTH},
        meanings={503: "Unhealthy: the database does not answer."},
    )
    def get(self, request: Request) -> Response:
        """503 only when the database is away; everything else can wait for it."""
        fleet = _asking.answer()
        return Response(
            {
                "status": "healthy" if fleet is not None else "unhealthy",
                **SERVICE,
                "database": fleet is not None,
                "redis": redis_answers(),
                **(fleet or _NOTHING_KNOWN),
            },
            status=503 if fleet is None else 200,
            headers=NO_STORE,
        )


class LiveView(OpenView):
    """Whether this process answers at all."""

    @operation("Is this process alive?", answers={200: LIVE})
    def get(self, request: Request) -> Response:
        """Asks nobody else: restart what does not answer."""
        return Response({"status": "alive", **SERVICE}, headers=NO_STORE)


class ReadyView(OpenView):
    """Whether this process should be asked."""

    @operation(
        "Should it be asked?",
        answers={200: READY, 503: READY},
        meanings={503: "Not ready: no database, or it is not migrated, or not guarded."},
    )
    def get(self, request: Request) -> Response:
        """503 while the database is away, lacks a migration of this code, or is not guarded."""
        found = _asking_ready.answer()
        told = found or {"database": False, "migrations": False, "guard": False}
        ready = all(told.values())
        return Response(
            {"status": "ready" if ready else "not_ready", **told},
            status=200 if ready else 503,
            headers=NO_STORE,
        )


def _readiness() -> dict[str, bool]:
    return {
        "database": True,
        "migrations": not schema.missing("default"),
        "guard": not guarding.is_down("default"),
    }


_NOTHING_KNOWN: Fleet = {
    "executors": {"configured": 0, "available": 0},
    **{kind: {"total": 0, "alive": 0} for kind in ("workers", "schedulers", "relays")},
    "publishers": {"configured": 0, "failing": 0, "lag_events": 0, "lag_seconds": 0.0},
}


def _fleet() -> Fleet:
    executors, processes = machinery.executors(), machinery.processes()
    return {
        "executors": {
            "configured": sum(bool(each.path) for each in executors),
            "available": sum(each.available for each in executors),
        },
        "workers": _living(machinery.workers()),
        "schedulers": _living([each for each in processes if each.kind == ProcessKind.SCHEDULER]),
        "relays": _living([each for each in processes if each.kind == ProcessKind.RELAY]),
        "publishers": _behind([each for each in publishers.publishers() if each.path]),
    }


def _behind(reports: Sequence[PublisherReport]) -> dict[str, float]:
    return {
        "configured": len(reports),
        "failing": sum(each.failing_since is not None for each in reports),
        "lag_events": max((each.lag for each in reports), default=0),
        "lag_seconds": round(max((each.lag_seconds for each in reports), default=0.0), 1),
    }


def _living(reports: Sequence[Any]) -> dict[str, int]:
    return {"total": len(reports), "alive": sum(each.alive for each in reports)}


_asking = Asking("Health", _fleet, PATIENCE)
_asking_ready = Asking("Readiness", _readiness, PATIENCE)


def redis_answers() -> bool:
    """Does the Redis of REDIS_URL answer in a second? False when there is none."""
    url = getattr(settings, "REDIS_URL", "")
    if not url:
        return False
    try:
        import redis
    except ModuleNotFoundError:
        return False
    try:
        with redis.Redis.from_url(
            url, socket_timeout=REDIS_PATIENCE, socket_connect_timeout=REDIS_PATIENCE
        ) as client:
            return bool(client.ping())
    except (redis.RedisError, OSError, ValueError) as error:
        logger.warning("Health: Redis: %s", error)
        return False
