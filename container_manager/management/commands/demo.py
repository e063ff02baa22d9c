"""Run a batch of real jobs and a small DAG, and show how each ends."""

from __future__ import annotations

import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn
from uuid import UUID

from django.core.management.base import CommandParser
from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from container_manager import consistency, ids, lifecycle
from container_manager.management import tables
from container_manager.management.base import JobCommand, failed
from container_manager.management.children import Child
from container_manager.management.demo_pipeline import NAME, Pipeline
from container_manager.management.demonstration import QUEUE, SCENES, Place, Scene, find_place
from container_manager.models import (
    ContainerJob,
    DagRun,
    JobAttempt,
    StateHistory,
    TaskInstance,
    acting_as,
)
from container_manager.states import SETTLED, JobStatus, Phase, StopKind

LOOK_SECONDS = 0.15
SHOWN_SECONDS = 0.8
"""So long a job is seen running before it is stopped."""

TOLD = [model.entity_type for model in (ContainerJob, DagRun, TaskInstance)]

CLEARING_SECONDS = 5.0
"""So long what was killed may take to be gone before its worker is stopped."""

WORKER_SETTINGS = {
    "CONTAINER_MANAGER_SQLITE_POLL_SECONDS": "0.1",
    "CONTAINER_MANAGER_REQUEST_POLL_SECONDS": "0.2",
    "CONTAINER_MANAGER_LOG_FLUSH_SECONDS": "0.2",
    "CONTAINER_MANAGER_UPKEEP_SECONDS": "0.2",
}


class Command(JobCommand):
    help = (
        "Run a batch of real jobs with a worker of its own: success, failure, a retry that helps, "
        "kill, cancel, timeout, and a small DAG beside them. Shows them live; exit code 0 if "
        "everything ended as it should."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--seconds", type=float, default=80.0, metavar="N", help="give up after so long (80)"
        )

    def handle(self, **options: Any) -> None:
        place = find_place()
        if place is None:
            raise failed(
                "no Docker engine with a small image such as busybox answers, and local processes"
                " are off; CONTAINER_MANAGER_PROCESS_EXECUTOR=on switches them on"
            )
        self.say(f"Running {len(SCENES)} jobs, and a DAG of four tasks,")
        self.say(f"{place.sentence}.")
        self._flush()
        began = time.monotonic()
        show = Show(place)
        with _terminated_like_interrupted(), tempfile.TemporaryFile() as log:
            worker = Child(*_worker(place), environment=WORKER_SETTINGS, output=log)
            try:
                self._watch(show, worker, began + options["seconds"], options["no_color"])
            finally:
                show.clear_the_stage(worker)
            self._conclude(show, time.monotonic() - began, _last_line(log))

    def _watch(self, show: Show, worker: Child, ends_at: float, no_color: bool) -> None:
        shown = self._live if self.out.isatty() else self._plain
        with shown(show, no_color) as refresh:
            while time.monotonic() < ends_at:
                show.go_on()
                refresh()
                if show.is_over or worker.code is not None:
                    break
                time.sleep(LOOK_SECONDS)

    @contextmanager
    def _live(self, show: Show, no_color: bool) -> Iterator[Any]:
        console = tables.console(self.out, no_color=no_color)
        with Live(console=console, auto_refresh=False) as live:
            yield lambda: live.update(show.tables(), refresh=True)

    @contextmanager
    def _plain(self, show: Show, no_color: bool) -> Iterator[Any]:
        def refresh() -> None:
            for line in show.new_moves():
                self.say(line)
            self._flush()

        yield refresh
        console = tables.console(self.out, no_color=no_color)
        console.width = 80
        console.print(show.tables())

    def _conclude(self, show: Show, seconds: float, worker_says: str) -> None:
        wrong = show.wrong()
        contradictions = list(consistency.findings(job_ids=show.job_ids))
        for finding in contradictions:
            self.say(tables.visible(finding))
        if not contradictions:
            self.say("History, rows, attempts and output of all of them agree.")
        if wrong or contradictions:
            names = ", ".join(wrong) or "none"
            hint = f"; its worker said last: {worker_says}" if worker_says else ""
            raise failed(f"not as they should be: {names}{hint}")
        self.say(f"All {len(SCENES)} jobs and the DAG ended as they should, in {seconds:.0f} s.")
        self.say(f"Look closer: manage.py list_jobs --queue {QUEUE}; manage.py job_logs ID;")
        self.say(f"manage.py list_runs {NAME}; manage.py list_tasks ID")


