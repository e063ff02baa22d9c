"""RedisPublisher on a real server: what it tells, and what happens to the server meanwhile."""

from __future__ import annotations

import json
import threading
import time
from uuid import UUID

import pytest
import redis

from container_manager.events import redis as module
from container_manager.events.base import OutOfStep, Standing, Unavailable
from container_manager.events.redis import RedisPublisher
from tests.support.redis_server import free_port
from tests.support.some_events import event, events
from tests.support.workers import wait_until

US = "installation-1"
STREAM = "container_manager:stream"


def standing(position, oldest=1, newest=None, source=US):
    return Standing(position, oldest, position if newest is None else newest, source)


@pytest.fixture
def publisher(server):
    publisher = RedisPublisher(server.url)
    assert publisher.begin(standing(0)) == 0
    yield publisher
    publisher.close()


# What it tells ------------------------------------------------------------------------------------


def test_the_stream_has_each_event_under_its_sequence(publisher, server):
    publisher.publish(events(1, 3))
    publisher.publish([event(4, metadata={"ä": "\0\n"})])
    entries = server.client.xrange(STREAM)
    assert [entry_id for entry_id, _ in entries] == ["1-0", "2-0", "3-0", "4-0"]
    assert [list(fields) for _, fields in entries] == [["event"]] * 4
    assert json.loads(entries[3][1]["event"]) == event(4, metadata={"ä": "\0\n"}).as_json()


def test_who_listens_live_hears_it_on_the_channels_of_the_contract(publisher, server):
    listener = server.client.pubsub(ignore_subscribe_messages=True)
    listener.subscribe("container_manager:events", "container_manager:dag_run")
    listener.get_message(timeout=5), listener.get_message(timeout=5)
    publisher.publish([event(1), event(2, entity_type="dag_run")])
    heard = [listener.get_message(timeout=5) for _ in range(3)]
    assert sorted((each["channel"], json.loads(each["data"])["version"]) for each in heard) == [
        ("container_manager:dag_run", 2),
        ("container_manager:events", 1),
        ("container_manager:events", 2),
    ]
    listener.close()


def test_the_prefix_keeps_installations_apart(server):
    mine, yours = RedisPublisher(server.url, prefix="a"), RedisPublisher(server.url, prefix="b")
    mine.begin(standing(0)), yours.begin(standing(0, source="installation-2"))
    mine.publish(events(1, 2)), yours.publish(events(1, 1))
    assert (server.sequences("a"), server.sequences("b")) == ([1, 2], [1])


def test_the_stream_is_about_as_long_as_it_may_be(server):
    publisher = RedisPublisher(server.url, max_length=1_000)
    publisher.begin(standing(0))
    for first in range(1, 5_000, 500):
        publisher.publish(events(first, first + 499))
    assert 1_000 <= server.client.xlen(STREAM) < 1_500
    assert server.sequences()[-1] == 5_000


# Fences -------------------------------------------------------------------------------------------


def test_what_is_told_twice_stands_there_once(publisher, server):
    publisher.publish(events(1, 5))
    publisher.publish(events(3, 7))
    assert server.sequences() == list(range(1, 8))


def test_two_that_tell_the_same_leave_it_once_and_in_order(server):
    """As two relays do, one of which does not know yet that it was replaced."""
    first, second = RedisPublisher(server.url), RedisPublisher(server.url)
    first.begin(standing(0)), second.begin(standing(0))
    first.publish(events(1, 10))
    second.publish(events(1, 20))
    first.publish(events(11, 15))
    second.publish(events(21, 25))
    first.publish(events(16, 30))
    assert server.sequences() == list(range(1, 31))


def test_an_old_entry_is_refused_by_redis_itself(publisher, server):
    publisher.publish(events(1, 5))
    with pytest.raises(redis.ResponseError, match="equal or smaller"):
        server.client.xadd(STREAM, {"event": "{}"}, id="4-0")


def test_nothing_is_told_over_a_gap_that_the_server_made(publisher, server):
    publisher.publish(events(1, 5))
    server.restart_empty()
    with pytest.raises((OutOfStep, Unavailable)):
        publisher.publish(events(6, 7))
    assert server.sequences() == []


