"""Webhooks end to end: a relay process, a real receiver, and what goes wrong between them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
from django.utils import timezone

from container_manager.events.webhook import new_secret, verify
from container_manager.models import ContainerJob, DeadLetter, Event, PublisherState
from container_manager.models.sequencing import take_all
from tests.factories import JobFactory
from tests.support.receiver import Receiver, Request, drip, status
from tests.support.workers import Workers, wait_until

pytestmark = [pytest.mark.processes, pytest.mark.django_db(transaction=True)]

SECRET = new_secret()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as receiver:
        yield receiver


@pytest.fixture
def relay(workers: Workers, receiver: Receiver) -> Callable[..., None]:
    """relay(max_tries=2): a relay process serves the receiver as the publisher `hook`."""

    def relay(url: str = "", **options: Any) -> None:
        path = "container_manager.events.webhook.WebhookPublisher"
        given = {"url": url or receiver.url, "secret": SECRET, "allowed_networks": ["127.0.0.1"]}
        hook = {"hook": {"class": path, "options": {**given, **options}}}
        workers.start_relay(PUBLISHERS=hook).wait_until_started()
        wait_until(lambda: PublisherState.objects.filter(holder__isnull=False).exists())

    return relay


def some_jobs(count: int) -> list[ContainerJob]:
    """Each with four moves."""
    jobs = [JobFactory() for _ in range(count)]
    for word in ("queued", "running", "completed"):
        for job in jobs:
            job.transition_to(word)
    return jobs


def all_is_dealt_with() -> bool:
    take_all()
    return PublisherState.objects.get().position == Event.objects.newest()


def hook() -> PublisherState:
    return PublisherState.objects.get(alias="hook")


def sequences(receiver: Receiver) -> list[int]:
    """As they came for the first time."""
    came = (int(request.headers["webhook-sequence"]) for request in receiver.requests)
    return list(dict.fromkeys(came))


def test_every_move_arrives_signed_and_in_order(relay: Any, receiver: Receiver) -> None:
    relay()
    some_jobs(10)
    wait_until(all_is_dealt_with)
    assert sequences(receiver) == list(range(1, 41))
    told = [verify(each.headers, each.body, SECRET) for each in receiver.requests]
    rows = Event.objects.order_by("sequence").values_list("event_id", "new_state")
    assert [(each["id"], each["new_state"]) for each in told] == [
        (str(event_id), state) for event_id, state in rows
    ]


def test_after_an_outage_everything_arrives_in_order_and_no_job_has_waited(
    relay: Any, receiver: Receiver
) -> None:
    relay(timeout=1)
    receiver.answers(503, 500, drip(b"HTTP/1.1 200 OK", pause=0.3), 502)
    some_jobs(10)
    assert not ContainerJob.objects.exclude(status="completed").exists()
    wait_until(lambda: hook().failures > 3 and len(receiver.requests) > 4)
    assert hook().position == 0
    port = receiver.port
    receiver.close()
    wait_until(lambda: "cannot be reached" in hook().last_error)
    with Receiver(port=port) as back:
        wait_until(all_is_dealt_with)
        assert sequences(back) == list(range(1, 41))
    assert not DeadLetter.objects.exists()
    assert hook().failing_since is None


def test_an_event_that_is_always_refused_is_a_dead_letter_and_can_be_delivered_again(
    relay: Any, receiver: Receiver
) -> None:
    refusing = [True]

    def answer(request: Request) -> int:
        return 422 if refusing[0] and request.headers["webhook-sequence"] == "7" else 200

    receiver.decides(answer)
    relay(max_tries=2)
    some_jobs(5)
    wait_until(all_is_dealt_with)
    assert sequences(receiver) == list(range(1, 21))
    letter = DeadLetter.objects.get()
    assert (letter.sequence, letter.tries) == (7, 2)
    assert "answered 422" in letter.error

    DeadLetter.objects.ask_again()
    wait_until(lambda: DeadLetter.objects.get().wanted_at is None)
    assert DeadLetter.objects.get().tries == 3
    refusing[0] = False
    DeadLetter.objects.ask_again()
    wait_until(lambda: not DeadLetter.objects.exists())
    last = receiver.requests[-1]
    assert last.headers["webhook-sequence"] == "7"
    assert verify(last.headers, last.body, SECRET) == letter.event


def test_an_event_on_which_the_receiver_breaks_is_a_dead_letter_once_others_are_taken(
    relay: Any, receiver: Receiver
) -> None:
    receiver.decides(lambda request: 500 if request.headers["webhook-sequence"] == "3" else 200)
    relay(max_tries=3)
    some_jobs(2)
    wait_until(all_is_dealt_with)
    assert sequences(receiver) == list(range(1, 9))
    letter = DeadLetter.objects.get()
    assert (letter.sequence, letter.tries) == (3, 3)
    assert "answered 500, 3 times, and the next event was taken" in letter.error


def test_a_receiver_that_asks_for_time_gets_it(relay: Any, receiver: Receiver) -> None:
    receiver.answers(status(429, Retry_After="3600"))
    relay()
    some_jobs(1)
    wait_until(lambda: hook().failures)
    assert hook().next_try_at > timezone.now() + timedelta(minutes=50)
    assert len(receiver.requests) == 1


def test_what_a_slow_receiver_has_taken_is_known_before_all_is_delivered(
    relay: Any, receiver: Receiver, workers: Workers
) -> None:
    """Each event takes it so long that a whole batch would take minutes."""
    relay()
    receiver.answers(_slowly)
    some_jobs(50)
    wait_until(lambda: 0 < hook().position < 100)


def _slowly(sock: Any) -> bool:
    time.sleep(0.3)
    return status(200)(sock)


def test_secrets_are_in_no_line_of_a_relay(
    relay: Any, receiver: Receiver, workers: Workers
) -> None:
    receiver.answers(400, 500, 302)
    relay(url=f"{receiver.url}/tok-in-path?key=tok-in-query", max_tries=1)
    some_jobs(3)
    wait_until(lambda: hook().failures > 1)
    said = workers.said + json.dumps(list(DeadLetter.objects.values()), default=str)
    said += str(PublisherState.objects.values().get())
    assert "answered 400" in said
    for secret in (SECRET, SECRET.removeprefix("whsec_"), "tok-in-path", "tok-in-query"):
        assert secret not in said
