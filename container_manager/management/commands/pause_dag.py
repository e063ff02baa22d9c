"""Keep DAGs from beginning runs."""

from __future__ import annotations

from container_manager.management.run_verbs import PauseCommand


class Command(PauseCommand):
    help = "Keep DAGs from beginning runs until they are unpaused; runs under way go on."
    paused = True
