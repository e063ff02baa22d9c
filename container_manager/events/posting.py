"""One POST to one receiver, bounded in time, in bytes and in where it may go.

On the standard library's HTTP, because the three things that matter are below what a library of
pools and retries shows: the address that is dialled is the one that was checked; `timeout` bounds
the whole exchange, not each read of it; and nothing that the receiver says is written into a log.
"""

from __future__ import annotations

import http.client
import socket
import ssl
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from ipaddress import ip_address
from time import monotonic, time
from typing import TYPE_CHECKING, Any

from container_manager.events.addresses import PORTS, Reach, Refused, Target

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

ANSWER_BYTES = 64 * 1024
"""What is read of an answer, its head included; a longer one is cut."""
IDLE_SECONDS, LIFE_SECONDS = 2.0, 60.0
"""How long a connection may rest and still be used, and how long it is used at all: then its name
is looked up again."""


class Unreached(Exception):
    """The request was not taken by anybody."""


class Unanswered(Exception):
    """The request was sent, and no whole answer came."""


@dataclass(frozen=True)
class Answer:
    """What the receiver said of a request; its body is shown to nobody."""

    status: int
    retry_after: float | None = None
    """Seconds for which it asks to be left alone."""


class Allowance:
    """What one exchange may still take."""

    def __init__(self, seconds: float, size: int = ANSWER_BYTES) -> None:
        self._end, self._left = monotonic() + seconds, size

    def seconds(self) -> float:
        """Until its end. Raises TimeoutError then."""
        left = self._end - monotonic()
        if left <= 0:
            raise TimeoutError("timed out")
        return left

    def room(self) -> int:
        """Bytes that may still be read. Raises _TooLong when there are none."""
        if self._left <= 0:
            raise _TooLong
        return self._left

    def took(self, size: int) -> int:
        self._left -= size
        return size


class _TooLong(OSError):
    """The answer is longer than anybody reads."""


class _Socket(socket.socket):
    """A socket whose every wait ends with the allowance of the exchange."""

    allowance: Allowance

    def recv_into(self, buffer: WriteableBuffer, nbytes: int = 0, flags: int = 0) -> int:
        self.settimeout(self.allowance.seconds())
        size = min(nbytes or memoryview(buffer).nbytes, self.allowance.room())
        return self.allowance.took(super().recv_into(buffer, size, flags))

    def sendall(self, data: ReadableBuffer, flags: int = 0) -> None:
        self.settimeout(self.allowance.seconds())
        super().sendall(data, flags)


class _TlsSocket(ssl.SSLSocket):
    """The same under TLS, which sends and reads by pieces."""

    allowance: Allowance

    def recv_into(self, buffer: WriteableBuffer, nbytes: int | None = None, flags: int = 0) -> int:
        self.settimeout(self.allowance.seconds())
        size = min(nbytes or memoryview(buffer).nbytes, self.allowance.room())
        return self.allowance.took(super().recv_into(buffer, size, flags))

    def send(self, data: ReadableBuffer, flags: int = 0) -> int:
        self.settimeout(self.allowance.seconds())
        return super().send(data, flags)


def client_tls(ca_file: str | None = None) -> ssl.SSLContext:
    """TLS that trusts the machine's authorities, or only those of `ca_file`. Raises OSError."""
    context = ssl.create_default_context(cafile=ca_file)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    context.sslsocket_class = _TlsSocket
    return context


class _Connection(http.client.HTTPConnection):
    """HTTP over a socket that is there already."""

    sock: _Socket | _TlsSocket | None

    def __init__(self, target: Target, sock: _Socket | _TlsSocket) -> None:
        super().__init__(target.host.rstrip("."), target.port)
        self.default_port = PORTS[target.scheme]
        self.auto_open = 0
        self.sock = sock
        self.opened = self.used = monotonic()
        self.is_fresh = True
        """No request was answered on it yet."""

    def allow(self, allowance: Allowance) -> None:
        if self.sock is not None:
            self.sock.allowance = allowance

    def is_usable(self) -> bool:
        """Old ones are left, and those that the other side closed or sent something unasked."""
        if self.sock is None:
            return False
        now = monotonic()
        if now - self.used > IDLE_SECONDS or now - self.opened > LIFE_SECONDS:
            return False
        return not _has_something_to_say(self.sock)


