"""When a DAG is due."""

from __future__ import annotations

import doctest
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from container_manager.workflows import cron
from container_manager.workflows.cron import ALIASES, BadSchedule, Due, Schedule, slots_to_run

MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)
ZONES = ["UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kolkata"]
NOON = datetime(2026, 6, 1, 12, tzinfo=UTC)


def utc(text):
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def at(text, zone="UTC"):
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone))


def of_days(expression, zone, first, last):
    """The slots of these local days, as the wall shows them."""
    schedule = Schedule.parse(expression, zone)
    begin, end = at(first, zone) - MINUTE, at(last, zone) + DAY - MINUTE
    slots = schedule.between(begin, end, 10_000)
    assert all(slot.tzinfo is UTC for slot in slots)
    return [slot.astimezone(ZoneInfo(zone)).isoformat(" ", "minutes") for slot in slots]


def test_the_examples_in_the_documentation_are_true():
    assert doctest.testmod(cron).failed == 0
    assert doctest.testmod(cron).attempted > 0


# When clocks change


@pytest.mark.parametrize(
    ("zone", "expression", "day", "shown"),
    [
        # left out: 02:00 to 03:00 (Lord Howe: to 02:30; Cairo: 00:00 to 01:00)
        ("Europe/Berlin", "30 2 * * *", "2026-03-29", ["03:00+02:00"]),
        ("Europe/Berlin", "0,30 2 * * *", "2026-03-29", ["03:00+02:00"]),
        ("Europe/Berlin", "0 2,3 * * *", "2026-03-29", ["03:00+02:00"]),
        ("Europe/Berlin", "0 2,4 * * *", "2026-03-29", ["03:00+02:00", "04:00+02:00"]),
        ("America/New_York", "30 2 * * *", "2026-03-08", ["03:00-04:00"]),
        ("Australia/Lord_Howe", "15 2 * * *", "2026-10-04", ["02:30+11:00"]),
        ("Australia/Lord_Howe", "45 2 * * *", "2026-10-04", ["02:45+11:00"]),
        ("Africa/Cairo", "0 0 * * *", "2026-04-24", ["01:00+03:00"]),
        # shown twice: 02:00 to 03:00 (New York: 01:00 to 02:00, Lord Howe: 01:30 to 02:00)
        ("Europe/Berlin", "30 2 * * *", "2026-10-25", ["02:30+02:00"]),
        ("Europe/Berlin", "30 2,3 * * *", "2026-10-25", ["02:30+02:00", "03:30+01:00"]),
        ("America/New_York", "30 1 * * *", "2026-11-01", ["01:30-04:00"]),
        ("Australia/Lord_Howe", "45 1 * * *", "2026-04-05", ["01:45+11:00"]),
        # never changed
        ("Asia/Kolkata", "30 2 * * *", "2026-03-29", ["02:30+05:30"]),
    ],
)
def test_a_fixed_time_comes_once_on_every_day(zone, expression, day, shown):
    assert of_days(expression, zone, day, day) == [f"{day} {time}" for time in shown]


@pytest.mark.parametrize(
    ("zone", "expression", "day", "shown"),
    [
        (
            "Europe/Berlin",
            "30 * * * *",
            "2026-03-29",
            ["00:30+01:00", "01:30+01:00", "03:30+02:00"],
        ),
        (
            "Europe/Berlin",
            "30 * * * *",
            "2026-10-25",
            ["01:30+02:00", "02:30+02:00", "02:30+01:00"],
        ),
        ("Europe/Berlin", "0 */2 * * *", "2026-03-29", ["00:00+01:00", "04:00+02:00"]),
        ("Europe/Berlin", "0 */2 * * *", "2026-10-25", ["02:00+02:00", "02:00+01:00"]),
        ("America/New_York", "30 * * * *", "2026-11-01", ["01:30-04:00", "01:30-05:00"]),
        ("Australia/Lord_Howe", "0 * * * *", "2026-04-05", ["01:00+11:00", "02:00+10:30"]),
        ("Australia/Lord_Howe", "0 * * * *", "2026-10-04", ["01:00+10:30", "03:00+11:00"]),
        (
            "Australia/Lord_Howe",
            "*/15 * * * *",
            "2026-04-05",
            ["01:30+11:00", "01:45+11:00", "01:30+10:30", "01:45+10:30", "02:00+10:30"],
        ),
    ],
)
def test_a_wildcard_hour_keeps_its_pace(zone, expression, day, shown):
    slots = of_days(expression, zone, day, day)
    first = slots.index(f"{day} {shown[0]}")
    assert slots[first : first + len(shown)] == [f"{day} {time}" for time in shown]


