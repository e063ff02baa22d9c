"""One simulated world from its first worker to the verdict: `Simulation(seed, template).run()`."""

from __future__ import annotations

import hashlib
import os
import random
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from django.conf import settings as django_settings
from django.db import OperationalError

from container_manager import conf, consistency, faults, ids, lifecycle, retries
from container_manager.exceptions import MoveRefused
from container_manager.lifecycle import Stopped
from container_manager.models import ContainerJob, JobAttempt, JobLog, Worker
from container_manager.states import StopKind
from container_manager.worker import loop
from container_manager.worker.loop import WorkerLoop
from tests.simulation.database import Database
from tests.simulation.engine import Container, SimulatedExecutor, World
from tests.simulation.scheduler import Dead, Process, Scheduler, patched

LEASE = 9.0
JOBS = 6
WORKERS = 3
STEPS = 1500
"""Steps in which faults happen; then everything heals and goes on to its end."""
MOST_STEPS = 12_000
SETTINGS = {
    "EXECUTORS": {"simulated": {"class": "tests.simulation.engine.SimulatedExecutor"}},
    "INSTANCE_ID": "simulated",
    "LEASE_SECONDS": LEASE,
    "LOG_FLUSH_SECONDS": 2.0,
    "POLL_SECONDS": 2.0,
    "REQUEST_POLL_SECONDS": 2.0,
    "SQLITE_POLL_SECONDS": 2.0,
    "UPKEEP_SECONDS": 5.0,
    "MAX_INFRA_RETRIES": 3,
}


@dataclass
class Verdict:
    """What a run came to."""

    seed: int
    wrongs: list[str]
    trace: str
    steps: int
    seconds: float
    faults: list[str]
    statuses: dict[str, int]
    story: list[str] = field(repr=False, default_factory=list)


@dataclass
class Asked:
    """A stop that was accepted, and when."""

    kind: StopKind
    attempt: int
    at: float


