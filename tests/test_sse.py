"""What every stream is made of: no database, no web server, only an event loop."""

from __future__ import annotations

import asyncio
import gc
import json
import signal
import threading
from types import SimpleNamespace

import pytest

from container_manager import sse
from container_manager.sse import (
    Bell,
    Message,
    NoSeat,
    Patience,
    Seats,
    Source,
    Stream,
    Streams,
)

NEVER = Patience(heartbeat=3600, send=3600, allowed=3600)


class Some(Source):
    """Tells what the test puts into it."""

    def __init__(self, *messages, over=False):
        self.waiting = list(messages)
        self.ends = over
        self.asked = 0
        self.opened = self.closed = 0

    place = "here"

    def open(self, bell):
        self.bell = bell
        self.opened += 1

    async def next(self):
        self.asked += 1
        self.over = self.ends
        told, self.waiting = self.waiting, []
        return told

    def close(self):
        self.closed += 1

    def put(self, *messages):
        self.waiting += messages
        sse.ring([self.bell])


class Client:
    """The other side of ASGI: what was sent, and how willingly it is taken."""

    def __init__(self):
        self.bodies = []
        self.done = False
        self.gone = asyncio.Event()
        self.takes = asyncio.Event()
        self.takes.set()
        self.came = asyncio.Event()
        self.transport = SimpleNamespace(
            abort=self.gone.set, get_extra_info=lambda _name: None, is_closing=lambda: False
        )

    async def send(self, message):
        await self.takes.wait()
        self.bodies.append(message.get("body", b""))
        self.done = not message.get("more_body", False)
        self.came.set()

    async def receive(self):
        await self.gone.wait()
        return {"type": "http.disconnect"}

    @property
    def text(self):
        return b"".join(self.bodies)

    async def until(self, text):
        while text not in self.text:
            self.came.clear()
            async with asyncio.timeout(30):
                await self.came.wait()


@pytest.fixture(autouse=True)
def a_server_of_its_own(monkeypatch):
    monkeypatch.setattr(sse, "_server", sse._Server())
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def run(test):
    """The coroutine with a client, to its end."""

    async def with_client():
        async with asyncio.timeout(60):
            await test(Client())

    asyncio.run(with_client())


def message(number, **data):
    return Message("x", {"n": number, **data}, str(number))


# Messages


@pytest.mark.parametrize(
    "text", ["", "a\nb\r\nc", "€\0\x85\u2028", "\udc80".encode("utf-8", "replace").decode(), ":"]
)
def test_a_message_is_one_line_of_json_whatever_it_says(text):
    lines = Message("log", {"text": text}, "7").encoded.decode().split("\n")
    assert lines[:2] == ["id: 7", "event: log"]
    assert json.loads(lines[2].removeprefix("data: ")) == {"text": text}
    assert lines[3:] == ["", ""]


# Seats


def test_each_has_a_number_of_seats_and_gets_them_back():
    seats = Seats()
    mine = [seats.take("ada", 2) for _ in range(2)]
    with pytest.raises(NoSeat):
        seats.take("ada", 2)
    seats.take("bob", 2).leave()
    mine[0].leave()
    mine[0].leave()
    assert seats.taken_by("ada") == 1
    seats.take("ada", 2)


def test_a_seat_that_nobody_knows_of_any_more_is_given_back():
    """The client went away after the view had answered, and before anything was sent."""
    seats = Seats()
    Stream(Some(), seats.take("ada", 1))
    gc.collect()
    assert seats.taken_by("ada") == 0


