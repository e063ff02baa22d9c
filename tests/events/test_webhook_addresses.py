"""Where a webhook may go, and how its URL is read."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from container_manager.events.addresses import Reach, Refused, is_public, read_url

PUBLIC = ["1.1.1.1", "8.8.8.8", "93.184.216.34", "172.15.0.1", "172.32.0.1", "192.0.1.1"]
PUBLIC += ["2606:4700::1111", "2a00:1450:4001:81b::200e", "::ffff:8.8.8.8", "64:ff9b::808:808"]

NOT_PUBLIC = {
    "127.0.0.1": "this machine",
    "127.255.255.254": "this machine",
    "0.0.0.0": "this machine",  # noqa: S104
    "10.0.0.1": "private",
    "172.16.0.1": "private",
    "172.31.255.255": "private",
    "192.168.1.1": "private",
    "100.64.0.1": "shared by a provider's customers",
    "100.100.100.200": "a cloud's metadata",
    "169.254.169.254": "a cloud's metadata",
    "169.254.0.1": "link",
    "192.0.0.192": "a cloud's metadata",
    "168.63.129.16": "a cloud's services",
    "192.0.2.1": "documentation",
    "198.18.0.1": "benchmarks",
    "198.51.100.7": "documentation",
    "203.0.113.7": "documentation",
    "192.88.99.1": "6to4 relays",
    "224.0.0.1": "multicast",
    "239.255.255.250": "multicast",
    "240.0.0.1": "reserved",
    "255.255.255.255": "broadcast",
    "::": "this machine",
    "::1": "this machine",
    "::ffff:127.0.0.1": "mapped",
    "::ffff:169.254.169.254": "mapped",
    "::ffff:10.1.2.3": "mapped",
    "::127.0.0.1": "compatible, long gone",
    "64:ff9b::7f00:1": "NAT64",
    "64:ff9b::a9fe:a9fe": "NAT64",
    "64:ff9b:1::1": "NAT64 of a network",
    "2002:7f00:1::1": "6to4",
    "2002:a9fe:a9fe::1": "6to4",
    "2001:0:4136:e378:8000:63bf:80ff:fffe": "Teredo",
    "2001:db8::1": "documentation",
    "3fff::1": "documentation",
    "fc00::1": "private",
    "fd00:ec2::254": "a cloud's metadata",
    "fe80::1": "link",
    "fec0::1": "site",
    "ff02::1": "multicast",
    "100::1": "discard",
    "5f00::1": "segment routing",
    "4000::1": "nobody's yet",
}


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses_are_reached(address: str) -> None:
    assert Reach().includes(ip_address(address))


@pytest.mark.parametrize("address", NOT_PUBLIC)
def test_others_are_not(address: str) -> None:
    assert not Reach().includes(ip_address(address))
    assert not is_public(ip_address(address))


@pytest.mark.parametrize("address", NOT_PUBLIC)
def test_any_of_them_can_be_opened_explicitly(address: str) -> None:
    assert Reach.read([address]).includes(ip_address(address))


def test_a_network_is_open_also_for_those_who_wrap_its_addresses_and_for_no_others() -> None:
    reach = Reach.read(["10.0.0.0/8", "fd12::/16"])
    for address in ("10.9.9.9", "::ffff:10.9.9.9", "fd12::5"):
        assert reach.includes(ip_address(address))
    for address in ("192.168.0.1", "::ffff:192.168.0.1", "fd13::5"):
        assert not reach.includes(ip_address(address))


def test_all_addresses_of_a_host_must_be_public() -> None:
    with pytest.raises(Refused, match=r"leads to 10\.0\.0\.1, which is no public address"):
        Reach().check_all(map(ip_address, ("8.8.8.8", "10.0.0.1")))


@pytest.mark.parametrize(
    ("networks", "told"),
    [
        (["10.0.0.0/33"], "'10.0.0.0/33' is no network"),
        (["10.0.0.1/8"], "has host bits set"),
        (["intranet"], "is no network"),
        ([""], "is no network"),
        ([10], "must be a list of networks"),
        (5, "must be a list of networks"),
        (None, "must be a list of networks"),
    ],
)
def test_networks_that_are_none_are_told(networks: object, told: str) -> None:
    with pytest.raises(Refused, match=told):
        Reach.read(networks)


def test_networks_may_be_one_text() -> None:
    assert Reach.read("10.0.0.0/8, fd12::/16").includes(ip_address("fd12::1"))


@pytest.mark.parametrize(
    ("url", "origin", "path"),
    [
        ("https://hooks.example.org", "https://hooks.example.org", "/"),
        ("HTTPS://Hooks.Example.org/A/b?c=d&e", "https://hooks.example.org", "/A/b?c=d&e"),
        ("https://hooks.example.org:443/x", "https://hooks.example.org", "/x"),
        ("http://hooks.example.org:443/x", "http://hooks.example.org:443", "/x"),
        ("http://8.8.8.8:8080/", "http://8.8.8.8:8080", "/"),
        ("https://[2606:4700::1111]:1024", "https://[2606:4700::1111]:1024", "/"),
        ("https://xn--bcher-kva.example.", "https://xn--bcher-kva.example.", "/"),
        ("http://receiver_1/", "http://receiver_1", "/"),
    ],
)
def test_a_url_is_read(url: str, origin: str, path: str) -> None:
    target = read_url(url)
    assert target.origin == origin
    assert target.path == path


BAD = {
    "": "visible ASCII",
    "hooks.example.org": "must begin with http",
    "//hooks.example.org/": "without a scheme",
    "http:hooks.example.org": "names no host",
    "http:///x": "names no host",
    "file:///etc/passwd": "not file:",
    "gopher://hooks.example.org/": "not gopher:",
    "ftp://hooks.example.org/": "not ftp:",
    "javascript:alert(1)": "not javascript:",
    "https://user@hooks.example.org/": "user or a password",
    "https://user:pass@hooks.example.org/": "user or a password",
    "https://good.example@169.254.169.254/": "user or a password",
    "https://hooks.example.org\\@127.0.0.1/": "user or a password",
    "https://hooks.example.org/\\x": "backslash",
    "https://hooks.example.org/#part": "must not hold a #",
    "https://hooks.example.org:22/": "port 80, 443 or one from 1024",
    "https://hooks.example.org:0/": "port 80, 443 or one from 1024",
    "https://hooks.example.org:25/": "port 80, 443 or one from 1024",
    "https://hooks.example.org:1023/": "port 80, 443 or one from 1024",
    "https://hooks.example.org:65536/": "is no URL",
    "https://hooks.example.org:-1/": "is no URL",
    "https://hooks.example.org:x/": "is no URL",
    "https://hooks.example.org:/": "names no port",
    "http://0x7f000001/": "spells an IPv4 address oddly",
    "http://0x7f.1/": "spells an IPv4 address oddly",
    "http://2130706433/": "spells an IPv4 address oddly",
    "http://0177.0.0.1/": "spells an IPv4 address oddly",
    "http://127.1/": "spells an IPv4 address oddly",
    "http://127.0.0.1./": "spells an IPv4 address oddly",
    "http://0/": "spells an IPv4 address oddly",
    "http://0x/": "spells an IPv4 address oddly",
    "http://1.2.3.4.5/": "spells an IPv4 address oddly",
    "http://host.256/": "spells an IPv4 address oddly",
    "http://\uff10x7f.1/": "visible ASCII",
    "http://\uff11\uff12\uff17.0.0.1/": "visible ASCII",
    "http://127\u30020\u30020\u30021/": "visible ASCII",
    "http://\u24dbocalhost/": "visible ASCII",
    "http://127%2e0%2e0%2e1/": "names no host",
    "http://[::1": "is no URL",
    "http://[127.0.0.1]/": "is no URL|no IPv6 address",
    "http://[fe80::1%25eth0]/": "must not name an interface|is no URL",
    "http://[fe80::1%eth0]/": "must not name an interface|is no URL",
    "http://-host/": "names no host",
    "http://a..b/": "names no host",
    f"http://{'a' * 64}.example/": "names no host",
    f"http://{'a.' * 130}example/": "names no host",
    "http://hooks.example.org/a b": "visible ASCII",
    "http://hooks.example.org/\r\nHost: other": "visible ASCII",
    "http://127.0.0.1\t/": "visible ASCII",
    " http://hooks.example.org/": "visible ASCII",
    "http://hooks.example.org/\x00": "visible ASCII",
    "http://hooks.example.org/\xfc": "visible ASCII",
}


@pytest.mark.parametrize("url", BAD)
def test_a_bad_url_is_refused_with_its_reason(url: str) -> None:
    with pytest.raises(Refused, match=BAD[url]):
        read_url(url)


@pytest.mark.parametrize("url", [None, 5, b"https://hooks.example.org", ["https://a.example"]])
def test_what_is_no_text_is_no_url(url: object) -> None:
    with pytest.raises(Refused, match="must be a URL"):
        read_url(url)


@pytest.mark.parametrize("url", [url for url in BAD if len(url) > 30])
def test_a_refusal_repeats_nothing_of_the_path(url: str) -> None:
    with pytest.raises(Refused) as refusal:
        read_url(f"{url}/tok-5ecret?key=tok-5ecret")
    assert "5ecret" not in str(refusal.value)


@pytest.mark.parametrize(
    "url",
    [
        *("http://127.0.0.1/", "http://169.254.169.254/latest/meta-data", "http://10.0.0.1:8080/"),
        *("http://[::1]/", "http://[::ffff:127.0.0.1]/", "http://[::ffff:7f00:1]/"),
        *("http://localhost/", "http://localhost./", "http://LOCALHOST:8000/"),
        *("http://a.localhost/", "http://[fd00:ec2::254]/", "http://[::]/", "http://0.0.0.0/"),
    ],
)
def test_a_host_that_is_known_to_be_inside_needs_no_question(url: str) -> None:
    with pytest.raises(Refused, match="which is no public address"):
        Reach().check(read_url(url))


def test_a_name_is_judged_when_it_is_dialled() -> None:
    Reach().check(read_url("https://localhost.example.org/"))


@given(
    scheme=st.sampled_from(["http://", "https://", "HTTP:", "ftp://", "//", ""]),
    host=st.one_of(st.text(max_size=30), st.ip_addresses().map(str), st.from_regex(r"[0-9a-fx.]+")),
    rest=st.text(max_size=20),
)
@example("http://", "127.0.0.1%00.example.org", "/")
def test_no_text_breaks_the_reader(scheme: str, host: str, rest: str) -> None:
    try:
        target = read_url(f"{scheme}{host}{rest}")
    except Refused:
        return
    assert target.scheme in ("http", "https")
    assert target.host.isascii()
    assert target.port in (80, 443) or target.port >= 1024
    assert read_url(target.origin).host == target.host
    assert not any(letter in target.path for letter in " \r\n\t\x00#")


@given(st.ip_addresses(v=4))
def test_wrapping_an_address_changes_nothing(address: IPv4Address) -> None:
    number = int(address)
    for wrapped in (IPv6Address(0xFFFF << 32 | number), IPv6Address((0x64FF9B << 96) | number)):
        assert Reach().includes(wrapped) == Reach().includes(address)
    for hidden in (IPv6Address(number), IPv6Address((0x2002 << 112) | number << 80)):
        assert not Reach().includes(hidden)


@given(st.ip_addresses())
def test_what_is_public_is_so_for_the_standard_library_too(
    address: IPv4Address | IPv6Address,
) -> None:
    others = ("private", "loopback", "link_local", "multicast", "reserved", "unspecified")
    if is_public(address):
        assert address.is_global
        assert not any(getattr(address, f"is_{word}") for word in others)
