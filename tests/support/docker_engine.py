"""The Docker engine for tests: is there one, and things that stand between it and an executor."""

from __future__ import annotations

import hashlib
import json
import socket
import socketserver
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from container_manager.executors.base import EngineUnavailable
from container_manager.executors.docker_http import Address, EngineHttp, address_from_environment
from tests.support import fault_proxy
from tests.support.fault_proxy import FaultProxy

IMAGE = "busybox:latest"


@cache
def why_not() -> str:
    """Empty when jobs can run here, else one sentence that says what is missing."""
    try:
        with engine() as http:
            has_image = http.call("GET", f"/images/{IMAGE}/json").ok
    except (EngineUnavailable, ValueError) as error:
        return f"NO DOCKER ENGINE ({error}): start one with `.ci/docker-engine up`"
    return "" if has_image else f"NO IMAGE {IMAGE} AT THE ENGINE: `.ci/docker-engine up` makes it"


@contextmanager
def engine(timeout: float = 30) -> Iterator[EngineHttp]:
    """The engine itself, to look behind an executor's back."""
    address = Address.parse(address_from_environment())
    http = EngineHttp(address, timeout=timeout, pool_size=4)
    try:
        yield http
    finally:
        http.close()


class FaultyLine:
    """A unix socket in front of the engine; the next request that has the words goes wrong.

    `lose_reply`: the engine does as asked and nobody hears of it. `hang`: nothing comes back.
    `fail`: the answer is a 500 and the engine never heard of it.
    """

    def __init__(self, directory: Path) -> None:
        path = str(directory / "line.sock")
        self.url = f"unix://{path}"
        self._proxy = FaultProxy(at=path, to=_dial)

    def lose_reply(self, words: str) -> None:
        self._proxy.next(_asks_for(words), fault_proxy.lose_reply)

    def hang(self, words: str) -> None:
        self._proxy.next(_asks_for(words), fault_proxy.hang)

    def fail(self, words: str) -> None:
        broken = b"HTTP/1.1 500 Broken\r\nConnection: close\r\n\r\n"
        self._proxy.next(_asks_for(words), fault_proxy.answer(broken))

    def cut(self) -> None:
        """Breaks every connection that is open now."""
        self._proxy.cut()

    def close(self) -> None:
        self._proxy.close()


def _dial() -> socket.socket:
    upstream: socket.socket = Address.parse(address_from_environment()).dial(30)
    upstream.settimeout(None)
    return upstream


def _asks_for(words: str) -> Callable[[bytes], bool]:
    """Are the words in the request's first line?"""
    return lambda piece: words.encode() in piece.partition(b"\r\n")[0]


@contextmanager
def another_engine(path: Path, engine_id: str) -> Iterator[None]:
    """Something that answers on this socket with an id of its own, and knows no container."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            info = {"ID": engine_id, "DockerRootDir": "/data", "NCPU": 1, "ServerVersion": "1"}
            body = json.dumps(info).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def address_string(self) -> str:
            return "unix"

        def log_message(self, *_: object) -> None:
            pass

    class Server(socketserver.ThreadingUnixStreamServer):
        daemon_threads = True
        block_on_close = False

    path.unlink(missing_ok=True)
    clients: list[socket.socket] = []
    server = Server(str(path), Handler)
    server.process_request = _remembering(server, clients)  # type: ignore[method-assign]
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        for client in clients:
            with suppress(OSError):
                client.shutdown(socket.SHUT_RDWR)


def _remembering(server: Any, clients: list[socket.socket]) -> Callable[[Any, Any], None]:
    process = server.process_request

    def remember(request: Any, address: Any) -> None:
        clients.append(request)
        process(request, address)

    return remember


@contextmanager
def registry(answer: Callable[[BaseHTTPRequestHandler], None]) -> Iterator[str]:
    """A registry on this machine; `answer` serves what is asked beyond `/v2/` itself."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == "/v2/":
                reply(self, 200, {})
            else:
                answer(self)

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        block_on_close = False

    with Server(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        try:
            yield f"127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()


def reply(handler: BaseHTTPRequestHandler, status: int, body: Any, **headers: str) -> None:
    data = json.dumps(body).encode()
    handler.send_response(status)
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Content-Length", str(len(data)))
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    if handler.command != "HEAD":
        handler.wfile.write(data)


def offer_another_processor(handler: BaseHTTPRequestHandler) -> None:
    """A registry's answer: the image exists, for machines of another kind."""
    kind = "application/vnd.docker.distribution.manifest"
    elsewhere = {
        "mediaType": f"{kind}.v2+json",
        "size": 2,
        "digest": f"sha256:{'0' * 64}",
        "platform": {"architecture": "s390x", "os": "linux"},
    }
    listed = {"schemaVersion": 2, "mediaType": f"{kind}.list.v2+json", "manifests": [elsewhere]}
    data = json.dumps(listed).encode()
    handler.send_response(200)
    handler.send_header("Content-Type", f"{kind}.list.v2+json")
    handler.send_header("Content-Length", str(len(data)))
    handler.send_header("Docker-Content-Digest", f"sha256:{hashlib.sha256(data).hexdigest()}")
    handler.end_headers()
    if handler.command != "HEAD":
        handler.wfile.write(data)
