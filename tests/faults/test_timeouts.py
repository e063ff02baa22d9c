"""Row 30: a timeout in every phase leaves one reason.

During the pull: test_images.py. Before the start, and with a stop that came too late: step by step
in tests/worker/test_runner.py. Zero seconds: refused, in tests/models/test_validators.py.
"""

from __future__ import annotations

import time
from contextlib import contextmanager
from datetime import timedelta

import pytest
from django.db import connection, transaction

from container_manager import lifecycle
from container_manager.models import JobAttempt
from container_manager.states import StopKind
from tests.support.neighbours import PATIENCE, beside_innocents, told
from tests.support.running import KINDS, attempt_of, queue_job, stdout
from tests.support.workers import wait_until

pytestmark = [
    pytest.mark.processes,
    pytest.mark.django_db(transaction=True),
    pytest.mark.parametrize("kind", KINDS),
]

STUBBORN = "trap '' TERM; echo ready; while :; do sleep 0.2; done"
COMPLETED, LATE = ("completed", ""), ("failed", "timeout")


def test_a_deadline_leaves_one_reason_whatever_else_happens_then(workers, kind):
    with beside_innocents(workers, kind, concurrency=8):
        races = [queue_job(kind, "sleep 1", timeout_seconds=1) for _ in range(4)]
        drawn_out = queue_job(kind, STUBBORN, timeout_seconds=1, stop_grace_seconds=300)
        in_time = queue_job(kind, "sleep 0.1", timeout_seconds=300)
        late = JobAttempt.objects.filter(job=drawn_out, stop_kind="timeout")
        wait_until(late.exists, "the deadline", PATIENCE)
        lifecycle.stop([drawn_out.pk], StopKind.KILL)

        assert told(drawn_out) == ("killed", "killed", 137)
        assert told(in_time) == (*COMPLETED, 0)
        for job in races:
            status, reason, exit_code = told(job)
            assert (status, reason) in (COMPLETED, LATE)
            assert exit_code == 0 or (status, reason) == LATE


def test_who_ended_in_time_has_completed_although_his_log_is_written_late(workers, kind):
    """Success at the deadline is success when the end was first, by the engine's own clock."""
    seconds = 3
    with beside_innocents(workers, kind):
        script = "echo ready; sleep 1; head -c 300000 /dev/zero"
        job = queue_job(kind, script, timeout_seconds=seconds)
        wait_until(lambda: stdout(job) == b"ready\n", "the job to print", PATIENCE)
        with nobody_writes_a_log():
            time.sleep(seconds + 0.5)

        end = told(job)[:2]
        attempt = attempt_of(job)
        was_in_time = attempt.ended_at - attempt.started_at < timedelta(seconds=seconds)
        assert end == (COMPLETED if was_in_time else LATE)
        if was_in_time:
            assert stdout(job) == b"ready\n" + bytes(300_000)


@contextmanager
def nobody_writes_a_log():
    """Holds the table in a transaction of this test; on SQLite that holds everything."""
    with transaction.atomic():
        if connection.vendor == "postgresql":
            with connection.cursor() as cursor:
                cursor.execute("LOCK TABLE job_logs IN ACCESS EXCLUSIVE MODE")
        yield
