"""One worker, real jobs as processes and in containers: what they did is what is recorded."""

from __future__ import annotations

import time

import pytest
from django.utils import timezone

from container_manager import lifecycle
from container_manager.lifecycle import Stopped
from container_manager.models import ContainerJob, JobLog
from container_manager.states import StopKind
from tests.support.running import KINDS, attempt_of, lives, queue_job, stderr, stdout
from tests.support.spine import contradictions, path_of
from tests.support.workers import settled, status_of, wait_for, wait_until

pytestmark = [pytest.mark.processes, pytest.mark.django_db(transaction=True)]

KILL, CANCEL = StopKind.KILL, StopKind.CANCEL
STUBBORN = "trap '' TERM; echo ready; while :; do sleep 0.2; done"
GONE_WITHIN = 2.0


@pytest.fixture(params=KINDS)
def kind(request, workers):
    if request.param == "docker":
        workers.use_docker()
    return request.param


@pytest.fixture(autouse=True)
def _nothing_is_left(workers):
    """In the end the records agree and the engines are clean."""
    yield
    if workers.started and not workers.started[-1].has_ended:
        wait_until(lambda: not workers.left_behind(), "the remains to be removed")
        assert contradictions() == []


def printed(job, text=b"ready\n"):
    """The job runs, and what it printed is in the log already."""
    wait_until(lambda: stdout(job) == text, f"{job} to print")
    assert status_of(job) == "running"


def stop(job, kind):
    assert lifecycle.stop([job.pk], kind) == {job.pk: Stopped.REQUESTED}


# Ends


def test_ends_are_recorded_with_their_evidence(workers, kind):
    good = queue_job(kind, "echo out; echo err >&2")
    bad = queue_job(kind, "echo half; exit 3")
    shot = queue_job(kind, ["/bin/sh", "-c", "kill -SEGV $$; sleep 30"])
    workers.start()
    good, bad, shot = settled(good), settled(bad), settled(shot)
    assert (good.status, good.exit_code, good.reason, good.output) == ("completed", 0, "", "out\n")
    assert (stdout(good), stderr(good)) == (b"out\n", b"err\n")
    assert (bad.status, bad.exit_code, bad.reason) == ("failed", 3, "exit_code")
    assert (shot.status, shot.exit_code) == ("failed", 139)
    assert attempt_of(shot).signal == 11
    for job in (good, bad, shot):
        attempt = attempt_of(job)
        assert path_of(job) == ["queued", "running", job.status]
        assert (attempt.phase, attempt.exit_code) == ("done", job.exit_code)
        assert attempt.execution_id
        assert attempt.started_at <= attempt.ended_at
        assert attempt.stdout_bytes == len(stdout(job))
        wait_until(lambda job=job: attempt_of(job).cleaned_up, "the remains to be removed")


def test_a_failed_job_is_run_again_and_each_attempt_keeps_its_log(workers, kind):
    policy = {"strategy": "fixed", "base_seconds": 0, "jitter": 0}
    script = 'echo "attempt $CM_ATTEMPT"; [ "$CM_ATTEMPT" = 2 ]'
    job = queue_job(kind, script, max_retries=3, retry_policy=policy)
    workers.start()
    job = wait_for(job, "completed")
    assert (job.attempt, job.retry_count) == (2, 1)
    assert [stdout(job, number) for number in (1, 2)] == [b"attempt 1\n", b"attempt 2\n"]
    assert path_of(job) == [
        *("queued", "running", "failed", "retrying"),
        *("queued", "running", "completed"),
    ]


def test_a_job_that_takes_too_long_is_stopped_and_has_failed(workers, kind):
    """Row 30: a timeout of one second, also of one that does not listen."""
    patient = queue_job(kind, "trap 'exit 0' TERM; while :; do sleep 0.1; done", timeout_seconds=1)
    stubborn = queue_job(kind, STUBBORN, timeout_seconds=1)
    workers.start()
    patient, stubborn = settled(patient), settled(stubborn)
    assert (patient.status, patient.reason, patient.exit_code) == ("failed", "timeout", 0)
    assert (stubborn.status, stubborn.reason, stubborn.exit_code) == ("failed", "timeout", 137)
    assert attempt_of(patient).blame == "policy"
    assert not lives(patient)
    assert not lives(stubborn)


# Stops


def test_a_cancelled_job_may_tidy_up_and_its_exit_code_is_kept(workers, kind):
    script = "trap 'echo bye; exit 0' TERM; echo ready; while :; do sleep 0.1; done"
    job = queue_job(kind, script, stop_grace_seconds=30)
    workers.start()
    printed(job)
    stop(job, CANCEL)
    job = settled(job)
    assert (job.status, job.reason, job.exit_code) == ("cancelled", "cancelled", 0)
    assert stdout(job) == b"ready\nbye\n"
    assert job.signalled_at is not None
    assert attempt_of(job).blame == "person"


