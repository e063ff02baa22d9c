"""Who is told of events: how far each has come, how it is, and what it would not take."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Any

from django.db.models import Count

from container_manager.conf import settings
from container_manager.models import DeadLetter, Event, PublisherState
from container_manager.models.base import database_now
from container_manager.states import Words

USING = "default"
PATIENCE = timedelta(minutes=1)
"""A publisher that has failed for so long is told of on the first page."""
SLOW_SECONDS = 10.0
"""Who is so far behind is called so."""


class PublisherWord(Words):
    """How a publisher is, in one word."""

    WELL = "well", "Everything is delivered, or about to be."
    BEHIND = "behind", f"Events wait for longer than {SLOW_SECONDS:g} seconds."
    FAILING = "failing", "The latest delivery failed; it is tried again, and nothing is lost."
    WAITING = "waiting", "No relay has served it yet: manage.py relay_events."
    REMOVED = "removed", "The settings do not name it any more."


@dataclass(frozen=True)
class PublisherReport:
    """One publisher of the settings, or one that has been."""

    alias: str
    path: str
    """Its class; empty when the settings do not name it any more."""
    state: str
    position: int
    """All events up to this one are delivered, or dead letters."""
    lag_events: int
    """Of one that is removed: 0, for nobody is to tell it any more."""
    lag_seconds: float
    """How long ago the oldest move happened that it was not told of."""
    delivered_at: datetime | None
    failing_since: datetime | None
    failing_seconds: float
    failures: int
    """In a row."""
    last_error: str
    next_try_at: datetime | None
    dead_letters: int
    wanted_letters: int
    """Of the dead letters, those that are to be delivered again."""

    @property
    def kind(self) -> str:
        """The name of its class."""
        return self.path.rpartition(".")[2]

    @property
    def meaning(self) -> str:
        return PublisherWord(self.state).meaning

    @property
    def alarms(self) -> bool:
        """Should an operator look at it?"""
        return self.failing_seconds >= PATIENCE.total_seconds() or bool(self.dead_letters)

    def as_json(self) -> dict[str, Any]:
        moments = ("delivered_at", "failing_since", "next_try_at")
        told = {name: _iso(getattr(self, name)) for name in moments}
        return asdict(self) | told


def _iso(moment: datetime | None) -> str | None:
    return moment.isoformat() if moment else None


@dataclass(frozen=True)
class _Ground:
    """What all reports are made from."""

    now: datetime
    newest: int
    letters: Mapping[str, tuple[int, int]]
    """Alias to how many there are, and how many are wanted again."""
    waiting: Mapping[int, datetime]
    """Position to when the oldest move behind it happened."""


def publishers() -> list[PublisherReport]:
    """All that the settings name or that have been, by alias, in a fixed number of queries."""
    rows = PublisherState.objects.using(USING).in_bulk()
    named = settings.PUBLISHERS
    ground = _ground(rows.values())
    aliases = sorted({*rows, *named, *ground.letters})
    return [_report(alias, rows.get(alias), named.get(alias), ground) for alias in aliases]


def publisher(alias: str) -> PublisherReport | None:
    """One of them; None when there is no such publisher."""
    return next((each for each in publishers() if each.alias == alias), None)


def letters(alias: str) -> Any:
    """The dead letters of one publisher, as they happened."""
    return DeadLetter.objects.using(USING).of(alias)


def letter_as_json(letter: DeadLetter) -> dict[str, Any]:
    return {
        "id": str(letter.pk),
        "sequence": letter.sequence,
        "event": letter.event,
        "tries": letter.tries,
        "error": letter.error,
        "wanted_at": _iso(letter.wanted_at),
        "created_at": _iso(letter.created_at),
    }


def _ground(rows: Iterable[PublisherState]) -> _Ground:
    newest = Event.objects.using(USING).newest()
    counted = (
        DeadLetter.objects.using(USING)
        .order_by()
        .values_list("publisher")
        .annotate(Count("pk"), Count("wanted_at"))
    )
    return _Ground(
        now=database_now(USING),
        newest=newest,
        letters={alias: (count, wanted) for alias, count, wanted in counted},
        waiting=_waiting({row.position for row in rows if row.position < newest}),
    )


def _waiting(positions: set[int]) -> dict[int, datetime]:
    """Of each position, when the next event happened: the oldest that is kept, where it is gone."""
    events = Event.objects.using(USING)
    following = {position + 1 for position in positions}
    found = dict(events.filter(pk__in=following).values_list("sequence", "changed_at"))
    if len(found) < len(following):
        oldest = events.order_by("sequence").values_list("changed_at", flat=True).first()
        found |= {number: oldest for number in following - found.keys() if oldest is not None}
    return {number - 1: moment for number, moment in found.items()}


def _report(
    alias: str, row: PublisherState | None, entry: Mapping[str, Any] | None, ground: _Ground
) -> PublisherReport:
    state = row or PublisherState(alias=alias, position=ground.newest)
    count, wanted = ground.letters.get(alias, (0, 0))
    lag_events = max(0, ground.newest - state.position) if entry else 0
    lag_seconds = _seconds(ground.waiting.get(state.position), ground.now) if lag_events else 0.0
    return PublisherReport(
        alias=alias,
        path=entry["class"] if entry else "",
        state=_word(row, entry, lag_seconds),
        position=state.position,
        lag_events=lag_events,
        lag_seconds=lag_seconds,
        delivered_at=state.delivered_at,
        failing_since=state.failing_since,
        failing_seconds=_seconds(state.failing_since, ground.now),
        failures=state.failures,
        last_error=state.last_error,
        next_try_at=state.next_try_at,
        dead_letters=count,
        wanted_letters=wanted,
    )


def _word(row: PublisherState | None, entry: Any, lag_seconds: float) -> str:
    if entry is None:
        return str(PublisherWord.REMOVED)
    if row is None:
        return str(PublisherWord.WAITING)
    if row.failing_since is not None:
        return str(PublisherWord.FAILING)
    return str(PublisherWord.BEHIND if lag_seconds > SLOW_SECONDS else PublisherWord.WELL)


def _seconds(since: datetime | None, now: datetime) -> float:
    return max(0.0, round((now - since).total_seconds(), 3)) if since else 0.0
