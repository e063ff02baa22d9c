"""Webhooks to a real receiver, which behaves well or as badly as it can."""

from __future__ import annotations

import json
import logging
import re
import socket
import threading
import time
import traceback
import tracemalloc
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import pytest

from container_manager.events import webhook
from container_manager.events.base import NotDelivered, Refused, TransitionEvent, Unavailable
from container_manager.events.webhook import WebhookPublisher, new_secret, verify
from tests.events.test_webhook_signatures import by_hand
from tests.support.receiver import (
    AUTHORITY,
    Names,
    Proxy,
    Receiver,
    cut,
    drip,
    flood,
    late,
    raw,
    reset,
    silence,
    status,
    then_close,
)

SECRET = new_secret()
HERE = ("127.0.0.0/8",)
SHORT = 0.6
"""Seconds for a receiver that will not answer within any."""


def event(sequence: int = 1, **changes: Any) -> TransitionEvent:
    given = {
        **{"id": UUID(int=sequence), "entity_type": "job", "entity_id": uuid4()},
        **{"old_state": "queued", "new_state": "running", "version": 3, "attempt": 1},
        **{"actor": "worker:w", "reason": "", "metadata": {"note": "späte ☃\x00"}},
        **{"changed_at": datetime(2026, 1, 2, 3, 4, 5, 678, tzinfo=UTC), "sequence": sequence},
    }
    return TransitionEvent(**{**given, **changes})


def events(*sequences: int) -> list[TransitionEvent]:
    return [event(sequence) for sequence in sequences]


def ids(*sequences: int) -> list[str]:
    return [str(UUID(int=sequence)) for sequence in sequences]


Make = Callable[..., WebhookPublisher]


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as receiver:
        yield receiver


@pytest.fixture
def publisher(receiver: Receiver) -> Iterator[Make]:
    """Makes a publisher to the receiver, or to another URL."""
    made: list[WebhookPublisher] = []

    def publisher(url: str = "", **options: Any) -> WebhookPublisher:
        given = {"secret": SECRET, "allowed_networks": HERE, **options}
        made.append(WebhookPublisher(url or receiver.url, **given))
        return made[-1]

    yield publisher
    for each in made:
        each.close()


def failure(publisher: WebhookPublisher, *sequences: int) -> NotDelivered:
    with pytest.raises(NotDelivered) as caught:
        publisher.publish_all(events(*(sequences or (1,))))
    return caught.value


# What is sent -------------------------------------------------------------------------------------


def test_an_event_is_one_signed_request(receiver: Receiver, publisher: Make) -> None:
    told = event(7)
    publisher(f"http://127.0.0.1:{receiver.port}/a/b?c=d").publish([told])
    request = receiver.requests[0]
    assert (request.method, request.path) == ("POST", "/a/b?c=d")
    assert json.loads(request.body) == told.as_json()
    assert request.headers["host"] == f"127.0.0.1:{receiver.port}"
    assert request.headers["content-type"] == "application/json"
    assert request.headers["webhook-id"] == str(told.id)
    assert request.headers["webhook-sequence"] == "7"
    moment = int(request.headers["webhook-timestamp"])
    assert request.headers["webhook-signature"] == by_hand(
        SECRET, str(told.id), moment, request.body
    )
    assert verify(request.headers, request.body, SECRET) == told.as_json()


def test_each_secret_signs(receiver: Receiver, publisher: Make) -> None:
    old = new_secret()
    publisher(secret=f"{SECRET} {old}").publish_all(events(1))
    request = receiver.requests[0]
    for secret in (SECRET, old):
        assert verify(request.headers, request.body, secret)


def test_what_json_can_hardly_say_is_sent(receiver: Receiver, publisher: Make) -> None:
    odd = {"lone": "\ud800", "nul": "\x00", "deep": [[{}]], "big": 10**30}
    publisher().publish([event(metadata=odd)])
    request = receiver.requests[0]
    assert verify(request.headers, request.body, SECRET)["metadata"] == odd


def test_many_go_in_order_over_one_connection(receiver: Receiver, publisher: Make) -> None:
    publisher().publish_all(events(*range(1, 101)))
    assert receiver.ids() == ids(*range(1, 101))
    assert receiver.connections == 1


