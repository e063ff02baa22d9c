"""The named hooks lie on the paths that they name, so that they cannot rot."""

from __future__ import annotations

import threading

import pytest

from container_manager import faults, lifecycle
from container_manager.executors.base import Chunk
from container_manager.models import ContainerJob
from container_manager.states import StopKind
from tests.support.loops import work, working
from tests.support.spine import a_worker, failed, held_by, reaching
from tests.support.workers import settled, wait_until

pytestmark = pytest.mark.django_db(transaction=True)

ELSEWHERE = {
    "R2": "inside a pull: only an executor with images comes there",
    "N1": "the scheduler comes there: test_workflow_crashes",
    "D1": "the scheduler comes there: test_workflow_crashes",
}
WANTED = {"image": "busybox", "command": ["true"], "max_retries": 1}


def test_every_point_is_reached_in_the_life_of_a_worker(world):
    seen = set()
    world.chunks = (Chunk("stdout", 0, b"text"),)
    with reaching(seen.add):
        lifecycle.submit(**WANTED, queue_now=True)
        assert work() == 0
        _fail_once(world)
        _kill_one(world)
        _adopt_one(world)
    assert seen == set(faults.POINTS) - set(ELSEWHERE)


def _fail_once(world):
    world.outcome = failed(2)
    lifecycle.submit(**WANTED, retry_policy={"base_seconds": 0}, queue_now=True)
    assert work() == 0


def _kill_one(world):
    world.runs_until_stopped = True
    job = lifecycle.submit(**WANTED, queue_now=True)
    with working():
        wait_until(lambda: world.times("start") >= 4, "its start")
        lifecycle.stop([job.pk], StopKind.KILL)
        assert settled(job).status == "killed"


def _adopt_one(world):
    from container_manager.models.leases import Offer

    gone = a_worker("gone", offers=[Offer("", "auto", "fake", "container", "fake")])
    lease = held_by(gone)
    with working():
        wait_until(lambda: ContainerJob.objects.get(pk=lease.job_id).status == "retrying", "it")


def test_a_hook_is_nothing_where_nobody_listens():
    assert faults.on_reach is None
    faults.reached("C1")


def test_hooks_are_called_on_the_thread_that_comes_by(world):
    threads = {}
    lifecycle.submit(**WANTED, queue_now=True)
    with reaching(lambda point: threads.setdefault(point, threading.current_thread().name)):
        assert work() == 0
    assert threads["C1"] == threads["X4"] == threading.current_thread().name
    assert threads["R3"].startswith("cm-")
