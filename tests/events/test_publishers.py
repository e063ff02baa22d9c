"""LogPublisher, MultiPublisher, and how publishers are made of settings."""

from __future__ import annotations

import json
import logging

import pytest

from container_manager.events.base import (
    OutOfStep,
    Publisher,
    Refused,
    Standing,
    Unavailable,
    make,
)
from container_manager.events.log import LogPublisher
from container_manager.events.multi import MultiPublisher
from tests.support.some_events import event, events

LOG = "container_manager.events.log.LogPublisher"
MULTI = "container_manager.events.multi.MultiPublisher"


class Told(Publisher):
    """Remembers what it was told, and raises what it shall at an event."""

    def __init__(self):
        self.told = []
        self.trouble = {}
        self.closed = 0
        self.begins = None

    def begin(self, standing):
        return standing.position if self.begins is None else self.begins

    def publish(self, events):
        for number, each in enumerate(events):
            if each.sequence in self.trouble:
                raise self.trouble[each.sequence]("no", delivered=number)
            self.told.append(each.sequence)

    def close(self):
        self.closed += 1


# The log ------------------------------------------------------------------------------------------


def test_each_event_is_one_line_that_is_json_after_two_words(caplog):
    caplog.set_level(logging.INFO, "container_manager.events")
    LogPublisher().publish([event(7, reason="a\nb"), event(8)])
    lines = [record.getMessage() for record in caplog.records]
    assert [line.split(" ", 2)[:2] for line in lines] == [["event", "7"], ["event", "8"]]
    assert json.loads(lines[0].split(" ", 2)[2]) == event(7, reason="a\nb").as_json()
    assert all("\n" not in line for line in lines)
    assert (caplog.records[0].sequence, caplog.records[0].event["version"]) == (7, 7)


def test_logger_and_level_can_be_chosen(caplog):
    caplog.set_level(logging.DEBUG, "audit")
    LogPublisher(logger="audit", level="DEBUG").publish([event(1)])
    (record,) = caplog.records
    assert (record.name, record.levelname) == ("audit", "DEBUG")


def test_a_level_that_there_is_not_is_refused():
    with pytest.raises(ValueError, match="'LOUD' is not one of"):
        LogPublisher(level="LOUD")


# Several as one -----------------------------------------------------------------------------------


def test_all_are_told_everything():
    one, two = Told(), Told()
    both = MultiPublisher([one, two])
    assert both.begin(Standing(0, 1, 3)) == 0
    both.publish(events(1, 3))
    both.close()
    assert one.told == two.told == [1, 2, 3]
    assert one.closed == two.closed == 1


@pytest.mark.parametrize("error", [Unavailable, Refused, OutOfStep])
def test_where_one_fails_the_others_go_on_and_are_not_told_twice(error):
    one, two, three = Told(), Told(), Told()
    two.trouble[3] = error
    multi = MultiPublisher([one, two, three])
    multi.begin(Standing(0, 1, 5))
    with pytest.raises(error) as trouble:
        multi.publish(events(1, 5))
    assert trouble.value.delivered == 2
    assert (one.told, two.told, three.told) == ([1, 2, 3, 4, 5], [1, 2], [1, 2, 3, 4, 5])
    two.trouble.clear()
    multi.publish(events(3, 6))
    assert one.told == two.told == three.told == [1, 2, 3, 4, 5, 6]


def test_what_was_refused_for_good_is_skipped_by_the_one_that_refused_it():
    one, two = Told(), Told()
    two.trouble[2] = Refused
    multi = MultiPublisher([one, two])
    multi.begin(Standing(0, 1, 3))
    with pytest.raises(Refused):
        multi.publish(events(1, 3))
    multi.publish(events(3, 4))
    assert (one.told, two.told) == ([1, 2, 3, 4], [1, 3, 4])


def test_the_error_is_that_of_the_earliest_event_and_away_comes_before_refused():
    one, two, three = Told(), Told(), Told()
    one.trouble[4], two.trouble[2], three.trouble[2] = Refused, Refused, Unavailable
    multi = MultiPublisher([one, two, three])
    multi.begin(Standing(0, 1, 5))
    with pytest.raises(Unavailable) as trouble:
        multi.publish(events(1, 5))
    assert trouble.value.delivered == 1


def test_it_goes_on_where_the_last_of_them_is():
    one, two = Told(), Told()
    two.begins = 4
    multi = MultiPublisher([one, two])
    assert multi.begin(Standing(9, 1, 9)) == 4
    multi.publish(events(5, 10))
    assert (one.told, two.told) == ([10], [5, 6, 7, 8, 9, 10])


# Of settings --------------------------------------------------------------------------------------


def test_a_publisher_is_made_of_its_path_and_options():
    assert isinstance(make(LOG, {"level": "DEBUG"}), LogPublisher)
    nested = [{"class": LOG}, {"class": LOG, "options": {"level": "ERROR"}}]
    assert len(make(MULTI, {"publishers": nested})._publishers) == 2


@pytest.mark.parametrize(
    ("path", "options"),
    [
        ("LogPublisher", {}),
        ("", {}),
        ("no.such.module", {}),
        ("container_manager.events.log.NoSuch", {}),
        ("logging.Logger", {"name": "x"}),
        (LOG, {"colour": "red"}),
        (LOG, {"level": "LOUD"}),
        (MULTI, {"publishers": []}),
        (MULTI, {"publishers": [{}]}),
        (MULTI, {"publishers": [{"class": LOG, "options": {"colour": "red"}}]}),
        (MULTI, {"publishers": ["x"]}),
    ],
)
def test_what_cannot_be_made_says_which_it_is_and_why(path, options):
    with pytest.raises(ValueError, match=r"^.*: \w"):
        make(path, options)