def test_what_takes_long_is_told_in_parts(
    receiver: Receiver, publisher: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhook, "SLICE_SECONDS", 0.0)
    sender, left = publisher(states=["failed"]), events(1, 2, 3)
    left[1:] = [event(2, new_state="failed"), event(3, new_state="failed")]
    assert sender.publish(left) == 1
    assert receiver.ids() == []
    assert sender.publish(left[1:]) == 1
    assert sender.publish(left[2:]) is None
    assert receiver.ids() == ids(2, 3)
    sender.publish_all(events(4, 5, 6))
    sender.publish_all(left)
    assert receiver.ids() == ids(2, 3, 2, 3)


def test_only_what_is_wanted_is_sent(receiver: Receiver, publisher: Make) -> None:
    given = [
        event(1, new_state="running"),
        event(2, new_state="failed"),
        event(3, new_state="failed", entity_type="dag_run"),
    ]
    publisher(entity_types=["job"], states=["failed"]).publish(given)
    assert receiver.ids() == ids(2)


def test_what_was_not_wanted_counts_as_delivered(receiver: Receiver, publisher: Make) -> None:
    receiver.answers(200, 400)
    states = ("running", "failed", "running", "failed", "failed")
    given = [event(number, new_state=state) for number, state in enumerate(states, 1)]
    with pytest.raises(Refused) as refusal:
        publisher(states=["failed"]).publish(given)
    assert refusal.value.delivered == 3


# What is answered ---------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [200, 201, 202, 204, 299])
def test_every_2xx_is_delivered(code: int, receiver: Receiver, publisher: Make) -> None:
    receiver.answers(raw(f"HTTP/1.1 {code} Fine\r\nContent-Length: 0\r\n\r\n".encode()))
    publisher().publish_all(events(1, 2))
    assert receiver.ids() == ids(1, 2)


@pytest.mark.parametrize("code", [400, 409, 413, 415, 422, 418])
def test_what_is_said_of_the_event_counts_against_it(
    code: int, receiver: Receiver, publisher: Make
) -> None:
    receiver.answers(200, code)
    refusal = failure(publisher(), 1, 2, 3)
    assert isinstance(refusal, Refused)
    assert refusal.delivered == 1
    assert f"answered {code}" in str(refusal)
    assert receiver.ids() == ids(1, 2)


@pytest.mark.parametrize("code", [401, 403, 404, 405, 408, 410, 425, 429, 502, 503, 504, 501])
def test_what_is_said_of_the_receiver_makes_all_wait(
    code: int, receiver: Receiver, publisher: Make
) -> None:
    receiver.answers(200, code)
    away = publisher()
    for _ in range(away.max_tries + 2):
        told = failure(away, 1, 2, 3)
        assert isinstance(told, Unavailable)
        assert f"answered {code}" in str(told)
        receiver.answers(200, code)
    assert str(UUID(int=3)) not in receiver.ids()


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed(code: int, receiver: Receiver, publisher: Make) -> None:
    with Receiver() as inside:
        receiver.answers(status(code, Location=inside.url))
        told = failure(publisher())
        assert isinstance(told, Unavailable)
        assert "redirects are not followed" in str(told)
        assert not inside.connections
        assert str(inside.port) not in str(told)


@pytest.mark.parametrize(
    ("asked", "seconds"),
    [
        ("7", 7),
        (" 7 ", 7),
        ("86400", 3600),
        ("9" * 400, 3600),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0),
        ("Fri, 31 Dec 9999 23:59:59 GMT", 3600),
        ("-7", None),
        ("soon", None),
        ("Wed, 99 Oct 99999 07:28:00 GMT", None),
    ],
)
@pytest.mark.parametrize("code", [429, 503, 500])
def test_a_receiver_may_ask_for_time(
    code: int, asked: str, seconds: float | None, receiver: Receiver, publisher: Make
) -> None:
    receiver.answers(status(code, Retry_After=asked))
    told = failure(publisher())
    assert isinstance(told, Unavailable)
    assert told.retry_after == seconds


def test_after_an_outage_all_arrive_in_order(receiver: Receiver, publisher: Make) -> None:
    receiver.answers(503, 200, 502, status(429, Retry_After="1"), 200)
    sender, left = publisher(), events(1, 2, 3)
    for _ in range(3):
        with pytest.raises(Unavailable) as told:
            sender.publish(left)
        left = left[told.value.delivered :]
    sender.publish(left)
    assert receiver.ids() == ids(1, 1, 2, 2, 2, 3)


