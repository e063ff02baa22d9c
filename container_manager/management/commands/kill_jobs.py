"""Stop jobs by force."""

from __future__ import annotations

from container_manager.management.stopping import StopCommand
from container_manager.states import StopKind


class Command(StopCommand):
    help = "Stop jobs by force, at once. Their rows, output and history stay."
    kind = StopKind.KILL
    participle = "killed"
