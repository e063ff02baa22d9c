"""Workers that die, pause or leave: what they ran goes on, and its record stays whole."""

from __future__ import annotations

import signal

import pytest

from container_manager import lifecycle
from container_manager.lifecycle import Stopped
from container_manager.models import ContainerJob, JobAttempt, StateHistory, Worker
from container_manager.states import StopKind
from tests.factories import JobFactory
from tests.support import docker_engine
from tests.support.running import (
    KINDS,
    attempt_of,
    lives,
    processes_of,
    queue_job,
    stderr,
    stdout,
)
from tests.support.spine import contradictions, path_of
from tests.support.workers import settled, status_of, wait_for, wait_until

pytestmark = [pytest.mark.processes, pytest.mark.django_db(transaction=True)]

ONLY_DOCKER = pytest.mark.parametrize("kind", KINDS[1:], indirect=True)
ONLY_PROCESS = pytest.mark.parametrize("kind", KINDS[:1], indirect=True)
COUNT = (
    "i=0; while [ $i -lt {lines} ]; do i=$((i+1)); echo line $i; echo err $i >&2; sleep 0.1; done"
)


@pytest.fixture(params=KINDS)
def kind(request, workers):
    if request.param == "docker":
        workers.use_docker()
    return request.param


@pytest.fixture(autouse=True)
def _nothing_is_left(workers):
    yield
    if workers.started and not workers.started[-1].has_ended:
        try:
            wait_until(lambda: not workers.left_behind(), "the remains to be removed")
        except AssertionError:
            print(workers.left_behind(), workers.said)
            raise
        assert contradictions() == []


def counting(kind, lines, exit_code=0, **fields):
    return queue_job(kind, f"{COUNT.format(lines=lines)}; exit {exit_code}", **fields)


def assert_log_is_whole(job, lines):
    assert stdout(job) == "".join(f"line {number + 1}\n" for number in range(lines)).encode()
    assert stderr(job) == "".join(f"err {number + 1}\n" for number in range(lines)).encode()


def all_print(jobs):
    wait_until(lambda: all(stdout(job) for job in jobs), "all to print")


def executions(jobs):
    attempts = JobAttempt.objects.filter(job__in=jobs)
    return dict(attempts.values_list("job", "execution_id"))


def adopted(jobs):
    held = JobAttempt.objects.filter(job__in=jobs, lease_epoch=2)
    return held.count() == len(jobs)


# kill -9


def test_what_a_killed_worker_ran_is_adopted_and_nothing_of_it_is_lost(workers, kind):
    number, lines = (8, 40) if kind == "docker" else (4, 40)
    jobs = [counting(kind, lines, exit_code=10 + each) for each in range(number)]
    first = workers.start("--concurrency", str(number))
    all_print(jobs)
    wait_until(lambda: all(executions(jobs).values()), "their executions to be written down")
    before = executions(jobs)
    containers = workers.container_ids() if kind == "docker" else {}
    first.kill()
    workers.start("--concurrency", "2")
    wait_until(lambda: adopted(jobs), "all to be adopted")
    if kind == "docker":
        assert len(containers) == number
        assert containers.items() >= workers.container_ids().items()  # none is new
    for each, job in enumerate(jobs):
        job = settled(job)
        assert (job.status, job.exit_code, job.attempt) == ("failed", 10 + each, 1)
        assert path_of(job) == ["queued", "running", "failed"]
        assert_log_is_whole(job, lines)
        assert job.output == stdout(job).decode()
        attempt = attempt_of(job)
        assert (attempt.lease_epoch, attempt.worker_name) == (2, "w2")
    assert executions(jobs) == before
    assert job.attempts.count() == 1


UNTIL_TOLD = (
    "trap over=1 USR1; i=0; while [ -z $over ]; do"
    " i=$((i+1)); echo line $i; echo err $i >&2; sleep 0.1; done; echo $i lines"
)


@ONLY_DOCKER
def test_a_container_that_runs_through_three_killed_workers_completes_with_its_whole_log(
    workers, kind
):
    """Row 1: kill -9 three times in a row; one container from its start to its end."""
    job = queue_job(kind, UNTIL_TOLD)
    workers.start()
    all_print([job])
    ((name, container),) = workers.container_ids().items()
    for killed in range(3):
        told = len(stdout(job))
        workers.started[-1].kill()
        workers.start()
        wait_until(lambda epoch=killed + 2: attempt_of(job).lease_epoch == epoch, "its adoption")
        wait_until(lambda told=told: len(stdout(job)) > told, "it to be followed")
        assert workers.container_ids() == {name: container}
    with docker_engine.engine() as http:
        assert http.call("POST", f"/containers/{container}/kill", {"signal": "USR1"}).ok
    job = settled(job)
    assert path_of(job) == ["queued", "running", "completed"]
    assert (job.attempt, attempt_of(job).execution_id) == (1, container)
    lines = len(stderr(job).splitlines())
    assert stderr(job) == "".join(f"err {number + 1}\n" for number in range(lines)).encode()
    told = [f"line {number + 1}\n" for number in range(lines)]
    assert stdout(job) == "".join([*told, f"{lines} lines\n"]).encode()


