"""Waiting for a job's container to be gone, without keeping a database connection meanwhile."""

from __future__ import annotations

import time
from threading import BoundedSemaphore
from uuid import UUID

from container_manager.api.parameters import Parameter, number
from container_manager.models import ContainerJob
from container_manager.models.connections import give_back_connection
from container_manager.states import JobStatus

MOST_SECONDS = 60
FIRST_LOOK_SECONDS, MOST_LOOK_SECONDS = 0.1, 1.0

PLACES = BoundedSemaphore(50)
"""So many may wait in one process: each of them has a thread. Others are answered at once."""


def wait_parameter(default: float) -> Parameter:
    """`?wait=SECONDS`."""
    described = (
        "Seconds to wait for its container to be gone; 202 when it is not gone by then, or at once"
        " when very many wait already."
    )
    return number("wait", 0, MOST_SECONDS, described, default=default)


def until_stopped(job_id: UUID, seconds: float) -> ContainerJob:
    """The job when it does not run any more, or as it is after so long. Raises DoesNotExist."""
    if not PLACES.acquire(blocking=False):
        return _look(job_id)
    try:
        return _look_until(job_id, time.monotonic() + seconds)
    finally:
        PLACES.release()


def _look_until(job_id: UUID, deadline: float) -> ContainerJob:
    pause = FIRST_LOOK_SECONDS
    while True:
        job = _look(job_id)
        left = deadline - time.monotonic()
        if job.status != JobStatus.RUNNING or left <= 0:
            return job
        give_back_connection()
        time.sleep(min(pause, left))
        pause = min(2 * pause, MOST_LOOK_SECONDS)


def _look(job_id: UUID) -> ContainerJob:
    job: ContainerJob = ContainerJob.objects.select_related("created_by").get(pk=job_id)
    return job