# Whose fault a 500 is -----------------------------------------------------------------------------


@pytest.mark.parametrize("how", [500, cut, silence()])
def test_an_event_on_which_the_receiver_always_breaks_is_dead_once_the_next_is_taken(
    how: Any, receiver: Receiver, publisher: Make
) -> None:
    sender = publisher(max_tries=3, timeout=SHORT)
    receiver.answers(200, how)
    assert isinstance(failure(sender, 1, 2, 3), Unavailable)
    assert isinstance(failure(sender, 2, 3), Unavailable)
    assert set(receiver.ids()) == set(ids(1, 2))
    receiver.answers(how, 200)
    told = failure(sender, 2, 3)
    assert isinstance(told, Refused)
    assert told.tries == 3
    assert told.delivered == 0
    assert "3 times, and the next event was taken" in str(told)
    assert receiver.ids()[-2:] == ids(2, 3)


def test_a_receiver_that_breaks_on_everything_loses_nothing(
    receiver: Receiver, publisher: Make
) -> None:
    receiver.answers(500)
    sender = publisher(max_tries=2)
    for _ in range(10):
        told = failure(sender, 1, 2, 3)
        assert isinstance(told, Unavailable)
        assert told.delivered == 0
    receiver.answers(200)
    sender.publish_all(events(1, 2, 3))
    assert receiver.ids()[-3:] == ids(1, 2, 3)


def test_the_last_event_waits_until_there_is_another_to_compare(
    receiver: Receiver, publisher: Make
) -> None:
    receiver.answers(500)
    sender = publisher(max_tries=2)
    for _ in range(5):
        assert isinstance(failure(sender, 1), Unavailable)
    receiver.answers(500, 200)
    assert isinstance(failure(sender, 1, 2), Refused)


def test_tries_of_one_event_do_not_count_for_another(receiver: Receiver, publisher: Make) -> None:
    receiver.answers(500, 200, 500, 200, 500, 200)
    sender = publisher(max_tries=2)
    assert isinstance(failure(sender, 1, 2), Unavailable)
    sender.publish_all(events(1))
    assert isinstance(failure(sender, 2, 3), Unavailable)
    sender.publish_all(events(2))
    assert isinstance(failure(sender, 3, 4), Unavailable)


# How long, how much -------------------------------------------------------------------------------

SLOW = {
    "says nothing": silence(),
    "drips its status line": drip(b"HTTP/1.1 200 OK", pause=0.05),
    "drips its headers": drip(b"X-More: yes\r\n", b"HTTP/1.1 200 OK\r\n", pause=0.05),
    "drips interim answers": drip(b"HTTP/1.1 100 Continue\r\n\r\n", pause=0.01),
}


@pytest.mark.parametrize("how", SLOW)
def test_a_receiver_that_does_not_come_to_an_end_is_cut(
    how: str, receiver: Receiver, publisher: Make
) -> None:
    receiver.answers(SLOW[how])
    began = time.monotonic()
    told = failure(publisher(timeout=SHORT))
    assert isinstance(told, Unavailable)
    assert "no whole answer came in time" in str(told)
    assert time.monotonic() - began < 20, "it waited for the drip"


def test_a_body_that_drips_is_cut_and_the_event_is_delivered(
    receiver: Receiver, publisher: Make
) -> None:
    receiver.answers(drip(b"x", b"HTTP/1.1 200 OK\r\nContent-Length: 99999\r\n\r\n"), 200)
    sender = publisher(timeout=SHORT)
    sender.publish_all(events(1, 2))
    assert receiver.ids() == ids(1, 2)
    assert receiver.connections == 2


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 1073741824\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n40000000\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n\x1f\x8b\x08",
    ],
)
def test_of_a_gigabyte_only_the_beginning_is_read(
    head: bytes, receiver: Receiver, publisher: Make
) -> None:
    receiver.answers(flood(head), 200)
    sender = publisher()
    tracemalloc.start()
    try:
        sender.publish_all(events(1, 2))
        _now, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert receiver.ids() == ids(1, 2)
    assert peak < 2 * 2**20