def test_a_cancelled_job_that_does_not_listen_is_ended_by_force_after_its_grace(workers, kind):
    """Row 23: SIGTERM is ignored."""
    job = queue_job(kind, STUBBORN, stop_grace_seconds=1)
    workers.start()
    printed(job)
    stop(job, CANCEL)
    job = settled(job)
    assert (job.status, job.exit_code) == ("cancelled", 137)


def test_a_kill_after_a_cancel_does_not_wait_for_the_grace(workers, kind):
    job = queue_job(kind, STUBBORN, stop_grace_seconds=300)
    workers.start()
    printed(job)
    stop(job, CANCEL)
    wait_until(lambda: ContainerJob.objects.get().signalled_at, "the first signal")
    stop(job, KILL)
    job = settled(job)
    assert (job.status, job.reason, job.exit_code) == ("killed", "killed", 137)


def test_a_killed_job_is_gone_at_once_and_the_row_never_says_so_before(workers, kind):
    """Row 23: with a child that ignores SIGTERM, too."""
    job = queue_job(kind, f"(trap '' TERM; sleep 300) & {STUBBORN}", stop_grace_seconds=300)
    workers.start(REQUEST_POLL_SECONDS=0.5)
    printed(job)
    assert lives(job)
    asked_at = time.monotonic()
    stop(job, KILL)
    gone_at = None
    while status_of(job) != "killed":
        if gone_at is None and not lives(job):
            gone_at = time.monotonic()
        assert time.monotonic() - asked_at < 30
    assert not lives(job)
    assert (gone_at or time.monotonic()) - asked_at < GONE_WITHIN
    job.refresh_from_db()
    assert (job.status, job.reason, job.exit_code) == ("killed", "killed", 137)
    assert lifecycle.stop([job.pk], KILL) == {job.pk: Stopped.REFUSED}


def test_an_end_before_the_signal_is_told_as_it_was(workers, kind):
    """The request is there before the worker looks; the job has ended by itself when it acts."""
    job = queue_job(kind, "echo ready; sleep 2; exit 3")
    workers.start(REQUEST_POLL_SECONDS=60, LEASE_SECONDS=200)
    printed(job)
    # As if the request came in just then: lifecycle.stop would wake the worker.
    ContainerJob.objects.filter(pk=job.pk).update(kill_requested_at=timezone.now())
    job = settled(job)
    assert (job.status, job.reason, job.exit_code) == ("failed", "exit_code", 3)
    assert job.signalled_at is None


def test_a_kill_that_races_the_end_leaves_one_truthful_end(workers, kind):
    jobs = [queue_job(kind, f"sleep 0.{number % 7}") for number in range(14)]
    workers.start("--concurrency", "7", REQUEST_POLL_SECONDS=0.05)
    told = {}
    open_ = set(jobs)
    while open_:
        for job in [each for each in open_ if status_of(each) != "queued"]:
            told[job.pk] = lifecycle.stop([job.pk], KILL)[job.pk]
            open_.remove(job)
    for job in map(settled, jobs):
        path = path_of(job)
        assert path in (["queued", "running", "killed"], ["queued", "running", "completed"])
        if job.status == "completed":
            assert job.exit_code == 0
        else:
            assert told[job.pk] == Stopped.REQUESTED
            assert job.exit_code in (None, 137)


# Output


def test_all_256_byte_values_without_a_final_newline_are_exactly_in_the_log(workers, kind):
    """Rows 27 and 29: every byte, no last newline."""
    values = "".join(f"\\{value:03o}" for value in range(256))
    back = "".join(f"\\{value:03o}" for value in reversed(range(256)))
    job = queue_job(kind, f"printf '{values}'; printf '{back}' >&2")
    workers.start()
    job = wait_for(job, "completed")
    assert stdout(job) == bytes(range(256))
    assert stderr(job) == bytes(reversed(range(256)))
    assert "\0" not in job.output
    assert "abc" in job.output


def test_streams_are_kept_apart_and_a_line_is_not_broken(workers, kind):
    """Row 28: a line longer than 16 KiB."""
    long = "head -c 40000 /dev/zero | tr '\\0' "
    job = queue_job(kind, f"{long} a; {long} b >&2; echo; echo ERROR; echo fine >&2")
    workers.start()
    job = wait_for(job, "completed")
    assert stdout(job) == b"a" * 40000 + b"\nERROR\n"
    assert stderr(job) == b"b" * 40000 + b"fine\n"


