"""Is this installation well? Open to everybody, so it tells numbers only.

The database is asked on a thread of its own, which gets two seconds: a connection pool, or a
server that accepts and never answers, would keep the asker waiting much longer. Redis is a hint, so
it alone never makes anything unhealthy.
"""

from __future__ import annotations

import logging
import threading
from concurrent.futures import Future

from django.conf import settings
from django.db import Error, connections
from rest_framework.permissions import AllowAny
from rest_framework.request import Request

from container_manager import __version__
from container_manager.api.base import BaseView, Response
from container_manager.api.machinery import COUNT, closed
from container_manager.api.operations import component, operation
from container_manager.reports import machinery

logger = logging.getLogger("container_manager")

Fleet = dict[str, dict[str, int]]

PATIENCE = 2.0
REDIS_PATIENCE = 1.0

EXECUTORS = closed({"configured": COUNT, "available": COUNT})
WORKERS = closed({"total": COUNT, "alive": COUNT})
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
            "workers": WORKERS,
        }
    ),
)


class HealthView(BaseView):
    """Whether it can work."""

    authentication_classes = ()
    permission_classes = (AllowAny,)
    tag = "health"

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
                "version": __version__,
                "service": "container-manager",
                "database": fleet is not None,
                "redis": redis_answers(),
                **(fleet or _NOTHING_KNOWN),
            },
            status=503 if fleet is None else 200,
            headers={"Cache-Control": "no-store"},
        )


_NOTHING_KNOWN = {
    "executors": {"configured": 0, "available": 0},
    "workers": {"total": 0, "alive": 0},
}


def _fleet() -> Fleet:
    executors, workers = machinery.executors(), machinery.workers()
    return {
        "executors": {
            "configured": sum(bool(each.path) for each in executors),
            "available": sum(each.available for each in executors),
        },
        "workers": {
            "total": len(workers),
            "alive": sum(each.alive for each in workers),
        },
    }


class _Asking:
    """One question to the database at a time; whoever asks meanwhile gets the same answer."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._asked: Future[Fleet] | None = None

    def answer(self) -> Fleet | None:
        """Numbers of executors and workers; None when the database does not answer in time."""
        with self._lock:
            if self._asked is None or self._asked.done():
                self._asked = Future()
                threading.Thread(target=self._ask, args=(self._asked,), daemon=True).start()
            asked = self._asked
        try:
            return asked.result(PATIENCE)
        except TimeoutError:
            logger.warning("Health: the database did not answer in %s seconds", PATIENCE)
        except Error as error:
            logger.warning("Health: database: %s", str(error).strip())
        return None

    @staticmethod
    def _ask(asked: Future[Fleet]) -> None:
        try:
            asked.set_result(_fleet())
        except BaseException as error:  # noqa: BLE001 - whoever waits for it raises it
            asked.set_exception(error)
        finally:
            connections.close_all()


_asking = _Asking()


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
