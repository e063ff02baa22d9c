"""Withdraw jobs."""

from __future__ import annotations

from container_manager.bulk import Verb
from container_manager.management.stopping import StopCommand


class Command(StopCommand):
    help = (
        "Withdraw jobs: one that waits never starts; one that runs is asked to stop, given its "
        "grace, then stopped by force."
    )
    verb = Verb.CANCEL
    participle = "cancelled"
