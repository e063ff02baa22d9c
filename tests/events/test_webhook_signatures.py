"""Signatures: made as the convention says, checked as receivers do."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time

import pytest

from container_manager.events.signatures import Signer
from container_manager.events.webhook import SignatureError, new_secret, verify

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
BODY = b'{"id":"msg","new_state":"running"}'


def by_hand(secret: str, message_id: str, moment: int, body: bytes) -> str:
    """The convention's own words in a few lines, independent of what is tested."""
    key = base64.b64decode(secret[len("whsec_") :])
    mac = hmac.new(key, b"%b.%d.%b" % (message_id.encode(), moment, body), hashlib.sha256)
    return "v1," + base64.b64encode(mac.digest()).decode()


def signed(secret: str = SECRET, body: bytes = BODY, ago: float = 0) -> dict[str, str]:
    return Signer(secret).headers("msg", int(time.time() - ago), body)


def test_a_signature_is_that_of_the_convention() -> None:
    """The example of the convention's reference libraries."""
    body = b'{"test": 2432232314}'
    headers = Signer(SECRET).headers("msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, body)
    assert headers == {
        "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
        "webhook-timestamp": "1614265330",
        "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    }


def test_each_secret_gives_a_signature_so_that_they_can_be_changed() -> None:
    old, new = new_secret(), new_secret()
    for both in (f"{new} {old}", [new, old], (new, old)):
        headers = Signer(both).headers("msg", 5, BODY)
        assert headers["webhook-signature"].split() == [
            by_hand(new, "msg", 5, BODY),
            by_hand(old, "msg", 5, BODY),
        ]


def test_a_receiver_takes_what_is_signed_with_any_of_its_secrets() -> None:
    old, new = new_secret(), new_secret()
    assert verify(signed(f"{new} {old}"), BODY, old) == json.loads(BODY)
    assert verify(signed(old), BODY, f"{new} {old}")["id"] == "msg"
    assert verify(signed(old), BODY.decode(), [new, old])["id"] == "msg"


def test_names_of_headers_are_taken_in_any_case() -> None:
    headers = {name.title(): value for name, value in signed().items()}
    assert verify(headers, BODY, SECRET)["id"] == "msg"


@pytest.mark.parametrize("name", ["webhook-id", "webhook-timestamp", "webhook-signature"])
def test_a_request_without_one_of_the_headers_is_not_signed(name: str) -> None:
    headers = signed()
    del headers[name]
    with pytest.raises(SignatureError):
        verify(headers, BODY, SECRET)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("webhook-id", "other"),
        ("webhook-timestamp", str(int(time.time()) - 7)),
        ("webhook-timestamp", "now"),
        ("webhook-timestamp", "-1"),
        ("webhook-timestamp", "١٢٣"),
        ("webhook-timestamp", "9" * 400),
        ("webhook-signature", ""),
        ("webhook-signature", "v1,"),
        ("webhook-signature", "v1,ä"),
        ("webhook-signature", "v2," + "A" * 43 + "="),
        ("webhook-signature", by_hand(new_secret(), "msg", int(time.time()), BODY)),
    ],
)
def test_a_header_that_was_changed_is_not_signed(name: str, value: str) -> None:
    with pytest.raises(SignatureError):
        verify({**signed(), name: value}, BODY, SECRET)


def test_a_body_that_was_changed_is_not_signed() -> None:
    with pytest.raises(SignatureError, match="not signed with this secret"):
        verify(signed(), BODY + b" ", SECRET)


@pytest.mark.parametrize("ago", [301, -301])
def test_what_was_signed_too_long_ago_or_in_the_future_is_refused(ago: float) -> None:
    with pytest.raises(SignatureError, match="too long ago"):
        verify(signed(ago=ago), BODY, SECRET)
    assert verify(signed(ago=ago), BODY, SECRET, tolerance=400)


@pytest.mark.parametrize(
    ("secret", "told"),
    [
        ("", "is missing"),
        ([], "is missing"),
        (None, "must be a text"),
        (7, "must be a text"),
        ("hush-hush", "number 1 does not begin with whsec_"),
        (f"{SECRET} hush-hush", "number 2 does not begin with whsec_"),
        ([SECRET, 7], "number 2 does not begin with whsec_"),
        ("whsec_hush!hush", "number 1 is not base64"),
        ("whsec_aHVzaA==", "number 1 has 4 bytes"),
        ("whsec_", "number 1 has 0 bytes"),
        ("whsec_" + "A" * 88, "number 1 has 66 bytes"),
        ("whsec_hüsh", "number 1 is not base64"),
    ],
)
def test_a_bad_secret_is_told_by_its_number_and_never_repeated(secret: object, told: str) -> None:
    with pytest.raises(ValueError, match=told) as refusal:
        Signer(secret)
    assert "hush" not in str(refusal.value)
    assert "aHVz" not in str(refusal.value)


def test_a_new_secret_is_one_and_never_the_same() -> None:
    assert new_secret() != new_secret()
    assert Signer(new_secret()).signatures("msg", 1, BODY)


def test_a_signer_does_not_show_its_secrets() -> None:
    key = base64.b64decode(SECRET.removeprefix("whsec_"))
    shown = repr(Signer(SECRET)) + str(Signer(SECRET))
    assert SECRET not in shown
    assert repr(key) not in shown
