"""Listeners in this process, over a source in memory; `test_subscribe` has the database."""

from __future__ import annotations

import threading
from uuid import UUID

import pytest

from container_manager.events import feed as feeds
from container_manager.events.base import STATES, Filter, Unavailable
from container_manager.events.feed import Feed, Forgotten
from container_manager.models.base import guarded_models
from tests.support.some_events import event
from tests.support.workers import wait_until


class Memory:
    """A source in memory that counts how often it was read, and breaks down on demand."""

    def __init__(self, events=()):
        self.events = list(events)
        self.forgotten = 0
        self.down = False
        self.reads = 0
        self._woken = threading.Event()

    def tell(self, *events):
        self.events += events
        self._woken.set()

    def _kept(self):
        if self.down:
            raise Unavailable("away")
        return self.events[self.forgotten :]

    def oldest(self):
        kept = self._kept()
        return kept[0].sequence if kept else self.newest() + 1

    def newest(self):
        self._kept()
        return self.events[-1].sequence if self.events else 0

    def after(self, sequence, limit):
        self.reads += 1
        return [each for each in self._kept() if each.sequence > sequence][:limit]

    def wait(self, seconds):
        self._kept()
        self._woken.wait(min(seconds, 0.02))
        self._woken.clear()

    def rest(self):
        pass


class Heard(list):
    """A handler: the sequences of what it was given."""

    def __call__(self, event):
        self.append(event.sequence)


@pytest.fixture
def source():
    return Memory(event(number) for number in range(1, 6))


@pytest.fixture
def feed(source):
    return Feed(source, keep=10)


def test_a_listener_hears_what_happens_from_now_on(feed, source):
    heard = Heard()
    with feed.subscribe(heard):
        source.tell(event(6), event(7))
        wait_until(lambda: len(heard) == 2)
        source.tell(event(8))
        wait_until(lambda: len(heard) == 3)
    assert heard == [6, 7, 8]


def test_a_listener_may_begin_behind_any_event_that_is_kept(feed, source):
    heard = Heard()
    with feed.subscribe(heard, after=2):
        source.tell(event(6))
        wait_until(lambda: len(heard) == 4)
    assert heard == [3, 4, 5, 6]


def test_a_late_listener_hears_what_another_one_heard_before(feed, source):
    first, late = Heard(), Heard()
    with feed.subscribe(first, after=0):
        wait_until(lambda: len(first) == 5)
        source.tell(*(event(number) for number in range(6, 60)))
        wait_until(lambda: len(first) == 59)
        with feed.subscribe(late, after=0):
            wait_until(lambda: len(late) == 59)
            source.tell(event(60))
            wait_until(lambda: len(first) == len(late) == 60)
    assert first == late == list(range(1, 61))


def test_whoever_goes_on_from_its_position_misses_nothing(feed, source):
    heard = Heard()
    subscription = feed.subscribe(heard, after=0)
    wait_until(lambda: len(heard) == 5)
    subscription.close()
    source.tell(event(6), event(7))
    with feed.subscribe(heard, after=subscription.position):
        wait_until(lambda: len(heard) == 7)
    assert heard == list(range(1, 8))


def test_a_slow_listener_delays_no_other_and_misses_nothing(feed, source):
    gate, slow, quick = threading.Event(), Heard(), Heard()

    def wait_then_hear(event):
        gate.wait()
        slow(event)

    many = [event(number) for number in range(6, 200)]
    with feed.subscribe(wait_then_hear, after=0), feed.subscribe(quick, after=0):
        for each in many:
            source.tell(each)
        wait_until(lambda: len(quick) == 199)
        assert slow == []
        gate.set()
        wait_until(lambda: len(slow) == 199)
    assert slow == quick == list(range(1, 200))


def test_many_listeners_read_the_database_once(feed, source):
    heard = [Heard() for _ in range(20)]
    subscriptions = [feed.subscribe(each) for each in heard]
    wait_until(lambda: feed.recent(5) is not None)
    before = source.reads
    source.tell(event(6))
    wait_until(lambda: all(each == [6] for each in heard))
    assert source.reads - before < 10
    for subscription in subscriptions:
        subscription.close()


def test_the_memory_is_bounded(feed, source):
    with feed.subscribe(Heard()):
        wait_until(lambda: feed.recent(5) is not None)
        for number in range(6, 100):
            source.tell(event(number))
        wait_until(lambda: feed.recent(98) and feed.recent(98)[-1].sequence == 99)
        assert len(feed._recent) <= 20
        assert feed.recent(5) is None
        assert [each.sequence for each in feed.after(5, limit=3)] == [6, 7, 8]


def test_nobody_reads_when_nobody_listens_and_it_begins_again(feed, source):
    heard = Heard()
    feed.subscribe(heard).close()
    wait_until(lambda: feed.recent(5) is None)
    source.tell(event(6))
    with feed.subscribe(heard):
        source.tell(event(7))
        wait_until(lambda: heard)
    assert heard == [7]