# What the server lost -----------------------------------------------------------------------------


def until_told(publisher, position, newest):
    """What a relay does, until it works: begin where Redis wants it, and tell the rest."""
    while True:
        try:
            position = publisher.begin(standing(position, newest=newest))
            publisher.publish(events(position + 1, newest))
            return
        except (Unavailable, OutOfStep):
            time.sleep(0.02)


def test_a_server_that_was_restarted_empty_is_told_again(publisher, server):
    publisher.publish(events(1, 50))
    server.restart_empty()
    until_told(publisher, 50, 60)
    assert server.sequences() == list(range(1, 61))


def test_no_more_is_told_again_than_the_stream_may_have(server):
    publisher = RedisPublisher(server.url, max_length=10)
    publisher.begin(standing(0))
    assert publisher.begin(standing(50)) == 40
    assert publisher.begin(standing(50, oldest=46)) == 45
    publisher.publish(events(46, 50))
    assert server.sequences() == [46, 47, 48, 49, 50]


def test_what_is_only_told_again_is_not_told_to_who_listens_live(publisher, server):
    publisher.publish(events(1, 5))
    server.restart_empty()
    listener = server.client.pubsub(ignore_subscribe_messages=True)
    listener.subscribe("container_manager:events")
    listener.get_message(timeout=5)
    until_told(publisher, 5, 6)
    assert json.loads(listener.get_message(timeout=5)["data"])["version"] == 6
    listener.close()


def test_a_stream_that_knows_more_than_we_remember_is_not_told_twice(publisher, server):
    """The relay died between telling and noting it."""
    publisher.publish(events(1, 8))
    another = RedisPublisher(server.url)
    assert another.begin(standing(5, newest=9)) == 5
    another.publish(events(6, 9))
    assert server.sequences() == list(range(1, 10))


# Whose stream it is -------------------------------------------------------------------------------


def test_the_stream_of_another_installation_is_left_alone(publisher, server):
    publisher.publish(events(1, 3))
    another = RedisPublisher(server.url)
    with pytest.raises(Unavailable, match="another installation's: choose another prefix"):
        another.begin(standing(9, source="installation-2"))
    with pytest.raises((OutOfStep, Unavailable)):
        another.publish(events(10, 11))
    assert server.sequences() == [1, 2, 3]


def test_a_stream_of_another_program_is_left_alone(server):
    server.client.xadd(STREAM, {"mine": "1"})
    with pytest.raises(Unavailable, match="another installation's"):
        RedisPublisher(server.url).begin(standing(9))
    assert server.client.xlen(STREAM) == 1


def test_a_database_that_was_set_back_begins_its_stream_anew(publisher, server):
    publisher.publish(events(1, 30))
    restored = RedisPublisher(server.url)
    assert restored.begin(standing(20)) == 20 - 20
    restored.publish(events(1, 21))
    assert server.sequences() == list(range(1, 22))


def test_a_database_that_was_set_back_and_went_on_begins_its_stream_anew(publisher, server):
    """By now it has as many events as before, but other ones."""
    publisher.publish(events(1, 30))
    restored = RedisPublisher(server.url)
    position = restored.begin(standing(20, newest=40))
    others = [event(number, id=UUID(int=1_000 + number)) for number in range(position + 1, 41)]
    with pytest.raises(OutOfStep):
        restored.publish(others)
    position = restored.begin(standing(20, newest=40))
    assert position == 0
    restored.publish(events(1, 20))
    restored.publish(others)
    told = [json.loads(fields["event"])["id"] for _, fields in server.client.xrange(STREAM)]
    assert told == [str(each.id) for each in [*events(1, 20), *others]]


def test_a_forged_entry_far_ahead_does_not_swallow_what_comes(publisher, server):
    publisher.publish(events(1, 3))
    server.client.xadd(STREAM, {"event": "nonsense"}, id="99-0")
    with pytest.raises(OutOfStep):
        publisher.publish(events(4, 5))
    until_told(publisher, 3, 5)
    assert server.sequences() == [1, 2, 3, 4, 5]


