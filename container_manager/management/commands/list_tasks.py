"""List the tasks of one run."""

from __future__ import annotations

from typing import Any

from django.core.management.base import CommandParser

from container_manager.management import tables, workflows
from container_manager.management.base import JobCommand, nothing
from container_manager.management.commands.list_runs import known_states
from container_manager.models import TaskInstance


class Command(JobCommand):
    help = (
        "List the tasks of one run, in the order of its document. In a pipe: tab-separated task, "
        "state, tries, seconds, exit code, reason, job."
    )
    examples = """examples:
  manage.py list_tasks etl_pipeline/first
  manage.py list_tasks 01890a5d --state failed --state upstream_failed
"""
    only_reads = True

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("run", metavar="RUN", help="DAG/RUN_ID, or an id from list_runs")
        parser.add_argument(
            "--state", action="append", metavar="STATE", help="in this state (repeatable)"
        )
        parser.add_argument("--json", action="store_true", help="one JSON array")

    def handle(self, **options: Any) -> None:
        tasks = _chosen(options)
        if options["json"]:
            for piece in tables.array(map(workflows.task_json, tasks)):
                self.write(piece)
            self.say()
        elif self.out.isatty() and tasks:
            console = tables.console(self.out, no_color=options["no_color"])
            console.print(workflows.tasks_table(tasks, console.width))
        else:
            for task in tasks:
                self.say(workflows.task_line(task))
        if not tasks:
            raise nothing("no task matches")


def _chosen(options: dict[str, Any]) -> list[TaskInstance]:
    tasks = TaskInstance.objects.list_by_dag_run(workflows.find_run(options["run"]))
    if options["state"]:
        tasks = tasks.filter(state__in=known_states(options["state"]))
    return list(tasks.defer("transition_info"))