def test_only_what_is_wanted_comes(feed, source):
    heard = {name: Heard() for name in ("types", "states", "entities", "all three")}
    other = UUID(int=2)
    subscriptions = [
        feed.subscribe(heard["types"], entity_types=["dag_run"]),
        feed.subscribe(heard["states"], states=["failed", "killed"]),
        feed.subscribe(heard["entities"], entity_ids=[other]),
        feed.subscribe(
            heard["all three"], entity_types=["job"], states=["failed"], entity_ids=[other]
        ),
    ]
    source.tell(
        event(6, entity_type="dag_run"),
        event(7, new_state="failed"),
        event(8, entity=2),
        event(9, entity=2, new_state="killed"),
        event(10, entity=2, new_state="failed"),
    )
    wait_until(lambda: all(each.position == 10 for each in subscriptions))
    assert heard == {
        "types": [6],
        "states": [7, 9, 10],
        "entities": [8, 9, 10],
        "all three": [10],
    }
    for subscription in subscriptions:
        subscription.close()


@pytest.mark.parametrize(
    "given",
    [
        {"entity_types": ["jobs"]},
        {"states": ["done"]},
        {"entity_types": ["job"], "states": ["success"]},
        {"entity_types": ["task_instance"], "states": ["killed"]},
        {"after": -1},
        {"after": 6},
    ],
    ids=str,
)
def test_a_filter_or_a_place_that_there_is_not_is_refused(feed, given):
    with pytest.raises(ValueError, match="there is no"):
        feed.subscribe(Heard(), **given)


def test_the_types_and_states_are_those_of_the_guarded_models():
    known = {model.entity_type: model.machine.states for model in guarded_models()}
    for name, states in STATES.items():
        assert list(states) == list(map(str, known[name]))
    assert Filter.of(["job", "dag_run"], ["success", "killed"])


def test_what_is_forgotten_is_said_with_what_there_is(feed, source):
    source.forgotten = 3
    assert feed.place(3) == 3
    with pytest.raises(Forgotten, match="events from 3 to 3 are no longer kept") as refusal:
        feed.subscribe(Heard(), after=2)
    assert refusal.value.oldest == 4


def test_what_a_listener_raises_stops_neither_it_nor_others(feed, source, caplog):
    heard = Heard()

    def stumble(event):
        if event.sequence == 6:
            raise OSError("no room")
        heard(event)

    with feed.subscribe(stumble):
        source.tell(event(6), event(7))
        wait_until(lambda: heard)
    assert heard == [7]
    assert "A listener failed at event 6, job" in caplog.text


def test_a_source_that_was_away_is_followed_where_it_was_left(feed, source):
    heard = Heard()
    with feed.subscribe(heard):
        source.tell(event(6))
        wait_until(lambda: heard)
        source.down = True
        source.tell(event(7), event(8))
        source.down = False
        wait_until(lambda: len(heard) == 3)
    assert heard == [6, 7, 8]


def test_a_listener_that_comes_while_the_source_is_away_is_told_so(feed, source):
    source.down = True
    with pytest.raises(Unavailable):
        feed.subscribe(Heard())


def test_a_watcher_is_told_that_there_is_more_and_reads_it_from_memory(feed, source):
    told = threading.Event()
    end = feed.watch(told.set)
    assert told.wait(10)  # the memory begins
    told.clear()
    source.tell(event(6))
    assert told.wait(10)
    assert [each.sequence for each in feed.recent(5)] == [6]
    assert feed.recent(6) == []
    assert feed.recent(4) is None
    end()


def test_a_gap_of_what_was_forgotten_does_not_shift_the_memory(feed, source):
    with feed.subscribe(Heard()):
        wait_until(lambda: feed.recent(5) is not None)
        source.tell(event(9))
        wait_until(lambda: feed.recent(8))
        source.tell(event(10))
        wait_until(lambda: len(feed.recent(8)) == 2)
        assert [each.sequence for each in feed.recent(9)] == [10]
        assert feed.recent(5) is None


def test_a_subscription_may_be_closed_by_its_own_handler(feed, source):
    heard, box = Heard(), []

    def hear_one(event):
        heard(event)
        box[0].close()

    box.append(feed.subscribe(hear_one))
    source.tell(event(6), event(7))
    wait_until(lambda: not box[0]._thread.is_alive())
    assert heard == [6]


def test_without_a_source_it_says_that_it_is_too_early(monkeypatch):
    monkeypatch.setattr(feeds, "_feed", None)
    with pytest.raises(RuntimeError, match="not ready"):
        feeds.subscribe(print)


def test_whoever_asks_after_the_last_listener_left_gets_nothing_old(feed, source):
    """A page that was given old events again would ask for what is behind them for ever."""
    with feed.subscribe(heard := Heard()):
        source.tell(event(6))
        wait_until(lambda: heard == [6])
    wait_until(lambda: not feed._following)
    assert list(feed.after(6)) == []
    assert [each.sequence for each in feed.after(5)] == [6]
