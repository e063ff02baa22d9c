"""When a DAG is due. Pure: moments come in as arguments, aware; slots go out in UTC.

cronsim reads the expression and counts on a clock without time zone. What the clock on the wall
does when it is changed is decided here, as Debian's cron does it:

- A fixed time (neither minute nor hour begins with `*`) that is left out comes once, right after
  the gap; one that the wall shows twice comes once, at the first.
- With a wildcard every instant counts at which the wall shows a matching time, no other.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import islice, takewhile
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cronsim import CronSim, CronSimError

from container_manager.states import MissedRuns

ALIASES = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
}
LONGEST_EXPRESSION, LONGEST_ZONE = 200, 64

_LONG_AGO = datetime(1970, 1, 1, tzinfo=UTC)
_TICK = timedelta(microseconds=1)
_SECOND = timedelta(seconds=1)
_STEP = timedelta(days=5)
"""Since 1970 no zone has changed its offset twice within so short a time."""


class BadSchedule(ValueError):
    """The schedule cannot be kept; `field` says what of it: schedule, timezone or end_date."""

    def __init__(self, message: str, field: str = "schedule") -> None:
        super().__init__(message)
        self.field = field


@dataclass(frozen=True, slots=True)
class Schedule:
    """A cron expression on the clock of a time zone, from `start` to `end`, both included.

    >>> daily = Schedule.parse("30 2 * * *", "Europe/Berlin")
    >>> daily.after(datetime(2026, 6, 1, tzinfo=UTC)).isoformat()
    '2026-06-01T00:30:00+00:00'
    """

    expression: str
    zone: ZoneInfo
    start: datetime | None = None
    end: datetime | None = None

    @classmethod
    def parse(
        cls,
        expression: str,
        timezone: str = "UTC",
        start: datetime | None = None,
        end: datetime | None = None,
    ) -> Schedule:
        """Raises BadSchedule: unreadable, unknown zone, start after end, or it never fires."""
        schedule = cls(_expression(expression), zone_of(timezone), start, end)
        in_order(start, end)
        if schedule.after(_LONG_AGO) is None:
            raise BadSchedule(f"{expression!r} never fires{schedule._within()}.")
        return schedule

    def _within(self) -> str:
        return " between start and end" if self.start or self.end else ""

    # Slots

    def after(self, moment: datetime) -> datetime | None:
        """The next slot later than `moment`; None when there is none."""
        return next(self._slots(moment), None)

    def next(self, count: int, now: datetime) -> list[datetime]:
        """The next `count` slots; fewer when the schedule ends."""
        return list(islice(self._slots(now), count))

    def between(self, after: datetime, until: datetime, limit: int) -> list[datetime]:
        """The slots later than `after`, not later than `until`: the `limit` oldest, in order."""
        return list(islice(takewhile(lambda slot: slot <= until, self._slots(after)), limit))

    def latest(self, after: datetime, until: datetime) -> datetime | None:
        """The newest slot later than `after` and not later than `until`, found by halving."""
        newest, horizon = self._first(after, until), until
        while newest is not None and horizon - newest > _SECOND:
            middle = newest + (horizon - newest) / 2
            later = self._first(middle, until)
            newest, horizon = (later, horizon) if later is not None else (newest, middle)
        return newest

    def _first(self, after: datetime, until: datetime) -> datetime | None:
        slot = self.after(after)
        return slot if slot is not None and slot <= until else None

    def explain(self) -> str:
        """The expression in words, such as `At 02:30 every day`."""
        return str(_clock(self.expression, _LONG_AGO).explain())

    # The clock on the wall

    def _slots(self, moment: datetime) -> Iterator[datetime]:
        """Later than `moment`, oldest first, each once."""
        after = moment if self.start is None else max(moment, self.start - _TICK)
        after = after.astimezone(UTC).replace(microsecond=0)
        slots = self._fixed(after) if _is_fixed(self.expression) else self._matching(after)
        for slot in slots:
            if self.end is not None and slot > self.end:
                return
            if slot > after:
                yield slot
                after = slot

    def _fixed(self, after: datetime) -> Iterator[datetime]:
        """One slot for each matching time, also where the wall skips it or shows it twice."""
        for wall in _clock(self.expression, _wall(after, self.zone)):
            first = wall.replace(tzinfo=self.zone, fold=0).astimezone(UTC)
            if _wall(first, self.zone) == wall:
                yield first
            else:  # left out: the gap lies between its two readings
                second = wall.replace(tzinfo=self.zone, fold=1).astimezone(UTC)
                yield self._change(second, first) or first

    def _matching(self, after: datetime) -> Iterator[datetime]:
        """Every instant whose time on the wall matches: stretch by stretch of constant offset."""
        known, wall = after, _wall(after, self.zone)
        while True:
            offset = _offset(known, self.zone)
            for match in _clock(self.expression, wall):
                slot = (match - offset).replace(tzinfo=UTC)
                changed = self._change(known, slot)
                if changed is not None:
                    break
                yield slot
                known = slot
            else:
                return
            known, wall = changed, _wall(changed, self.zone) - _SECOND  # a slot may fall on it

    def _change(self, after: datetime, until: datetime) -> datetime | None:
        """The first instant later than `after`, not later than `until`, with another offset."""
        offset = _offset(after, self.zone)
        while after < until:
            probe = min(after + _STEP, until)
            if _offset(probe, self.zone) != offset:
                return self._halved(after, probe)
            after = probe
        return None

    def _halved(self, before: datetime, changed: datetime) -> datetime:
        offset = _offset(before, self.zone)
        while changed - before > _SECOND:
            middle = (before + (changed - before) / 2).replace(microsecond=0)
            if _offset(middle, self.zone) == offset:
                before = middle
            else:
                changed = middle
        return changed


def _wall(moment: datetime, zone: ZoneInfo) -> datetime:
    """What the clock on the wall shows then; without time zone."""
    return moment.astimezone(zone).replace(tzinfo=None, fold=0)


def _offset(moment: datetime, zone: ZoneInfo) -> timedelta:
    return _wall(moment, zone) - moment.replace(tzinfo=None)


def _clock(expression: str, wall: datetime) -> CronSim:
    """The times later than `wall` that match, on a clock that nobody ever changes."""
    return CronSim(expression, wall)


def _is_fixed(expression: str) -> bool:
    minute, hour, *_ = expression.split()
    return not (minute.startswith("*") or hour.startswith("*"))


# Reading what people write ------------------------------------------------------------------------

FIELDS = ("minute", "hour", "day of month", "month", "day of week")

# `right/` counts leap seconds; names without an area, such as EST, do not know summer time.
_ZONE = re.compile(r"UTC|(?!posix/|right/)[A-Za-z_]+(?:/[A-Za-z0-9_+-]+){1,2}")


def in_order(start: datetime | None, end: datetime | None) -> None:
    """Raises BadSchedule."""
    if start is not None and end is not None and start > end:
        raise BadSchedule("The end lies before the start.", "end_date")


def zone_of(name: str) -> ZoneInfo:
    """Raises BadSchedule."""
    wanted = "UTC or a name such as Europe/Berlin"
    if len(name) > LONGEST_ZONE or not _ZONE.fullmatch(name):
        raise BadSchedule(f"{name[:80]!r} is not a time zone: {wanted}.", "timezone")
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise BadSchedule(f"There is no time zone {name!r}: {wanted}.", "timezone") from error


def _expression(given: str) -> str:
    """The five fields of a cron expression, or of the short name for one. Raises BadSchedule."""
    if len(given) > LONGEST_EXPRESSION:
        raise BadSchedule(f"Must not be longer than {LONGEST_EXPRESSION} characters.")
    words = given.split()
    if words and words[0].startswith("@"):
        return _alias(given.strip())
    if len(words) != len(FIELDS):
        wanted = ", ".join(FIELDS)
        raise BadSchedule(f"{given!r} has {len(words)} fields; there must be five: {wanted}.")
    if problem := _problem(words):
        raise BadSchedule(f"{given!r} {problem}.")
    return " ".join(words)


def _alias(given: str) -> str:
    if given.lower() not in ALIASES:
        raise BadSchedule(f"There is no {given!r}; there are {', '.join(ALIASES)}.")
    return ALIASES[given.lower()]


def _problem(words: list[str]) -> str | None:
    if (problem := _misread(words)) is None:
        return None
    if "day-of-month" in problem and _misread([*words[:3], "*", words[4]]) is None:
        return "never fires: no such day in these months"
    return f"is no cron: {problem}"


def _misread(words: list[str]) -> str | None:
    try:
        CronSim(" ".join(words), _LONG_AGO)
    except (CronSimError, ValueError) as error:
        return str(error)
    return None


# Which slots get a run ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Due:
    """The slots that get a run, oldest first, and the instant up to which all is dealt with."""

    slots: list[datetime]
    until: datetime


def slots_to_run(
    schedule: Schedule,
    since: datetime,
    now: datetime,
    missed: str,
    *,
    tolerance: timedelta,
    limit: int,
) -> Due:
    """Of the slots later than `since` and not later than `now` those that get a run.

    `missed` is a word of MissedRuns: `all` gives at most `limit` of them, the rest next time;
    `none` gives the newest while it is not older than `tolerance`.
    """
    if missed == MissedRuns.ALL:
        return _each(schedule, since, now, limit)
    newest = schedule.latest(since, now)
    if newest is None or (missed == MissedRuns.NONE and now - newest > tolerance):
        return Due([], max(since, now))
    return Due([newest], max(since, now))


def _each(schedule: Schedule, since: datetime, now: datetime, limit: int) -> Due:
    slots = schedule.between(since, now, limit + 1)
    if len(slots) > limit:
        return Due(slots[:limit], slots[limit - 1])
    return Due(slots, max(since, now))