def test_megabytes_of_output_are_kept_whole(workers, kind):
    """Row 28: below the cap nothing is left out."""
    job = queue_job(kind, "seq 1 450000")
    workers.start()
    job = wait_for(job, "completed")
    whole = "".join(f"{number}\n" for number in range(1, 450_001)).encode()
    assert len(whole) > 3_000_000
    assert stdout(job) == whole
    assert job.output == whole[-65536:].decode()
    attempt = attempt_of(job)
    assert (attempt.stdout_bytes, attempt.stdout_omitted) == (len(whole), 0)
    longest = max(len(bytes(data)) for data in JobLog.objects.values_list("data", flat=True))
    assert longest <= 65536


def test_beyond_the_cap_head_and_tail_are_kept_and_what_is_left_out_is_counted(workers, kind):
    """Row 28: the cap, with counts."""
    cap = 100_000
    job = queue_job(kind, "seq 1 300000; echo short >&2")
    workers.start(LOG_CAP_BYTES=cap)
    job = wait_for(job, "completed")
    whole = "".join(f"{number}\n" for number in range(1, 300_001)).encode()
    chunks = JobLog.objects.filter(job=job, stream="stdout").order_by("offset")
    pieces = [(offset, bytes(data)) for offset, data in chunks.values_list("offset", "data")]
    assert all(whole[offset : offset + len(data)] == data for offset, data in pieces)
    head = sum(len(data) for offset, data in pieces if offset < cap // 2)
    tail = sum(len(data) for offset, data in pieces if offset >= cap // 2)
    assert head == cap // 2
    assert cap // 2 <= tail <= cap // 2 + 2 * 65536
    assert pieces[-1][0] + len(pieces[-1][1]) == len(whole)
    attempt = attempt_of(job)
    assert attempt.stdout_bytes == len(whole)
    assert attempt.stdout_omitted == len(whole) - head - tail
    assert (attempt.stderr_bytes, attempt.stderr_omitted) == (6, 0)
    assert job.output == whole[-65536:].decode()


# What a job is given


def test_a_job_sees_the_variables_it_names_and_nothing_of_the_worker(workers, kind):
    job = queue_job(kind, ["env"], environment={"NAMED": "a b=c"})
    workers.start()
    job = wait_for(job, "completed")
    seen = dict(line.split("=", 1) for line in stdout(job).decode().splitlines())
    own = {
        "process": {"PATH", "HOME", "TMPDIR", "CM_EXECUTION"},
        "docker": {"PATH", "HOME", "HOSTNAME"},
    }
    assert seen.keys() - own[kind] == {"NAMED", "CM_JOB_ID", "CM_ATTEMPT"}
    assert seen["NAMED"] == "a b=c"
    assert (seen["CM_JOB_ID"], seen["CM_ATTEMPT"]) == (str(job.pk), "1")


# Starts that fail


def test_a_command_that_is_not_there_is_the_users_and_is_not_tried_again(workers, kind):
    """Row 26: command not found, not executable."""
    missing = queue_job(kind, ["/no/such/command"], max_retries=3)
    data = queue_job(kind, ["/etc/passwd"], max_retries=3)
    workers.start()
    missing, data = settled(missing), settled(data)
    assert (missing.status, missing.reason) == ("failed", "command_not_found")
    assert (data.status, data.reason) == ("failed", "not_executable")
    for job in (missing, data):
        assert (job.attempt, job.retry_count) == (1, 0)
        assert job.error
        assert attempt_of(job).blame == "user"


@pytest.mark.parametrize("kind", KINDS[1:], indirect=True)
@pytest.mark.parametrize("pull_policy", ["never"])
def test_an_image_that_is_not_there_is_the_users_and_is_not_tried_again(workers, kind, pull_policy):
    """Row 26: the image is missing and may not be pulled."""
    job = queue_job(kind, "true", image="no-such-image:1", pull_policy=pull_policy, max_retries=3)
    workers.start()
    job = settled(job)
    assert (job.status, job.reason, job.attempt) == ("failed", "image_not_found", 1)
    assert "no-such-image" in job.error
    assert attempt_of(job).blame == "user"


@pytest.mark.parametrize("kind", KINDS[1:], indirect=True)
def test_a_job_that_needs_more_memory_than_it_may_is_told_so(workers, kind):
    """Row 24: retried with more memory, because its policy says so."""
    policy = {
        "strategy": "fixed",
        "base_seconds": 0,
        "rules": [{"on_reason": ["oom"], "action": "retry", "memory_factor": 16}],
    }
    greedy = "head -c 60000000 /dev/zero | tail -c 50000000 >/dev/null"
    script = f"{greedy}; code=$?; sleep 1; exit $code"
    job = queue_job(kind, script, memory_limit_mb=16, max_retries=1, retry_policy=policy)
    workers.start()
    job = settled(job)
    first = attempt_of(job)
    assert (first.reason, first.oom_killed, first.blame) == ("oom", True, "user")
    assert (job.status, job.attempt, job.memory_limit_mb) == ("completed", 2, 256)
