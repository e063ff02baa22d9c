"""Rows 24 and 25: jobs that take all memory, processes, files and disk there are.

A container meets its limits. A local process has only that of memory: how many processes it starts,
and how much it writes to the disk, is limited by the machine and its user alone.
"""

from __future__ import annotations

import sys

import pytest

from container_manager import lifecycle
from container_manager.states import StopKind
from tests.executors.contract import a_number_like_no_other, processes_with
from tests.support.neighbours import PATIENCE, beside_innocents, told
from tests.support.running import DOCKER_MARKS, attempt_of, lives, queue_job, stderr, stdout
from tests.support.spine import contradictions, path_of
from tests.support.workers import wait_until

pytestmark = [pytest.mark.processes, pytest.mark.django_db(transaction=True)]

GREEDY = "head -c 400000000 /dev/zero | tail -c 300000000 >/dev/null"
SEEN = "ended=$?; sleep 2; exit $ended"
"""An engine may miss what the kernel tells it beside the end of a container."""
CHILD = "tail -c 300000000 /dev/zero"
READY = "echo ready; while :; do sleep 0.2; done"
BOMB = "bomb() { bomb | bomb & }; bomb; while :; do sleep 1; done"
ALL_FILES = "import os\nwhile True: os.dup(1)"


def in_docker(test):
    for mark in DOCKER_MARKS:
        test = mark(test)
    return test


@in_docker
def test_containers_meet_their_limits_and_the_neighbours_do_not_notice(workers):
    with beside_innocents(workers, "docker", concurrency=8):
        main = queue_job("docker", f"{GREEDY}; {SEEN}", memory_limit_mb=32)
        child = queue_job("docker", f"{CHILD}; sleep 2; exit 3", memory_limit_mb=32)
        killed = queue_job("docker", f"{CHILD}; {READY}", memory_limit_mb=32, max_retries=3)
        bomb = queue_job("docker", BOMB, pids_limit=32, timeout_seconds=3)
        disk = queue_job("docker", "head -c 200000000 /dev/zero > /tmp/x; touch /x")
        files = queue_job("docker", """awk 'BEGIN { for (n = 0; ; n++) print > ("/tmp/" n) }'""")
        wait_until(lambda: stdout(killed) == b"ready\n", "the job to print", PATIENCE)
        lifecycle.stop([killed.pk], StopKind.KILL)

        assert told(main) == ("failed", "oom", 137)
        assert told(child) == ("failed", "oom", 3)
        assert told(killed) == ("killed", "killed", 137)
        assert all(attempt_of(job).oom_killed for job in (main, child, killed))
        status, reason, _ = told(bomb)
        assert (status, reason in ("exit_code", "timeout", "signal")) == ("failed", True)
        assert b"can't fork" in stderr(bomb)
        assert told(disk) == ("failed", "exit_code", 1)
        assert b"Read-only file system" in stderr(disk)
        assert told(files)[:2] == ("failed", "exit_code")
        assert b"Too many open files" in stderr(files)
        assert not lives(bomb)


@in_docker
def test_a_kill_of_what_had_run_out_of_memory_is_not_told_as_a_kill(workers):
    """Row 24: the worker that adopts it finds both; 137 was the kernel's doing."""
    workers.use_docker()
    job = queue_job("docker", f"echo ready; sleep 1; {GREEDY}; {SEEN}", memory_limit_mb=32)
    first = workers.start()
    wait_until(lambda: stdout(job) == b"ready\n", "the job to print", PATIENCE)
    first.kill()
    wait_until(lambda: not lives(job), "the kernel", PATIENCE)
    lifecycle.stop([job.pk], StopKind.KILL)
    workers.start()

    assert told(job) == ("failed", "oom", 137)
    assert attempt_of(job).oom_killed
    assert path_of(job) == ["queued", "running", "failed"]
    wait_until(lambda: not workers.left_behind(), "the remains to be removed", PATIENCE)
    assert contradictions() == []


def test_local_jobs_that_take_what_they_can_get_end_alone(workers):
    mark = a_number_like_no_other()
    crowd = f"for _ in $(seq 100); do sleep {mark} & done; wait"
    with beside_innocents(workers, "process"):
        greedy = queue_job("process", f"exec sh -c '{GREEDY}'", memory_limit_mb=32)
        files = queue_job("process", [sys.executable, "-c", ALL_FILES])
        many = queue_job("process", f"setsid sh -c '{crowd}' & {crowd}")
        wait_until(lambda: len(processes_with(mark)) >= 200, "the crowd", PATIENCE)
        lifecycle.stop([many.pk], StopKind.KILL)

        assert told(greedy)[:2] == ("failed", "exit_code")
        assert b"memory" in stderr(greedy)
        assert told(files)[:2] == ("failed", "exit_code")
        assert b"Too many open files" in stderr(files)
        assert told(many) == ("killed", "killed", 137)
        assert processes_with(mark) == []