def test_a_forged_entry_makes_way_for_what_happened(publisher, server):
    publisher.publish(events(1, 3))
    server.client.xadd(STREAM, {"event": event(4, new_state="killed").as_text()[:-9]}, id="4-0")
    server.client.xadd(STREAM, {"event": "nonsense"}, id="9-0")
    until_told(publisher, 3, 5)
    assert server.sequences() == [1, 2, 3, 4, 5]


# A server in trouble ------------------------------------------------------------------------------


def test_a_server_that_is_not_there_is_unavailable():
    with pytest.raises(Unavailable, match="Redis: "):
        RedisPublisher(f"redis://127.0.0.1:{free_port()}/0").begin(standing(0))


def test_a_server_that_accepts_and_never_answers_is_unavailable_and_nothing_is_mixed_up(server):
    publisher = RedisPublisher(server.url, timeout=0.2)
    publisher.begin(standing(0))
    server.pause()
    with pytest.raises(Unavailable):
        publisher.publish(events(1, 3))
    with pytest.raises(Unavailable):
        publisher.begin(standing(0, newest=3))
    server.go_on()
    until_told(publisher, 0, 4)
    assert server.sequences() == [1, 2, 3, 4]


def test_a_server_that_is_full_is_unavailable_until_there_is_room(publisher, server):
    publisher.publish(events(1, 3))
    server.be_full()
    with pytest.raises(Unavailable, match=r"maxmemory|OOM"):
        publisher.publish(events(4, 6))
    assert server.sequences() == [1, 2, 3]
    server.have_room()
    until_told(publisher, 3, 6)
    assert server.sequences() == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(
    "options",
    [
        {"url": "http://localhost"},
        {"url": "redis://localhost", "prefix": ""},
        {"url": "redis://localhost", "max_length": 0},
        {"url": "redis://localhost", "timeout": 0},
        {"url": "redis://localhost", "timeout": 3600},
    ],
    ids=str,
)
def test_options_that_make_no_sense_are_refused(options):
    with pytest.raises(ValueError, match=r"\w"):
        RedisPublisher(**options)


# Who reads the stream -----------------------------------------------------------------------------


class Heard(list):
    def __call__(self, event):
        self.append(event.sequence)


@pytest.fixture
def gaps():
    return []


def note_in(gaps):
    return lambda after, first: gaps.append((after, first))


def test_a_reader_hears_what_comes_from_now_on(publisher, server):
    publisher.publish(events(1, 3))
    heard = Heard()
    with RedisPublisher(server.url).subscribe(heard):
        publisher.publish(events(4, 6))
        wait_until(lambda: len(heard) == 3)
    assert heard == [4, 5, 6]


def test_a_reader_goes_on_where_it_was_and_misses_nothing(publisher, server, gaps):
    heard, reader = Heard(), RedisPublisher(server.url)
    with reader.subscribe(heard, after=0, resync=note_in(gaps)) as subscription:
        publisher.publish(events(1, 700))
        wait_until(lambda: len(heard) == 700)
    publisher.publish(events(701, 1_900))
    with reader.subscribe(heard, after=subscription.position, resync=note_in(gaps)):
        wait_until(lambda: len(heard) == 1_900)
    assert (heard, gaps) == (list(range(1, 1_901)), [])


def test_a_reader_gets_the_event_as_it_was_told(publisher, server):
    told = event(1, metadata={"ä": [None]})
    publisher.publish([told])
    heard = []
    with RedisPublisher(server.url).subscribe(heard.append, after=0):
        wait_until(lambda: heard)
    assert heard == [told]


