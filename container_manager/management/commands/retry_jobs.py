"""Queue failed jobs again."""

from __future__ import annotations

from container_manager.bulk import Verb
from container_manager.management.verbs import VerbCommand
from container_manager.states import JobStatus


class Command(VerbCommand):
    help = (
        "Queue failed jobs again, now; this does not use up their own retries. "
        "A job that waits out its backoff may be named too."
    )
    meant = (JobStatus.FAILED,)
    verb = Verb.RETRY
    participle = "queued again"
