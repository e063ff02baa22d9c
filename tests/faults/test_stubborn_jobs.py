"""Row 23: jobs that do not want to end, each beside innocent ones on the same worker.

What the executors promise by themselves is in tests/executors: children, sessions, double forks,
who forks on and on into new sessions, orphans that are reaped, a pipe that a grandchild or a
stranger holds open.
"""

from __future__ import annotations

import pytest

from container_manager import lifecycle
from container_manager.states import StopKind
from tests.executors.contract import a_number_like_no_other, processes_with
from tests.support.neighbours import PATIENCE, beside_innocents, told
from tests.support.running import KINDS, lives, queue_job, stdout
from tests.support.workers import wait_until

pytestmark = [pytest.mark.processes, pytest.mark.django_db(transaction=True)]

IGNORES = "trap '' TERM INT HUP; echo ready; while :; do sleep 0.2; done"


@pytest.mark.parametrize("kind", KINDS)
def test_who_does_not_want_to_end_is_ended_and_the_neighbours_do_not_notice(workers, kind):
    mark = a_number_like_no_other()
    gets_away = f"setsid sleep {mark} & (setsid sleep {mark} &)"
    with beside_innocents(workers, kind, concurrency=8):
        ignores = queue_job(kind, IGNORES, stop_grace_seconds=1)
        killed = queue_job(kind, f"{gets_away}; {IGNORES}", stop_grace_seconds=300)
        leaves = queue_job(kind, f"{gets_away}; echo ready")
        holds = queue_job(kind, f"sleep {mark} & printf ready")
        for job in (ignores, killed):
            wait_until(lambda job=job: stdout(job) == b"ready\n", f"{job} to print", PATIENCE)
        lifecycle.stop([ignores.pk], StopKind.CANCEL)
        lifecycle.stop([killed.pk], StopKind.KILL)

        assert told(ignores) == ("cancelled", "cancelled", 137)
        assert told(killed) == ("killed", "killed", 137)
        assert told(leaves) == told(holds) == ("completed", "", 0)
        assert (stdout(leaves), stdout(holds)) == (b"ready\n", b"ready")
        assert processes_with(mark) == []
        assert not any(map(lives, (ignores, killed, leaves, holds)))