@pytest.mark.parametrize(
    "answer",
    [
        flood(b"HTTP/1.1 200 OK\r\nX-Long: ", 2**24),
        flood(b"", 2**24),
        raw(b"HTTP/1.1 200 OK\r\n" + b"X-Many: 1\r\n" * 90 + b"X: " + b"y" * 65000 + b"\r\n\r\n"),
        raw(b"HTTP/1.1 200 OK\r\n" + b"X-Many: 1\r\n" * 1000 + b"\r\n"),
    ],
    ids=["one header", "a status line", "together", "many"],
)
def test_a_head_without_end_is_no_answer(answer: Any, receiver: Receiver, publisher: Make) -> None:
    receiver.answers(answer)
    assert isinstance(failure(publisher()), Unavailable)


@pytest.mark.parametrize(
    "answer",
    [
        raw(b"SSH-2.0-OpenSSH_9.2\r\n"),
        raw(b"HTTP/1.1 abc\r\n\r\n"),
        raw(b"HTTP/1.1 99999 Much\r\n\r\n"),
        raw(b"\x00\xff" * 100),
        raw(b"\r\n\r\n"),
        cut,
        reset,
    ],
)
def test_what_is_no_answer_is_not_repeated(
    answer: Any, receiver: Receiver, publisher: Make
) -> None:
    receiver.answers(answer)
    told = failure(publisher())
    assert isinstance(told, Unavailable)
    assert "OpenSSH" not in str(told)
    assert "99999" not in str(told)


