"""How far each publisher has come, and how it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from django.db.models import Count

from container_manager import conf
from container_manager.models import DeadLetter, Event, PublisherState
from container_manager.models.base import database_now


@dataclass(frozen=True)
class PublisherReport:
    """One publisher of the settings, or one that was there before."""

    alias: str
    configured: bool
    """False: nobody serves it any more."""
    position: int
    """All events up to this one are delivered, or dead letters."""
    lag: int
    """Events that it has not been told."""
    lag_seconds: float
    """How long ago the first of these became an event; 0 where there is none."""
    dead_letters: int
    delivered_at: datetime | None
    failing_since: datetime | None
    failures: int
    last_error: str
    next_try_at: datetime | None
    refused: int | None
    tries: int

    @property
    def state(self) -> str:
        """In a word or two."""
        if not self.configured:
            return "not configured"
        if self.failing_since:
            return "refused" if self.refused else "failing"
        return "behind" if self.lag else "ok"

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "state": self.state}


def publishers() -> list[PublisherReport]:
    """Those of the settings and those that have a row, by alias."""
    configured = conf.settings.PUBLISHERS
    rows = PublisherState.objects.in_bulk()
    newest, now = Event.objects.newest(), database_now("default")
    made = _made_behind(row.position for row in rows.values() if row.position < newest)
    letters = DeadLetter.objects.order_by().values_list("publisher").annotate(Count("pk"))
    return [
        _report(
            rows.get(alias) or PublisherState(alias=alias, position=newest),
            *(alias in configured, newest, dict(letters).get(alias, 0), made, now),
        )
        for alias in sorted({*configured, *rows})
    ]


def _made_behind(positions: Any) -> dict[int, datetime]:
    """When the first event that is kept behind each of these was made."""
    return {
        position: row["created_at"]
        for position in set(positions)
        if (row := Event.objects.after(position).values("created_at").first())
    }


def _report(
    row: PublisherState,
    configured: bool,
    newest: int,
    dead_letters: int,
    made: Mapping[int, datetime],
    now: datetime,
) -> PublisherReport:
    since = made.get(row.position)
    return PublisherReport(
        alias=row.alias,
        configured=configured,
        position=row.position,
        lag=max(0, newest - row.position),
        lag_seconds=max(0.0, (now - since).total_seconds()) if since else 0.0,
        dead_letters=dead_letters,
        delivered_at=row.delivered_at,
        failing_since=row.failing_since,
        failures=row.failures,
        last_error=row.last_error,
        next_try_at=row.next_try_at,
        refused=row.refused,
        tries=row.tries,
    )
