"""One publisher, step by step, over the database: leases, failures, refusals, dead letters."""

from __future__ import annotations

import uuid

import pytest
from django.db import OperationalError
from django.utils import timezone

from container_manager.events.base import OutOfStep, Refused, Unavailable
from container_manager.models import DeadLetter, Event, PublisherState
from container_manager.models.sequencing import take_all
from container_manager.outbox import Outbox
from container_manager.worker import delivery as module
from container_manager.worker.delivery import Delivery, Fenced, Lease, pause_after
from tests.factories import JobFactory
from tests.support.publishers import Spy

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr(module, "pause_after", lambda _failures: 0.0)


@pytest.fixture
def spy():
    return Spy()


@pytest.fixture
def row():
    return PublisherState.objects.create(alias="spy", position=Event.objects.newest())


@pytest.fixture
def first(row):
    """The sequence of the first event that the publisher is to be told."""
    return row.position + 1


def some_events(count):
    for _ in range(count):
        JobFactory()
    take_all()


def a_delivery(spy):
    return Delivery("spy", spy, Outbox(), uuid.uuid4(), "us")


def steps(delivery, count=1):
    for _ in range(count):
        delivery._kept(delivery._step)


def state():
    return PublisherState.objects.get(alias="spy")


# What is delivered --------------------------------------------------------------------------------


def test_what_there_is_is_delivered_in_order_and_noted(spy, first):
    some_events(3)
    steps(a_delivery(spy))
    assert spy.sequences == [first, first + 1, first + 2]
    assert state().position == first + 2
    assert state().delivered_at <= timezone.now()


def test_another_relay_goes_on_where_one_ended(spy, first):
    some_events(2)
    one = a_delivery(spy)
    steps(one)
    one._leave()
    some_events(2)
    another = Spy()
    steps(a_delivery(another))
    assert (spy.sequences, another.sequences) == ([first, first + 1], [first + 2, first + 3])


def test_it_comes_in_batches(spy, first, monkeypatch):
    monkeypatch.setattr(module, "BATCH", 4)
    some_events(10)
    steps(a_delivery(spy), 4)
    assert spy.batches == [4, 4, 2]


def test_the_publisher_is_asked_once_where_to_begin_and_may_know_better(spy, row, first):
    some_events(5)
    spy.starts_at = first + 2
    delivery = a_delivery(spy)
    steps(delivery)
    some_events(1)
    steps(delivery)
    (standing,) = spy.begun
    assert (standing.position, standing.newest, standing.source) == (first - 1, first + 4, "us")
    assert standing.oldest <= first
    assert spy.sequences == [first + 3, first + 4, first + 5]


def test_what_was_forgotten_before_it_was_delivered_is_said(spy, first, caplog):
    some_events(5)
    Event.objects.filter(sequence__lt=first + 3).delete()
    steps(a_delivery(spy))
    assert spy.sequences == [first + 3, first + 4]
    assert "3 events were forgotten before they were delivered" in caplog.text


# What goes wrong ----------------------------------------------------------------------------------


def test_what_was_delivered_before_a_failure_is_noted(spy, first):
    some_events(5)
    spy.trouble[first + 2] = Unavailable
    delivery = a_delivery(spy)
    steps(delivery)
    assert state().position == first + 1
    assert (state().failures, state().last_error) == (1, f"no {first + 2}")
    assert state().failing_since is not None
    assert state().next_try_at is not None
    steps(delivery)
    assert state().failures == 2
    spy.trouble.clear()
    steps(delivery)
    assert spy.sequences == list(range(first, first + 5))
    found = state()
    assert (found.failures, found.failing_since, found.last_error) == (0, None, "")
    assert found.next_try_at is None


def test_who_is_only_away_never_makes_a_dead_letter(spy, first):
    some_events(1)
    spy.away = Unavailable("nobody is there")
    delivery = a_delivery(spy)
    steps(delivery, 20)
    assert (state().position, state().failures) == (first - 1, 20)
    assert not DeadLetter.objects.exists()
    spy.away = None
    steps(delivery)
    assert spy.sequences == [first]


def test_who_is_back_and_has_nothing_to_be_told_is_well(spy, first):
    spy.away = Unavailable("nobody is there")
    delivery = a_delivery(spy)
    steps(delivery)
    assert state().failing_since is not None
    spy.away = None
    steps(delivery)
    assert (state().failing_since, state().failures) == (None, 0)


def test_who_is_out_of_step_is_asked_where_to_begin(spy, first):
    some_events(2)
    delivery = a_delivery(spy)
    steps(delivery)
    some_events(1)
    spy.trouble[first + 2] = OutOfStep
    spy.starts_at = first - 1
    steps(delivery)
    spy.trouble.clear()
    steps(delivery)
    assert len(spy.begun) == 2
    assert spy.sequences == [first, first + 1, first, first + 1, first + 2]


def test_what_is_refused_again_and_again_is_a_dead_letter_and_the_rest_goes_on(spy, first):
    some_events(5)
    spy.trouble[first + 2] = Refused
    delivery = a_delivery(spy)
    steps(delivery)
    assert (state().refused, state().tries, state().position) == (first + 2, 1, first + 1)
    steps(delivery)
    assert spy.sequences == [first, first + 1]
    assert not DeadLetter.objects.exists()
    steps(delivery, 2)
    assert spy.sequences == [first, first + 1, first + 3, first + 4]
    letter = DeadLetter.objects.get()
    event = Event.objects.get(sequence=first + 2)
    assert (letter.publisher, letter.sequence, letter.tries) == ("spy", first + 2, 3)
    assert letter.error == f"no {first + 2}"
    assert letter.event["id"] == str(event.event_id)
    assert (state().refused, state().tries, state().failing_since) == (None, 0, None)


