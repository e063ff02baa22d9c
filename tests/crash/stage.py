"""One case on the stage: submit, crash, let a healthy worker mend it, judge."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

from django.conf import settings as django_settings
from django.db import connections

from container_manager import conf, crashes, faults, lifecycle
from container_manager.management.processes import stop_on_signals
from container_manager.models import ContainerJob, JobAttempt, Worker
from container_manager.states import Phase
from container_manager.worker import loop as worker_loop
from container_manager.worker.reaper import Reaper
from tests.crash import evidence, oracle
from tests.crash.forks import Child
from tests.crash.ground import Ground
from tests.crash.lives import LIVES
from tests.crash.points import COUNTED, SUBMITTING, Case
from tests.support import docker_engine
from tests.support.workers import SETTLED, Workers, wait_until

PATIENCE = 90.0
LONGEST_PAUSE = 6.0
"""A worker that stands still inside a transaction keeps the others waiting: nobody takes over."""

QUICK = {
    "LEASE_SECONDS": 2.0,
    "REQUEST_POLL_SECONDS": 0.1,
    "LOG_FLUSH_SECONDS": 0.1,
    "POLL_SECONDS": 0.1,
    "SQLITE_POLL_SECONDS": 0.1,
    "UPKEEP_SECONDS": 0.2,
}


@dataclass
class Result:
    """What became of one case."""

    case: Case
    violations: list[str] = field(default_factory=list)
    reached: bool = True
    """Did each of its moments come? A counted one may lie beyond the end of this life."""
    counts: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self)))

    @classmethod
    def read(cls, path: Path) -> Result:
        told = json.loads(path.read_text())
        case = {**told["case"], "crashes": tuple(told["case"]["crashes"])}
        return cls(**{**told, "case": Case(**case)})


class Stage:
    """The processes of one case, and all that they leave on disk and on the engine."""

    def __init__(self, case: Case, ground: Ground, directory: Path) -> None:
        self.case = case
        self.life = LIVES[case.life]
        self.ground = ground
        self.directory = directory
        self.marks = directory / "marks"
        self.marks.mkdir()
        (self.marks / "starts").touch()
        self.installation = Workers(directory)
        self.workers: list[Child] = []
        self.asked = False
        self.reached = True

    def play(self) -> Result:
        began = time.monotonic()
        self._configure()
        result = Result(self.case)
        try:
            with self.ground.fresh_database(f"case_{os.getpid()}"):
                try:
                    self._happen()
                    result.violations = self._judge()
                finally:
                    self._clear()
        except AssertionError as error:
            result.violations = [f"did not come to its end: {error}"]
        result.reached = self.reached
        result.counts = self._counts()
        result.seconds = time.monotonic() - began
        return result

    def _configure(self) -> None:
        if self.case.executor == "docker":
            self.installation.use_docker()
        django_settings.CONTAINER_MANAGER = {
            **QUICK,
            "INSTANCE_ID": self.installation.instance,
            "EXECUTORS": {
                self.case.executor: self.installation.executors[self.case.executor],
            },
            "PROCESS_EXECUTOR": True,
        }
        conf.settings.reload()
        # What is looked at a minute later is looked at soon, and a barred name not for an hour.
        Reaper.AFTER = timedelta(seconds=1)
        Reaper.BARRED_FOR = timedelta(seconds=0.5)
        Reaper.EVERY_SECONDS = 0.3

    def _happen(self) -> None:
        self._submit()
        for number, moment in enumerate(self.case.crashes):
            crashing = self._start(f"w{number + 1}", moment, until_idle=number == 0)
            self._until_struck(crashing)
            self._note_whether_reached(crashing, moment)
        self._start("last")
        self._end_pauses()
        wait_until(self._is_over, "the end of everything", PATIENCE)
        last_one = Worker.objects.filter(name="last")  # before it has begun, SIGTERM just ends it
        wait_until(last_one.exists, "the last worker's beginning", PATIENCE)
        for worker in self.workers:
            worker.send(signal.SIGTERM)
        for worker in self.workers:
            worker.ended(PATIENCE)
        if (code := self.workers[-1].code) != 0:
            raise AssertionError(f"the last worker ended with {code}")

    # The submitter

    def _submit(self) -> None:
        """A submitter that heard no answer looks for its job, and submits it if it is not there."""
        if self.case.submitter:
            submitter = self._fork(lambda: self._submit_once(self.case.submitter), "submitter")
            self.reached &= submitter.ended(PATIENCE) == -signal.SIGKILL
            there = ContainerJob.objects.exists()
            assert there == (self.case.submitter != SUBMITTING[0]), "only S1 leaves nothing"
        if not ContainerJob.objects.exists():
            self._submit_once()

    def _submit_once(self, moment: str = "") -> None:
        if moment:
            crashes.arm(moment)
        fields = self.life.fields(self.case.executor, str(self.marks))
        if self.case.life == "pulled":
            fields["image"] = self._image
        lifecycle.submit(**fields, queue_now=True)

    @property
    def _image(self) -> str:
        return f"{self.ground.registry}/sweep:case{os.getpid()}"

    # Workers

    def _start(self, name: str, moment: str = "", *, until_idle: bool = False) -> Child:
        counts = self.directory / "counts" if until_idle else None
        worker = self._fork(lambda: _work(self.case.executor, name, moment, counts), name)
        self.workers.append(worker)
        return worker

    def _fork(self, act: Any, name: str) -> Child:
        connections.close_all()
        return Child(act, self.directory / f"{name}.log")

    def _until_struck(self, worker: Child) -> None:
        def struck() -> bool:
            if self.life.stop and not self.asked and _runs():
                self._ask()
            return worker.has_ended or worker.stopped

        wait_until(struck, f"the crash at {self.case.point}", PATIENCE)
        if self.life.stop and not self.asked:
            self._ask()

    def _ask(self) -> None:
        assert self.life.stop is not None
        lifecycle.stop([ContainerJob.objects.get().pk], self.life.stop)
        self.asked = True

    def _note_whether_reached(self, worker: Child, moment: str) -> None:
        if worker.has_ended:
            self.reached &= worker.code == (1 if moment == "U3" else -signal.SIGKILL)

    def _end_pauses(self) -> None:
        paused = [worker for worker in self.workers if worker.stopped]
        if not paused:
            return
        ends_at = time.monotonic() + LONGEST_PAUSE
        wait_until(lambda: _is_taken_over() or time.monotonic() > ends_at, "somebody to take over")
        for worker in paused:
            worker.send(signal.SIGCONT)

    def _is_over(self) -> bool:
        job = ContainerJob.objects.get()
        return (
            job.status in SETTLED
            and not job.attempts.filter(cleaned_up=False).exists()
            and not self.installation.left_behind()
        )

    # The end

    def _judge(self) -> list[str]:
        found = oracle.violations(self.life, self._evidence(), len(self.workers) - 1)
        left = self.installation.left_behind()
        missed = [] if self.reached or self._may_be_missed else ["never came to its point"]
        return [*missed, *found, *(f"{name} was left behind" for name in left)]

    @property
    def _may_be_missed(self) -> bool:
        what = self.case.crashes[0].partition(":")[0] if self.case.crashes else ""
        return what in ("", *COUNTED)

    def _evidence(self) -> evidence.Evidence:
        if self.case.executor == "process":
            return evidence.of_processes(self.marks)
        events, instance = self.ground.events, self.installation.instance
        wait_until(lambda: evidence.is_all_destroyed(events, instance), "the engine's events")
        return evidence.of_containers(events, instance)

    def _counts(self) -> dict[str, int]:
        path = self.directory / "counts"
        return json.loads(path.read_text()) if path.exists() else {}

    def _clear(self) -> None:
        for worker in self.workers:
            worker.end()
        self.installation.clean_up()
        if self.case.life == "pulled":
            with docker_engine.engine() as http:
                http.call("DELETE", f"/images/{self._image}")
        connections.close_all()


def _runs() -> bool:
    return JobAttempt.objects.filter(phase=Phase.STARTED).exists()


def _is_taken_over() -> bool:
    """Somebody else has adopted it, or has begun or ended an attempt of its own."""
    return (
        JobAttempt.objects.filter(lease_epoch__gt=1).exists()
        or JobAttempt.objects.filter(worker_name="last").exists()
        or ContainerJob.objects.filter(status__in=SETTLED).exists()
    )


def _work(executor: str, name: str, moment: str, counts: Path | None) -> int:
    """The life of one worker: what the command does. `counts`: until idle, and then write them."""
    armed = crashes.arm(moment)
    if moment in ("U3", "U4"):
        _only_while_a_job_runs(armed)
    worker = worker_loop.WorkerLoop(
        concurrency=2, executors=[executor], name=name, until_idle=counts is not None
    )
    stop_on_signals(worker.drain)
    code = worker.run()
    if counts is not None:
        counts.write_text(json.dumps(armed.counts))
    return code


def _only_while_a_job_runs(armed: crashes.Crashes) -> None:
    """These two are reached again and again; they say most when something is at stake."""
    runs, came = threading.Event(), threading.Event()

    def reach(point: str) -> None:
        if point == "R5":
            runs.set()
            came.wait(LONGEST_PAUSE)  # else a short job might be over before
        elif runs.is_set():
            came.set()
            armed.come_to(point)

    faults.on_reach = reach
