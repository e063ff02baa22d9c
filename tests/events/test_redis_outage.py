"""Whatever happens to Redis: no move fails or waits, and afterwards everything is told."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator

import pytest

from container_manager.events.base import TransitionEvent
from container_manager.events.redis import RedisPublisher
from container_manager.models import ContainerJob, Event, PublisherState, StateHistory
from tests.events.test_relays import all_are_told, served, some_moves, to_redis
from tests.factories import JobFactory
from tests.support.redis_server import RedisServer
from tests.support.workers import WorkerProcess, Workers, wait_until

pytestmark = [pytest.mark.processes, pytest.mark.django_db(transaction=True)]


def stopped(server: RedisServer) -> Callable[[], None]:
    server.stop()
    return server.start


def killed(server: RedisServer) -> Callable[[], None]:
    server.kill()
    return server.start


def paused(server: RedisServer) -> Callable[[], None]:
    """It accepts connections and never answers."""
    server.pause()
    return server.go_on


def full(server: RedisServer) -> Callable[[], None]:
    server.be_full()
    return server.have_room


def restarted_empty(server: RedisServer) -> Callable[[], None]:
    server.restart_empty()
    return lambda: None


FAULTS = [stopped, killed, paused, full, restarted_empty]


@pytest.fixture
def relay(workers: Workers, server: RedisServer) -> Iterator[WorkerProcess]:
    relay = workers.start_relay(PUBLISHERS={"redis": to_redis(server, timeout=0.5)})
    relay.wait_until_started()
    wait_until(lambda: served("redis"))
    yield relay
    assert not relay.has_ended
    assert "Traceback" not in relay.said


@pytest.mark.parametrize("fault", FAULTS)
def test_no_move_fails_and_afterwards_everything_is_told_in_order(relay, server, fault):
    heard: list[TransitionEvent] = []
    gaps: list[tuple[int, int]] = []
    reader = RedisPublisher(server.url, timeout=0.5)
    with reader.subscribe(heard.append, after=0, resync=lambda *gap: gaps.append(gap)):
        some_moves(10)
        wait_until(lambda: all_are_told("redis"))
        heal = fault(server)
        some_moves(10)
        if fault is not restarted_empty:
            wait_until(lambda: PublisherState.objects.get().failing_since, "it to be noticed")
        heal()
        some_moves(5)
        wait_until(lambda: all_are_told("redis"), "all to be told")
        wait_until(lambda: len({event.sequence for event in heard}) == 100)
    assert StateHistory.objects.count() == 100
    assert server.sequences() == list(range(1, 101))
    assert [event.sequence for event in heard] == list(range(1, 101))
    assert gaps == []
    assert PublisherState.objects.get().failing_since is None


def test_while_redis_sleeps_moves_are_made_and_get_their_places(relay, server):
    """Nothing of a move touches Redis: not its transaction, nor its place in the sequence."""
    server.pause()
    some_moves(20)
    wait_until(lambda: Event.objects.count() == 80)
    server.go_on()
    wait_until(lambda: all_are_told("redis"))


@pytest.mark.parametrize("fault", FAULTS)
def test_workers_find_jobs_whatever_redis_does_also_the_last_one(relay, workers, server, fault):
    """No wake-up goes through Redis, so none can be lost there."""
    workers.use_inline()
    publishers = json.dumps({"redis": to_redis(server)})
    workers.start(PUBLISHERS=publishers).wait_until_started()
    heal = fault(server)
    jobs = [JobFactory(status="queued", executor="inline") for _ in range(10)]
    wait_until(lambda: ContainerJob.objects.filter(status="completed").count() == 10)
    time.sleep(0.3)
    last = JobFactory(status="queued", executor="inline")
    wait_until(lambda: ContainerJob.objects.get(pk=last.pk).status == "completed")
    heal()
    wait_until(lambda: all_are_told("redis"))
    assert len(jobs) * 3 + 3 == Event.objects.count() == len(server.sequences())


def test_a_relay_begins_though_redis_is_not_there(workers, server):
    server.kill()
    workers.start_relay(PUBLISHERS={"redis": to_redis(server)}).wait_until_started()
    some_moves(3)
    wait_until(lambda: served("redis") and PublisherState.objects.get().failing_since)
    server.start()
    wait_until(lambda: all_are_told("redis"))
    assert server.sequences() == list(range(1, 13))
