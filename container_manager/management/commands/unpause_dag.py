"""Let paused DAGs begin runs again."""

from __future__ import annotations

from container_manager.management.run_verbs import PauseCommand


class Command(PauseCommand):
    help = (
        "Let paused DAGs begin runs again. Of the slots that passed meanwhile those get a run "
        "that `missed_runs` of the DAG says."
    )
    paused = False
