"""Compare history, rows, attempts, logs, counters and engines; with --repair mend what can be."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import Any

from django.core.management.base import CommandParser

from container_manager import consistency, guarding
from container_manager.consistency import FINDING, Finding
from container_manager.engines import Engines
from container_manager.management import tables
from container_manager.management.base import JobCommand, failed, wrong_usage
from container_manager.management.selection import find_ids
from container_manager.models import ContainerJob, Installation
from container_manager.repair import Repair


class Command(JobCommand):
    help = (
        "Compare history, rows, attempts, logs and workers of all jobs with each other, with the "
        "counters, with the guard and with the engines that answer here. Prints what contradicts "
        "itself; exit code 1 if there is anything. Changes nothing, but with --repair or --recount."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("ids", nargs="*", metavar="ID", help="only these jobs")
        parser.add_argument("--json", action="store_true", help="one JSON document")
        parser.add_argument("--no-engines", action="store_true", help="ask the database alone")
        parser.add_argument(
            "--repair",
            action="store_true",
            help="first mend what needs no guess (guard, counters, what is left on engines, "
            "attempts that ended jobs hold), with a line for each; then compare again",
        )
        parser.add_argument(
            "--remove-unknown",
            action="store_true",
            help="with --repair: also end and remove what bears our label and belongs to no "
            "attempt of this database; not on a copy of a database, nor after a restore",
        )
        parser.add_argument(
            "--recount",
            action="store_true",
            help="begin the counters anew from the rows first; who writes a job waits meanwhile",
        )

    def handle(self, **options: Any) -> None:
        if options["remove_unknown"] and not options["repair"]:
            raise wrong_usage("--remove-unknown: only together with --repair")
        if options["recount"]:
            guarding.recount("default")
        self.ids = find_ids(options["ids"]) if options["ids"] else None
        self.looks_at_engines = not options["no_engines"]
        self.removes_unknown = options["remove_unknown"]
        self.engines = Engines()
        try:
            if self.looks_at_engines:
                self.engines.start()
            self._compare(options["repair"], options["json"])
        finally:
            self.engines.stop()

    def _compare(self, repair: bool, as_json: bool) -> None:
        jobs = len(self.ids) if self.ids is not None else ContainerJob.objects.count()
        repairs = self._repairs() if repair else ()
        show = self._show_json if as_json else self._show_lines
        levels = show(repairs, self._findings(), jobs)
        if levels[FINDING]:
            raise failed(f"{levels[FINDING]} finding{'' if levels[FINDING] == 1 else 's'}")
        if not as_json:
            self.say(f"All is well: {jobs} job{'' if jobs == 1 else 's'} compared.")

    def _findings(self) -> Iterator[Finding]:
        yield from consistency.findings(job_ids=self.ids)
        if self.looks_at_engines:
            instance = Installation.instance()
            yield from consistency.engine_findings(self.engines, instance, self.ids)

    def _repairs(self) -> Iterator[str]:
        repair = Repair(self.engines, Installation.instance(), unknown=self.removes_unknown)
        return repair.mend(self._findings())

    def _show_lines(
        self, repairs: Iterable[str], findings: Iterable[Finding], _jobs: int
    ) -> Counter[str]:
        for line in repairs:
            self.say(tables.visible(line))
        levels: Counter[str] = Counter()
        for finding in findings:
            levels[finding.level] += 1
            self.say(tables.visible(finding))
        return levels

    def _show_json(
        self, repairs: Iterable[str], findings: Iterable[Finding], jobs: int
    ) -> Counter[str]:
        levels: Counter[str] = Counter()

        def told() -> Iterator[dict[str, Any]]:
            for finding in findings:
                levels[finding.level] += 1
                yield asdict(finding)

        self.write(f'{{"jobs": {jobs}, "repairs": ')
        for piece in tables.array(repairs):
            self.write(piece)
        self.write(', "findings": ')
        for piece in tables.array(told()):
            self.write(piece)
        self.say("}")
        return levels
