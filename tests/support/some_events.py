"""Events that nobody made."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from container_manager.events.base import TransitionEvent

NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)


def event(sequence: int, entity: int = 1, **given: Any) -> TransitionEvent:
    chosen: dict[str, Any] = {
        "id": UUID(int=sequence),
        "entity_type": "job",
        "entity_id": UUID(int=entity),
        "old_state": None,
        "new_state": "queued",
        "version": sequence,
        "attempt": 0,
        "actor": "api:ada",
        "reason": "",
        "metadata": {},
        "changed_at": NOON,
        "sequence": sequence,
    }
    return TransitionEvent(**(chosen | given))


def events(first: int, last: int, **given: Any) -> list[TransitionEvent]:
    return [event(sequence, **given) for sequence in range(first, last + 1)]
