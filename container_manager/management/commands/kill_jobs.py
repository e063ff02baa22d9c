"""Stop jobs by force."""

from __future__ import annotations

from container_manager.bulk import Verb
from container_manager.management.stopping import StopCommand


class Command(StopCommand):
    help = "Stop jobs by force, at once. Their rows, output and history stay."
    verb = Verb.KILL
    participle = "killed"
