"""The base of the commands that move many jobs: each gets its result, whatever comes of others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

from django.core.management.base import CommandParser
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from container_manager import bulk
from container_manager.bulk import Result, Verb
from container_manager.management import tables
from container_manager.management.base import JobCommand, actor, failed, nothing
from container_manager.management.selection import Selection, add_selection, select
from container_manager.models import ContainerJob
from container_manager.states import JobStatus

BAR_FROM = 200
"""On a terminal, so many jobs get a progress bar, and lines only for what went wrong."""


class Counts:
    """How many results of each kind went by."""

    def __init__(self) -> None:
        self.words: Counter[str] = Counter()
        self.bad = 0

    def of(self, results: Iterable[Result]) -> Iterator[Result]:
        for result in results:
            self.words[result.word] += 1
            self.bad += not result.good
            yield result

    def __str__(self) -> str:
        return ", ".join(f"{_jobs(n)} {word.replace('_', ' ')}" for word, n in self.words.items())


class VerbCommand(JobCommand):
    """One verb on a selection of jobs, in batches."""

    verb: ClassVar[Verb]
    meant: ClassVar[Collection[JobStatus]]
    """The states that are meant when neither ids nor --status say which jobs."""
    participle: ClassVar[str]

    def add_arguments(self, parser: CommandParser) -> None:
        self.add_selection(parser)
        parser.add_argument("--dry-run", action="store_true", help="only say what would be done")
        parser.add_argument("--json", action="store_true", help="one JSON document")

    def add_selection(self, parser: CommandParser) -> None:
        """The options that say which jobs."""
        add_selection(parser)

    def select(self, options: dict[str, Any]) -> Selection:
        """The jobs that the options name."""
        return select(options, default=self.meant)

    def act(self, jobs: list[ContainerJob]) -> Iterable[Result]:
        """Do it to these jobs, and say what came of each."""
        return bulk.act(self.verb, [job.pk for job in jobs], actor=actor())

    def handle(self, **options: Any) -> None:
        selection = self.select(options)
        total = selection.count()
        act = self.rehearse if options["dry_run"] else self.act
        counts = Counts()
        results = counts.of(self._results(selection, act, total))
        if options["json"]:
            self._show_json(results, counts)
        else:
            self._show_lines(results, counts, brief=total >= BAR_FROM and self.out.isatty())
        if not counts.words:
            raise nothing("no job matches")
        if counts.bad:
            raise failed(
                f"{counts.bad} of {_jobs(counts.words.total())} could not be {self.participle}"
            )

    def rehearse(self, jobs: list[ContainerJob]) -> Iterable[Result]:
        """What would be done, without doing it."""
        for job in jobs:
            would = "would be refused" if job.is_terminal else f"would be {self.participle}"
            yield Result(job.pk, "dry_run", f"is {job.status}, {would}")

    def _results(
        self,
        selection: Selection,
        act: Callable[[list[ContainerJob]], Iterable[Result]],
        total: int,
    ) -> Iterator[Result]:
        with self.progress(total) as advance:
            for batch in selection.batches():
                yield from act(batch)
                advance(len(batch))

    def _show_lines(self, results: Iterable[Result], counts: Counts, *, brief: bool) -> None:
        for result in results:
            if not (brief and result.good):
                self.say(line(result))
        if brief:
            self.say(str(counts))

    def _show_json(self, results: Iterable[Result], counts: Counts) -> None:
        self.write('{"results": ')
        for piece in tables.array(result.as_json() for result in results):
            self.write(piece)
        self.say(f', "counts": {tables.dumps(counts.words)}}}')

    @contextmanager
    def progress(self, total: int) -> Iterator[Callable[[int], None]]:
        """A bar on stderr while it is a terminal and there is much to do."""
        console = tables.console(getattr(self.stderr, "_out", self.stderr))
        columns = (TextColumn(self.name), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        shown = console.is_terminal and total >= BAR_FROM
        with Progress(*columns, console=console, transient=True, disable=not shown) as bar:
            task = bar.add_task("", total=total)
            yield lambda done: bar.advance(task, done)


def line(result: Result) -> str:
    """What came of one job, for people."""
    detail = f" ({tables.visible(result.detail)})" if result.detail else ""
    return f"{result.job_id}: {result.word.replace('_', ' ')}{detail}"


def _jobs(count: int) -> str:
    return f"{count} job{'' if count == 1 else 's'}"
