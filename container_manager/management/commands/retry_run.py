"""Go on with failed runs from their failed tasks."""

from __future__ import annotations

from container_manager.management.run_verbs import RunCommand
from container_manager.models import DagRun
from container_manager.workflows import runs


class Command(RunCommand):
    help = (
        "Go on with failed runs from their failed tasks: what is done is kept, what never ran for "
        "a failure waits again, what was skipped stays skipped."
    )
    participle = "retried"

    def act(self, run: DagRun, actor: str) -> DagRun:
        return runs.retry(run.pk, actor=actor)
