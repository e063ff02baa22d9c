"""What the server has in its database while it is fuzzed, and what the cases may name of it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from itertools import cycle, islice
from typing import Any

from django.utils import timezone

from container_manager.models import ContainerJob, Dag, JobAttempt, JobLog, Queue, Worker
from container_manager.states import LAUNCHED, JobStatus, Phase, Stream
from tests.factories import AttemptFactory, JobFactory
from tests.fuzz import flows
from tests.support.publisher_rows import letter, publisher_row
from tests.support.web import PASSWORD, Person, make_person

STATES: dict[str, tuple[JobStatus, ...]] = {
    "read": tuple(JobStatus),
    "change": (JobStatus.PENDING, JobStatus.QUEUED, JobStatus.FAILED, JobStatus.RETRYING),
    "queue": (JobStatus.PENDING, JobStatus.RETRYING),
    "cancel": (JobStatus.PENDING, JobStatus.QUEUED, JobStatus.RUNNING, JobStatus.FAILED),
    "kill": (JobStatus.PENDING, JobStatus.QUEUED, JobStatus.RUNNING, JobStatus.RETRYING),
    "delete": (JobStatus.PENDING, JobStatus.QUEUED, JobStatus.RUNNING, JobStatus.RETRYING),
    "retry": (JobStatus.FAILED,),
    "bulk": tuple(JobStatus),
}
"""The states of the jobs that are there for each kind of request; most allow it."""

SHARE = {"change": 2}
"""One job for so many cases; ten for the others."""

MOST = 2_000
"""Of one kind; then they are used again."""

BULK_QUEUE = "bulk"
"""Filters of bulk requests are kept to this queue, or the first would stop every job there is."""

QUEUES = ("default", "nightly", "gpu.a100")
FLOW_SHARE = 40
"""One DAG, run or task of a kind for so many cases."""

LETTERS = 30
"""Dead letters of each publisher."""

HELD = 3
LOST = 100
"""Held jobs whose engine nobody reaches."""


@dataclass
class Targets:
    """Ids, names and tokens of what is there."""

    rows: dict[str, dict[str, list[str]]]
    """By collection, as in the address, and kind of request."""
    revisions: dict[str, str]
    """Of the jobs and DAGs that are there to be changed or moved, before anybody did it."""
    workers: list[str]
    queues: list[str]
    publishers: list[str]
    credentials: list[dict[str, str]]
    spare_tokens: list[str]
    """Those of people who do nothing else, for the requests that end a token."""
    people: dict[str, str] = field(default_factory=dict)
    """Name to token of who sends the requests: those who see the least first."""


def make_targets(cases: int) -> Targets:
    """Fill an empty database for about so many cases."""
    ada, bob = make_person("ada"), make_person("bob")
    operator = make_person("operator", "operate_containerjob", is_staff=True)
    workers = [_worker(number) for number in range(2)]
    jobs = {kind: _jobs(kind, ada, _wanted(kind, cases)) for kind in STATES}
    jobs["cancel"] += _held_jobs(ada, workers[0], HELD)
    jobs["abandon"] = _held_jobs(ada, workers[0], LOST)
    JobAttempt.objects.filter(job__in=jobs["abandon"]).update(unreachable_since=timezone.now())
    for name in (*QUEUES, BULK_QUEUE):
        Queue.objects.create(name=name, paused=name == "nightly", max_running=2)
    JobFactory(created_by=bob.user)
    leavers = [make_person(f"leaver-{number}") for number in range(max(50, cases // 10))]
    return Targets(
        rows={"jobs": jobs, **flows.make(ada, max(20, cases // FLOW_SHARE))},
        revisions=_revisions(),
        workers=[str(worker.pk) for worker in workers],
        queues=list(QUEUES),
        publishers=[_publisher(alias) for alias in ("ours", "theirs")],
        credentials=[{"username": each.name, "password": PASSWORD} for each in (ada, bob)],
        spare_tokens=[each.token for each in leavers],
        people={each.name: each.token for each in (ada, bob, operator)},
    )


def as_json(targets: Targets) -> dict[str, Any]:
    return asdict(targets)


def _wanted(kind: str, cases: int) -> int:
    return max(40, min(MOST, cases // SHARE.get(kind, 10)))


def _jobs(kind: str, owner: Person, wanted: int) -> list[str]:
    queue = BULK_QUEUE if kind == "bulk" else "default"
    states = islice(cycle(STATES[kind]), wanted)
    return [str(_job(owner, status, queue).pk) for status in states]


def _job(owner: Person, status: JobStatus, queue: str) -> ContainerJob:
    job: ContainerJob = JobFactory(
        created_by=owner.user,
        status=status,
        queue=queue,
        labels={"team": "data"},
        environment={"TOKEN": "secret"},
    )
    if status in LAUNCHED:
        attempt = AttemptFactory(job=job, attempt=job.attempt, phase=Phase.DONE, stdout_bytes=17)
        _print(job, attempt.attempt)
    return job


def _revisions() -> dict[str, str]:
    return {
        str(row.pk): row.revision for model in (ContainerJob, Dag) for row in model.objects.all()
    }


def _print(job: ContainerJob, attempt: int) -> None:
    data = {Stream.STDOUT: b"one\ntwo \xff\x00\nthree", Stream.STDERR: "näh\n".encode()}
    for stream, text in data.items():
        JobLog.objects.create(job=job, attempt=attempt, stream=stream, offset=0, data=text)


def _worker(number: int) -> Worker:
    offers = {"process": {"available": True, "engine": "", "isolations": ["process"]}}
    return Worker.objects.create(
        name=f"w{number}", hostname="host", pid=number + 1, concurrency=4, offers=offers
    )


def _publisher(alias: str) -> str:
    for number in range(LETTERS):
        letter(alias, number)
    return str(publisher_row(alias, failing_for=90).pk)


def _held_jobs(owner: Person, worker: Worker, wanted: int) -> list[str]:
    """Running ones that a worker holds which never answers: asked to stop, they go on running."""
    jobs = [JobFactory(created_by=owner.user, status=JobStatus.RUNNING) for _ in range(wanted)]
    for job in jobs:
        AttemptFactory(job=job, worker_id=worker.pk, worker_name=worker.name)
    return [str(job.pk) for job in jobs]
