"""An event as others see it."""

from __future__ import annotations

import json
from dataclasses import fields
from datetime import UTC, datetime
from uuid import UUID

import pytest

from container_manager.events.base import (
    KEYS,
    NotDelivered,
    OutOfStep,
    Publisher,
    Refused,
    Standing,
    TransitionEvent,
    Unavailable,
)

EVENT = TransitionEvent(
    id=UUID(int=7),
    entity_type="job",
    entity_id=UUID(int=9),
    old_state=None,
    new_state="pending",
    version=1,
    attempt=0,
    actor="api:ada",
    reason="",
    metadata={"ä": [1, None]},
    changed_at=datetime(2026, 1, 2, 3, 4, 5, 600, tzinfo=UTC),
    sequence=41,
)


def test_the_json_has_exactly_the_keys_of_the_contract():
    assert list(EVENT.as_json()) == list(KEYS)
    assert set(KEYS) == {field.name for field in fields(TransitionEvent)} - {
        "sequence",
        "owner",
    }


def test_an_event_reads_back_as_it_was_told():
    told = json.loads(EVENT.as_text())
    assert told["changed_at"] == "2026-01-02T03:04:05.000600+00:00"
    assert TransitionEvent.from_json(told, sequence=41) == EVENT


def test_the_text_is_one_line_and_keeps_letters():
    assert "\n" not in EVENT.as_text()
    assert '"ä"' in EVENT.as_text()


@pytest.mark.parametrize(
    "wrong",
    [
        *({}, [], None, "x", 7),
        *({**EVENT.as_json(), "id": given} for given in ("x", None, 7)),
        *({**EVENT.as_json(), "changed_at": given} for given in ("yesterday", None)),
        {key: value for key, value in EVENT.as_json().items() if key != "version"},
    ],
    ids=repr,
)
def test_what_is_no_event_is_a_value_error(wrong):
    with pytest.raises(ValueError, match=r"."):
        TransitionEvent.from_json(wrong)


@pytest.mark.parametrize("error", [Unavailable, Refused, OutOfStep])
def test_an_error_says_how_many_were_delivered_before_it(error):
    assert issubclass(error, NotDelivered)
    assert (str(error("no route", delivered=3)), error("no route", delivered=3).delivered) == (
        "no route",
        3,
    )
    assert str(error()) == error.__doc__
    assert error().delivered == 0


def test_a_publisher_goes_on_where_the_records_say_unless_it_knows_better():
    class Nowhere(Publisher):
        def publish(self, events):
            raise Unavailable

    assert Nowhere().begin(Standing(position=5, oldest=1, newest=9)) == 5
    Nowhere().close()