def test_what_ended_while_no_worker_lived_is_recorded_as_it_was(workers, kind):
    job = counting(kind, 15, exit_code=7)
    first = workers.start()
    all_print([job])
    first.kill()
    wait_until(lambda: not lives(job), "it to end")
    assert status_of(job) == "running"
    workers.start()
    job = settled(job)
    assert (job.status, job.exit_code, job.attempt) == ("failed", 7, 1)
    assert_log_is_whole(job, 15)
    attempt = attempt_of(job)
    assert (attempt.ended_at - attempt.started_at).total_seconds() < 60


def test_a_kill_that_was_asked_for_while_no_worker_lived_is_done_by_the_next(workers, kind):
    job = queue_job(kind, "trap '' TERM; echo ready; while :; do sleep 0.2; done")
    first = workers.start()
    all_print([job])
    first.kill()
    assert lifecycle.stop([job.pk], StopKind.KILL) == {job.pk: Stopped.REQUESTED}
    assert lives(job)
    workers.start()
    job = settled(job)
    assert not lives(job)
    assert (job.status, job.exit_code) == ("killed", 137)


def test_a_stop_that_a_dead_worker_had_begun_is_brought_to_its_end(workers, kind):
    """Signalled by the first, ended under the second: still the cancel that it was."""
    script = "trap 'echo asked' TERM; echo ready; while :; do sleep 0.2; done"
    job = queue_job(kind, script, stop_grace_seconds=4)
    first = workers.start()
    all_print([job])
    lifecycle.stop([job.pk], StopKind.CANCEL)
    wait_until(lambda: b"asked" in stdout(job), "the first signal")
    first.kill()
    workers.start()
    job = settled(job)
    assert not lives(job)
    assert (job.status, job.reason, job.exit_code) == ("cancelled", "cancelled", 137)


def test_an_orphan_is_found_although_its_workers_row_is_gone(workers, kind):
    job = counting(kind, 30)
    first = workers.start()
    all_print([job])
    first.kill()
    Worker.objects.all().delete()
    workers.start(LEASE_SECONDS=5)
    job = settled(job)
    assert (job.status, attempt_of(job).lease_epoch) == ("completed", 2)
    assert_log_is_whole(job, 30)


def test_a_dead_worker_that_holds_nothing_is_forgotten(workers):
    workers.start().wait_until_started().kill()
    assert Worker.objects.count() == 1
    workers.start()
    wait_until(lambda: list(Worker.objects.values_list("name", flat=True)) == ["w2"], "w1 to go")


def remove_behind_our_back(name):
    with docker_engine.engine() as http:
        assert http.call("DELETE", f"/containers/{name}", {"force": "true"}).ok


@ONLY_DOCKER
def test_what_is_proven_absent_has_failed_by_the_machinery_and_runs_again(workers, kind):
    policy = {"strategy": "fixed", "base_seconds": 0, "jitter": 0}
    script = 'echo "attempt $CM_ATTEMPT"; [ "$CM_ATTEMPT" = 2 ] || sleep 300'
    job = queue_job(kind, script, retry_policy=policy)
    first = workers.start()
    all_print([job])
    first.kill()
    remove_behind_our_back(f"cm-{job.pk}-1")
    second = workers.start()
    job = settled(job)
    lost = attempt_of(job)
    assert (lost.phase, lost.reason, lost.blame) == ("done", "worker_lost", "infra")
    assert (job.status, job.attempt) == ("completed", 2)
    assert (job.infra_retry_count, job.retry_count) == (1, 0)
    assert path_of(job) == [
        *("queued", "running", "failed", "retrying"),
        *("queued", "running", "completed"),
    ]
    assert stdout(job, 1) == b"attempt 1\n"
    # The name stays barred for an hour, so that a late create cannot succeed.
    wait_until(lambda: workers.left_behind() == [f"cm-{job.pk}-1"], "only the barred name")
    second.kill()


@ONLY_DOCKER
def test_a_container_that_is_removed_under_a_living_worker_is_no_success(workers, kind):
    job = queue_job(kind, "echo ready; sleep 300", retry_policy={"base_seconds": 100})
    workers.start()
    all_print([job])
    remove_behind_our_back(f"cm-{job.pk}-1")
    job = wait_for(job, "retrying", "failed")
    if job.status == "failed":  # it was seen after its SIGKILL and before it was gone
        assert (job.reason, job.exit_code) == ("signal", 137)
    else:
        assert (job.reason, job.infra_retry_count) == ("worker_lost", 1)


# A pause


