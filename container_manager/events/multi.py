"""Several publishers as one, which has delivered what all of them have.

They wait for each other; of those that shall not, each gets an alias of its own in the settings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from container_manager.events.base import (
    NotDelivered,
    Publisher,
    Standing,
    TransitionEvent,
    Unavailable,
    make,
)


class MultiPublisher(Publisher):
    """Tells each of `publishers`: objects, or a `class` and `options` as in the settings.

    Where one fails the others go on, and what they have by then they are not told again.
    """

    def __init__(self, publishers: Sequence[Publisher | Mapping[str, Any]]) -> None:
        if not publishers:
            raise ValueError("publishers: there must be one at least")
        self._publishers = [
            each if isinstance(each, Publisher) else _made_of(each) for each in publishers
        ]
        self._positions = [0] * len(self._publishers)
        """Up to which event each has been told."""

    def begin(self, standing: Standing) -> int:
        self._positions = [each.begin(standing) for each in self._publishers]
        return min(self._positions)

    def publish(self, events: Sequence[TransitionEvent]) -> None:
        errors = [
            error
            for number in range(len(self._publishers))
            if (error := self._tell_one(number, events)) is not None
        ]
        if errors:
            raise min(errors, key=_what_comes_first)

    def _tell_one(self, number: int, events: Sequence[TransitionEvent]) -> NotDelivered | None:
        new = [event for event in events if event.sequence > self._positions[number]]
        if not new:
            return None
        try:
            self._publishers[number].publish_all(new)
        except NotDelivered as error:
            self._note(number, new[: error.delivered])
            error.delivered += len(events) - len(new)
            return error
        self._note(number, new)
        return None

    def _note(self, number: int, told: Sequence[TransitionEvent]) -> None:
        if told:
            self._positions[number] = told[-1].sequence

    def close(self) -> None:
        for each in self._publishers:
            each.close()


def _made_of(entry: Any) -> Publisher:
    if not isinstance(entry, Mapping) or not isinstance(entry.get("class"), str):
        raise ValueError("publishers: each needs a dict with `class` and `options`")
    return make(entry["class"], entry.get("options"))


def _what_comes_first(error: NotDelivered) -> tuple[int, bool]:
    """What holds up the earliest event; what is only away before what is refused."""
    return error.delivered, not isinstance(error, Unavailable)
