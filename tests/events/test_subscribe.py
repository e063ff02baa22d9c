"""`from container_manager.events import subscribe`, over the database."""

from __future__ import annotations

import pytest
from django.db import connection, transaction

from container_manager.events import subscribe
from container_manager.events.base import Unavailable
from container_manager.events.feed import Feed
from container_manager.models import ContainerJob, Event
from container_manager.models.sequencing import take_all
from container_manager.outbox import FeedSource
from tests.factories import JobFactory, UserFactory
from tests.support.feeds import own_feed
from tests.support.second_connection import second_session
from tests.support.workers import wait_until

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def a_feed_of_this_test():
    with own_feed():
        yield


@pytest.fixture
def heard():
    return []


def moves(heard):
    return [(event.entity_id, event.new_state) for event in heard]


def test_a_listener_hears_moves_without_any_other_process(heard):
    with subscribe(heard.append):
        job = JobFactory()
        job.transition_to("queued")
        wait_until(lambda: len(heard) == 2)
        job.transition_to("running")
        wait_until(lambda: len(heard) == 3)
    assert moves(heard) == [(job.pk, "pending"), (job.pk, "queued"), (job.pk, "running")]
    assert [event.sequence for event in heard] == [1, 2, 3]


def test_what_is_rolled_back_is_never_heard(heard):
    with subscribe(heard.append):
        with pytest.raises(ZeroDivisionError), transaction.atomic():
            JobFactory()
            raise ZeroDivisionError
        job = JobFactory()
        wait_until(lambda: heard)
    assert moves(heard) == [(job.pk, "pending")]


def test_an_event_says_whose_it_is_beside_what_its_json_says(heard):
    ada = UserFactory()
    with subscribe(heard.append):
        JobFactory(created_by=ada)
        wait_until(lambda: heard)
    (event,) = heard
    assert event.owner == ada.pk
    assert "owner" not in event.as_json()


def test_a_listener_that_comes_late_gets_what_it_missed_in_order(heard):
    jobs = [JobFactory() for _ in range(30)]
    ContainerJob.objects.update(status="queued")
    take_all()
    place = Event.objects.get(entity_id=jobs[9].pk, version=1).sequence
    with subscribe(heard.append, after=place):
        JobFactory()
        wait_until(lambda: len(heard) == 61 - place)
    assert [event.sequence for event in heard] == list(range(place + 1, 62))


def test_a_long_silence_does_not_make_it_deaf(heard, settings):
    settings.CONTAINER_MANAGER = {"POLL_SECONDS": 600}
    with subscribe(heard.append):
        for number in range(3):
            wait_until_it_sleeps()
            JobFactory()
            wait_until(lambda: len(heard) == number + 1)  # noqa: B023


def wait_until_it_sleeps():
    """PostgreSQL: until somebody waits to be woken."""
    if connection.vendor == "postgresql":
        wait_until(lambda: flag() == 2)


def flag():
    with connection.cursor() as cursor:
        cursor.execute("SELECT last_value FROM event_awaited")
        return cursor.fetchone()[0]


@pytest.mark.postgres
def test_where_nobody_can_be_woken_it_polls(heard, settings, monkeypatch):
    """As through PgBouncer in transaction mode."""
    settings.CONTAINER_MANAGER = {"POLL_SECONDS": 0.1}
    monkeypatch.setattr("container_manager.outbox.Listener.start", lambda self: None)
    with subscribe(heard.append):
        for number in range(2):
            wait_until_it_sleeps()
            JobFactory()
            wait_until(lambda: len(heard) == number + 1)  # noqa: B023


@pytest.mark.postgres
def test_what_commits_late_is_heard_when_it_commits(heard):
    job = JobFactory()
    with subscribe(heard.append), second_session() as late:
        wait_until(lambda: Event.objects.exists())
        late.move(job, "queued")
        other = JobFactory()
        wait_until(lambda: (other.pk, "pending") in moves(heard))
        late.commit()
        wait_until(lambda: (job.pk, "queued") in moves(heard))


def test_what_the_database_refuses_is_told_in_the_words_of_events():
    outbox = FeedSource()
    with connection.cursor() as cursor:
        cursor.execute("ALTER TABLE events RENAME TO away")
    try:
        with pytest.raises(Unavailable, match=r"^database: "):
            Feed(outbox).subscribe(print, after=0)
    finally:
        with connection.cursor() as cursor:
            cursor.execute("ALTER TABLE away RENAME TO events")
