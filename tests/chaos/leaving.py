"""A run that is asked to end does so in order, at a place where it waits.

Not by an exception out of the signal's handler: that would be swallowed where it comes in a
finalizer, and would interrupt who cleans up.
"""

from __future__ import annotations

import signal
import sys

_asked: list[int] = []


def when_asked() -> None:
    """From now on SIGTERM asks for it."""
    signal.signal(signal.SIGTERM, lambda number, _: _asked.append(number))


def if_asked() -> None:
    """Raises SystemExit; whoever started something ends it on the way out."""
    if _asked:
        sys.exit(128 + _asked[0])
