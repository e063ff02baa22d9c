"""A receiver of webhooks on this machine, on bare sockets, so that it can behave as badly as asked.

with Receiver() as receiver:
    receiver.answers(500, drip(b"HTTP/1.1 200 OK"), 200)  # one for each request, the last stays
    ...
    receiver.requests[0].headers["webhook-id"]
"""

from __future__ import annotations

import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from types import TracebackType
from typing import Any

CERTIFICATES = Path(__file__).with_name("certificates")
AUTHORITY = str(CERTIFICATES / "authority.pem")


@dataclass(frozen=True)
class Request:
    """One request as it came."""

    method: str
    path: str
    headers: dict[str, str]
    """By names in lower case."""
    body: bytes


Behaviour = Callable[[socket.socket], bool]
"""Answers on the connection; True: it may be used again."""


def status(code: int, *, body: bytes = b"", **headers: str) -> Behaviour:
    lines = [f"HTTP/1.1 {code} {HTTPStatus(code).phrase}", f"Content-Length: {len(body)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]

    def behaviour(sock: socket.socket) -> bool:
        sock.sendall("\r\n".join([*lines, "", ""]).encode() + body)
        return True

    return behaviour


def raw(data: bytes) -> Behaviour:
    """These bytes, and the end."""

    def behaviour(sock: socket.socket) -> bool:
        sock.sendall(data)
        return False

    return behaviour


def drip(data: bytes, beginning: bytes = b"", pause: float = 0.1) -> Behaviour:
    """The beginning at once, then a byte after each pause; over and over."""

    def behaviour(sock: socket.socket) -> bool:
        sock.sendall(beginning)
        while True:
            for byte in data:
                sock.sendall(bytes([byte]))
                time.sleep(pause)

    return behaviour


def flood(beginning: bytes, size: int = 2**30) -> Behaviour:
    """The beginning, and so many bytes more."""

    def behaviour(sock: socket.socket) -> bool:
        sock.sendall(beginning)
        piece = b"x" * 65536
        for _ in range(size // len(piece)):
            sock.sendall(piece)
        return False

    return behaviour


def silence(seconds: float = 60.0) -> Behaviour:
    """Takes the request and says nothing."""

    def behaviour(sock: socket.socket) -> bool:
        sock.settimeout(seconds)
        with suppress(OSError):
            sock.recv(1)
        return False

    return behaviour


def late(seconds: float, then: Behaviour) -> Behaviour:
    def behaviour(sock: socket.socket) -> bool:
        time.sleep(seconds)
        return then(sock)

    return behaviour


def cut(sock: socket.socket) -> bool:
    """Closes without a word."""
    return False


def reset(sock: socket.socket) -> bool:
    """The same by RST."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    return False


def then_close(before: Behaviour) -> Behaviour:
    """Says that the connection may be used again, and closes it."""

    def behaviour(sock: socket.socket) -> bool:
        before(sock)
        return False

    return behaviour


class Receiver:
    """Listens at a free port of 127.0.0.1 until its end; `certificate`: over TLS."""

    def __init__(self, certificate: str = "", port: int = 0) -> None:
        self._tls = _server_tls(certificate) if certificate else None
        self._behaviours: list[Behaviour] = [status(200)]
        self._answer: Callable[[Request], int] | None = None
        self.requests: list[Request] = []
        self.connections = 0
        self._open: set[socket.socket] = set()
        self._listener = socket.create_server(("127.0.0.1", port))
        self.port: int = self._listener.getsockname()[1]
        self._threads = [threading.Thread(target=self._listen, daemon=True)]
        self._threads[0].start()

    @property
    def url(self) -> str:
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self.port}/hook"

    def answers(self, *how: int | Behaviour) -> None:
        """To the next requests; the last one also to all after them."""
        self._behaviours = [status(each) if isinstance(each, int) else each for each in how]

    def decides(self, answer: Callable[[Request], int]) -> None:
        """The status is made of the request."""
        self._answer = answer

    def ids(self) -> list[str]:
        return [request.headers["webhook-id"] for request in self.requests]

    def close(self) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for sock in list(self._open):
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(5)

    def __enter__(self) -> Receiver:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _listen(self) -> None:
        with suppress(OSError):
            while True:
                sock, _address = self._listener.accept()
                self.connections += 1
                thread = threading.Thread(target=self._serve, args=(sock,), daemon=True)
                self._threads.append(thread)
                thread.start()

    def _serve(self, plain: socket.socket) -> None:
        self._open.add(plain)
        sock: socket.socket = plain
        with suppress(OSError, ValueError):
            if self._tls is not None:
                sock = self._tls.wrap_socket(plain, server_side=True)
                self._open.add(sock)
            file = sock.makefile("rb")
            while self._take(sock, file):
                pass
        self._open -= {plain, sock}
        sock.close()

    def _take(self, sock: socket.socket, file: Any) -> bool:
        line = file.readline()
        if not line:
            return False
        method, path, _version = line.decode().split()
        headers = dict(_headers(file))
        body = file.read(int(headers.get("content-length", 0)))
        request = Request(method, path, headers, body)
        self.requests.append(request)
        return self._next(request)(sock)

    def _next(self, request: Request) -> Behaviour:
        if self._answer is not None:
            return status(self._answer(request))
        return self._behaviours.pop(0) if len(self._behaviours) > 1 else self._behaviours[0]


def _headers(file: Any) -> Iterator[tuple[str, str]]:
    while line := file.readline().strip():
        name, _colon, value = line.decode().partition(":")
        yield name.strip().lower(), value.strip()


def _server_tls(certificate: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATES / f"{certificate}.pem")
    return context


class Proxy:
    """Leads each CONNECT to `leads_to`, a port of 127.0.0.1, or answers with `refusal`."""

    def __init__(self, leads_to: int, refusal: bytes = b"") -> None:
        self.asked: list[str] = []
        self._leads_to, self._refusal = leads_to, refusal
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._listen, daemon=True).start()

    def close(self) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _listen(self) -> None:
        with suppress(OSError):
            while True:
                client, _address = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += client.recv(1)
        self.asked.append(head.decode().splitlines()[0])
        client.sendall(self._refusal or b"HTTP/1.1 200 Connected\r\nVia: test\r\n\r\n")
        if not self._refusal:
            with socket.create_connection(("127.0.0.1", self._leads_to)) as server:
                back = threading.Thread(target=_pour, args=(server, client), daemon=True)
                back.start()
                _pour(client, server)
                back.join(5)
        client.close()


def _pour(source: socket.socket, sink: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)


class Names:
    """A name server for socket.getaddrinfo: each question takes the next of a name's answers."""

    def __init__(self, **answers: Sequence[Sequence[str]]) -> None:
        self.asked: list[str] = []
        self._answers = {name.replace("__", "."): list(each) for name, each in answers.items()}
        self._really = socket.getaddrinfo

    def __call__(self, host: str, port: int, *given: Any, **named: Any) -> Any:
        self.asked.append(host)
        if host not in self._answers:
            return self._really(host, port, *given, **named)
        answers = self._answers[host]
        addresses = answers.pop(0) if len(answers) > 1 else answers[0]
        if not addresses:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [_info(address, port) for address in addresses]


def _info(address: str, port: int) -> Any:
    if ":" in address:
        return socket.AF_INET6, socket.SOCK_STREAM, 6, "", (address, port, 0, 0)
    return socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)
