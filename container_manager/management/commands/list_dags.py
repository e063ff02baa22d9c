"""List DAGs by name."""

from __future__ import annotations

from typing import Any

from django.core.management.base import CommandParser
from django.utils import timezone

from container_manager.management import tables, workflows
from container_manager.management.base import JobCommand, nothing
from container_manager.management.selection import pairs
from container_manager.models import Dag


class Command(JobCommand):
    help = (
        "List DAGs by name. In a pipe: tab-separated name, active or paused, schedule, time zone, "
        "next slot, date and state of the latest run."
    )
    only_reads = True

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("names", nargs="*", metavar="NAME", help="only these")
        parser.add_argument(
            "--tag", action="append", metavar="KEY=VALUE", help="with this tag (repeatable: all)"
        )
        parser.add_argument("--paused", action="store_true", help="only those that are paused")
        parser.add_argument("--json", action="store_true", help="one JSON array")

    def handle(self, **options: Any) -> None:
        dags = _chosen(options)
        if options["json"]:
            for piece in tables.array(map(workflows.dag_json, dags)):
                self.write(piece)
            self.say()
        elif self.out.isatty() and dags:
            console = tables.console(self.out, no_color=options["no_color"])
            console.print(workflows.dags_table(dags, timezone.now(), console.width))
        else:
            for dag in dags:
                self.say(workflows.dag_line(dag))
        if not dags:
            raise nothing(_empty(options))


def _chosen(options: dict[str, Any]) -> list[Dag]:
    dags = Dag.objects.all()
    if options["names"]:
        dags = dags.filter(pk__in=[dag.pk for dag in workflows.find_dags(options["names"])])
    for key, value in pairs(options["tag"], "--tag").items():
        dags = dags.with_tag(key, value)
    if options["paused"]:
        dags = dags.filter(is_paused=True)
    return list(workflows.with_latest_run(dags).order_by("name"))


def _empty(options: dict[str, Any]) -> str:
    if options["tag"] or options["paused"]:
        return "no DAG matches"
    return "there are no DAGs yet; `manage.py import_dag FILE` takes one in"