class Show:
    """All that is played: the jobs, and the run of the DAG."""

    def __init__(self, place: Place) -> None:
        label = ids.uuid7().hex[-8:]
        with acting_as("demo"):
            self._cast = Cast({_job(scene, place, label): scene for scene in SCENES})
            self._pipeline = Pipeline(place, label)
        self._jobs = self._cast.look()
        self._told: dict[UUID, int] = {}

    def go_on(self) -> None:
        """Look where everything stands, and do what is due."""
        self._jobs = self._cast.look()
        self._cast.direct(self._jobs)
        self._pipeline.advance()

    @property
    def is_over(self) -> bool:
        return self._pipeline.is_over and all(job.is_settled for job in self._jobs)

    @property
    def job_ids(self) -> list[UUID]:
        return [*self._cast.scenes, *self._pipeline.job_ids]

    def wrong(self) -> list[str]:
        """The names of what did not end as it should."""
        return [*self._cast.wrong(self._jobs), *self._pipeline.wrong()]

    def tables(self) -> Group:
        return Group(self._cast.table(self._jobs), Text(""), self._pipeline.table())

    def new_moves(self) -> Iterator[str]:
        """A line for each move that was not told yet."""
        names = {**self._cast.names, **self._pipeline.names}
        rows = StateHistory.objects.filter(entity_type__in=TOLD, entity_id__in=names)
        for row in rows.order_by("changed_at", "version"):
            if row.version > self._told.get(row.entity_id, 0):
                self._told[row.entity_id] = row.version
                reason = f" ({row.reason})" if row.reason else ""
                move = f"{row.old_state} -> {row.new_state}" if row.old_state else row.new_state
                yield f"{names[row.entity_id]}: {move}{reason}"

    def clear_the_stage(self, worker: Child) -> None:
        """Nothing of ours runs when the demo is over, however it came to its end."""
        ends_at = time.monotonic() + CLEARING_SECONDS
        if not self.is_over:
            self._pipeline.cancel()
            lifecycle.stop(self._unsettled(), StopKind.KILL, actor="demo")
        while not self.is_over and worker.code is None and time.monotonic() < ends_at:
            time.sleep(LOOK_SECONDS)
            self._jobs = self._cast.look()
            self._pipeline.advance()
        worker.stop()
        self._pipeline.advance()

    def _unsettled(self) -> list[UUID]:
        jobs = ContainerJob.objects.filter(pk__in=self.job_ids).exclude(status__in=SETTLED)
        return list(jobs.values_list("pk", flat=True))


class Cast:
    """The jobs of this run, each with its scene."""

    def __init__(self, scenes: dict[UUID, Scene]) -> None:
        self.scenes = scenes
        self._stopped: set[UUID] = set()

    def look(self) -> list[ContainerJob]:
        """The jobs as they stand now, in the order of the scenes."""
        found = ContainerJob.objects.in_bulk(list(self.scenes))
        return [found[pk] for pk in self.scenes if pk in found]

    def direct(self, jobs: list[ContainerJob]) -> None:
        """Stop those that are to be stopped, once they were seen where they should be."""
        for job in jobs:
            scene = self.scenes[job.pk]
            if scene.stop and job.pk not in self._stopped and _was_seen(job, scene):
                lifecycle.stop([job.pk], scene.stop, actor="demo")
                self._stopped.add(job.pk)

    @property
    def names(self) -> dict[UUID, str]:
        return {pk: scene.name for pk, scene in self.scenes.items()}

    def wrong(self, jobs: list[ContainerJob]) -> list[str]:
        """The names of those that did not end as they should."""
        return [job.name for job in jobs if not self.scenes[job.pk].went_well(job)]

    def table(self, jobs: list[ContainerJob]) -> Table:
        """Where they stand, and whether that is where they should be."""
        made = tables.table("JOB", "STATUS", "STARTS", "TOOK", "RESULT", "LAST LINE", "")
        for job in jobs:
            made.add_row(
                job.name,
                tables.status_text(job.status),
                str(job.attempt),
                tables.span(job.duration),
                tables.result(job),
                tables.visible(job.output.rstrip().rpartition("\n")[2]),
                _mark(job, self.scenes[job.pk]),
            )
        return made


def _job(scene: Scene, place: Place, label: str) -> UUID:
    job = lifecycle.submit(queue_now=True, **scene.wanted(place, label))
    pk: UUID = job.pk
    return pk


def _worker(place: Place) -> tuple[str, ...]:
    of_place = ("--executor", place.executor, "--concurrency", "4")
    return ("run_worker", "--queues", QUEUE, "--name", "demo", *of_place)


def _was_seen(job: ContainerJob, scene: Scene) -> bool:
    if job.status != JobStatus.RUNNING or scene.stop_in != JobStatus.RUNNING:
        return bool(job.status == scene.stop_in)
    started = JobAttempt.objects.filter(job=job, phase=Phase.STARTED).exists()
    return started and job.duration is not None and job.duration.total_seconds() > SHOWN_SECONDS


def _mark(job: ContainerJob, scene: Scene) -> Text:
    if not job.is_settled:
        return Text("")
    good = scene.went_well(job)
    return Text("as it should" if good else "WRONG", style="green" if good else "bold red")


def _last_line(log: Any) -> str:
    log.seek(0)
    lines = log.read().decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else ""


@contextmanager
def _terminated_like_interrupted() -> Iterator[None]:
    def interrupt(_number: int, _frame: object) -> NoReturn:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
