"""How the engine's HTTP is read, and that every wait ends: against a server of a few lines."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from container_manager.executors.base import EngineUnavailable
from container_manager.executors.docker_http import Address, EngineHttp

Serve = Callable[[socket.socket], None]
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"


@contextmanager
def served(directory: Path, serve: Serve, backlog: int = 8) -> Iterator[EngineHttp]:
    """An engine that does with each connection as `serve` says."""
    path = str(directory / "engine.sock")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(backlog)
        threading.Thread(target=_accept, args=[listener, serve], daemon=True).start()
        http = EngineHttp(Address.parse(f"unix://{path}"), timeout=0.2, pool_size=2)
        yield http
        http.close()
        listener.shutdown(socket.SHUT_RDWR)


def _accept(listener: socket.socket, serve: Serve) -> None:
    while True:
        try:
            client, _ = listener.accept()
        except OSError:
            return
        threading.Thread(target=_serve, args=[client, serve], daemon=True).start()


def _serve(client: socket.socket, serve: Serve) -> None:
    with client, suppress(OSError):  # the other side may have lost its patience
        client.recv(65536)
        serve(client)
        client.recv(65536)


def silence(_: socket.socket) -> None:
    pass


def in_pieces(*pieces: bytes) -> Serve:
    pause = threading.Event()

    def serve(client: socket.socket) -> None:
        for piece in pieces:
            client.sendall(piece)
            pause.wait(0.05)
        client.shutdown(socket.SHUT_WR)

    return serve


def test_a_call_that_is_never_answered_ends_and_is_no_loss(tmp_path: Path) -> None:
    with served(tmp_path, silence) as http:
        with pytest.raises(EngineUnavailable, match="timed out"):
            http.call("GET", "/_ping")
        with pytest.raises(EngineUnavailable):
            http.call("GET", "/_ping", timeout=0.01)
        assert http.losses == 0


def test_a_stream_that_is_never_answered_ends(tmp_path: Path) -> None:
    with served(tmp_path, silence) as http:
        stream = http.stream("GET", "/events")
        with pytest.raises(EngineUnavailable, match=r"within 0\.1 seconds"):
            stream.wait_for_head(0.1)
        assert stream.read(0.01) is None
        stream.close()


def test_a_head_that_never_ends_is_not_waited_for(tmp_path: Path) -> None:
    trickle = [b"HTTP/1.0 200 OK\r\n"] + [b"X: y\r\n"] * 40
    with served(tmp_path, in_pieces(*trickle)) as http:
        stream = http.stream("GET", "/events")
        with pytest.raises(EngineUnavailable, match=r"within 0\.1 seconds"):
            stream.wait_for_head(0.1)
        stream.close()


def test_a_head_in_pieces_is_no_body(tmp_path: Path) -> None:
    with served(tmp_path, in_pieces(b"HTTP/1.0 200 ", b"OK\r\nA: b\r\n\r\nbo", b"dy")) as http:
        stream = http.stream("GET", "/events")
        body = b""
        while not stream.has_ended:
            body += stream.read(1) or b""
        assert (stream.status, body) == (200, b"body")
        stream.close()


def test_what_is_no_http_says_nothing_about_a_job(tmp_path: Path) -> None:
    with served(tmp_path, in_pieces(b"hello\r\n\r\n")) as http:
        stream = http.stream("GET", "/events")
        with pytest.raises(EngineUnavailable, match="not HTTP"):
            stream.wait_for_head(1)
        stream.close()
        with pytest.raises(EngineUnavailable):
            http.call("GET", "/_ping")


def test_an_engine_that_takes_no_more_connections_is_there_and_not_lost(tmp_path: Path) -> None:
    """Its process stands still and its queue is full: a unix socket says so at once."""
    path = str(tmp_path / "full.sock")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(0)
        http = EngineHttp(Address.parse(f"unix://{path}"), timeout=0.1, pool_size=2)
        waiting = [socket.socket(socket.AF_UNIX) for _ in range(3)]
        for each in waiting:
            each.setblocking(False)
            each.connect_ex(path)
        with pytest.raises(EngineUnavailable):
            http.knock()
        with pytest.raises(EngineUnavailable):
            http.call("GET", "/_ping")
        for each in waiting:
            each.close()
        assert http.losses == 0
        http.close()


def test_an_engine_that_is_gone_is_a_loss(tmp_path: Path) -> None:
    with served(tmp_path, in_pieces(OK)) as http:
        assert http.call("GET", "/_ping").losses == 0
        http.knock()
    with pytest.raises(EngineUnavailable, match="a new connection"):
        http.knock()
    assert http.losses == 1
