"""List runs of DAGs, latest date first."""

from __future__ import annotations

from typing import Any

from django.core.management.base import CommandParser

from container_manager.management import tables, workflows
from container_manager.management.base import JobCommand, nothing, wrong_usage
from container_manager.management.commands.run_worker import positive
from container_manager.models import DagRun
from container_manager.states import WorkflowState

LIMIT = 20


class Command(JobCommand):
    help = (
        f"List runs of DAGs, latest date first, {LIMIT} unless --limit or --all says otherwise. "
        "In a pipe: tab-separated id, DAG, run id, date, type, state, seconds, reason."
    )
    only_reads = True

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("names", nargs="*", metavar="DAG", help="only of these")
        parser.add_argument(
            "--state", action="append", metavar="STATE", help="in this state (repeatable)"
        )
        parser.add_argument("--all", action="store_true", help="every one there is")
        parser.add_argument("--limit", type=positive, metavar="N", help="at most so many")
        parser.add_argument("--json", action="store_true", help="one JSON array")

    def handle(self, **options: Any) -> None:
        runs = _chosen(options)
        limit = options["limit"] or (None if options["all"] else LIMIT)
        shown = list(runs[:limit])
        if options["json"]:
            self._show_json(shown)
        elif self.out.isatty() and shown:
            console = tables.console(self.out, no_color=options["no_color"])
            console.print(workflows.runs_table(shown, console.width))
        else:
            for run in shown:
                self.say(workflows.run_line(run))
        if not shown:
            raise nothing(_empty(options))
        if (more := runs.count() - len(shown)) > 0:
            self.note(f"{more} more; see them with --limit N or --all")

    def _show_json(self, runs: list[DagRun]) -> None:
        counts = workflows.counts_of(runs)
        for piece in tables.array(workflows.run_json(run, counts[run.pk]) for run in runs):
            self.write(piece)
        self.say()


def _chosen(options: dict[str, Any]) -> Any:
    runs = DagRun.objects.select_related("dag").defer("spec", "dag__spec", "transition_info")
    if options["names"]:
        runs = runs.filter(dag__in=workflows.find_dags(options["names"]))
    if options["state"]:
        runs = runs.filter(state__in=known_states(options["state"]))
    return runs


def known_states(given: list[str]) -> list[str]:
    """Raises CommandError for a word that is none."""
    for state in given:
        if state not in WorkflowState.values:
            known = ", ".join(WorkflowState.values)
            raise wrong_usage(f"--state: {state!r} is not a state: {known}")
    return given


def _empty(options: dict[str, Any]) -> str:
    if options["names"] or options["state"]:
        return "no run matches"
    return "there are no runs yet; `manage.py trigger_dag NAME` begins one"
