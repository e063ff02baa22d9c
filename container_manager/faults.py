"""Named points at which a crash must lose nothing.

`reached` does nothing in production; tests put something there to delay or end the process.
The names are those of the crash table in docs/architecture.md.
"""

from __future__ import annotations

from collections.abc import Callable

POINTS = (
    *("S1", "S2", "C1", "C2", "C3", "R1", "R2", "R3", "R4", "R5"),
    *("U1", "U2", "U3", "U4", "X1", "X2", "X3", "X4", "X5"),
    *("T1", "K1", "K2", "K3", "A1", "A2"),
)

on_reach: Callable[[str], None] | None = None


def reached(point: str) -> None:
    """The code has come to `point`."""
    if on_reach is not None:
        on_reach(point)
