"""Rows 2, 9, 10, 11 and 12: PostgreSQL is killed, restarted, slow, full, or its answer is lost.

The server is a test's own; Django and the workers use a fresh database on it.
"""

from __future__ import annotations

import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psycopg
import pytest
import requests

from container_manager import lifecycle
from container_manager.models import ContainerJob, JobAttempt, StateHistory, Worker
from container_manager.states import StopKind
from tests.support.fault_proxy import COMMIT, FaultProxy, Predicate, holds, lose_reply, reset
from tests.support.postgres_server import PostgresServer, WorkersAt
from tests.support.running import KINDS, attempt_of, lives, queue_job, stdout
from tests.support.spine import contradictions, path_of
from tests.support.web import make_person, some_site
from tests.support.workers import settled, status_of, wait_for, wait_until

pytestmark = [
    pytest.mark.processes,
    pytest.mark.postgres,
    pytest.mark.django_db(transaction=True),
]

COUNT = "i=0; while [ $i -lt {lines} ]; do i=$((i+1)); echo line $i; sleep 0.1; done"


@pytest.fixture
def line(server: PostgresServer) -> Iterator[FaultProxy]:
    with server.line() as line:
        yield line


@pytest.fixture(autouse=True)
def _all_is_well_at_the_end(crew: WorkersAt, line: FaultProxy) -> Iterator[None]:
    yield
    line.heal()
    if any(not worker.has_ended for worker in crew.started):
        wait_until(lambda: not remains(crew), "the remains to be removed")
    assert contradictions() == []


def remains(crew: WorkersAt) -> set[str]:
    """What is left of jobs at the engine; a name that was barred stays so for an hour."""
    lost = JobAttempt.objects.filter(reason="worker_lost")
    return set(crew.left_behind()) - {attempt.name for attempt in lost}


@pytest.fixture
def through_line(server: PostgresServer, crew: WorkersAt, line: FaultProxy) -> FaultProxy:
    """The workers, and only they, reach the server over this line."""
    crew.url = server.url(host=server.line_host())
    return line


def counting(kind: str, lines: int) -> ContainerJob:
    return queue_job(kind, COUNT.format(lines=lines), max_retries=0)


def lines_of(job: ContainerJob) -> int:
    return stdout(job).count(b"\n")


def whole(lines: int) -> bytes:
    return "".join(f"line {number + 1}\n" for number in range(lines)).encode()


def noted(crew: WorkersAt, number: int, **fields: Any) -> list[ContainerJob]:
    """Jobs that leave a line outside the database at each run."""
    script = f"echo $CM_JOB_ID | tee -a {crew.runs}; sleep 0.2"
    return [queue_job("process", script, **fields) for _ in range(number)]


def times_run(crew: WorkersAt) -> Counter[str]:
    return Counter(crew.runs.read_text().split()) if crew.runs.exists() else Counter()


def assert_each_ran_once(crew: WorkersAt, jobs: list[ContainerJob]) -> None:
    assert {settled(job).status for job in jobs} == {"completed"}
    assert times_run(crew) == Counter(str(job.pk) for job in jobs)


# Row 2 --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_all_workers_and_the_database_die_at_once_and_nothing_is_lost(
    server: PostgresServer, crew: WorkersAt, kind: str
) -> None:
    """Row 2: what ran goes on running meanwhile, what waited goes on waiting, all ends right."""
    if kind == "docker":
        crew.use_docker()
    for _ in range(2):
        crew.start("--concurrency", "2")
    running = [counting(kind, 60) for _ in range(4)]
    for job in running:
        wait_until(lambda job=job: lines_of(job), f"{job} to print")
    waiting = [counting(kind, 1) for _ in range(4)]
    for worker in crew.started:
        worker.kill()
    server.kill()
    assert [lives(job) for job in running] == [True] * 4
    server.start()
    assert [status_of(job) for job in running + waiting] == ["running"] * 4 + ["queued"] * 4
    crew.start("--concurrency", "8")
    assert {settled(job).status for job in running + waiting} == {"completed"}
    assert [stdout(job) for job in running] == [whole(60)] * 4
    assert {attempt_of(job).lease_epoch for job in running} == {2}
    assert JobAttempt.objects.count() == 8