def test_a_reader_that_was_away_too_long_is_told_what_it_missed(server, gaps):
    publisher = RedisPublisher(server.url, max_length=100)
    publisher.begin(standing(0))
    for first in range(1, 2_000, 500):
        publisher.publish(events(first, first + 499))
    heard, first = Heard(), server.sequences()[0]
    with RedisPublisher(server.url).subscribe(heard, after=10, resync=note_in(gaps)):
        wait_until(lambda: heard and heard[-1] == 2_000)
    assert gaps == [(10, first)]
    assert heard == list(range(first, 2_001))


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_a_reader_survives_a_server_that_comes_back_empty(publisher, server, gaps, end):
    heard = Heard()
    with RedisPublisher(server.url).subscribe(heard, after=0, resync=note_in(gaps)):
        publisher.publish(events(1, 10))
        wait_until(lambda: len(heard) == 10)
        getattr(server, end)()
        server.start()
        until_told(publisher, 10, 20)
        wait_until(lambda: len(heard) == 20)
    assert (heard, gaps) == (list(range(1, 21)), [])


def test_a_reader_survives_a_server_that_sleeps(publisher, server, gaps):
    heard, reader = Heard(), RedisPublisher(server.url, timeout=0.2)
    with reader.subscribe(heard, after=0, resync=note_in(gaps)):
        publisher.publish(events(1, 10))
        wait_until(lambda: len(heard) == 10)
        server.pause()
        time.sleep(0.5)
        server.go_on()
        until_told(publisher, 10, 20)
        wait_until(lambda: len(heard) == 20)
    assert (heard, gaps) == (list(range(1, 21)), [])


def test_a_reader_notices_that_other_events_stand_in_the_place_of_what_it_read(
    publisher, server, gaps
):
    heard = []
    reader = RedisPublisher(server.url)
    with reader.subscribe(heard.append, after=0, resync=note_in(gaps)):
        publisher.publish(events(1, 10))
        wait_until(lambda: len(heard) == 10)
        server.client.delete(STREAM)
        others = [event(number, id=UUID(int=1_000 + number)) for number in range(1, 16)]
        until_told_these(server, others)
        wait_until(lambda: len(heard) == 25)
    assert gaps == [(10, 1)]
    assert heard[10:] == others


def until_told_these(server, others):
    publisher = RedisPublisher(server.url)
    publisher.begin(standing(0, newest=15))
    publisher.publish(others)


def test_a_reader_notices_a_stream_that_was_begun_anew_and_is_shorter(
    publisher, server, gaps, monkeypatch
):
    monkeypatch.setattr(module, "STANDSTILL_SECONDS", 0.3)
    heard = []
    with RedisPublisher(server.url).subscribe(heard.append, after=0, resync=note_in(gaps)):
        publisher.publish(events(1, 10))
        wait_until(lambda: len(heard) == 10)
        server.client.delete(STREAM)
        until_told_these(server, events(1, 4))
        wait_until(lambda: len(heard) == 14)
    assert gaps == [(10, 1)]


def test_what_somebody_else_wrote_into_the_stream_is_no_event(publisher, server):
    heard = Heard()
    with RedisPublisher(server.url).subscribe(heard, after=0):
        for told in ("nonsense", "{}", "[]", '{"id": 1}'):
            server.client.xadd(STREAM, {"event": told}, id=f"{server.client.xlen(STREAM) + 1}-0")
        server.client.xadd(STREAM, {"other": "x"}, id="5-0")
        server.client.xadd(STREAM, {"event": event(6).as_text()}, id="6-0")
        wait_until(lambda: heard)
    assert heard == [6]


def test_what_a_reader_raises_ends_it_before_that_event(publisher, server):
    heard = Heard()

    def stumble(event):
        if event.sequence == 3:
            raise OSError("no room")
        heard(event)

    publisher.publish(events(1, 5))
    subscription = RedisPublisher(server.url).subscribe(stumble, after=0)
    with pytest.raises(OSError, match="no room"):
        subscription.wait(20)
    assert (heard, subscription.position) == ([1, 2], 2)


def test_a_reader_may_be_closed_by_its_own_handler(publisher, server):
    publisher.publish(events(1, 5))
    heard, started, box = Heard(), threading.Event(), []

    def hear_one(event):
        started.wait()
        heard(event)
        box[0].close()

    box.append(RedisPublisher(server.url).subscribe(hear_one, after=0))
    started.set()
    assert box[0].wait(20)
    assert (heard, box[0].position) == ([1], 1)
