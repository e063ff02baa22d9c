"""The address of the web server, taken before anything is started that would have to end again."""

from __future__ import annotations

import errno
import ipaddress
import socket
from argparse import ArgumentTypeError

from container_manager.management.base import failed, wrong_usage

BACKLOG = 1024
OF_THE_PORT: dict[int | None, str] = {
    errno.EADDRINUSE: "is in use",
    errno.EACCES: "needs rights that you do not have",
}


def port(text: str) -> int:
    """The argument of --port."""
    if not text.isdecimal() or int(text) > 65535:
        raise ArgumentTypeError(f"{text!r} is not a port: a whole number up to 65535")
    return int(text)


def listen(host: str, port: int) -> socket.socket:
    """The listening socket; one line that says what is wrong where it cannot be had."""
    try:
        family, *_ = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except (OSError, UnicodeError) as error:
        if why := OF_THE_PORT.get(getattr(error, "errno", None)):
            raise failed(f"port {port} {why}; choose another with --port") from None
        raise wrong_usage(f"--host: {host!r} is not an address of this machine") from None


def url_of(listener: socket.socket) -> str:
    """Where a browser on this machine finds it."""
    address, number = listener.getsockname()[:2]
    host = ipaddress.ip_address(address.partition("%")[0])
    if host.is_unspecified:
        host = ipaddress.ip_address("::1" if host.version == 6 else "127.0.0.1")
    name = f"[{host}]" if host.version == 6 else str(host)
    return f"http://{name}:{number}"


def is_local(listener: socket.socket) -> bool:
    """True: no other machine can reach it."""
    return ipaddress.ip_address(listener.getsockname()[0].partition("%")[0]).is_loopback