class Simulation:
    """Everything is chosen by the seed; nothing depends on the machine or on the time of day."""

    def __init__(self, seed: int, template: sqlite3.Connection, steps: int = STEPS) -> None:
        self.seed, self.steps = seed, steps
        self.scheduler = Scheduler(seed)
        self.chance = random.Random(f"faults {seed}")
        self.database = Database(self.scheduler, template)
        self.world = World(self.scheduler)
        self.workers: list[Process] = []
        self.people = Process("people")
        self.faults: list[str] = []
        self.asked: dict[UUID, Asked] = {}
        self.retried: dict[UUID, int] = {}
        self.healed = False
        self._number = 0

    def run(self) -> Verdict:
        with self._in_place():
            for _ in range(WORKERS):
                self._start_worker()
            self.scheduler.start(self.people, "people", self._be_people)
            self.scheduler.on_step = self._before_step
            self.world.on_late, self.world.loses = self._late, 0.1
            self.scheduler.run(lambda: self.scheduler.steps >= self.steps, self.steps)
            self._heal()
            wrongs = self._live_on()
            wrongs += self.world.wrongs + self._judge()
            statuses: dict[str, int] = {}
            for status in ContainerJob.objects.values_list("status", flat=True):
                statuses[status] = statuses.get(status, 0) + 1
            for process in [*self.workers, self.people, self.world.daemon]:
                self.scheduler.kill(process)
        story = self.scheduler.trace
        return Verdict(
            seed=self.seed,
            wrongs=wrongs,
            trace=hashlib.sha256("\n".join(story).encode()).hexdigest(),
            steps=self.scheduler.steps,
            seconds=self.scheduler.now,
            faults=self.faults,
            statuses=statuses,
            story=story,
        )

    @contextmanager
    def _in_place(self) -> Iterator[None]:
        bytes_ = random.Random(f"ids {self.seed}")
        real_os, given = ids.os, getattr(django_settings, "CONTAINER_MANAGER", {})
        ids.os = _Os(bytes_)  # type: ignore[assignment]
        ids._last = 0
        SimulatedExecutor.world = self.world
        django_settings.CONTAINER_MANAGER = SETTINGS
        conf.settings.reload()
        faults.on_reach = self._reached
        longest, loop.LONGEST_TICK = loop.LONGEST_TICK, 2.0
        chances, lifecycle._chances = lifecycle._chances, retries.Chances(0.0)
        compare, WorkerLoop._compare_schema = WorkerLoop._compare_schema, _there_is_one_schema
        try:
            with self.database.in_use(), patched(self.scheduler):
                yield
        finally:
            faults.on_reach = None
            loop.LONGEST_TICK, WorkerLoop._compare_schema = longest, compare
            ids.os, lifecycle._chances = real_os, chances
            django_settings.CONTAINER_MANAGER = given
            conf.settings.reload()

    # Workers

    def _start_worker(self) -> None:
        self._number += 1
        name = f"w{self._number}"
        process = Process(name)
        self.workers.append(process)
        self.scheduler.start(process, "main", lambda: self._work(name))

    def _work(self, name: str) -> None:
        while True:
            try:
                WorkerLoop(name=name, concurrency=4).run()
            except OperationalError:  # it could not even begin: whoever started it does it again
                self.scheduler.wait(seconds=1.0)
            else:
                return

    def _reached(self, point: str) -> None:
        current = self.scheduler.current
        if current is None:
            return
        if current.process is not self.people and self._happens(1 / 150):
            self._die(f"at {point}")
        if not self.database.wrapper.in_atomic_block:
            self.scheduler.wait()

    def _late(self) -> None:
        """The worst moment to end: what was asked of the engine is still on its way."""
        if self._happens(1 / 3):
            self._die("with a request under way")

    def _die(self, when: str) -> None:
        current = self.scheduler.current
        assert current is not None
        self._note(f"{current.process.name} dies {when}")
        current.process.alive = False
        raise Dead

    # People

    def _be_people(self) -> None:
        wait, chance = self.scheduler.wait, self.chance
        jobs: list[UUID] = []
        for _ in range(JOBS):
            wait(seconds=chance.uniform(0, 5))
            job = self._insist(self._submit)
            jobs.append(job.pk)
        for _ in range(2 * JOBS):
            wait(seconds=chance.uniform(0, 15))
            job_id, what = chance.choice(jobs), chance.random()
            if what < 0.6:
                kind = StopKind.KILL if what < 0.4 else StopKind.CANCEL
                self._stop(job_id, kind)
            else:
                self._retry(job_id)

    def _insist(self, act: Callable[[], Any]) -> Any:
        while True:
            try:
                return act()
            except OperationalError:
                self.scheduler.wait(seconds=1.0)

    def _submit(self) -> ContainerJob:
        return lifecycle.submit(
            queue_now=True,
            image="busybox",
            command=["x"],
            max_retries=self.chance.choice([0, 1, 2]),
            timeout_seconds=self.chance.choice([None, None, 8]),
            stop_grace_seconds=self.chance.choice([0, 2]),
            retry_policy={"base_seconds": self.chance.choice([0, 3]), "jitter": 0.5},
        )

    def _stop(self, job_id: UUID, kind: StopKind) -> None:
        came = self._insist(lambda: lifecycle.stop([job_id], kind))[job_id]
        self.scheduler.trace.append(f"{kind} {job_id}: {came}")
        if came in (Stopped.DONE, Stopped.REQUESTED):
            attempt = ContainerJob.objects.get(pk=job_id).attempt
            self.asked[job_id] = Asked(kind, attempt, self.scheduler.now)

    def _retry(self, job_id: UUID) -> None:
        try:
            self._insist(lambda: lifecycle.retry([job_id]))
        except MoveRefused:
            return
        self.asked.pop(job_id, None)
        self.retried[job_id] = self.retried.get(job_id, 0) + 1
        self.scheduler.trace.append(f"retry {job_id}")

    # Faults

    def _happens(self, share: float) -> bool:
        return not self.healed and self.chance.random() < share

    def _note(self, fault: str) -> None:
        self.faults.append(f"{self.scheduler.now:.1f}: {fault}")
        self.scheduler.trace.append(fault)

    def _before_step(self) -> None:
        self._bury_the_dead()
        if self._happens(1 / 60):
            self.chance.choice(self._all_faults())()
        self.database.show()

    def _all_faults(self) -> list[Callable[[], None]]:
        of_engine = [self._engine_away, self._trouble]
        return [self._kill, self._pause, *of_engine, self._database, self._wall]

    def _bury_the_dead(self) -> None:
        for process in self.workers:
            if not process.alive or not any(not task.done for task in process.tasks):
                self.scheduler.kill(process)
                self.workers.remove(process)
                self._start_worker()
                return

    def _kill(self) -> None:
        process = self.chance.choice(self.workers)
        self._note(f"{process.name} is killed")
        self.scheduler.kill(process)

    def _pause(self) -> None:
        process = self.chance.choice(self.workers)
        process.paused_until = self.scheduler.now + self.chance.uniform(0.5, 4 * LEASE)
        self._note(f"{process.name} stands still until {process.paused_until:.1f}")

    def _engine_away(self) -> None:
        self.world.away_until = self.scheduler.now + self.chance.uniform(0.5, 30)
        self._note(f"the engine is away until {self.world.away_until:.1f}")

    def _trouble(self) -> None:
        self.world.loses = self.chance.choice([0.1, 0.3, 0.6])
        self._note(f"the engine loses {self.world.loses}")

    def _database(self) -> None:
        if self.chance.random() < 0.5:
            self.database.refuse_next = True
            self._note("the database refuses the next transaction")
        else:
            self.database.forget_next = True
            self._note("the database does not answer the next COMMIT")

    def _wall(self) -> None:
        self.database.wall_ahead += self.chance.choice([10.0, 3600.0])
        self._note("the wall clock jumps ahead")

    def _heal(self) -> None:
        self.healed = True
        self.world.away_until = 0.0
        self.world.loses = 0.0
        self.database.refuse_next = self.database.forget_next = False
        for process in self.workers:
            process.paused_until = 0.0

    # The end

    def _live_on(self) -> list[str]:
        """Until all is settled and removed; bars stay for an hour, which is over soon."""
        if not self.scheduler.run(self._is_settled, MOST_STEPS):
            jobs = ContainerJob.objects.exclude(status__in=("completed", "cancelled", "killed"))
            return [f"not settled: {job.pk} is {job.status}" for job in jobs]
        for _ in range(3):
            if self._leftovers():
                self.scheduler.now += 3700.0
                self.scheduler.run(lambda: not self._leftovers(), 2_000)
        self.scheduler.run(self._dead_are_forgotten, 2_000)
        return [f"left behind: {name}" for name in self._leftovers()]

    def _dead_are_forgotten(self) -> bool:
        """A lease after the last death that somebody could watch, and not sooner."""
        return Worker.objects.count() <= len(self.workers)

    def _is_settled(self) -> bool:
        if self.scheduler.steps % 50 or any(not task.done for task in self.people.tasks):
            return False
        return not ContainerJob.objects.exclude(
            status__in=("completed", "failed", "cancelled", "killed")
        ).exists()

    def _leftovers(self) -> list[str]:
        unswept = JobAttempt.objects.filter(cleaned_up=False)
        return [*self.world.containers, *(f"{each.name} in the records" for each in unswept)]

    # The oracle

    def _judge(self) -> list[str]:
        found = consistency.findings()
        wrongs = [str(each) for each in found if each.level == consistency.FINDING]
        ran = {container.name: container for container in self.world.ever_started}
        for attempt in JobAttempt.objects.select_related("job").order_by("job", "attempt"):
            wrongs += _told_truly(attempt, ran.get(attempt.name))
        for job in ContainerJob.objects.order_by("pk"):
            wrongs += self._honoured(job)
        if not self._dead_are_forgotten():
            wrongs.append("dead workers keep their rows")
        return wrongs

    def _honoured(self, job: ContainerJob) -> list[str]:
        asked = self.asked.get(job.pk)
        if asked is None or job.status in ("killed", "cancelled"):
            return []
        latest = JobAttempt.objects.filter(job=job).order_by("attempt").last()
        if latest is not None and latest.attempt > asked.attempt:
            return [f"{job.pk}: started again after it was asked to stop"]
        if latest is not None and latest.reason in ("worker_lost", "worker_stopped"):
            return [f"{job.pk}: asked to {asked.kind}, told as {job.status} {latest.reason}"]
        return []


