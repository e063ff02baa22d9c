"""Signatures of webhooks after the Standard Webhooks convention: how they are made and checked.

    webhook-id: 0192f0c1-…          the event's id, the same at each try
    webhook-timestamp: 1767225600   when this try was sent, seconds since 1970
    webhook-signature: v1,K5oZ…     HMAC-SHA256 of `id.timestamp.body`; one for each secret

A secret is written as `whsec_` and the base64 form of 24 to 64 random bytes.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import json
import secrets as randomness
from collections.abc import Iterable, Mapping
from time import time
from typing import Any

PREFIX = "whsec_"
SHORTEST, LONGEST = 24, 64
"""Bytes of a secret."""


class SignatureError(ValueError):
    """This request was not signed with that secret, or long ago."""


def new_secret() -> str:
    """A secret for one receiver."""
    return PREFIX + base64.b64encode(randomness.token_bytes(32)).decode()


class Signer:
    """Signs with each of its secrets. They are in no text that is made of it."""

    def __init__(self, secret: object) -> None:
        """Raises ValueError, which does not repeat the secret."""
        self._keys = read_secrets(secret)

    def headers(self, message_id: str, moment: int, body: bytes) -> dict[str, str]:
        """The three headers of a request that is sent at `moment`, in seconds since 1970."""
        return {
            "webhook-id": message_id,
            "webhook-timestamp": str(moment),
            "webhook-signature": " ".join(self.signatures(message_id, moment, body)),
        }

    def signatures(self, message_id: str, moment: int, body: bytes) -> list[str]:
        signed = f"{message_id}.{moment}.".encode() + body
        return [_signature(key, signed) for key in self._keys]


def _signature(key: bytes, signed: bytes) -> str:
    return "v1," + base64.b64encode(hmac.digest(key, signed, "sha256")).decode()


def read_secrets(secret: object) -> tuple[bytes, ...]:
    """The keys of one secret or several: a text with spaces between them, or a list.

    Raises ValueError; its message says which one is wrong by its number, never by its letters.
    """
    texts = secret.split() if isinstance(secret, str) else secret
    if not isinstance(texts, Iterable):
        raise ValueError("must be a text or a list of texts")
    keys = tuple(_key(number, text) for number, text in enumerate(texts, 1))
    if not keys:
        raise ValueError("is missing")
    return keys


def _key(number: int, text: object) -> bytes:
    if not isinstance(text, str) or not text.startswith(PREFIX):
        raise ValueError(f"number {number} does not begin with {PREFIX}")
    try:
        key = base64.b64decode(text.removeprefix(PREFIX), validate=True)
    except (binascii.Error, ValueError):
        raise ValueError(f"number {number} is not base64 after {PREFIX}") from None
    if not SHORTEST <= len(key) <= LONGEST:
        raise ValueError(
            f"number {number} has {len(key)} bytes; it needs {SHORTEST} to {LONGEST} random ones"
        )
    return key


def verify(
    headers: Mapping[str, str],
    body: bytes | str,
    secret: str | Iterable[str],
    tolerance: float = 300,
) -> dict[str, Any]:
    """For receivers: the event, if this request was signed with (one of) the secret(s).

    `body` as it came, byte for byte. Raises SignatureError if it was not, or if it was sent more
    than `tolerance` seconds from now. An event that comes twice has the same `id` twice.
    """
    raw = body.encode() if isinstance(body, str) else body
    found = {name.lower(): value for name, value in headers.items()}
    message_id, moment = found.get("webhook-id", ""), _moment(found.get("webhook-timestamp", ""))
    if abs(time() - moment) > tolerance:
        raise SignatureError("It was signed too long ago, or a clock is wrong.")
    good = Signer(secret).signatures(message_id, moment, raw)
    if not _any_equal(found.get("webhook-signature", "").split(), good):
        raise SignatureError("It was not signed with this secret.")
    event: dict[str, Any] = json.loads(raw)
    return event


def _moment(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 15):
        raise SignatureError("It has no webhook-timestamp.")
    return int(text)


def _any_equal(given: Iterable[str], good: Iterable[str]) -> bool:
    """Compared without telling by its time where they differ."""
    return any(hmac.compare_digest(one.encode(), other.encode()) for one in given for other in good)
