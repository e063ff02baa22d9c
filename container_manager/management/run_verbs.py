"""The bases of the commands that do one thing with each of a few DAGs or runs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from django.core.management.base import CommandParser

from container_manager.exceptions import ContainerManagerError
from container_manager.management import tables
from container_manager.management.base import JobCommand, actor, failed
from container_manager.management.workflows import find_dags, find_run, run_described
from container_manager.models import DagRun
from container_manager.workflows import dags


class RunCommand(JobCommand, ABC):
    """One verb on each of the runs that are named; each gets its result, whatever comes of others.

    All names are looked up first: with a wrong one nothing is done.
    """

    participle: ClassVar[str]

    @abstractmethod
    def act(self, run: DagRun, actor: str) -> DagRun:
        """Do it, and return the run as it stands then. Raises ContainerManagerError."""

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "runs", nargs="+", metavar="RUN", help="DAG/RUN_ID, or an id from list_runs"
        )
        parser.add_argument("--json", action="store_true", help="one JSON document")

    def handle(self, **options: Any) -> None:
        found = {run.pk: run for run in map(find_run, options["runs"])}
        results = [self._result(run) for run in found.values()]
        if options["json"]:
            self.say(tables.dumps({"results": results}))
        else:
            for result in results:
                self.say(f"{result['dag']}/{tables.visible(result['run_id'])}: {_told(result)}")
        if bad := sum(result["result"] == "refused" for result in results):
            raise failed(f"{bad} of {len(results)} could not be {self.participle}")

    def _result(self, run: DagRun) -> dict[str, Any]:
        named = {"id": run.pk, "dag": run.dag.name, "run_id": run.run_id}
        try:
            done = self.act(run, actor())
        except ContainerManagerError as error:
            return {**named, "result": "refused", "detail": str(error)}
        except DagRun.DoesNotExist:
            return {**named, "result": "refused", "detail": "it was deleted"}
        return {**named, "result": "done", "detail": f"now {run_described(done)}"}


def _told(result: dict[str, Any]) -> str:
    """`done, now running`, or `refused: …`."""
    between = ", " if result["result"] == "done" else ": "
    return f"{result['result']}{between}{tables.visible(result['detail'])}"


class PauseCommand(JobCommand):
    """Pauses or unpauses DAGs."""

    paused: ClassVar[bool]

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("names", nargs="+", metavar="NAME", help="the DAGs")

    def handle(self, **options: Any) -> None:
        for dag in find_dags(options["names"]):
            dags.pause(dag.pk, paused=self.paused)
            self.say(f"{dag.name}: {'paused' if self.paused else 'unpaused'}")