def test_a_worker_that_is_told_to_end_while_the_database_is_away_ends(
    server: PostgresServer, crew: WorkersAt
) -> None:
    """Row 37: it cannot write that it leaves; what it ran is another's as soon as that is seen."""
    worker = crew.start("--concurrency", "2", DRAIN_SECONDS=2).wait_until_started()
    job = counting("process", 60)
    wait_until(lambda: lines_of(job), "it to print")
    server.stop("immediate")
    worker.terminate()
    assert worker.ended() == 0
    assert lives(job)
    server.start()
    crew.start()
    assert settled(job).status == "completed"
    assert stdout(job) == whole(60)
    assert attempt_of(job).lease_epoch == 2


# Row 9 --------------------------------------------------------------------------------------------


def beats() -> list[int]:
    return list(Worker.objects.order_by("name").values_list("beat", flat=True))


def test_no_healthy_job_is_adopted_while_the_beats_cannot_be_written(
    server: PostgresServer, crew: WorkersAt
) -> None:
    """Row 9: a lock on the workers' table, held for a whole lease."""
    lease = 6.0
    for _ in range(2):
        crew.start("--concurrency", "2", LEASE_SECONDS=lease).wait_until_started()
    jobs = [counting("process", 120) for _ in range(4)]
    for job in jobs:
        wait_until(lambda job=job: lines_of(job), f"{job} to print")
    with server.session(server.database) as other, other.transaction():
        other.execute("LOCK TABLE workers IN EXCLUSIVE MODE")
        began, frozen, printed = time.monotonic(), beats(), [lines_of(job) for job in jobs]
        wait_until(lambda: time.monotonic() - began > lease, "a lease to pass")
        assert beats() == frozen
        assert all(lines_of(job) > before for job, before in zip(jobs, printed, strict=True))
    assert {settled(job).status for job in jobs} == {"completed"}
    assert set(JobAttempt.objects.values_list("lease_epoch", flat=True)) == {1}
    assert Worker.objects.count() == 2
    assert "adopted" not in crew.said


def test_no_healthy_job_is_adopted_while_the_line_to_the_database_is_slow(
    crew: WorkersAt, through_line: FaultProxy
) -> None:
    """Row 9: every answer comes late, by less than a third of the lease."""
    for _ in range(2):
        crew.start("--concurrency", "2", LEASE_SECONDS=6).wait_until_started()
    jobs = [counting("process", 40) for _ in range(4)]
    for job in jobs:
        wait_for(job, "running")
    through_line.delay(back=0.3)
    assert {settled(job).status for job in jobs} == {"completed"}
    through_line.heal()
    assert set(JobAttempt.objects.values_list("lease_epoch", flat=True)) == {1}
    assert [stdout(job) for job in jobs] == [whole(40)] * 4


# Row 10 -------------------------------------------------------------------------------------------


def test_workers_survive_every_way_in_which_the_server_goes_down(
    server: PostgresServer, crew: WorkersAt
) -> None:
    """Row 10: restarted, crashed, its postmaster killed, one of its processes killed."""

    def kill_postmaster() -> None:
        server.kill()
        server.start()

    def crash() -> None:
        server.stop("immediate")
        server.start()

    workers = [crew.start("--concurrency", "4").wait_until_started() for _ in range(2)]
    jobs: list[ContainerJob] = []
    for go_down in (server.restart, crash, kill_postmaster, server.kill_one_session):
        fresh = noted(crew, 8)
        jobs += fresh
        wait_until(lambda fresh=fresh: _any_runs(fresh), "some to run")
        go_down()
        assert {settled(job).status for job in fresh} == {"completed"}
    assert_each_ran_once(crew, jobs)
    assert not any(worker.has_ended for worker in workers)
    assert Worker.objects.count() == 2


