"""The base of the commands that move many jobs: each gets its result, whatever comes of others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar
from uuid import UUID

from django.core.management.base import CommandParser
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from container_manager.exceptions import MoveRefused
from container_manager.lifecycle import Stopped
from container_manager.management import tables
from container_manager.management.base import JobCommand, failed, nothing
from container_manager.management.selection import Selection, add_selection, select
from container_manager.models import ContainerJob
from container_manager.states import JobStatus

BAR_FROM = 200
"""On a terminal, so many jobs get a progress bar, and lines only for what went wrong."""


@dataclass(frozen=True)
class Result:
    """What came of one verb on one job."""

    job_id: UUID
    word: str
    """What `lifecycle.Stopped` says, or `dry_run`."""
    detail: str = ""
    good: bool = True

    def __str__(self) -> str:
        word = self.word.replace("_", " ")
        return f"{self.job_id}: {word}" + (
            f" ({tables.visible(self.detail)})" if self.detail else ""
        )

    def as_json(self) -> dict[str, str]:
        return {"id": str(self.job_id), "result": str(self.word), "detail": self.detail}


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
        raise NotImplementedError

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
                self.say(str(result))
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


def one_by_one(
    jobs: list[ContainerJob], verb: Callable[[list[UUID]], int], done: str
) -> Iterator[Result]:
    """An all-or-nothing verb on many jobs: at once, and where it refuses, on each alone."""
    try:
        count = verb([job.pk for job in jobs])
    except MoveRefused as refused:
        if len(jobs) == 1:
            yield Result(jobs[0].pk, Stopped.REFUSED, str(refused), good=False)
            return
    else:
        if count == len(jobs):
            yield from (Result(job.pk, Stopped.DONE, done) for job in jobs)
            return
        if len(jobs) == 1:
            yield Result(jobs[0].pk, Stopped.UNKNOWN, "it was deleted", good=False)
            return
    for job in jobs:
        yield from one_by_one([job], verb, done)


def _jobs(count: int) -> str:
    return f"{count} job{'' if count == 1 else 's'}"
