"""A client of Server-Sent Events, as a browser is one: it comes back with the latest id."""

from __future__ import annotations

import base64
import json
import socket
import struct
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPResponse
from typing import Any
from urllib.parse import urlsplit

from tests.support.workers import PATIENCE


@dataclass(frozen=True)
class Told:
    """One event."""

    id: str
    event: str
    data: Any

    @property
    def content(self) -> bytes:
        """The bytes of a `log`."""
        if "text" in self.data:
            return str(self.data["text"]).encode()
        return base64.b64decode(self.data["base64"], validate=True)


class EventStream:
    """One connection; iterating gives events until the server ends it.

    with EventStream(f"{site.url}/api/v1/events/", person.headers) as stream:
        for told in stream: …
    """

    def __init__(self, url: str, headers: dict[str, str], last: str | None = None) -> None:
        parts = urlsplit(url)
        self._connection = HTTPConnection(parts.netloc, timeout=PATIENCE)
        resuming = {} if last is None else {"Last-Event-ID": last}
        target = f"{parts.path}?{parts.query}"
        self._connection.request("GET", target, headers={**headers, **resuming})
        self.response: HTTPResponse = self._connection.getresponse()
        self.status = self.response.status
        self.headers = self.response.headers
        self.last = last
        self.comments: list[str] = []
        self.came_at = 0.0
        """When the latest event came, by the monotonic clock."""
        self._pending = b""
        self._told: deque[Told] = deque()

    def __enter__(self) -> EventStream:
        assert self.status == 200, self.response.read()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """As a client that is gone: the server is told nothing more."""
        self.response.close()
        self._connection.close()

    def cut(self) -> None:
        """As a network that breaks."""
        if sock := self._connection.sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close()

    def __iter__(self) -> Iterator[Told]:
        while True:
            while self._told:
                yield self._told.popleft()
            if not self.read_some():
                return

    def read_some(self) -> bool:
        """Wait for something, be it a comment. False: the server has ended it."""
        data = self.response.read1(65536)
        self.came_at = time.monotonic()
        *blocks, self._pending = (self._pending + data).split(b"\n\n")
        self._told.extend(told for block in blocks if (told := self._read(block.decode())))
        if not data:
            self.close()
        return bool(data)

    def next(self, *events: str) -> Told:
        """The next one of these kinds."""
        return next(told for told in self if not events or told.event in events)

    def _read(self, block: str) -> Told | None:
        fields = dict(line.split(": ", 1) for line in block.split("\n"))
        if "" in fields:
            self.comments.append(fields[""])
        self.last = fields.get("id", self.last)
        if "data" not in fields:
            return None
        return Told(fields.get("id", ""), fields.get("event", ""), json.loads(fields["data"]))


def output(told: Iterable[Told], stream: str = "stdout", attempt: int = 1) -> bytes:
    """What one stream got; every event must begin where the one before ended."""
    found = b""
    for each in told:
        if each.event == "log" and (each.data["stream"], each.data["attempt"]) == (stream, attempt):
            assert each.data["offset"] - each.data["omitted_before"] == len(found)
            assert each.data["bytes"] == len(each.content)
            found += each.content
    return found