@pytest.mark.parametrize(
    ("day", "shown"),
    [
        ("2026-03-29", []),
        ("2026-10-25", ["02:00+02:00", "02:30+02:00", "02:00+01:00", "02:30+01:00"]),
    ],
)
def test_with_a_wildcard_the_wall_alone_decides(day, shown):
    slots = of_days("*/30 2 * * *", "Europe/Berlin", day, day)
    assert slots == [f"{day} {time}" for time in shown]


def test_a_change_that_is_soon_undone_is_seen():
    """Morocco sets its clocks back for Ramadan, in 2026 from 15 February to 22 March."""
    assert of_days("*/30 2 15 2 *", "Africa/Casablanca", "2026-02-15", "2026-03-31") == [
        "2026-02-15 02:00+01:00",
        "2026-02-15 02:30+01:00",
        "2026-02-15 02:00+00:00",
        "2026-02-15 02:30+00:00",
    ]


def test_a_day_that_a_country_left_out_is_made_up_for_when_the_next_begins():
    assert of_days("0 12 * * *", "Pacific/Apia", "2011-12-29", "2011-12-31") == [
        "2011-12-29 12:00-10:00",
        "2011-12-31 00:00+14:00",
        "2011-12-31 12:00+14:00",
    ]


@pytest.mark.parametrize("zone", ZONES)
@pytest.mark.parametrize(
    ("expression", "hours", "minutes"),
    [
        ("* * * * *", range(24), range(60)),
        ("*/20 1,2 * * *", [1, 2], [0, 20, 40]),
        ("10 */3 * * *", range(0, 24, 3), [10]),
        ("*/7 * * * *", range(24), range(0, 60, 7)),
    ],
)
def test_a_wildcard_is_every_minute_whose_time_on_the_wall_matches(
    zone, expression, hours, minutes
):
    schedule = Schedule.parse(expression, zone)
    for change in ("2026-03-08", "2026-03-29", "2026-04-05", "2026-10-04", "2026-10-25"):
        begin = utc(change) - 12 * HOUR
        moments = [begin + n * MINUTE for n in range(1, 36 * 60 + 1)]
        walls = [(moment, moment.astimezone(ZoneInfo(zone))) for moment in moments]
        matching = [m for m, wall in walls if wall.hour in hours and wall.minute in minutes]
        assert schedule.between(begin, moments[-1], 10_000) == matching


