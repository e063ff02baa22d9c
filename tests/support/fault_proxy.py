"""A line between a client and a server, TCP or unix socket, on which things go wrong as told.

    with FaultProxy(at="/tmp/line.sock", to="/run/real.sock") as line:
        line.next(COMMIT, lose_reply)    # the server does it, the client never hears of it
        line.delay(there=0.5, back=0.5)  # every piece of bytes is late
        line.black_hole()                # accepts, takes everything, answers nothing
        line.heal()                      # as if nothing had been; what was held back is lost
        line.cut(); line.reset()         # every connection ends now, in order or by RST
        line.refuse()                    # nobody may connect, those that did are cut

A fault of `next` is for one piece of bytes from a client, the first for which its predicate holds.
"""

from __future__ import annotations

import re
import socket
import struct
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType

Address = str | tuple[str, int]
"""A path, or host and port."""

Predicate = Callable[[bytes], bool]
Fault = Callable[["Link", bytes], bool]
"""Called with the piece of bytes; False when the link is over."""


def holds(words: bytes | str) -> Predicate:
    """These words are in the piece."""
    sought = words.encode() if isinstance(words, str) else words
    return lambda piece: sought in piece


def matches(pattern: bytes) -> Predicate:
    return lambda piece: re.search(pattern, piece) is not None


COMMIT = matches(rb"Q....COMMIT\0")
"""PostgreSQL's simple query COMMIT, as psycopg ends a transaction."""


def lose_reply(link: Link, piece: bytes) -> bool:
    """The server does as asked; the line breaks before its answer is through."""
    link.deaf.set()
    link.server.sendall(piece)
    return True


def hang(_link: Link, _piece: bytes) -> bool:
    """The server never hears of it, and nothing comes back."""
    return True


def reset(link: Link, _piece: bytes) -> bool:
    """The server never hears of it; the client's connection is reset."""
    link.reset()
    return False


def answer(reply: bytes) -> Fault:
    """The server never hears of it; the client gets this instead, and the connection ends."""

    def fault(link: Link, _piece: bytes) -> bool:
        link.client.sendall(reply)
        return False

    return fault


class Link:
    """One client's connection and the one that was made to the server for it."""

    def __init__(self, client: socket.socket, server: socket.socket) -> None:
        self.client = client
        self.server = server
        self.deaf = threading.Event()
        """Set: the next answer of the server ends the link instead of reaching the client."""
        self._how = socket.SHUT_RDWR

    def cut(self) -> None:
        for each, how in ((self.client, self._how), (self.server, socket.SHUT_RDWR)):
            with suppress(OSError):
                each.shutdown(how)

    def reset(self) -> None:
        """The client sees RST instead of FIN (a unix socket knows no difference)."""
        with suppress(OSError):
            abruptly = struct.pack("ii", 1, 0)
            self.client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, abruptly)
        self._how = socket.SHUT_RD  # wakes who reads from it; RST follows when it is closed
        self.cut()


class FaultProxy:
    """Listens at one address and hands on to another; threads only, for tests."""

    def __init__(self, *, at: Address, to: Address | Callable[[], socket.socket]) -> None:
        self._dial = to if callable(to) else lambda: _connect(to)
        self._listener = _listen(at)
        self.address: Address = self._listener.getsockname()
        self._links: set[Link] = set()
        self._lock = threading.Lock()
        self._armed: list[tuple[Predicate, Fault]] = []
        self._late = {"there": 0.0, "back": 0.0}
        self._swallows = False
        self._refuses = False
        self._closed = False
        self.hits = 0
        """How many faults of `next` have happened."""
        threading.Thread(target=self._accept, name="fault proxy", daemon=True).start()

    def __enter__(self) -> FaultProxy:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # What goes wrong

    def next(self, predicate: Predicate, fault: Fault, times: int = 1) -> None:
        """The next `times` pieces from a client for which this holds go wrong so."""
        with self._lock:
            self._armed += [(predicate, fault)] * times

    def delay(self, there: float = 0.0, back: float = 0.0) -> None:
        self._late = {"there": there, "back": back}

    def black_hole(self) -> None:
        """Everything is taken, in both directions, and nothing handed on."""
        self._swallows = True

    def refuse(self) -> None:
        """As a server that is down: nobody stays connected."""
        self._refuses = True
        self.cut()

    def heal(self) -> None:
        """No fault any more; links that lost bytes are over, because they make no sense now."""
        self._late = {"there": 0.0, "back": 0.0}
        self._refuses = False
        if self._swallows:
            self._swallows = False
            self.cut()
        with self._lock:
            self._armed.clear()

    def cut(self) -> None:
        """Every connection that is open now ends."""
        for link in self._open():
            link.cut()

    def reset(self) -> None:
        for link in self._open():
            link.reset()

    def close(self) -> None:
        self._closed = True
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()
        if isinstance(self.address, str):
            Path(self.address).unlink(missing_ok=True)

    # How it works

    def _open(self) -> list[Link]:
        with self._lock:
            return list(self._links)

    def _accept(self) -> None:
        while not self._closed:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=[client], daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client:
            try:
                server = None if self._refuses else self._dial()
            except OSError:
                return
            if server is not None:
                with server:
                    self._join(Link(client, server))

    def _join(self, link: Link) -> None:
        with self._lock:
            self._links.add(link)
        back = threading.Thread(target=self._pump_back, args=[link], daemon=True)
        back.start()
        self._pump_there(link)
        link.cut()
        back.join()
        with self._lock:
            self._links.discard(link)

    def _pump_there(self, link: Link) -> None:
        while piece := _receive(link.client):
            time.sleep(self._late["there"])
            if self._swallows:
                continue
            with suppress(OSError):
                if not self._hand_on(link, piece):
                    return

    def _hand_on(self, link: Link, piece: bytes) -> bool:
        fault = self._fault_for(piece)
        if fault is not None:
            return fault(link, piece)
        link.server.sendall(piece)
        return True

    def _fault_for(self, piece: bytes) -> Fault | None:
        with self._lock:
            for number, (predicate, fault) in enumerate(self._armed):
                if predicate(piece):
                    del self._armed[number]
                    self.hits += 1
                    return fault
        return None

    def _pump_back(self, link: Link) -> None:
        while piece := _receive(link.server):
            time.sleep(self._late["back"])
            if link.deaf.is_set():
                break
            if not self._swallows:
                with suppress(OSError):
                    link.client.sendall(piece)
        link.cut()


def _listen(at: Address) -> socket.socket:
    family = socket.AF_UNIX if isinstance(at, str) else socket.AF_INET
    listener = socket.socket(family)
    listener.bind(at)
    listener.listen(256)
    return listener


def _connect(to: Address) -> socket.socket:
    if isinstance(to, tuple):
        return socket.create_connection(to)
    made = socket.socket(socket.AF_UNIX)
    made.connect(to)
    return made


def _receive(sock: socket.socket) -> bytes:
    with suppress(OSError):
        return sock.recv(65536)
    return b""
