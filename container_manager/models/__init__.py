"""The tables, their transitions and their queries.

Rule of this package: a model changes its own row; what concerns several tables at once is a verb of
`lifecycle`.
"""

from container_manager.models.attempt import JobAttempt
from container_manager.models.base import acting_as
from container_manager.models.counters import JobChange, JobCount, JobDuration
from container_manager.models.event import DeadLetter, Event, EventSequencer, PublisherState
from container_manager.models.history import StateHistory
from container_manager.models.idempotency import IdempotencyKey
from container_manager.models.job import ContainerJob
from container_manager.models.logs import JobLog
from container_manager.models.queue import Queue
from container_manager.models.worker import Installation, Worker
from container_manager.models.workflow import Dag, DagRun, TaskInstance

__all__ = [
    "ContainerJob",
    "Dag",
    "DagRun",
    "DeadLetter",
    "Event",
    "EventSequencer",
    "IdempotencyKey",
    "Installation",
    "JobAttempt",
    "JobChange",
    "JobCount",
    "JobDuration",
    "JobLog",
    "PublisherState",
    "Queue",
    "StateHistory",
    "TaskInstance",
    "Worker",
    "acting_as",
]
