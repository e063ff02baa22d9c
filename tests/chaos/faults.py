"""What can be done to a server that the workers need."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Protocol

Fault = tuple[float, Callable[[random.Random], object]]
"""How often, beside the others, and what."""


class NoSuchFault(Exception):
    """A fault that must come cannot: it would look as if it had been survived."""


class Server(Protocol):
    """Its faults by name; one at a time happens to it."""

    faults: dict[str, Fault]
