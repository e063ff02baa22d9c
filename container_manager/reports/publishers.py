"""Who is told of events: how far each has come, how it is, and what it would not take."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Any

from django.db.models import Count

from container_manager.conf import settings
from container_manager.models import DeadLetter, Event, PublisherState, sequencing
from container_manager.models.base import database_now
from container_manager.states import Words

USING = "default"
PATIENCE = timedelta(minutes=1)
"""For so long a publisher may fail, or be without a relay, before the first page tells of it."""
SLOW_SECONDS = 10.0
"""Who is so far behind is called so."""
MOST_UNTOLD = 10_000
"""Of moves that have no place yet no more are counted."""


class PublisherWord(Words):
    """How a publisher is, in one word."""

    OK = "ok", "Everything is delivered, or about to be."
    BEHIND = "behind", f"Events wait for longer than {SLOW_SECONDS:g} seconds."
    FAILING = "failing", "The latest delivery failed; it is tried again, and nothing is lost."
    REFUSED = "refused", "Its receiver refuses an event, which is tried some times more."
    WAITING = "waiting", "No relay serves it: start manage.py relay_events."
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
    lag: int
    """Moves that it was not told of; of one that is removed 0, for nobody is to tell it more."""
    lag_seconds: float
    """How long ago the first of those happened; 0 where there is none."""
    delivered_at: datetime | None
    failing_since: datetime | None
    failing_seconds: float
    failures: int
    """In a row."""
    last_error: str
    next_try_at: datetime | None
    refused: int | None
    """The event that its receiver refuses; the next one is it."""
    tries: int
    """How often that was refused."""
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
        patience = PATIENCE.total_seconds()
        left = self.state == PublisherWord.WAITING and self.lag_seconds >= patience
        return left or self.failing_seconds >= patience or bool(self.dead_letters)

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
    untold: int
    """Moves that have no place among the events yet."""


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
    untold = sequencing.untold(USING)
    counted = (
        DeadLetter.objects.using(USING)
        .order_by()
        .values_list("publisher")
        .annotate(Count("pk"), Count("wanted_at"))
    )
    waiting = _waiting({row.position for row in rows if row.position < newest})
    first = untold.order_by("commit_order").values_list("changed_at", flat=True).first()
    return _Ground(
        now=database_now(USING),
        newest=newest,
        letters={alias: (count, wanted) for alias, count, wanted in counted},
        waiting=waiting if first is None else {newest: first} | waiting,
        untold=untold[:MOST_UNTOLD].count() if first else 0,
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
    lag = max(0, ground.newest - state.position) + ground.untold if entry else 0
    lag_seconds = _seconds(ground.waiting.get(state.position), ground.now) if lag else 0.0
    return PublisherReport(
        alias=alias,
        path=entry["class"] if entry else "",
        state=str(_word(row, entry, lag_seconds, ground.now)),
        position=state.position,
        lag=lag,
        lag_seconds=lag_seconds,
        delivered_at=state.delivered_at,
        failing_since=state.failing_since,
        failing_seconds=_seconds(state.failing_since, ground.now),
        failures=state.failures,
        last_error=state.last_error,
        next_try_at=state.next_try_at,
        refused=state.refused,
        tries=state.tries,
        dead_letters=count,
        wanted_letters=wanted,
    )


def _word(
    row: PublisherState | None, entry: Any, lag_seconds: float, now: datetime
) -> PublisherWord:
    if entry is None:
        return PublisherWord.REMOVED
    if row is None or not _is_served(row, now):
        return PublisherWord.WAITING
    if row.failing_since is not None:
        return PublisherWord.FAILING if row.refused is None else PublisherWord.REFUSED
    return PublisherWord.BEHIND if lag_seconds > SLOW_SECONDS else PublisherWord.OK


def _is_served(row: PublisherState, now: datetime) -> bool:
    """By one look at the database's clock; who wants to take it over looks twice at its beat."""
    beats = timedelta(seconds=settings.LEASE_SECONDS)
    return row.holder is not None and now - row.updated_at <= beats


def _seconds(since: datetime | None, now: datetime) -> float:
    return max(0.0, round((now - since).total_seconds(), 3)) if since else 0.0
