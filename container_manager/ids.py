"""Time-ordered identifiers (UUID version 7, RFC 9562 section 5.7)."""

from __future__ import annotations

import os
import threading
import time
import uuid

_lock = threading.Lock()
_last = 0


def uuid7() -> uuid.UUID:
    """A new UUID version 7: 48 bits of Unix milliseconds, then 74 random bits.

    Greater than all that this process made before, also within a millisecond (RFC 9562, 6.2).
    """
    global _last
    with _lock:
        _last = max(_random_uuid7(), _last + 1)
        return uuid.UUID(int=_last)


def _random_uuid7() -> int:
    milliseconds = time.time_ns() // 1_000_000
    random = int.from_bytes(os.urandom(10), "big")
    value = (milliseconds & (1 << 48) - 1) << 80 | random
    value = value & ~(0xF << 76) | 0x7 << 76
    return value & ~(0x3 << 62) | 0x2 << 62