def test_seats_are_counted_right_by_many_threads():
    seats = Seats()

    def sit():
        for _ in range(2000):
            seats.take("ada", 10).leave()

    threads = [threading.Thread(target=sit) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seats.taken_by("ada") == 0


# Streams


def test_messages_are_sent_in_their_order_and_then_it_ends():
    async def test(client):
        source, seats = Some(message(1), message(2), over=True), Seats()
        await Stream(source, seats.take("ada", 1), NEVER).serve(client.receive, client.send)
        begin, body, end = client.bodies
        assert begin.startswith(b"retry: ")
        assert begin.endswith(b"\nid: here\n\n"), "who is cut off before the first one goes on here"
        assert body == message(1).encoded + message(2).encoded
        assert (end, client.done) == (b"", True)
        assert (source.opened, source.closed > 0, seats.taken_by("ada")) == (1, True, 0)

    run(test)


def test_what_comes_later_wakes_it_from_any_thread():
    async def test(client):
        source = Some()
        serving = asyncio.ensure_future(
            Stream(source, None, NEVER).serve(client.receive, client.send)
        )
        await client.until(b"retry")
        await asyncio.to_thread(source.put, message(1))
        await client.until(b"id: 1")
        source.ends = True
        await asyncio.to_thread(source.put)
        await serving

    run(test)


def test_what_comes_while_it_looks_is_not_missed():
    class Late(Some):
        async def next(self):
            told = await super().next()
            if self.asked == 1:
                self.ends = True
                await asyncio.to_thread(self.put, message(1))
                await asyncio.sleep(0)
            return told

    async def test(client):
        await Stream(Late(), None, NEVER).serve(client.receive, client.send)
        assert b"id: 1" in client.text

    run(test)


def test_who_waits_is_told_that_the_server_is_there():
    async def test(client):
        patience = Patience(heartbeat=0.01, send=60, allowed=60)
        stream = Stream(Some(), None, patience)
        serving = asyncio.ensure_future(stream.serve(client.receive, client.send))
        await client.until(b": still here\nid: here\n\n" * 3)
        client.gone.set()
        await serving

    run(test)


def test_a_bell_that_rings_for_others_does_not_silence_the_heartbeat():
    async def test(client):
        source = Some()
        stream = Stream(source, None, Patience(heartbeat=0.05, send=60, allowed=60))
        serving = asyncio.ensure_future(stream.serve(client.receive, client.send))
        await client.until(b"retry")
        while b": still here" not in client.text:
            source.put()
            await asyncio.sleep(0.001)
        client.gone.set()
        await serving

    run(test)


def test_a_client_that_has_gone_is_let_go_of_at_once():
    async def test(client):
        source, seats = Some(), Seats()
        stream = Stream(source, seats.take("ada", 1), NEVER)
        serving = asyncio.ensure_future(stream.serve(client.receive, client.send))
        await client.until(b"retry")
        assert sse.open_streams() == 1
        client.gone.set()
        await serving
        assert (sse.open_streams(), seats.taken_by("ada"), source.closed > 0) == (0, 0, True)
        assert not client.done

    run(test)


def test_a_client_that_takes_nothing_is_dropped_and_others_go_on():
    async def test(client):
        slow, quick = client, Client()
        patience = Patience(heartbeat=3600, send=0.2, allowed=3600)
        sources = [Some(), Some()]
        serving = [
            asyncio.ensure_future(Stream(source, None, patience).serve(each.receive, each.send))
            for source, each in zip(sources, (slow, quick), strict=True)
        ]
        await slow.until(b"retry")
        slow.takes.clear()
        for number in range(20):
            for source in sources:
                source.put(message(number))
            await quick.until(b"id: %d\n" % number)
        await serving[0]
        assert slow.gone.is_set(), "its connection is closed"
        assert not slow.done
        assert sources[0].asked < 20, "nothing is read ahead for it"
        assert not serving[1].done()
        quick.gone.set()
        await serving[1]

    run(test)


def test_a_mistake_of_ours_is_not_hidden():
    class Broken(Some):
        async def next(self):
            raise ZeroDivisionError

    async def test(client):
        source = Broken()
        with pytest.raises(ZeroDivisionError):
            await Stream(source, None, NEVER).serve(client.receive, client.send)
        assert source.closed

    run(test)


def test_whose_rights_end_his_stream_ends():
    async def test(client):
        answers = iter([True, True, False])

        async def is_allowed():
            return next(answers)

        patience = Patience(heartbeat=3600, send=3600, allowed=0.01)
        source = Some()
        await Stream(source, None, patience, is_allowed).serve(client.receive, client.send)
        assert client.done
        assert next(answers, None) is None

    run(test)


# The end of the server


def test_when_the_server_stops_all_streams_end_and_none_begins():
    async def test(client):
        clients = [client, *(Client() for _ in range(4))]
        serving = [
            asyncio.ensure_future(Stream(Some(), None, NEVER).serve(each.receive, each.send))
            for each in clients
        ]
        for each in clients:
            await each.until(b"retry")
        await asyncio.to_thread(sse.stop)
        await asyncio.gather(*serving)
        assert all(each.done for each in clients)
        late, source = Client(), Some(message(1))
        await Stream(source, None, NEVER).serve(late.receive, late.send)
        assert late.done
        assert b"id: 1" not in late.text

    run(test)


def test_when_the_server_stops_who_takes_nothing_does_not_keep_it(monkeypatch):
    monkeypatch.setattr(sse, "LINGER_SECONDS", 0.01)

    async def test(client):
        source = Some()
        serving = asyncio.ensure_future(
            Stream(source, None, NEVER).serve(client.receive, client.send)
        )
        await client.until(b"retry")
        client.takes.clear()
        source.put(message(1))
        sse.stop()
        await serving
        assert client.gone.is_set()

    run(test)


def test_the_signal_that_stops_the_server_is_heard_too():
    heard = []
    signal.signal(signal.SIGTERM, lambda *_: heard.append("the server"))

    async def test(client):
        serving = asyncio.ensure_future(
            Stream(Some(), None, NEVER).serve(client.receive, client.send)
        )
        await client.until(b"retry")
        signal.raise_signal(signal.SIGTERM)
        await serving
        assert (heard, client.done) == (["the server"], True)

    run(test)


# Outside of Django's handler


def application(stream=None, status=200, content_type=sse.MEDIA_TYPE):
    """As Django answers: a head, and a body that is empty when the stream was taken."""

    async def answer(scope, receive, send):
        taken = stream is not None and sse.hand_over(scope, stream)
        head = {"status": status, "headers": [(b"Content-Type", content_type.encode())]}
        await send({"type": "http.response.start", **head})
        await send({"type": "http.response.body", "body": b"" if taken else b"its own"})

    return answer


class WithHeads(Client):
    def __init__(self):
        super().__init__()
        self.heads = []

    async def send(self, message):
        if message["type"] == "http.response.start":
            self.heads.append(message)
        else:
            await super().send(message)


def test_a_stream_that_was_handed_over_follows_the_head_of_the_answer():
    async def test(_client):
        client, stream = WithHeads(), Stream(Some(message(1), over=True), None, NEVER)
        await Streams(application(stream))({"type": "http"}, client.receive, client.send)
        assert len(client.heads) == 1
        assert b"id: 1" in client.text
        assert client.done

    run(test)


def test_other_answers_are_left_alone():
    async def test(_client):
        client = WithHeads()
        await Streams(application())({"type": "http"}, client.receive, client.send)
        assert client.text == b"its own"

    run(test)


def test_an_answer_that_is_no_stream_after_all_lets_go_of_it():
    """Something between view and server answered otherwise."""

    async def test(_client):
        client, source, seats = WithHeads(), Some(message(1)), Seats()
        stream = Stream(source, seats.take("ada", 1), NEVER)
        app = Streams(application(stream, status=500, content_type="text/html"))
        await app({"type": "http"}, client.receive, client.send)
        assert (client.done, seats.taken_by("ada"), source.opened) == (True, 0, 0)

    run(test)


def test_without_the_wrapper_nothing_is_handed_over():
    assert not sse.hand_over({"type": "http"}, Stream(Some()))


def test_a_bell_belongs_to_the_loop_that_made_it():
    async def make():
        return Bell()

    sse.ring([asyncio.run(make())])  # that loop is closed: nobody waits there