@pytest.mark.parametrize("zone", [*ZONES, "Africa/Casablanca", "Africa/Cairo"])
@pytest.mark.parametrize(
    "expression", ["0 * * * *", "30 2 * * *", "0,15,30,45 1-3 * * *", "*/30 0-3 * * *", "0 0 1 * *"]
)
def test_slots_increase_across_a_year_and_each_is_the_next_of_the_one_before(zone, expression):
    schedule = Schedule.parse(expression, zone)
    begin, end = utc("2026-02-15"), utc("2026-11-15")
    slots = schedule.between(begin, end, 100_000)
    assert all(before < after for before, after in pairwise(slots))
    assert schedule.after(begin) == slots[0]
    sample = list(pairwise(slots))[:: max(1, len(slots) // 50)]
    around = [pair for pair in pairwise(slots) if pair[1] - pair[0] not in (HOUR, 24 * HOUR)]
    for before, after in [*sample, *around[:50]]:
        assert schedule.after(before) == schedule.after(after - MINUTE / 2) == after


@pytest.mark.parametrize("expression", ["30 2 * * *", "*/10 2 * * *", "30 * * * *"])
def test_the_newest_is_the_last_that_going_forward_finds(expression):
    schedule = Schedule.parse(expression, "Europe/Berlin")
    for change in (utc("2026-03-29"), utc("2026-10-25")):
        for until in (change + n * 37 * MINUTE for n in range(-10, 15)):
            slots = schedule.between(change - 2 * DAY, until, 1_000)
            assert schedule.latest(change - 2 * DAY, until) == slots[-1]


# Calendars


def test_the_29th_of_february_comes_when_there_is_one():
    schedule = Schedule.parse("0 0 29 2 *")
    assert [slot.year for slot in schedule.next(3, NOON)] == [2028, 2032, 2036]
    assert schedule.after(utc("2096-03-01")) == utc("2104-02-29")


def test_a_year_ends_on_the_clock_of_its_zone():
    yearly = Schedule.parse("0 0 1 1 *", "America/New_York")
    assert yearly.next(2, NOON) == [utc("2027-01-01 05:00"), utc("2028-01-01 05:00")]
    minutely = Schedule.parse("* * * * *")
    assert minutely.after(utc("2026-12-31 23:59")) == utc("2027-01-01")


def test_after_is_later_also_by_a_part_of_a_second():
    schedule = Schedule.parse("0 12 * * *")
    assert schedule.after(NOON) == NOON + DAY
    assert schedule.after(NOON - timedelta(microseconds=1)) == NOON
    assert schedule.after(NOON + timedelta(microseconds=1)) == NOON + DAY


def test_the_newest_of_ten_years_of_minutes_is_found_without_walking_them(monkeypatch):
    schedule = Schedule.parse("* * * * *", "Europe/Berlin")
    looked = []
    real = Schedule.after
    monkeypatch.setattr(Schedule, "after", lambda *args: looked.append(1) or real(*args))
    assert schedule.latest(NOON - 3650 * DAY, NOON + MINUTE / 2) == NOON
    assert len(looked) < 50


def test_there_is_no_newest_where_there_is_none():
    schedule = Schedule.parse("0 12 * * *")
    assert schedule.latest(NOON, NOON + 23 * HOUR) is None
    assert schedule.latest(NOON, NOON - DAY) is None
    assert schedule.latest(NOON - DAY, NOON) == NOON


def test_start_and_end_are_included():
    schedule = Schedule.parse("0 12 * * *", start=NOON, end=NOON + 2 * DAY)
    assert schedule.next(10, NOON - 100 * DAY) == [NOON, NOON + DAY, NOON + 2 * DAY]
    assert schedule.after(NOON + 2 * DAY) is None
    assert schedule.latest(NOON - DAY, NOON + 100 * DAY) == NOON + 2 * DAY
    inside = Schedule.parse("0 12 * * *", start=NOON + MINUTE, end=NOON + 2 * DAY - MINUTE)
    assert inside.next(10, NOON - 100 * DAY) == [NOON + DAY]


def test_start_and_end_may_be_told_on_any_clock():
    start, end = at("2026-06-01 14:00", "Europe/Berlin"), at("2026-06-02 08:00", "America/New_York")
    schedule = Schedule.parse("0 12 * * *", start=start, end=end)
    assert schedule.next(10, NOON - DAY) == [NOON, NOON + DAY]


# What people write


@pytest.mark.parametrize("alias", ALIASES)
def test_the_short_names_are_known(alias):
    by_name, by_fields = Schedule.parse(f" {alias.upper()} "), Schedule.parse(ALIASES[alias])
    assert by_name == by_fields
    assert by_name.after(NOON) > NOON


def test_names_and_calendar_words_are_known():
    assert Schedule.parse("0 9 * JAN-MAR MON#1").after(NOON) == utc("2027-01-04 09:00")
    assert Schedule.parse("0 9 L * *").after(NOON) == utc("2026-06-30 09:00")


def test_a_schedule_is_told_in_words():
    assert Schedule.parse("30 2 * * *").explain() == "At 02:30 every day"
    assert Schedule.parse("@hourly").explain() == "At the start of every hour"


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("", "has 0 fields"),
        ("* * * *", "has 4 fields"),
        ("* * * * * *", "has 6 fields; there must be five: minute, hour"),
        ("60 * * * *", "Bad minute"),
        ("*/0 * * * *", "Bad minute"),
        ("0 24 * * *", "Bad hour"),
        ("0 0 0 * *", "Bad day-of-month"),
        ("0 0 * 13 *", "Bad month"),
        ("0 0 * * NOON", "Bad day-of-week"),
        ("0 0 10-5 * *", "Bad day-of-month"),
        ("1" * 5_000 + " * * * *", "longer than 200"),
        ("@reboot", "no '@reboot'; there are @hourly, @daily"),
        ("@daily @hourly", "no '@daily @hourly'"),
        ("0 0 31 2 *", "'0 0 31 2 .' never fires: no such day in these months"),
        ("0 0 31 4,6,9,11 *", "never fires"),
    ],
)
def test_what_is_no_schedule_is_refused(expression, message):
    with pytest.raises(BadSchedule, match=message) as refused:
        Schedule.parse(expression)
    assert refused.value.field == "schedule"