def _any_runs(jobs: list[ContainerJob]) -> bool:
    return any(status_of(job) != "queued" for job in jobs)


# What a worker sends at each step of a job's life; a transaction is known by what stood in it.

CLAIM = holds("FOR UPDATE SKIP LOCKED) due")
BEAT = holds('SET "beat" =')


def commit_after(words: str) -> Predicate:
    """The COMMIT of the transaction in which these words were sent."""
    seen = threading.Event()

    def predicate(piece: bytes) -> bool:
        if words.encode() in piece:
            seen.set()
        return seen.is_set() and COMMIT(piece)

    return predicate


STEPS: dict[str, Callable[[], Predicate]] = {
    "claim": lambda: CLAIM,
    "beat": lambda: BEAT,
    "progress": lambda: commit_after("SET phase = g.phase"),
    "output": lambda: commit_after("INSERT INTO job_logs"),
    "end": lambda: commit_after("SET phase = 'done'"),
    "cleaned up": lambda: commit_after("SET cleaned_up = TRUE"),
}


def one_of_each_step(crew: WorkersAt, line: FaultProxy, fault: Any) -> None:
    """One job for each step; the fault meets that step. None runs twice, each ends right.

    The first job is there before the worker: so no claim of nothing meets the fault.
    """
    jobs: list[ContainerJob] = []
    worker = None
    for number, (step, predicate) in enumerate(STEPS.items(), start=1):
        line.next(predicate(), fault)
        jobs += noted(crew, 1)
        worker = worker or crew.start("--concurrency", "4")
        wait_until(lambda number=number: line.hits >= number, f"the fault at {step}")
        assert settled(jobs[-1]).status == "completed", step
    assert_each_ran_once(crew, jobs)
    assert worker is not None
    assert not worker.has_ended
    for job in jobs:
        assert len(path_of(job)) == ContainerJob.objects.get(pk=job.pk).version


def test_a_line_that_breaks_before_any_step_costs_nothing(
    crew: WorkersAt, through_line: FaultProxy
) -> None:
    """Row 10: the connection ends at claim, beat, progress, output, end; nothing was committed."""
    one_of_each_step(crew, through_line, reset)
    assert set(JobAttempt.objects.values_list("attempt", flat=True)) == {1}


# Row 11 -------------------------------------------------------------------------------------------


def test_a_lost_answer_to_any_step_is_no_second_step(
    crew: WorkersAt, through_line: FaultProxy
) -> None:
    """Row 11: each step was committed, and the worker never heard of it.

    A claim that nobody heard of was never started: the infra retry runs it, once.
    """
    one_of_each_step(crew, through_line, lose_reply)
    lost = JobAttempt.objects.filter(reason="worker_lost")
    assert lost.count() == 1
    assert JobAttempt.objects.count() == len(STEPS) + 1


def test_a_lost_answer_to_a_person_is_told_apart_by_the_key(
    server: PostgresServer, crew: WorkersAt, line: FaultProxy, tmp_path: Path
) -> None:
    """Row 11: the same submit again is the same job; the same kill again changes nothing."""
    person = make_person("member")
    given = {"DATABASE_URL": server.url(host=server.line_host())}
    with some_site(tmp_path, crew, **given) as site:
        jobs = f"{site.url}/api/v1/jobs/"
        headers = {**person.headers, "Idempotency-Key": "one-and-only"}
        body = {"image": "busybox", "command": ["true"]}
        line.next(commit_after('INSERT INTO "container_jobs"'), lose_reply)
        first = requests.post(jobs, json=body, headers=headers, timeout=60)
        assert_told_to_come_again(first)
        (job,) = ContainerJob.objects.all()
        again = requests.post(jobs, json=body, headers=headers, timeout=60)
        assert (again.status_code, again.json()["id"]) == (200, str(job.pk))
        assert ContainerJob.objects.count() == 1
        line.next(commit_after('UPDATE "container_jobs"'), lose_reply)
        kill = f"{jobs}{job.pk}/kill/"
        assert_told_to_come_again(requests.post(kill, headers=person.headers, timeout=60))
        assert status_of(job) == "killed"
        assert requests.post(kill, headers=person.headers, timeout=60).status_code in (200, 409)
        assert line.hits == 2
    assert path_of(job)[-1] == "killed"
    assert StateHistory.objects.of(job).count() == len(path_of(job)) == 2