def test_the_tries_of_a_refused_event_outlive_the_relay(spy, first):
    some_events(1)
    spy.trouble[first] = Refused
    for _ in range(3):
        delivery = a_delivery(spy)
        steps(delivery)
        delivery._leave()
    assert DeadLetter.objects.get().tries == 3


def test_a_bug_in_a_publisher_costs_at_most_the_event_that_meets_it(spy, first, caplog):
    some_events(6)
    spy.trouble[first + 3] = RuntimeError("a bug")
    steps(a_delivery(spy), 12)
    assert DeadLetter.objects.values_list("sequence", "error").get() == (first + 3, "a bug")
    heard = sorted(set(spy.sequences))
    assert heard == [first, first + 1, first + 2, first + 4, first + 5]
    assert "Publisher spy failed" in caplog.text


def test_a_bug_at_the_beginning_is_only_a_failure(spy, first, caplog):
    some_events(1)
    spy.away = RuntimeError("a bug")
    delivery = a_delivery(spy)
    steps(delivery, 5)
    assert (state().failures, state().last_error) == (5, "a bug")
    spy.away = None
    steps(delivery)
    assert spy.sequences == [first]


def test_an_error_with_a_nul_in_it_can_be_noted(spy, first):
    some_events(1)
    spy.away = Unavailable("no\0body \ud800" + "x" * 5_000)
    steps(a_delivery(spy))
    assert state().last_error.startswith("no\ufffdbody ?xxx")
    assert len(state().last_error) == 2_000


def test_a_database_that_fails_at_the_wrong_moment_leaves_no_gap(spy, first, monkeypatch):
    """What was delivered and could not be noted is delivered again."""
    some_events(2)
    delivery = a_delivery(spy)
    steps(delivery, 0)
    real, calls = Lease.write, []

    def write(self, **values):
        calls.append(values)
        if len(calls) == 1:
            raise OperationalError("the connection was closed")
        real(self, **values)

    monkeypatch.setattr(Lease, "write", write)
    monkeypatch.setattr(module.connection, "close", lambda: None)
    steps(delivery, 2)
    assert spy.sequences == [first, first + 1] * 2
    assert state().position == first + 1


def test_the_pause_grows_and_is_bounded():
    pauses = [max(pause_after(failures) for _ in range(50)) for failures in range(1, 30)]
    assert 0.1 <= pauses[0] <= 0.2
    assert pauses[3] > pauses[0]
    assert 15 <= pauses[-1] <= 30


# Leases -------------------------------------------------------------------------------------------


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def lease(clock, relay=None):
    return Lease("spy", relay or uuid.uuid4(), 30, clock)


def test_a_publisher_that_nobody_serves_is_taken_at_once(row, clock):
    one = lease(clock)
    assert one.take().position == row.position
    assert state().epoch == one.epoch == 1


def watched(lease, clock, seconds, step=1.0, beat=False):
    """Look every second; True when it could be taken."""
    for _ in range(int(seconds / step)):
        clock.now += step
        if beat:
            PublisherState.objects.update(beat=state().beat + 1)
        if lease.take():
            return True
    return False


def test_a_publisher_whose_relay_lives_is_left_to_it(row, clock):
    one, other = lease(clock), lease(clock)
    one.take()
    assert not watched(other, clock, 300, beat=True)


def test_a_publisher_whose_relay_stands_still_for_a_lease_is_taken_over(row, clock):
    one, other = lease(clock), lease(clock)
    one.take()
    assert not watched(other, clock, 29)
    assert watched(other, clock, 5)
    one_writes(one, fenced=True)
    one_writes(other, fenced=False)


def one_writes(lease, *, fenced):
    if fenced:
        with pytest.raises(Fenced):
            lease.write(position=99)
        assert lease.epoch is None
        assert state().position != 99
    else:
        lease.write(position=98)
        assert state().position == 98


def test_whoever_slept_itself_does_not_take_others_for_dead(row, clock):
    one, other = lease(clock), lease(clock)
    one.take()
    other.take()
    clock.now += 3_600
    assert other.take() is None


def test_of_two_that_find_it_free_one_has_it(row, clock):
    one, other = lease(clock), lease(clock)
    seen = PublisherState.objects.get(alias="spy")
    one.take()
    real = PublisherState.objects.get
    PublisherState.objects.get = lambda **_: seen
    try:
        assert other.take() is None
    finally:
        PublisherState.objects.get = real
    assert (one.epoch, other.epoch) == (1, None)


def test_what_is_let_go_is_free_at_once(row, clock):
    one, other = lease(clock), lease(clock)
    one.take()
    one.let_go()
    assert other.take()
    one.let_go()
    assert state().holder is not None


def test_a_delivery_that_was_replaced_writes_nothing_and_waits_its_turn(spy, first, caplog):
    some_events(1)
    slow = a_delivery(spy)
    slow._takes_over()
    PublisherState.objects.update(holder=uuid.uuid4(), epoch=7)
    steps(slow)
    assert (state().position, state().epoch) == (first - 1, 7)
    assert "another relay serves it by now" in caplog.text
    assert spy.closed == 1
    steps(slow)
    assert spy.sequences == [first]
