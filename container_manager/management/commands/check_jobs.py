"""Compare history, rows, attempts, logs and counters."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from typing import Any

from django.core.management.base import CommandParser

from container_manager import consistency, guarding
from container_manager.consistency import FINDING
from container_manager.management import tables
from container_manager.management.base import JobCommand, failed
from container_manager.management.selection import find_ids
from container_manager.models import ContainerJob


class Command(JobCommand):
    help = (
        "Compare history, rows, attempts and logs of all jobs, their counters with the rows, and "
        "the guard with the table of states. Prints what contradicts itself; exit code 1 if there "
        "is anything. Changes nothing, but with --recount."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("ids", nargs="*", metavar="ID", help="only these jobs")
        parser.add_argument("--json", action="store_true", help="one JSON document")
        parser.add_argument(
            "--recount",
            action="store_true",
            help="begin the counters anew from the rows first; who writes a job waits meanwhile",
        )

    def handle(self, **options: Any) -> None:
        if options["recount"]:
            guarding.recount("default")
        ids = find_ids(options["ids"]) if options["ids"] else None
        jobs = len(ids) if ids is not None else ContainerJob.objects.count()
        show = self._show_json if options["json"] else self._show_lines
        levels = show(consistency.findings(job_ids=ids), jobs)
        if levels[FINDING]:
            raise failed(f"{levels[FINDING]} finding{'' if levels[FINDING] == 1 else 's'}")
        if not options["json"]:
            self.say(f"All is well: {jobs} job{'' if jobs == 1 else 's'} compared.")

    def _show_lines(self, findings: Any, _jobs: int) -> Counter[str]:
        levels: Counter[str] = Counter()
        for finding in findings:
            levels[finding.level] += 1
            self.say(tables.visible(finding))
        return levels

    def _show_json(self, findings: Any, jobs: int) -> Counter[str]:
        levels: Counter[str] = Counter()

        def told() -> Any:
            for finding in findings:
                levels[finding.level] += 1
                yield asdict(finding)

        self.write(f'{{"jobs": {jobs}, "findings": ')
        for piece in tables.array(told()):
            self.write(piece)
        self.say("}")
        return levels
