"""Where a webhook may be sent: how its URL is read, and which addresses are public.

A URL that somebody chose must not reach what only this machine reaches: the services on it, those
of its network, the one that tells a cloud machine its credentials. A URL is read strictly, so that
nothing here understands it otherwise than what dials; a name is judged by the addresses that it has
at that moment (`Reach`), and those are dialled, not the name once more.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_network,
)
from urllib.parse import SplitResult, urlsplit

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

PORTS = {"http": 80, "https": 443}
FIRST_FREE_PORT = 1024
"""Below it only the two of the web: no mail server, no shell, no DNS server is spoken to."""

# Written out, because `is_global` of one Python knows less than that of the next.
_NOT_PUBLIC = tuple(
    ip_network(text)
    for text in (
        *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16"),
        *("172.16.0.0/12", "192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16"),
        *("198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4"),
        "168.63.129.16/32",  # Azure's own services, though from a public range
        *("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20"),
    )
)
_GLOBAL_UNICAST = IPv6Network("2000::/3")
_NAT64 = IPv6Network("64:ff9b::/96")
_VISIBLE = re.compile(r"[!-~]+")
_NAME = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)(\.(?!-)[a-z0-9_-]{1,63}(?<!-))*\.?")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")


class Refused(ValueError):
    """Nothing is sent there."""


@dataclass(frozen=True)
class Target:
    """A URL, read. Only `origin` may be shown: the rest of a webhook's URL is often a secret."""

    scheme: str
    host: str
    """A name or an address, in lower case and without brackets."""
    port: int
    path: str = field(repr=False)
    """With the query, as it goes into the request."""

    @property
    def place(self) -> str:
        """Host and port."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def origin(self) -> str:
        return f"{self.scheme}://{self.place.removesuffix(f':{PORTS[self.scheme]}')}"

    @property
    def address(self) -> Address | None:
        """The host, where it is an address."""
        try:
            return ip_address(self.host)
        except ValueError:
            return None

    @property
    def is_local_name(self) -> bool:
        """`localhost` and names below it mean this machine, whatever a name server says."""
        return f".{self.host.rstrip('.')}".endswith(".localhost")


def read_url(url: object) -> Target:
    """The target of a webhook. Raises Refused; the message repeats nothing that may be secret."""
    if not isinstance(url, str) or not _VISIBLE.fullmatch(url):
        raise Refused("must be a URL of visible ASCII characters; write a name as xn--…")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise Refused("is no URL: its host or its port cannot be read") from error
    if parts.scheme not in PORTS:
        raise Refused(f"must begin with http:// or https://, not {_shown(parts.scheme)}")
    _check_form(url, parts)
    host = _read_host(parts)
    return Target(parts.scheme, host, _read_port(parts.scheme, port), _path(parts))


def _shown(scheme: str) -> str:
    return f"{scheme[:20]}:" if scheme else "without a scheme"


def _check_form(url: str, parts: SplitResult) -> None:
    if "@" in parts.netloc:
        raise Refused("must not hold a user or a password: requests are signed instead")
    if "\\" in url:
        raise Refused("must not hold a backslash")
    if "#" in url:
        raise Refused("must not hold a #: what follows it is never sent")
    if parts.netloc.endswith(":"):
        raise Refused("names no port after the colon")


def _read_host(parts: SplitResult) -> str:
    host = parts.hostname or ""
    if parts.netloc.startswith("["):
        return _ipv6(host)
    if _NUMBER.fullmatch(host.rstrip(".").rpartition(".")[2]):
        return _ipv4(host)
    if len(host) > 253 or not _NAME.fullmatch(host):
        raise Refused("names no host")
    return host


def _ipv6(host: str) -> str:
    try:
        address = IPv6Address(host)
    except ValueError as error:
        raise Refused("has no IPv6 address in its brackets") from error
    if address.scope_id is not None:
        raise Refused("must not name an interface")
    return str(address)


def _ipv4(host: str) -> str:
    """Only as everybody writes it: not 0x7f000001, 2130706433, 127.1 nor 0177.0.0.1."""
    try:
        return str(IPv4Address(host))
    except ValueError as error:
        raise Refused("spells an IPv4 address oddly: write four decimal numbers") from error


def _read_port(scheme: str, port: int | None) -> int:
    if port is None:
        return PORTS[scheme]
    if port not in PORTS.values() and port < FIRST_FREE_PORT:
        raise Refused(f"must name port 80, 443 or one from {FIRST_FREE_PORT} on, not {port}")
    return port


def _path(parts: SplitResult) -> str:
    return (parts.path or "/") + (f"?{parts.query}" if parts.query else "")


@dataclass(frozen=True)
class Reach:
    """Which addresses may be dialled: public ones, and those of `allowed`."""

    allowed: tuple[Network, ...] = ()

    @classmethod
    def read(cls, networks: object) -> Reach:
        """From texts such as 10.0.0.0/8. Raises Refused."""
        if isinstance(networks, str):
            networks = networks.replace(",", " ").split()
        if not isinstance(networks, Iterable):
            raise Refused("must be a list of networks such as 10.0.0.0/8")
        return cls(tuple(_network(text) for text in networks))

    def includes(self, address: Address) -> bool:
        inner = _carried(address)
        if any(address in network or inner in network for network in self.allowed):
            return True
        return is_public(inner)

    def check(self, target: Target) -> None:
        """Raises Refused for a host that needs no name server to be known as out of reach."""
        here = [IPv4Address("127.0.0.1")] if target.is_local_name else []
        known = [target.address] if target.address else here
        self.check_all(known)

    def check_all(self, addresses: Iterable[Address]) -> None:
        """Raises Refused if one of a host's addresses is out of reach."""
        for address in addresses:
            if not self.includes(address):
                raise Refused(
                    f"leads to {address}, which is no public address;"
                    " `allowed_networks` opens networks of your own"
                )


def is_public(address: Address) -> bool:
    """Is this somebody's on the internet, and nobody's of ours?"""
    if isinstance(address, IPv6Address) and address not in _GLOBAL_UNICAST:
        return False
    if any(address in network for network in _NOT_PUBLIC):
        return False
    return address.is_global and not address.is_multicast and not address.is_reserved


def _carried(address: Address) -> Address:
    """The IPv4 address that an IPv6 one only wraps: ::ffff:127.0.0.1, and that of NAT64.

    6to4 and Teredo wrap, too; nobody receives there, so they are refused as they are.
    """
    if isinstance(address, IPv4Address):
        return address
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    if address in _NAT64:
        return IPv4Address(int(address) & 0xFFFFFFFF)
    return address


def _network(text: object) -> Network:
    if not isinstance(text, str):
        raise Refused("must be a list of networks such as 10.0.0.0/8")
    try:
        return ip_network(text)
    except ValueError as error:
        raise Refused(f"{text[:60]!r} is no network such as 10.0.0.0/8: {error}") from error