def _told_truly(attempt: JobAttempt, ran: Container | None) -> list[str]:
    """What the records say of an attempt against what happened on the engine."""
    name = attempt.name
    if ran is None:
        if attempt.exit_code is not None:
            return [f"{name}: has exit code {attempt.exit_code} and never ran"]
        return []
    wrongs = []
    if ran.ended is None:
        wrongs.append(f"{name}: still runs")
    if attempt.exit_code != ran.exit_code:
        wrongs.append(f"{name}: ended with {ran.exit_code}, told as {attempt.exit_code}")
    stored = JobLog.objects.content(attempt.job_id, "stdout", attempt.attempt)
    emitted = ran.printed(ran.ended or 0.0)
    if stored != emitted:
        wrongs.append(f"{name}: printed {len(emitted)} bytes, {len(stored)} are stored")
    if attempt.reason == "timeout" and ran.ended is not None and ran.started is not None:
        ran_for, allowed = ran.ended - ran.started, attempt.job.timeout_seconds or 0
        if ran_for < allowed - 0.001:
            wrongs.append(f"{name}: told as timed out after {ran_for:.2f} s of {allowed} s")
    return wrongs


def _there_is_one_schema(_: WorkerLoop) -> None:
    """Nobody migrates here, and finding that out costs more than all the rest."""


class _Os:
    def __init__(self, chance: random.Random) -> None:
        self._chance = chance

    def urandom(self, size: int) -> bytes:
        return self._chance.randbytes(size)

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)
