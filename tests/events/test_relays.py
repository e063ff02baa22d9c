"""Relays that are killed, paused or doubled: each event is told, in order, and no gap is left."""

from __future__ import annotations

import json
import random
import signal
import time
from collections import defaultdict
from pathlib import Path

import pytest

from container_manager.models import Event, PublisherState, StateHistory
from container_manager.models.sequencing import take_all
from tests.factories import JobFactory
from tests.support.publishers import to_file, told
from tests.support.redis_server import RedisServer
from tests.support.workers import wait_until

pytestmark = [pytest.mark.processes, pytest.mark.django_db(transaction=True)]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "told"


def to_redis(server: RedisServer, **options: object) -> dict[str, object]:
    path = "container_manager.events.redis.RedisPublisher"
    return {"class": path, "options": {"url": server.url, **options}}


def some_moves(jobs: int = 20) -> None:
    for _ in range(jobs):
        job = JobFactory()
        for status in ("queued", "running", "completed"):
            job.transition_to(status)


def served(alias: str) -> bool:
    return PublisherState.objects.filter(alias=alias, holder__isnull=False).exists()


def all_are_told(*aliases: str) -> bool:
    take_all()
    newest = Event.objects.newest()
    return PublisherState.objects.filter(alias__in=aliases, position=newest).count() == len(aliases)


def assert_told_in_order(found: list[tuple[int, str, int]]) -> None:
    """Each event at least once; what comes for the first time comes in order of its entity."""
    assert {sequence for sequence, _, _ in found} == set(range(1, Event.objects.newest() + 1))
    assert StateHistory.objects.count() == Event.objects.count()
    lives = defaultdict(list)
    for _, entity, version in found:
        if version not in lives[entity]:
            lives[entity].append(version)
    assert all(life == sorted(life) for life in lives.values())


def test_a_relay_that_is_killed_again_and_again_leaves_no_gap(workers, server, file, tmp_path):
    """kill -9 at random moments; another one takes over when its lease is over."""
    trouble = tmp_path / "trouble"
    trouble.write_text("sleep 0.005")
    publishers = {"file": to_file(file, trouble), "redis": to_redis(server)}
    relay = workers.start_relay(PUBLISHERS=publishers).wait_until_started()
    wait_until(lambda: served("file") and served("redis"))
    for _ in range(4):
        some_moves(10)
        before = len(told(file))
        wait_until(lambda: len(told(file)) > before + random.randrange(20))  # noqa: B023
        relay.kill()
        relay = workers.start_relay(PUBLISHERS=publishers)
    trouble.unlink()
    wait_until(lambda: all_are_told("file", "redis"), "all to be told")
    assert_told_in_order(told(file))
    assert server.sequences() == list(range(1, Event.objects.newest() + 1))


def test_two_relays_at_once_tell_nothing_twice_and_either_may_go(workers, server, file):
    publishers = {"file": to_file(file), "redis": to_redis(server)}
    relays = [workers.start_relay(PUBLISHERS=publishers).wait_until_started() for _ in range(2)]
    some_moves(20)
    wait_until(lambda: all_are_told("file", "redis"))
    for relay in relays:
        some_moves(5)
        relay.terminate()
        assert relay.ended() == 0
        if relay is relays[0]:
            wait_until(lambda: all_are_told("file", "redis"))
    workers.start_relay("--until-idle", PUBLISHERS=publishers).ended()
    sequences = [sequence for sequence, _, _ in told(file)]
    assert sequences == list(range(1, Event.objects.newest() + 1))
    assert server.sequences() == sequences


def test_a_relay_that_slept_while_another_took_over_changes_nothing(workers, server, file):
    """SIGSTOP in the middle of a batch, SIGCONT when its publishers are somebody else's."""
    trouble = file.with_name("trouble")
    trouble.write_text("sleep 0.02")
    publishers = {"file": to_file(file, trouble), "redis": to_redis(server)}
    sleeper = workers.start_relay(PUBLISHERS=publishers).wait_until_started()
    wait_until(lambda: served("file") and served("redis"))
    some_moves(20)
    wait_until(lambda: len(told(file)) > 5)
    sleeper.pause()
    epoch = PublisherState.objects.get(alias="file").epoch
    trouble.unlink()
    workers.start_relay(PUBLISHERS=publishers).wait_until_started()
    wait_until(lambda: PublisherState.objects.get(alias="file").epoch > epoch)
    some_moves(10)
    wait_until(lambda: all_are_told("file", "redis"))
    sleeper.go_on()
    wait_until(lambda: "another relay serves it by now" in sleeper.said)
    some_moves(5)
    wait_until(lambda: all_are_told("file", "redis"))
    assert_told_in_order(told(file))
    assert server.sequences() == list(range(1, Event.objects.newest() + 1))
    assert not sleeper.has_ended


def test_sigterm_ends_a_relay_after_the_batch_under_way(workers, file):
    trouble = file.with_name("trouble")
    trouble.write_text("sleep 0.02")
    relay = workers.start_relay(PUBLISHERS={"file": to_file(file, trouble)}).wait_until_started()
    wait_until(lambda: served("file"))
    some_moves(10)
    wait_until(lambda: told(file))
    relay.terminate()
    assert relay.ended() == 0
    state = PublisherState.objects.get()
    assert (state.holder, state.position) == (None, told(file)[-1][0])
    assert "Relay: ended" in relay.said


def test_a_second_signal_ends_it_at_once(workers, file):
    trouble = file.with_name("trouble")
    trouble.write_text("sleep 600")
    relay = workers.start_relay(PUBLISHERS={"file": to_file(file, trouble)}).wait_until_started()
    wait_until(lambda: served("file"))
    some_moves(1)
    wait_until(file.with_suffix(".sleeps").exists)
    relay.terminate()
    time.sleep(0.5)
    relay.terminate()
    assert relay.ended() == 128 + signal.SIGTERM


def test_one_receiver_that_is_slow_and_one_that_is_away_delay_no_other(workers, server, tmp_path):
    slow, away = tmp_path / "slow", tmp_path / "away"
    slow.write_text("sleep 600"), away.write_text("unavailable")
    publishers = {
        "slow": to_file(tmp_path / "1", slow),
        "away": to_file(tmp_path / "2", away),
        "redis": to_redis(server),
    }
    workers.start_relay(PUBLISHERS=publishers).wait_until_started()
    wait_until(lambda: all(map(served, publishers)))
    some_moves(20)
    wait_until(lambda: all_are_told("redis"))
    assert told(tmp_path / "1") == told(tmp_path / "2") == []
    away.unlink()
    wait_until(lambda: all_are_told("redis", "away"))
    assert_told_in_order(told(tmp_path / "2"))


def test_no_message_in_redis_changes_anything(workers, server):
    """Whoever may write there can lie to who listens there, and to nobody else."""
    workers.start_relay(PUBLISHERS={"redis": to_redis(server)}).wait_until_started()
    job = JobFactory()
    wait_until(lambda: served("redis") and all_are_told("redis"))
    lie = {"id": "1", "entity_type": "job", "entity_id": str(job.pk), "new_state": "killed"}
    for channel in ("events", "job", "workers"):
        server.client.publish(f"container_manager:{channel}", json.dumps(lie))
    server.client.xadd("container_manager:stream", {"event": json.dumps(lie)}, id="99-0")
    job.transition_to("queued")
    wait_until(lambda: server.sequences() == [1, 2])
    job.refresh_from_db()
    assert (job.status, StateHistory.objects.count()) == ("queued", 2)
