"""Delete runs of DAGs that ended long ago."""

from __future__ import annotations

from typing import Any

from django.core.management.base import CommandParser
from django.utils import timezone

from container_manager.management import tables, workflows
from container_manager.management.base import JobCommand, nothing, wrong_usage
from container_manager.management.selection import moment_before
from container_manager.models import DagRun
from container_manager.models.base import batched
from container_manager.states import OVER
from container_manager.workflows import runs

BATCH = 50


class Command(JobCommand):
    help = (
        "Delete runs that are over with their tasks, jobs, output and history. The age counts from "
        "their end; a run of which something is left on an engine stays."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("names", nargs="*", metavar="DAG", help="only of these")
        parser.add_argument("--older-than", metavar="AGE", help="ended before: 12h, 30d")
        parser.add_argument("--keep-history", action="store_true", help="keep the history rows")
        parser.add_argument("--dry-run", action="store_true", help="only say how many there are")
        parser.add_argument("--json", action="store_true", help="one JSON document")

    def handle(self, **options: Any) -> None:
        if not options["older_than"]:
            raise wrong_usage("--older-than is needed: how long ago they must have ended, e.g. 30d")
        before = moment_before(timezone.now(), options["older_than"], "--older-than")
        old = DagRun.objects.filter(state__in=OVER, ended_at__lt=before).order_by("ended_at")
        if options["names"]:
            old = old.filter(dag__in=workflows.find_dags(options["names"]))
        found = list(old.values_list("pk", flat=True))
        if not found:
            raise nothing("no run matches")
        gone = 0 if options["dry_run"] else self._delete(found, options["keep_history"])
        if options["json"]:
            self.say(tables.dumps({"found": len(found), "deleted": gone}))
        elif options["dry_run"]:
            self.say(f"{len(found)} runs would be deleted")
        else:
            self.say(f"{gone} of {len(found)} runs deleted")

    def _delete(self, found: list[Any], keep_history: bool) -> int:
        return sum(
            len(runs.prune(batch, keep_history=keep_history)) for batch in batched(found, BATCH)
        )