@pytest.mark.parametrize(
    "name", ["Mars/Phobos", "../../etc/passwd", "CEST", "EST", "America", "", "a\0/b", "right/UTC"]
)
def test_what_is_no_time_zone_is_refused(name):
    with pytest.raises(BadSchedule, match="UTC or a name such as Europe/Berlin") as refused:
        Schedule.parse("@daily", name)
    assert refused.value.field == "timezone"


def test_an_end_before_the_start_is_refused():
    with pytest.raises(BadSchedule, match="before the start") as refused:
        Schedule.parse("@daily", start=NOON, end=NOON - MINUTE)
    assert refused.value.field == "end_date"


def test_a_schedule_without_a_slot_between_start_and_end_is_refused():
    with pytest.raises(BadSchedule, match="never fires between start and end"):
        Schedule.parse("@yearly", start=NOON, end=NOON + DAY)
    with pytest.raises(BadSchedule, match="never fires between start and end"):
        Schedule.parse("0 0 29 2 *", end=utc("1971-01-01"))


@settings(max_examples=50, deadline=None)
@given(st.one_of(st.text(), st.text("0123456789*/,-#LW MONJAN@", min_size=9, max_size=30)))
def test_whatever_is_written_is_a_schedule_or_refused(expression):
    try:
        schedule = Schedule.parse(expression)
    except BadSchedule:
        return
    assert schedule.after(NOON) > NOON
    assert schedule.explain()


# Which slots get a run

HOURLY = Schedule.parse("@hourly")


def due(missed, hours, *, late=MINUTE, limit=100, schedule=HOURLY, tolerance=5 * MINUTE):
    """Of the slots of so many hours before noon, looked at `late` after it."""
    since, now = NOON - hours * HOUR, NOON + late
    return slots_to_run(schedule, since, now, missed, tolerance=tolerance, limit=limit)


def test_all_that_were_missed_run_oldest_first():
    assert due("all", 3) == Due([NOON - 2 * HOUR, NOON - HOUR, NOON], NOON + MINUTE)


def test_of_too_many_the_oldest_run_now_and_the_others_next_time():
    first = due("all", 3, limit=2)
    assert first == Due([NOON - 2 * HOUR, NOON - HOUR], NOON - HOUR)
    again = slots_to_run(HOURLY, first.until, NOON, "all", tolerance=MINUTE, limit=2)
    assert again == Due([NOON], NOON)


def test_as_many_as_the_limit_are_not_too_many():
    assert due("all", 2, limit=2) == Due([NOON - HOUR, NOON], NOON + MINUTE)


def test_of_those_that_were_missed_only_the_newest_runs():
    assert due("latest", 24 * 365) == Due([NOON], NOON + MINUTE)
    assert due("latest", 24 * 365, late=59 * MINUTE) == Due([NOON], NOON + 59 * MINUTE)


@pytest.mark.parametrize(
    ("late", "slots"), [(MINUTE, [NOON]), (5 * MINUTE, [NOON]), (6 * MINUTE, [])]
)
def test_none_that_was_missed_runs_but_one_that_is_due_just_now(late, slots):
    assert due("none", 24, late=late) == Due(slots, NOON + late)


@pytest.mark.parametrize("missed", ["latest", "all", "none"])
def test_when_nothing_is_due_the_time_is_dealt_with_all_the_same(missed):
    assert due(missed, 0) == Due([], NOON + MINUTE)
    ended = Schedule.parse("@hourly", end=NOON - DAY)
    assert due(missed, 3, schedule=ended) == Due([], NOON + MINUTE)


@pytest.mark.parametrize("missed", ["latest", "all", "none"])
def test_a_clock_that_was_set_back_undoes_nothing(missed):
    assert due(missed, -1) == Due([], NOON + HOUR)