def _has_something_to_say(sock: socket.socket) -> bool:
    sock.settimeout(0)
    try:
        socket.socket.recv(sock, 1, socket.MSG_PEEK)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


class Poster:
    """Sends to one target, over one connection that is kept while it is used.

    Not for several threads at once.
    """

    def __init__(
        self,
        target: Target,
        reach: Reach,
        *,
        timeout: float,
        tls: ssl.SSLContext,
        proxy: Target | None = None,
    ) -> None:
        self._target, self._reach, self._timeout = target, reach, timeout
        self._tls = tls if target.scheme == "https" else None
        self._proxy = proxy
        self._lookup = Lookup()
        self._connection: _Connection | None = None

    def post(self, body: bytes, headers: Mapping[str, str]) -> Answer:
        """One request and what was said of it. Raises Unreached or Unanswered."""
        allowance = Allowance(self._timeout)
        connection = self._connected(allowance)
        try:
            return self._exchange(connection, body, headers)
        except _Dropped:
            # It was closed while the request was on its way, as a receiver may do with one that
            # rested. If the request arrived nevertheless, then the event comes twice.
            fresh = self._connected(allowance)
            return self._exchange(fresh, body, headers)

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _exchange(self, connection: _Connection, body: bytes, headers: Mapping[str, str]) -> Answer:
        try:
            with _told_as_unanswered(connection):
                connection.request("POST", self._target.path, body, dict(headers))
                response = connection.getresponse()
                answer = Answer(response.status, _retry_after(response.headers.get("Retry-After")))
        except BaseException:
            self.close()
            raise
        self._keep_or_close(connection, response)
        return answer

    def _keep_or_close(self, connection: _Connection, response: http.client.HTTPResponse) -> None:
        """The status was told, and that counts: the rest is read for the next request only."""
        try:
            response.read(ANSWER_BYTES)
            kept = response.isclosed() and connection.sock is not None
        except (OSError, http.client.HTTPException, ValueError):
            kept = False
        response.close()
        if not kept:
            self.close()
        connection.used, connection.is_fresh = monotonic(), False

    def _connected(self, allowance: Allowance) -> _Connection:
        if self._connection is None or not self._connection.is_usable():
            self.close()
            self._connection = _Connection(self._target, self._dial(allowance))
        self._connection.allow(allowance)
        return self._connection

    def _dial(self, allowance: Allowance) -> _Socket | _TlsSocket:
        """A socket that is connected to a checked address."""
        try:
            return self._secured(self._plain(allowance), allowance)
        except Refused as error:
            raise Unreached(f"{self._target.origin} {error}") from error
        except ssl.SSLCertVerificationError as error:
            told = f"its certificate is not good: {error.verify_message}"
            raise Unreached(f"{self._target.origin}: {told}") from error
        except OSError as error:
            raise Unreached(f"{self._target.origin} cannot be reached: {_told(error)}") from error

    def _plain(self, allowance: Allowance) -> _Socket:
        if self._proxy is not None:  # which looks the name up, and judges what it finds
            sock = _connect(self._lookup(self._proxy, allowance.seconds()), allowance)
            return _tunnelled(sock, self._target)
        addresses = self._lookup(self._target, allowance.seconds())
        self._reach.check_all(ip_address(sockaddr[0]) for _family, sockaddr in addresses)
        return _connect(addresses, allowance)

    def _secured(self, sock: _Socket, allowance: Allowance) -> _Socket | _TlsSocket:
        if self._tls is None:
            return sock
        try:
            sock.settimeout(allowance.seconds())
            secured = self._tls.wrap_socket(sock, server_hostname=self._target.host.rstrip("."))
        except BaseException:
            sock.close()
            raise
        assert isinstance(secured, _TlsSocket)  # noqa: S101 - the context makes no other
        return secured