def assert_told_to_come_again(answer: requests.Response) -> None:
    assert (answer.status_code, answer.json()["code"]) == (503, "database_unavailable")
    assert int(answer.headers["Retry-After"]) > 0


def test_a_lost_answer_to_a_stop_is_no_second_stop(
    crew: WorkersAt, through_line: FaultProxy
) -> None:
    """Row 11: a worker that does not know whether it may signal asks again, and signals once."""
    crew.start("--concurrency", "1").wait_until_started()
    job = counting("process", 600)
    wait_until(lambda: lines_of(job), "it to print")
    through_line.next(commit_after("SET signalled_at ="), lose_reply)
    lifecycle.stop([job.pk], StopKind.KILL)
    assert settled(job).status == "killed"
    assert through_line.hits == 1


# Row 12 -------------------------------------------------------------------------------------------

NO_ROOM = re.compile("too many clients|remaining connection slots")
ALL_BUT_THE_HEARTBEAT = (
    """usename = 'app' AND query <> '' AND query NOT ILIKE 'UPDATE "workers" SET "beat"%'"""
)
"""Nor those who only take up room: they ask nothing."""


def test_when_no_connection_is_left_everybody_waits_and_nothing_is_lost(
    server: PostgresServer, crew: WorkersAt, tmp_path: Path
) -> None:
    """Row 12: thirty clients want more than there is; the heartbeat keeps what it has."""
    server.restart(max_connections=21, superuser_reserved_connections=6, reserved_connections=0)
    server.sql("CREATE ROLE app LOGIN")
    server.sql("GRANT ALL ON ALL TABLES IN SCHEMA public TO app", server.database)
    crew.url = server.url().replace("postgres@", "app@")
    person = make_person("member")
    worker = crew.start("--concurrency", "2").wait_until_started()
    running = counting("process", 80)
    wait_until(lambda: lines_of(running), "it to print")
    wait_until(lambda: beats()[0] > 0, "a beat")
    with some_site(tmp_path, crew, DATABASE_URL=crew.url) as site, ExitStack() as greedy:
        jobs = f"{site.url}/api/v1/jobs/"
        assert requests.get(jobs, headers=person.headers, timeout=60).status_code == 200
        _take_all(crew.url, greedy)
        server.end_sessions(ALL_BUT_THE_HEARTBEAT)

        def answer_when_all_are_taken() -> list[requests.Response]:
            _take_all(crew.url, greedy)
            given = requests.get(jobs, headers=person.headers, timeout=60)
            return [given] if given.status_code != 200 else []

        (refusal,) = wait_until(answer_when_all_are_taken, "no room for the site")
        assert_told_to_come_again(refusal)
        before = beats()
        waiting = counting("process", 1)

        def the_worker_found_no_room() -> bool:
            server.end_sessions(ALL_BUT_THE_HEARTBEAT)
            _take_all(crew.url, greedy)
            return bool(NO_ROOM.search(worker.said))

        wait_until(the_worker_found_no_room, "the worker to find no room")
        wait_until(lambda: beats() > before, "a beat over the connection that it kept")
        assert lives(running)
        assert status_of(waiting) == "queued"
        greedy.close()
        assert {settled(job).status for job in (running, waiting)} == {"completed"}
        assert requests.get(jobs, headers=person.headers, timeout=60).status_code == 200
    assert stdout(running) == whole(80)
    assert set(JobAttempt.objects.values_list("lease_epoch", flat=True)) == {1}
    assert not worker.has_ended


def _take_all(url: str, greedy: ExitStack) -> None:
    """Thirty clients, of whom as many stay as there is room for."""
    for _ in range(30):
        try:
            greedy.enter_context(psycopg.connect(url))
        except psycopg.OperationalError:
            return
