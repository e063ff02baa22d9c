"""Each duty by itself: what goes wrong in one stops none of the others, and nothing ever spins."""

from __future__ import annotations

import time

import pytest
from django.db import OperationalError

from container_manager import duties
from container_manager.duties import Duty, Turns, pause_after

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def slept(monkeypatch):
    """Pauses are noted instead of being made."""
    pauses = []
    monkeypatch.setattr(duties.time, "sleep", pauses.append)
    return pauses


@pytest.fixture
def turns():
    return Turns("w1")


def failing(error):
    def do():
        raise error

    return do


def test_pauses_grow_up_to_a_limit_and_are_never_the_same():
    assert all(0.2 <= pause_after(1) <= 0.4 for _ in range(50))
    assert all(duties.LONGEST_PAUSE / 2 <= pause_after(99) <= duties.LONGEST_PAUSE for _ in "xx")
    assert len({pause_after(5) for _ in range(20)}) > 1


@pytest.mark.parametrize("error", [RuntimeError("a bug"), OperationalError("it is locked")])
def test_a_duty_that_fails_keeps_nobody_else_from_working(turns, slept, error):
    done = []
    bad, good = Duty("bad", failing(error)), Duty("good", lambda: done.append(1))
    for _ in range(3):
        turns.take([bad, good])
    assert done == [1, 1, 1]
    assert bad.fails
    assert not bad.is_due(time.monotonic())
    assert slept == [duties.BREATH] * 3


def test_a_duty_that_works_again_is_due_at_every_turn_again(turns, slept):
    duty = Duty("duty", failing(RuntimeError("once")))
    turns.take([duty])
    duty.do, duty._not_before = (lambda: None), 0.0
    turns.take([duty])
    assert not duty.fails
    assert duty.is_due(time.monotonic())


def test_a_database_that_is_away_ends_the_turn_and_is_asked_ever_more_seldom(
    turns, slept, monkeypatch
):
    monkeypatch.setattr(duties, "_database_answers", lambda: False)
    done = []
    for _ in range(8):
        turns.take([Duty("first", failing(OperationalError("away"))), Duty("next", done.append)])
    assert done == []
    assert len(slept) == 8
    assert slept[0] < 0.5 < 2 < slept[-1]


def test_a_second_try_is_over_a_new_connection(turns):
    left = iter([OperationalError("broken")])
    done = []

    def do():
        if error := next(left, None):
            raise error
        done.append(1)

    turns.insist("leaving", do)
    assert done == [1]