def test_a_worker_that_slept_beyond_its_lease_writes_nothing_more(workers, kind):
    short, long = counting(kind, 25, exit_code=4), counting(kind, 60, exit_code=5)
    first = workers.start()
    all_print([short, long])
    first.pause()
    workers.start()
    wait_until(lambda: adopted([short, long]), "both to be adopted")
    short = settled(short)
    ended = attempt_of(short).updated_at
    first.go_on()
    long = settled(long)
    for job, code, lines in ((short, 4, 25), (long, 5, 60)):
        assert (job.status, job.exit_code, job.attempt) == ("failed", code, 1)
        assert path_of(job) == ["queued", "running", "failed"]
        assert_log_is_whole(job, lines)
        attempt = attempt_of(job)
        assert (attempt.lease_epoch, attempt.worker_name) == (2, "w2")
    wait_until(lambda: Worker.objects.filter(name="w1").exists(), "the first to be back")
    last = counting(kind, 1, exit_code=6)
    assert settled(last).exit_code == 6
    assert (attempt_of(short).updated_at == ended) or attempt_of(short).cleaned_up
    assert contradictions() == []
    first.terminate()
    assert first.ended() == 0


def test_a_worker_that_was_taken_for_dead_while_nobody_else_lived_goes_on(workers, kind):
    job = counting(kind, 40)
    worker = workers.start()
    all_print([job])
    worker.pause()
    Worker.objects.all().delete()
    worker.go_on()
    job = settled(job)
    assert job.status == "completed"
    assert_log_is_whole(job, 40)
    assert attempt_of(job).lease_epoch == 1


# An orderly end


@ONLY_DOCKER
def test_containers_go_on_when_their_worker_is_told_to_end(workers, kind):
    jobs = [counting(kind, 40, exit_code=each) for each in range(2)]
    first = workers.start()
    all_print(jobs)
    containers = workers.container_ids()
    waiting_worker_row = Worker.objects.get()
    first.terminate()
    assert first.ended() == 0
    assert not Worker.objects.filter(pk=waiting_worker_row.pk).exists()
    assert workers.container_ids() == containers
    assert [status_of(job) for job in jobs] == ["running", "running"]
    late = queue_job(kind, "true")
    workers.start()
    for each, job in enumerate(jobs):
        job = settled(job)
        assert (job.exit_code, job.attempt) == (each, 1)
        assert_log_is_whole(job, 40)
        assert attempt_of(job).lease_epoch == 2
    assert settled(late).status == "completed"


@ONLY_PROCESS
def test_local_processes_are_stopped_and_queued_again_when_their_worker_ends(workers, kind):
    job = queue_job(kind, "echo ready; sleep 300")
    waits = queue_job(kind, "true", priority=0)
    worker = workers.start("--concurrency", "1")
    all_print([job])
    worker.terminate()
    assert worker.ended() == 0
    assert processes_of(job) == []
    assert path_of(job) == ["queued", "running", "failed", "retrying", "queued"]
    job.refresh_from_db()
    assert (job.retry_count, job.infra_retry_count) == (0, 0)
    attempt = attempt_of(job)
    assert (attempt.reason, attempt.blame) == ("worker_stopped", "infra")
    moves = StateHistory.objects.filter(entity_id=job.pk, version__gt=2)
    assert set(moves.values_list("actor", flat=True)) == {"worker:w1"}
    assert path_of(waits) == ["queued"]
    assert not Worker.objects.exists()
    assert workers.left_behind() == []
    assert contradictions() == []


@ONLY_PROCESS
def test_a_second_sigterm_ends_the_worker_at_once(workers, kind):
    job = queue_job(
        kind, "trap '' TERM; echo ready; while :; do sleep 0.2; done", stop_grace_seconds=300
    )
    worker = workers.start()
    all_print([job])
    worker.terminate()
    wait_until(lambda: Worker.objects.filter(draining=True).exists(), "the drain to begin")
    assert not worker.has_ended
    worker.terminate()
    assert worker.ended() == 128 + signal.SIGTERM
    # It is still being stopped; whoever comes next sees that to its end and runs it again.
    lifecycle.stop([job.pk], StopKind.KILL)
    workers.start()
    assert settled(job).status == "killed"


@ONLY_PROCESS
def test_a_drain_that_was_cut_short_is_brought_to_its_end_by_the_next_worker(workers, kind):
    script = (
        'echo ready; [ "$CM_ATTEMPT" = 2 ] && exit 0; trap "sleep 2; exit 9" TERM; sleep 300 & wait'
    )
    job = queue_job(kind, script, stop_grace_seconds=60)
    worker = workers.start()
    all_print([job])
    worker.terminate()
    wait_until(lambda: ContainerJob.objects.get().signalled_at, "the signal")
    worker.kill()
    workers.start()
    job = settled(job)
    assert (job.status, job.attempt, job.retry_count) == ("completed", 2, 0)
    assert attempt_of(job, 1).reason == "worker_stopped"


def test_a_worker_that_is_told_to_end_takes_no_new_jobs(workers, kind):
    """While it still waits for what it stops, new work is left for others."""
    worker = workers.start().wait_until_started()
    worker.terminate()
    assert worker.ended() == 0
    job = JobFactory(status="queued")
    assert status_of(job) == "queued"
    assert "ended" in worker.said
