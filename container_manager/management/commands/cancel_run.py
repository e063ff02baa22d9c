"""Withdraw runs."""

from __future__ import annotations

from container_manager.management.run_verbs import RunCommand
from container_manager.models import DagRun
from container_manager.workflows import runs


class Command(RunCommand):
    help = (
        "Withdraw runs: tasks that wait are skipped, those that run are asked to stop; when they "
        "are gone the run is `failed`, reason `cancelled`."
    )
    participle = "cancelled"

    def act(self, run: DagRun, actor: str) -> DagRun:
        return runs.cancel(run.pk, actor=actor)