class Lookup:
    """Asks for a host's addresses, and does not wait for ever: a resolver cannot be interrupted."""

    def __init__(self) -> None:
        self._asking: threading.Thread | None = None

    def __call__(self, target: Target, seconds: float) -> list[tuple[int, Any]]:
        """Family and address of each. Raises OSError."""
        if self._asking is not None and self._asking.is_alive():
            raise TimeoutError("its name is still being looked up")
        found: list[list[tuple[int, Any]] | OSError] = []
        self._asking = threading.Thread(
            target=lambda: found.append(_addresses(target)), name="webhook-lookup", daemon=True
        )
        self._asking.start()
        self._asking.join(seconds)
        if not found:
            raise TimeoutError("its name could not be looked up in time")
        if isinstance(found[0], OSError):
            raise found[0]
        return found[0]


def _addresses(target: Target) -> list[tuple[int, Any]] | OSError:
    try:
        found = socket.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM)
    except OSError as error:
        return error
    except UnicodeError:
        return OSError("its name cannot be looked up")
    return [(family, sockaddr) for family, _kind, _protocol, _name, sockaddr in found]


def _connect(addresses: list[tuple[int, Any]], allowance: Allowance) -> _Socket:
    """To the first that answers. Raises OSError: the last one's."""
    failure = OSError("it has no address")
    for number, (family, sockaddr) in enumerate(addresses):
        sock = _Socket(family, socket.SOCK_STREAM)
        sock.allowance = allowance
        try:
            sock.settimeout(allowance.seconds() / (len(addresses) - number))
            sock.connect(sockaddr)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except OSError as error:
            sock.close()
            failure = error
        else:
            return sock
    raise failure


def _tunnelled(sock: _Socket, target: Target) -> _Socket:
    """The same socket, once the proxy at its other end leads to the target. Raises OSError."""
    try:
        sock.sendall(f"CONNECT {target.place} HTTP/1.1\r\nHost: {target.place}\r\n\r\n".encode())
        status = _head(sock).split(b" ", 2)[1:2]
        if status != [b"200"]:
            told = status[0][:3].decode(errors="replace") if status else "not in HTTP"
            raise OSError(f"the proxy answered {told}")
    except BaseException:
        sock.close()
        raise
    return sock


def _head(sock: _Socket) -> bytes:
    """Byte by byte, because what comes behind it is the target's."""
    head, byte = b"", bytearray(1)
    while not head.endswith(b"\r\n\r\n"):
        if not sock.recv_into(byte):
            raise OSError("the proxy closed the connection")
        head += byte
    return head


class _Dropped(Exception):
    """A connection that rested was closed before a word of an answer came."""


@contextmanager
def _told_as_unanswered(connection: _Connection) -> Iterator[None]:
    """What can go wrong once there is a connection, in words that repeat nothing of the answer."""
    try:
        yield
    except (http.client.RemoteDisconnected, ConnectionError) as error:
        if not connection.is_fresh:
            raise _Dropped from error
        raise Unanswered("the connection was closed before an answer came") from error
    except TimeoutError as error:
        raise Unanswered("no whole answer came in time") from error
    except _TooLong as error:
        raise Unanswered(f"the head of its answer is longer than {ANSWER_BYTES} bytes") from error
    except OSError as error:
        raise Unanswered(f"the connection broke: {_told(error)}") from error
    except (http.client.HTTPException, ValueError):  # which repeats what came
        raise Unanswered("its answer is not HTTP") from None


def _told(error: OSError) -> str:
    return error.strerror or str(error) or type(error).__name__


def _retry_after(text: str | None) -> float | None:
    """Seconds from now; None for what is neither a number nor a date."""
    if not text:
        return None
    text = text.strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time())
    except (ValueError, OverflowError, TypeError):
        return None
