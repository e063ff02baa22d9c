"""Rows of events, publishers and dead letters as a relay leaves them."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
from django.utils import timezone

from container_manager.models import DeadLetter, Event, EventSequencer, PublisherState
from container_manager.models.sequencing import begin
from tests.support.loops import configured

__all__ = ["configured", "named"]

LOG = "container_manager.events.log.LogPublisher"


@pytest.fixture
def named(configured: Callable[..., None]) -> Callable[..., None]:
    """named("ours", "theirs"): the settings name these publishers."""

    def named(*aliases: str) -> None:
        configured(PUBLISHERS={alias: {"class": LOG, "options": {}} for alias in aliases})

    return named


def happened(count: int, *, ago: float = 0.0) -> None:
    """So many events more, so many seconds ago."""
    begin()
    newest = Event.objects.newest()
    Event.objects.bulk_create(
        Event(
            sequence=newest + number,
            event_id=uuid4(),
            entity_type="job",
            entity_id=uuid4(),
            new_state="pending",
            version=1,
            actor="test",
            changed_at=timezone.now() - timedelta(seconds=ago),
        )
        for number in range(1, count + 1)
    )
    EventSequencer.objects.update(last_sequence=newest + count)


def publisher_row(
    alias: str = "ours", *, failing_for: float = 0.0, **fields: Any
) -> PublisherState:
    """A publisher that a relay serves; `failing_for`: so many seconds."""
    fields.setdefault("holder", uuid4())
    if failing_for:
        fields.setdefault("failing_since", timezone.now() - timedelta(seconds=failing_for))
        fields.setdefault("failures", 3)
        fields.setdefault("last_error", "https://hooks.example.org answered 503")
    return PublisherState.objects.create(alias=alias, **fields)


def letter(alias: str = "ours", sequence: int = 1, **fields: Any) -> DeadLetter:
    given = {
        "event": {"id": str(uuid4()), "entity_type": "job", "entity_id": str(uuid4())}
        | {"old_state": "running", "new_state": "failed", "version": 4, "attempt": 1}
        | {"actor": "worker:w1", "reason": "oom", "metadata": {"exit_code": 137}}
        | {"changed_at": "2026-01-31T12:00:00.123456+00:00"},
        "tries": 10,
        "error": "https://hooks.example.org answered 422",
    }
    return DeadLetter.objects.create(publisher=alias, sequence=sequence, **{**given, **fields})
