"""Idempotency-Key: a request that is sent twice acts once."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from typing import Any

from rest_framework.request import Request

from container_manager import lifecycle
from container_manager.api.errors import invalid
from container_manager.api.operations import Header

_PATTERN = r"[!-~](?:[ -~]{0,253}[!-~])?"
HEADER = Header(
    "Idempotency-Key",
    {"type": "string", "minLength": 1, "maxLength": 255, "pattern": f"^{_PATTERN}$"},
    "Sent again with the same body, the answer is that of the first time, with 200.",
)


def once(request: Request, call: str, act: Callable[[], Any]) -> tuple[Any, bool]:
    """The answer of `act`, and whether it was given now; without a key it always is.

    Raises Problem (400), KeyReused.
    """
    key = request.headers.get(HEADER.name)
    if key is None:
        return act(), True
    if not re.fullmatch(_PATTERN, key):
        raise invalid({HEADER.name: ["Must have from 1 to 255 printable ASCII characters."]})
    body_hash = hashlib.sha256(request._request.body).hexdigest()
    return lifecycle.once(f"user:{request.user.pk} {call}", key, body_hash, act)
