"""A relay in this process: publishers beside each other, ends, beats, what is forgotten."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from datetime import timedelta

import pytest
from django.db import connection
from django.utils import timezone

from container_manager.events.base import Refused, Unavailable
from container_manager.models import (
    DeadLetter,
    Event,
    PublisherState,
    StateHistory,
    move_counts,
)
from container_manager.models.sequencing import take_all
from container_manager.outbox import forget_old
from container_manager.reports import machinery
from container_manager.reports.publishers import publishers
from container_manager.worker import delivery, relay
from container_manager.worker.delivery import Delivery
from container_manager.worker.letters import redeliver
from container_manager.worker.relay import Relay
from container_manager.worker.upkeep import ForgetEvents
from tests.factories import JobFactory
from tests.support.publishers import Spy, spies
from tests.support.workers import wait_until

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def quick(configured, monkeypatch):
    monkeypatch.setattr(delivery, "LOOK_SECONDS", 0.05)
    configured(PUBLISHERS=spies("one", "two"), POLL_SECONDS=0.05, LEASE_SECONDS=3)


@contextmanager
def relaying(many=1, **options):
    """Relays on threads beside the test; they have ended afterwards, and all their threads."""
    known = set(threading.enumerate())
    relays = [Relay(**options) for _ in range(many)]

    def run(one):
        try:
            one.run()
        finally:
            connection.close()

    for each in relays:
        threading.Thread(target=run, args=[each]).start()
    try:
        yield
    finally:
        for each in relays:
            each.stop()
        wait_until(lambda: not set(threading.enumerate()) - known, "their threads to end")


def sequences(name):
    return Spy.of[name].sequences


def test_every_publisher_is_told_everything_in_order():
    with relaying():
        wait_until(lambda: PublisherState.objects.filter(holder__isnull=False).count() == 2)
        jobs = [JobFactory() for _ in range(5)]
        for job in jobs:
            job.transition_to("queued")
        wait_until(lambda: len(sequences("one")) == len(sequences("two")) == 10)
        wait_until(lambda: not PublisherState.objects.exclude(position=10).exists())
        states = publishers()
    assert sequences("one") == sequences("two") == list(range(1, 11))
    assert [(each.alias, each.state, each.position, each.lag) for each in states] == [
        ("one", "ok", 10, 0),
        ("two", "ok", 10, 0),
    ]
    assert {each.state for each in publishers()} == {"waiting"}


def test_until_idle_ends_when_all_is_delivered():
    with relaying():
        wait_until(PublisherState.objects.count)
    for _ in range(5):
        JobFactory()
    assert Relay(until_idle=True).run() == 0
    assert sequences("one") == sequences("two") == [1, 2, 3, 4, 5]


def test_a_slow_publisher_does_not_delay_another():
    gate = threading.Event()
    with relaying():
        Spy.of["one"].trouble[1] = gate
        for _ in range(20):
            JobFactory()
        wait_until(lambda: len(sequences("two")) == 20)
        assert sequences("one") == []
        assert PublisherState.objects.get(alias="one").position == 0
        gate.set()
        wait_until(lambda: len(sequences("one")) == 20)


def test_a_publisher_that_is_away_does_not_delay_another_and_loses_nothing():
    with relaying():
        Spy.of["one"].away = Unavailable("nobody is there")
        for _ in range(20):
            JobFactory()
        wait_until(lambda: len(sequences("two")) == 20)
        (one, _two) = publishers()
        assert (one.state, one.lag, one.last_error) == ("failing", 20, "nobody is there")
        Spy.of["one"].away = None
        wait_until(lambda: len(sequences("one")) == 20)
    assert sequences("one") == list(range(1, 21))


def test_a_publisher_that_is_new_begins_with_what_happens_from_now_on(configured):
    JobFactory()
    take_all()
    with relaying():
        JobFactory()
        wait_until(lambda: sequences("one"))
    assert sequences("one") == [2]


def test_what_has_no_place_yet_when_a_publisher_is_new_is_told_to_it():
    JobFactory()
    with relaying():
        wait_until(lambda: sequences("one"))
    assert sequences("one") == [1]


def test_a_relay_without_publishers_gives_places_and_ends(configured):
    configured(PUBLISHERS={})
    JobFactory()
    assert Relay(until_idle=True).run() == 0
    assert Event.objects.count() == 1


def test_its_publishers_are_free_when_it_has_ended():
    with relaying():
        wait_until(lambda: PublisherState.objects.filter(holder__isnull=False).count() == 2)
    assert not PublisherState.objects.filter(holder__isnull=False).exists()


def test_it_beats_for_what_it_serves():
    with relaying():
        wait_until(lambda: PublisherState.objects.filter(beat__gte=2).count() == 2)


def test_two_relays_share_the_work_and_tell_nothing_twice(monkeypatch):
    made = []

    class Counted(Spy):
        def __init__(self, **options):
            super().__init__(**options)
            made.append((options["name"], self))

    monkeypatch.setattr("tests.support.publishers.Spy", Counted)
    with relaying(many=2):
        for _ in range(50):
            JobFactory()
        wait_until(
            lambda: PublisherState.objects.filter(position=50).count() == 2, "all to be told"
        )
    for name in ("one", "two"):
        told = [sequence for alias, spy in made if alias == name for sequence in spy.sequences]
        assert sorted(told) == list(range(1, 51))


def test_it_ends_when_the_database_was_migrated(monkeypatch):
    found = iter([frozenset({"0001"})])
    monkeypatch.setattr(relay.schema, "applied", lambda _: next(found, frozenset({"0002"})))
    assert Relay().run() == 1


def test_a_publisher_that_cannot_be_made_stops_it_at_once(configured):
    configured(PUBLISHERS={"bad": {"class": "no.Such"}})
    with pytest.raises(ValueError, match=r"no\.Such"):
        Relay()


# What is forgotten --------------------------------------------------------------------------------


def aged(count, days):
    """So many events that are so many days old."""
    for _ in range(count):
        JobFactory()
    take_all()
    new = Event.objects.order_by("-sequence").values_list("sequence", flat=True)[:count]
    Event.objects.filter(sequence__in=list(new)).update(
        created_at=timezone.now() - timedelta(days=days)
    )


def test_old_events_are_forgotten_and_the_numbers_go_on(configured):
    configured(PUBLISHERS={})
    aged(5, days=8), aged(2, days=6)
    assert forget_old(limit=3) == 3
    assert forget_old() == 2
    assert forget_old() == 0
    assert Event.objects.oldest_kept() == 6
    aged(1, days=9)
    assert Event.objects.newest() == 8
    assert forget_old() == 0


def test_when_all_are_forgotten_the_numbers_go_on(configured):
    configured(PUBLISHERS={})
    aged(3, days=8)
    assert forget_old() == 3
    assert Event.objects.oldest_kept() == 4
    aged(1, days=0)
    assert Event.objects.get().sequence == 4
    assert StateHistory.objects.count() == 4


def test_what_a_publisher_is_behind_with_is_kept_for_it():
    aged(5, days=8)
    PublisherState.objects.create(alias="one", position=3, delivered_at=timezone.now())
    PublisherState.objects.create(alias="two", position=5)
    PublisherState.objects.create(alias="no more in the settings", position=0)
    assert forget_old() == 3
    assert Event.objects.oldest_kept() == 4


def test_but_not_for_one_that_delivered_nothing_for_as_long_as_events_are_kept():
    aged(5, days=8)
    long_ago = timezone.now() - timedelta(days=8)
    PublisherState.objects.create(
        alias="one", position=3, created_at=long_ago, delivered_at=long_ago
    )
    PublisherState.objects.create(alias="two", position=4)
    assert forget_old() == 4


def test_a_relay_forgets_by_itself(configured, monkeypatch):
    configured(PUBLISHERS={})
    monkeypatch.setattr(relay, "AT_ONCE", 2)
    aged(5, days=8)
    with relaying():
        wait_until(lambda: not Event.objects.exists())


def test_one_with_nothing_to_do_is_seen_to_live():
    with relaying():
        wait_until(lambda: PublisherState.objects.filter(holder__isnull=False).count() == 2)
        PublisherState.objects.update(updated_at=timezone.now() - timedelta(hours=1))
        wait_until(lambda: {each.state for each in publishers()} == {"ok"})


def test_where_no_relay_runs_a_worker_forgets_them(configured):
    configured(PUBLISHERS={})
    aged(2, days=8), aged(1, days=0)
    ForgetEvents()()
    assert Event.objects.get().sequence == 3


# Dead letters -------------------------------------------------------------------------------------


def dead_letters():
    aged(3, days=0)
    for event in Event.objects.order_by("-sequence"):
        told = delivery.Outbox().after(event.sequence - 1, 1)[0]
        delivery.note_refusal("one", told, 3, Refused("no"))


def test_dead_letters_are_tried_again_in_order_and_leave():
    dead_letters()
    assert redeliver("one") == (3, 0)
    assert sequences("one") == [1, 2, 3]
    assert not DeadLetter.objects.exists()
    assert redeliver("one") == (0, 0)


def test_what_is_refused_again_stays_and_counts(monkeypatch):
    dead_letters()
    Event.objects.all().delete()

    class Picky(Spy):
        def __init__(self, **options):
            super().__init__(**options)
            self.trouble[2] = Refused

    monkeypatch.setattr("tests.support.publishers.Spy", Picky)
    assert redeliver("one") == (2, 1)
    assert DeadLetter.objects.values_list("sequence", "tries", "error").get() == (2, 4, "no 2")


def test_dead_letters_of_nobody_are_a_lookup_error():
    with pytest.raises(LookupError):
        redeliver("three")


# Dead letters that somebody wants again -----------------------------------------------------------


@pytest.fixture
def picky(monkeypatch):
    """Every publisher refuses event 2 while `picky` has it."""
    refused = {2: Refused}

    class Picky(Spy):
        def publish(self, events):
            self.trouble = dict(refused)
            super().publish(events)

    monkeypatch.setattr("tests.support.publishers.Spy", Picky)
    return refused


def test_a_relay_delivers_what_is_wanted_again_and_leaves_the_rest():
    dead_letters()
    with relaying():
        DeadLetter.objects.filter(sequence__in=(1, 3)).ask_again()
        wait_until(lambda: DeadLetter.objects.count() == 1)
    assert DeadLetter.objects.get().sequence == 2


def test_many_that_are_wanted_again_are_tried_a_few_at_a_time(monkeypatch):
    """Between two portions there is a look at what is new."""
    dead_letters()
    did, read, try_some = [], Delivery._read, delivery.deliver_wanted
    monkeypatch.setattr(delivery, "LETTERS", 1)
    monkeypatch.setattr(
        delivery, "deliver_wanted", lambda *given: did.append("letters") or try_some(*given)
    )
    monkeypatch.setattr(Delivery, "_read", lambda self: did.append("read") or read(self))
    DeadLetter.objects.ask_again()
    with relaying():
        wait_until(lambda: not DeadLetter.objects.exists())
    assert did.count("letters") >= 3
    assert "letters letters" not in " ".join(did)


def test_what_is_refused_again_is_not_wanted_until_somebody_asks(picky):
    dead_letters()
    with relaying():
        DeadLetter.objects.ask_again()
        wait_until(lambda: DeadLetter.objects.count() == 1)
        wait_until(lambda: not DeadLetter.objects.wanted().exists())
        assert DeadLetter.objects.values_list("sequence", "tries", "error").get() == (2, 4, "no 2")
        del picky[2]
        DeadLetter.objects.ask_again()
        wait_until(lambda: not DeadLetter.objects.exists())


@pytest.mark.parametrize("error", [Unavailable, RuntimeError("a bug")])
def test_a_letter_that_does_not_go_holds_up_no_other_event(picky, error):
    dead_letters()
    picky[2] = error
    with relaying():
        wait_until(lambda: PublisherState.objects.filter(holder__isnull=False).count() == 2)
        DeadLetter.objects.filter(sequence=2).ask_again()
        wait_until(lambda: not DeadLetter.objects.wanted().exists())
        JobFactory()
        wait_until(lambda: PublisherState.objects.get(pk="one").position == 4)
        assert PublisherState.objects.get(pk="one").failing_since is None
    assert DeadLetter.objects.get(sequence=2).tries == 4


def test_until_idle_waits_for_what_is_wanted_again():
    dead_letters()
    DeadLetter.objects.ask_again()
    assert Relay(until_idle=True).run() == 0
    assert not DeadLetter.objects.exists()


def test_a_letter_that_cannot_be_read_stays():
    dead_letters()
    DeadLetter.objects.filter(sequence=1).update(event={"no": "event"})
    DeadLetter.objects.ask_again()
    assert Relay(until_idle=True).run() == 0
    assert DeadLetter.objects.get().error.startswith("not an event")
    assert redeliver("one") == (0, 1)


# Signs and counts


def test_a_relay_says_that_it_lives_while_it_does():
    with relaying(2):
        wait_until(lambda: [each.alive for each in machinery.processes()] == [True, True])
        assert {each.kind for each in machinery.processes()} == {"relay"}
    assert machinery.processes() == []


def test_a_relay_folds_the_counts_of_moves_while_it_runs_and_when_it_ends(monkeypatch):
    monkeypatch.setattr(relay, "COUNT_SECONDS", 0.05)
    with relaying(2):
        JobFactory.create_batch(5)
        wait_until(lambda: Event.objects.newest() == 5 and move_counts.behind() == 0)
    monkeypatch.setattr(relay, "COUNT_SECONDS", 1000.0)
    assert move_counts.count_moves().by_edge == {("job", "", "pending"): 5}
    JobFactory()
    assert Relay(until_idle=True).run() == 0
    assert move_counts.behind() == 0
    assert move_counts.count_moves().by_edge == {("job", "", "pending"): 6}


def test_what_is_forgotten_was_counted_before(configured):
    configured(EVENTS_KEEP_SECONDS=0.001)
    JobFactory.create_batch(3)
    take_all()
    one = Relay()
    one._forget()
    assert not Event.objects.exists()
    assert move_counts.count_moves().by_edge == {("job", "", "pending"): 3}
