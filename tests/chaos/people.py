"""Those who submit jobs, and those who want them stopped: patient while the database is away."""

from __future__ import annotations

import random
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TypeVar
from uuid import UUID

from django.db import InterfaceError, OperationalError, connection

from container_manager import lifecycle
from container_manager.executors.base import EngineUnavailable
from container_manager.lifecycle import Stopped
from container_manager.models import ContainerJob
from container_manager.states import SETTLED, JobStatus
from tests.chaos.jobs import Plan

T = TypeVar("T")

AWAY = (OperationalError, InterfaceError, EngineUnavailable)


def patiently(call: Callable[[], T], patience: float = 60.0) -> T:
    """Again while the database, or the engine, is away, though not for ever."""
    ends_at = time.monotonic() + patience
    while True:
        try:
            return call()
        except AWAY:
            connection.close()
            if time.monotonic() > ends_at:
                raise
            time.sleep(0.1)


class Person(threading.Thread, ABC):
    """Does its work on a thread; what went wrong there is raised where it is waited for."""

    def __init__(self) -> None:
        super().__init__(name=type(self).__name__, daemon=True)
        self.error: BaseException | None = None

    @abstractmethod
    def work(self) -> None:
        """All of it; the thread ends with it."""

    def run(self) -> None:
        try:
            self.work()
        except BaseException as error:  # noqa: BLE001
            self.error = error
        finally:
            connection.close()

    def wait(self) -> None:
        self.join()
        if self.error:
            raise self.error


class Submitter(Person):
    """Submits the jobs, alone or several at once; `jobs` are those that were acknowledged."""

    MOST_AT_ONCE = 25

    def __init__(
        self,
        chance: random.Random,
        plans: Sequence[Plan],
        notes: Path,
        *,
        notes_of_containers: bool,
    ) -> None:
        super().__init__()
        self._chance = chance
        self._plans = plans
        self._notes = notes
        self._notes_of_containers = notes_of_containers
        self.jobs: dict[UUID, Plan] = {}
        self.due: dict[UUID, datetime | None] = {}
        """Moments before which a job must not start."""
        self.seconds = 0.0

    def work(self) -> None:
        began = time.monotonic()
        left = list(self._plans)
        while left:
            size = self._chance.randint(1, self.MOST_AT_ONCE)
            some, left = left[:size], left[size:]
            for plan, job in zip(some, self._submit(some), strict=True):
                self.due[job.pk] = job.scheduled_for
                self.jobs[job.pk] = plan
        self.seconds = time.monotonic() - began

    def _submit(self, plans: Sequence[Plan]) -> list[ContainerJob]:
        """All or none. Who did not hear the answer looks first whether it was done."""
        try:
            return self._insert(plans)
        except AWAY:
            connection.close()
        names = [plan.name for plan in plans]
        found = patiently(lambda: {job.name: job for job in _named(names)})
        assert not found or len(found) == len(names), f"half of a transaction: {names}"
        return [found[name] for name in names] if found else self._submit(plans)

    def _insert(self, plans: Sequence[Plan]) -> list[ContainerJob]:
        told = self._notes_of_containers
        wanted = [plan.wanted(self._notes, notes_of_containers=told) for plan in plans]
        if len(wanted) == 1:
            return [lifecycle.submit(queue_now=True, **wanted[0])]
        return ContainerJob.objects.bulk_create(
            [ContainerJob(status=JobStatus.QUEUED, **each) for each in wanted]
        )


def _named(names: Sequence[str]) -> list[ContainerJob]:
    return list(ContainerJob.objects.filter(name__in=names))


@dataclass
class Answer:
    """What somebody was told who wanted a job stopped."""

    came: Stopped
    status: str
    """Of the job, as it was read after the answer."""
    at: float
    attempt: int


class Stopper(Person):
    """Asks for kills and cancellations at odd moments, and writes down the answers."""

    TICK = 0.1
    CHANCES = {JobStatus.RUNNING: 0.15, JobStatus.QUEUED: 0.01, JobStatus.RETRYING: 0.05}
    WHEN_SETTLED = 0.3

    def __init__(self, chance: random.Random, submitter: Submitter) -> None:
        super().__init__()
        self._chance = chance
        self._submitter = submitter
        self._ended = threading.Event()
        self.answers: dict[UUID, list[Answer]] = {}
        self._seen: set[UUID] = set()

    def end(self) -> None:
        self._ended.set()
        self.wait()

    def work(self) -> None:
        open_jobs: dict[UUID, Plan] = {}
        while not self._ended.wait(self.TICK):
            known = dict(self._submitter.jobs)
            fresh = {pk: known[pk] for pk in known.keys() - self._seen if known[pk].stop}
            self._seen |= known.keys()
            open_jobs |= fresh
            for pk in patiently(lambda jobs=list(open_jobs): self._chosen(jobs)):
                self._ask(pk, open_jobs.pop(pk))

    def _chosen(self, jobs: list[UUID]) -> list[UUID]:
        some = self._chance.sample(jobs, min(len(jobs), 200))
        rows = ContainerJob.objects.filter(pk__in=some).values_list("pk", "status")
        return [
            pk
            for pk, status in sorted(rows)
            if self._chance.random() < self.CHANCES.get(status, self.WHEN_SETTLED)
        ]

    def _ask(self, pk: UUID, plan: Plan) -> None:
        """Once, or twice: a second click must not change what the first one got."""
        assert plan.stop is not None
        kind = plan.stop
        answers = self.answers.setdefault(pk, [])
        for _ in range(self._chance.choice((1, 1, 2))):
            came = patiently(lambda: lifecycle.stop([pk], kind, actor="people")[pk])
            row = patiently(lambda: ContainerJob.objects.values("status", "attempt").get(pk=pk))
            answers.append(Answer(came, row["status"], time.time(), row["attempt"]))


def how_many_are_open(jobs: int) -> int:
    """Of so many that will be there in the end."""
    return jobs - ContainerJob.objects.filter(status__in=SETTLED).count()


def some_job_runs() -> bool:
    """Its worker says so."""
    return ContainerJob.objects.filter(status=JobStatus.RUNNING).exists()
