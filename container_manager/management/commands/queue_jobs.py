"""Put pending jobs into the queue."""

from __future__ import annotations

from container_manager.bulk import Verb
from container_manager.management.verbs import VerbCommand
from container_manager.states import JobStatus


class Command(VerbCommand):
    help = "Put pending jobs into the queue; workers run them by priority."
    meant = (JobStatus.PENDING,)
    verb = Verb.QUEUE
    participle = "queued"