def test_an_early_close_after_the_status_is_a_delivery(receiver: Receiver, publisher: Make) -> None:
    receiver.answers(raw(b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\nhalf"), 200)
    publisher().publish_all(events(1, 2))
    assert receiver.ids() == ids(1, 2)


def test_a_connection_that_was_closed_meanwhile_is_opened_again(
    receiver: Receiver, publisher: Make
) -> None:
    receiver.answers(then_close(status(200)))
    publisher().publish_all(events(*range(1, 21)))
    assert list(dict.fromkeys(receiver.ids())) == ids(*range(1, 21))


def test_after_close_it_may_be_used_again(receiver: Receiver, publisher: Make) -> None:
    sender = publisher()
    sender.publish_all(events(1))
    sender.close()
    sender.publish_all(events(2))
    assert (receiver.ids(), receiver.connections) == (ids(1, 2), 2)


def test_nobody_there_makes_all_wait(publisher: Make) -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    told = failure(publisher(f"http://127.0.0.1:{port}/"), 1, 2)
    assert isinstance(told, Unavailable)
    assert "cannot be reached" in str(told)


def test_a_receiver_that_takes_no_connection_is_left_in_time(publisher: Make) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
        address = full.getsockname()
        stuffing = [socket.socket() for _ in range(4)]
        for sock in stuffing:
            sock.setblocking(False)
            sock.connect_ex(address)
        told = failure(publisher(f"http://127.0.0.1:{address[1]}/", timeout=SHORT))
        for sock in stuffing:
            sock.close()
    assert isinstance(told, Unavailable)


def test_a_slow_receiver_that_answers_in_time_is_waited_for(
    receiver: Receiver, publisher: Make
) -> None:
    receiver.answers(late(0.5, status(200)))
    publisher().publish_all(events(1, 2))
    assert receiver.ids() == ids(1, 2)


def test_a_receiver_that_reads_nothing_is_cut(publisher: Make) -> None:
    """The request is larger than what fits between the two."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        sender = publisher(f"http://127.0.0.1:{listener.getsockname()[1]}/", timeout=SHORT)
        with pytest.raises(Unavailable, match="no whole answer came in time"):
            sender.publish([event(metadata={"much": "x" * 2**25})])


# TLS ----------------------------------------------------------------------------------------------


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Names]:
    """names(receiver__example=[["127.0.0.1"], …]): what a name server answers, one by one."""

    def names(**answers: Any) -> Names:
        server = Names(**answers)
        monkeypatch.setattr(socket, "getaddrinfo", server)
        return server

    return names


def secure(receiver: Receiver, host: str = "receiver.example") -> str:
    return f"https://{host}:{receiver.port}/hook"


def test_a_certificate_is_checked_by_the_name_though_an_address_is_dialled(
    publisher: Make, names: Any
) -> None:
    names(receiver__example=[["127.0.0.1"]])
    with Receiver("receiver") as receiver:
        publisher(secure(receiver), ca_file=AUTHORITY).publish_all(events(1, 2))
        assert receiver.ids() == ids(1, 2)
        assert receiver.requests[0].headers["host"] == f"receiver.example:{receiver.port}"
        assert receiver.connections == 1


def test_a_name_with_its_last_dot_and_an_address_have_certificates_too(
    publisher: Make, names: Any
) -> None:
    names(**{"receiver__example.": [["127.0.0.1"]]})
    with Receiver("receiver") as receiver:
        for host in ("receiver.example.", "127.0.0.1"):
            publisher(secure(receiver, host), ca_file=AUTHORITY).publish_all(events(1))
        assert len(receiver.requests) == 2


@pytest.mark.parametrize(
    ("certificate", "ca_file", "told"),
    [
        ("another", AUTHORITY, "receiver.example"),
        ("expired", AUTHORITY, "expired"),
        ("receiver", None, "unable to get local issuer|self.signed"),
    ],
)
def test_a_wrong_certificate_gets_no_event(
    certificate: str, ca_file: str | None, told: str, publisher: Make, names: Any
) -> None:
    names(receiver__example=[["127.0.0.1"]])
    with Receiver(certificate) as receiver:
        refusal = failure(publisher(secure(receiver), ca_file=ca_file), 1)
        assert isinstance(refusal, Unavailable)
        assert "its certificate is not good" in str(refusal)
        assert re.search(told, str(refusal))
        assert not receiver.requests


def test_https_to_who_speaks_plain_http_gets_no_event(receiver: Receiver, publisher: Make) -> None:
    told = failure(publisher(secure(receiver, "127.0.0.1"), timeout=3))
    assert isinstance(told, Unavailable)
    assert not [each for each in receiver.requests if each.method == "POST"]


def test_a_handshake_that_never_ends_is_cut(publisher: Make) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"https://127.0.0.1:{listener.getsockname()[1]}/"
        told = failure(publisher(url, timeout=SHORT))
    assert isinstance(told, Unavailable)


@pytest.mark.parametrize(
    "how",
    [
        drip(b"HTTP/1.1 200 OK", pause=0.05),
        flood(b"HTTP/1.1 200 OK\r\nX-Long: ", 2**24),
        silence(),
    ],
)
def test_bounds_hold_under_tls(how: Any, publisher: Make, names: Any) -> None:
    names(receiver__example=[["127.0.0.1"]])
    with Receiver("receiver") as receiver:
        receiver.answers(how)
        told = failure(publisher(secure(receiver), ca_file=AUTHORITY, timeout=SHORT))
        assert isinstance(told, Unavailable)


def test_a_gigabyte_under_tls_is_cut_and_delivered(publisher: Make, names: Any) -> None:
    names(receiver__example=[["127.0.0.1"]])
    with Receiver("receiver") as receiver:
        receiver.answers(flood(b"HTTP/1.1 200 OK\r\n\r\n"), 200)
        publisher(secure(receiver), ca_file=AUTHORITY).publish_all(events(1, 2))
        assert receiver.ids() == ids(1, 2)


# Names and addresses ------------------------------------------------------------------------------


def test_a_name_is_looked_up_once_and_its_checked_address_is_dialled(
    receiver: Receiver, publisher: Make, names: Any
) -> None:
    server = names(receiver__example=[["127.0.0.1"], ["127.0.0.9"]])
    publisher(
        f"http://receiver.example:{receiver.port}/", allowed_networks=["127.0.0.1/32"]
    ).publish_all(events(1))
    assert receiver.ids() == ids(1)
    assert server.asked == ["receiver.example"]


def test_a_name_that_leads_inside_the_second_time_is_refused_then(
    receiver: Receiver, publisher: Make, names: Any
) -> None:
    """127.0.0.9 stands for the internet here, 127.0.0.1 for what is inside."""
    with Receiver() as inside:
        names(receiver__example=[["127.0.0.1"], ["127.0.0.9"]])
        url = f"http://receiver.example:{inside.port}/"
        sender = publisher(url, allowed_networks=["127.0.0.9/32"])
        for _ in range(2):
            told = failure(sender)
            assert isinstance(told, Unavailable)
        assert not inside.connections


def test_a_name_of_which_one_address_is_inside_is_refused(
    receiver: Receiver, publisher: Make, names: Any
) -> None:
    names(receiver__example=[["127.0.0.1", "10.0.0.1"]])
    told = failure(publisher(f"http://receiver.example:{receiver.port}/"))
    assert isinstance(told, Unavailable)
    assert "leads to 10.0.0.1, which is no public address" in str(told)
    assert not receiver.connections


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "169.254.169.254", "10.0.0.1", "::1", "::ffff:127.0.0.1", "fe80::1%lo"),
        *("64:ff9b::7f00:1", "2002:7f00:1::", "0.0.0.0"),  # noqa: S104
    ],
)
def test_a_name_for_an_inner_address_is_refused(
    address: str, receiver: Receiver, publisher: Make, names: Any
) -> None:
    names(receiver__example=[[address]])
    url = f"http://receiver.example:{receiver.port}/"
    told = failure(publisher(url, allowed_networks=()))
    assert isinstance(told, Unavailable)
    assert "no public address" in str(told)
    assert not receiver.connections


def test_a_second_address_is_dialled_where_the_first_does_not_answer(
    receiver: Receiver, publisher: Make, names: Any
) -> None:
    names(receiver__example=[["127.0.0.77", "127.0.0.1"]])
    publisher(f"http://receiver.example:{receiver.port}/").publish_all(events(1))
    assert receiver.ids() == ids(1)


def test_a_name_that_is_not_there_makes_all_wait(publisher: Make, names: Any) -> None:
    names(receiver__example=[[]])
    told = failure(publisher("https://receiver.example/"))
    assert isinstance(told, Unavailable)
    assert "Name or service not known" in str(told)


def test_a_name_server_that_does_not_answer_is_not_waited_for(
    publisher: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    answered = threading.Event()
    asked: list[Any] = []

    def never(*given: Any, **_named: Any) -> Any:
        asked.append(given)
        answered.wait(30)
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", never)
    sender = publisher("https://receiver.example/", timeout=SHORT)
    assert "could not be looked up in time" in str(failure(sender))
    assert "still being looked up" in str(failure(sender))
    assert len(asked) == 1, "threads pile up"
    answered.set()


# Through a proxy ----------------------------------------------------------------------------------


def test_a_proxy_is_asked_for_the_name_and_sees_nothing_of_the_event(
    publisher: Make, names: Any
) -> None:
    server = names()
    with Receiver("receiver") as receiver:
        proxy = Proxy(receiver.port)
        sender = publisher("https://receiver.example/x", ca_file=AUTHORITY, proxy=proxy.url)
        sender.publish_all(events(1, 2))
        proxy.close()
    assert receiver.ids() == ids(1, 2)
    assert receiver.requests[0].headers["host"] == "receiver.example"
    assert proxy.asked == ["CONNECT receiver.example:443 HTTP/1.1"]
    assert "receiver.example" not in server.asked


def test_plain_http_goes_through_a_proxy_too(receiver: Receiver, publisher: Make) -> None:
    proxy = Proxy(receiver.port)
    publisher("http://receiver.example/x", proxy=proxy.url).publish_all(events(1))
    proxy.close()
    assert receiver.requests[0].path == "/x"
    assert proxy.asked == ["CONNECT receiver.example:80 HTTP/1.1"]


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (b"HTTP/1.1 403 Forbidden\r\n\r\n", "the proxy answered 403"),
        (b"HTTP/1.1 407 Who?\r\n\r\n", "the proxy answered 407"),
        (b"no\r\n\r\n", "the proxy answered not in HTTP"),
        (b"HTTP/1.1 200 OK\r\n", "the proxy closed the connection"),
        (b"HTTP/1.1 200 OK\r\n" + b"x" * 100_000, "cannot be reached"),
    ],
)
def test_a_proxy_that_does_not_lead_there_makes_all_wait(
    said: bytes, told: str, receiver: Receiver, publisher: Make
) -> None:
    proxy = Proxy(receiver.port, refusal=said)
    refusal = failure(publisher("http://receiver.example/x", proxy=proxy.url))
    proxy.close()
    assert isinstance(refusal, Unavailable)
    assert told in str(refusal)
    assert not receiver.requests


def test_an_inner_address_is_refused_through_a_proxy_too() -> None:
    assert problems(url="http://127.0.0.1:8000/", proxy="http://proxy.example:3128")


# What is said about it ----------------------------------------------------------------------------


def test_secrets_and_what_the_receiver_says_are_shown_nowhere(
    receiver: Receiver, publisher: Make, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    said = b"HTTP/1.1 500 from-inside\r\nX-Bad header from-inside\r\n\r\nfrom-inside"
    sender = publisher(f"http://127.0.0.1:{receiver.port}/tok-in-path?key=tok-in-query")
    told = [repr(sender), str(sender)]
    for answer in (raw(said), status(400, body=b"from-inside"), raw(b"from-inside"), cut):
        receiver.answers(answer)
        error = failure(sender)
        told += traceback.format_exception(error)
    shown = "\n".join([caplog.text, *told])
    for secret in ("tok-in-path", "tok-in-query", SECRET, SECRET.removeprefix("whsec_")):
        assert secret not in shown
    assert "from-inside" not in shown


# Options ------------------------------------------------------------------------------------------


def problems(**changes: Any) -> list[str]:
    options = {"url": "https://hooks.example.org/x", "secret": SECRET, **changes}
    return WebhookPublisher.problems(options)


def test_good_options_have_no_problem() -> None:
    assert problems() == []
    assert (
        problems(
            timeout=3,
            allowed_networks=["10.0.0.0/8"],
            ca_file=AUTHORITY,
            entity_types=["job", "dag_run", "task_instance"],
            states=["failed", "upstream_failed"],
            max_tries=1,
        )
        == []
    )


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"url": "file:///etc/passwd"}, "url: must begin with http:// or https://, not file:"),
        ({"url": "http://127.0.0.1/"}, "url: leads to 127.0.0.1, which is no public address"),
        ({"url": "http://localhost./"}, "url: leads to 127.0.0.1, which is no public address"),
        ({"url": "http://0x7f000001/"}, "url: spells an IPv4 address oddly"),
        ({"url": "http://[::ffff:127.0.0.1]/"}, "url: leads to "),
        ({"url": 5}, "url: must be a URL"),
        ({"secret": "hush"}, "secret: number 1 does not begin with whsec_"),
        ({"secret": ""}, "secret: is missing"),
        ({"timeout": 0}, "timeout: must be more than 0"),
        ({"timeout": 1e9}, "timeout: must be more than 0 and at most 60 seconds"),
        ({"timeout": float("nan")}, "timeout: must be more than 0"),
        ({"timeout": "10"}, "timeout: must be a number of seconds"),
        ({"timeout": True}, "timeout: must be a number of seconds"),
        ({"allowed_networks": ["10.0.0.0/99"]}, "allowed_networks: '10.0.0.0/99' is no network"),
        ({"allowed_networks": 7}, "allowed_networks: must be a list"),
        ({"ca_file": "/nowhere.pem"}, "ca_file: '/nowhere.pem' holds no certificates"),
        ({"ca_file": __file__}, "ca_file: "),
        ({"ca_file": 7}, "ca_file: must be the path of a file"),
        ({"proxy": "https://proxy.example:3128"}, "proxy: must begin with http://"),
        ({"proxy": "proxy.example:3128"}, "proxy: must begin with http"),
        ({"proxy": "http://me:hush@proxy.example:3128"}, "proxy: must not hold a user"),
        ({"entity_types": "job"}, "entity_types: must be a list"),
        ({"entity_types": ["jobs"]}, "entity_types: there is no entity type 'jobs'"),
        ({"states": ["done"]}, "states: there is no state 'done', but "),
        ({"states": [["failed"]]}, "states: "),
        ({"states": None}, "states: must be a list"),
        ({"entity_types": ["dag_run"], "states": ["killed"]}, "states: there is no state 'killed'"),
        ({"max_tries": 0}, "max_tries: must be a whole number"),
        ({"max_tries": 2.5}, "max_tries: must be a whole number"),
        ({"max_tries": True}, "max_tries: must be a whole number"),
        ({"colour": "red"}, "colour: no such option"),
    ],
)
def test_a_bad_option_is_one_line_with_its_name(changes: dict[str, Any], told: str) -> None:
    lines = problems(**changes)
    assert len(lines) == 1
    assert lines[0].startswith(told)
    if "colour" not in changes:
        with pytest.raises(ValueError, match="^" + lines[0].partition(":")[0]):
            WebhookPublisher(**{"url": "https://a.example", "secret": SECRET, **changes})


def test_what_is_missing_is_told() -> None:
    assert WebhookPublisher.problems({}) == ["url: is missing", "secret: is missing"]


def test_a_network_of_ones_own_may_be_named() -> None:
    assert problems(url="http://10.1.2.3:8080/", allowed_networks=["10.0.0.0/8"]) == []
    assert problems(url="http://localhost:8080/", allowed_networks=["127.0.0.0/8"]) == []
