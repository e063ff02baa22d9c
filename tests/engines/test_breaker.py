"""When an engine is asked, and when it is not; by a clock that the test turns."""

from __future__ import annotations

import logging
import threading
from contextlib import nullcontext, suppress

import pytest

from container_manager.engines import Engine
from container_manager.executors import breaker as module
from container_manager.executors.base import EngineRefused, EngineUnavailable, LaunchFailed
from container_manager.executors.breaker import FIRST_PAUSE, LONGEST_PAUSE, Breaker, EngineAway
from container_manager.states import Reason
from tests.support.fake_executor import FakeExecutor

AWAY = EngineUnavailable("Nobody there.")


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def told():
    return []


@pytest.fixture
def breaker(clock, told):
    made = Breaker(failures=3, clock=clock, chance=lambda: 1.0)
    made.on_change = told.append
    return made


def call(breaker, error=None):
    with breaker.calling():
        if error is not None:
            raise error


def probe(breaker, error=None):
    with breaker.probing():
        if error is not None:
            raise error


def fail(breaker, times=1):
    for _ in range(times):
        with pytest.raises(EngineUnavailable):
            call(breaker, AWAY)


def test_failures_in_a_row_open_it_and_nobody_is_let_through_then(breaker, told):
    fail(breaker, 2)
    assert (breaker.state, told) == ("closed", [])
    fail(breaker)
    assert (breaker.state, told) == ("open", ["Nobody there."])
    assert breaker.since is not None
    with pytest.raises(EngineAway, match="Nobody there"):
        call(breaker)
    assert told == ["Nobody there."]


def test_failures_of_several_threads_count_together(breaker):
    threads = [threading.Thread(target=fail, args=[breaker]) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert breaker.state == "open"


@pytest.mark.parametrize(
    "answer", [None, EngineRefused("No."), LaunchFailed(Reason.OOM, "No."), ValueError("No.")]
)
def test_an_answer_of_any_kind_begins_the_row_anew(breaker, answer):
    """A bug of ours is no answer."""
    fail(breaker, 2)
    with suppress(type(answer)) if answer else nullcontext():
        call(breaker, answer)
    fail(breaker, 1)
    expected = "open" if isinstance(answer, ValueError) else "closed"
    assert breaker.state == expected


def test_one_failed_probe_opens_it(breaker, told):
    with pytest.raises(EngineUnavailable):
        probe(breaker, AWAY)
    assert (breaker.state, told) == ("open", ["Nobody there."])


def test_nobody_asks_before_the_pause_is_over_and_an_answer_closes_it(breaker, clock, told):
    fail(breaker, 3)
    assert breaker.seconds_to_probe == FIRST_PAUSE
    with pytest.raises(EngineAway):
        probe(breaker)
    clock.now += FIRST_PAUSE
    probe(breaker)
    assert (breaker.state, breaker.since, breaker.why) == ("closed", None, "")
    assert told == ["Nobody there.", ""]
    call(breaker)


def test_while_one_asks_it_is_half_open_and_all_others_wait(breaker, clock):
    fail(breaker, 3)
    clock.now += FIRST_PAUSE
    with breaker.probing():
        assert breaker.state == "half-open"
        with pytest.raises(EngineAway):
            call(breaker)
        with pytest.raises(EngineAway):
            probe(breaker)
    assert breaker.state == "closed"


def test_each_failed_probe_makes_the_pause_longer_up_to_a_limit(breaker, clock, told):
    fail(breaker, 3)
    pauses = []
    for _ in range(7):
        pauses.append(breaker.seconds_to_probe)
        clock.now += breaker.seconds_to_probe
        with pytest.raises(EngineUnavailable):
            probe(breaker, AWAY)
    assert pauses == [0.5, 1.0, 2.0, 4.0, 8.0, LONGEST_PAUSE, LONGEST_PAUSE]
    assert told == ["Nobody there."]


def test_no_two_workers_ask_in_step(clock):
    hasty = Breaker(failures=1, clock=clock, chance=lambda: 0.0)
    fail(hasty)
    assert hasty.seconds_to_probe == FIRST_PAUSE / 2


def test_a_call_of_an_earlier_period_says_nothing_about_this_one(breaker, clock):
    """Sent before the outage, timed out after it."""
    late = [breaker.calling() for _ in range(3)]
    for each in late:
        each.__enter__()
    fail(breaker, 3)
    clock.now += FIRST_PAUSE
    probe(breaker)
    for each in late:
        assert not each.__exit__(EngineUnavailable, AWAY, None)
    assert breaker.state == "closed"


def test_a_late_answer_does_not_close_it(breaker):
    late = breaker.calling()
    late.__enter__()
    fail(breaker, 3)
    late.__exit__(None, None, None)
    assert breaker.state == "open"


def test_a_regular_probe_that_is_answered_begins_the_row_anew(breaker):
    fail(breaker, 2)
    probe(breaker)
    fail(breaker, 2)
    assert breaker.state == "closed"


# The engine with its breaker


@pytest.fixture
def engine(clock):
    made = Engine("box", FakeExecutor(engine="e1"), Breaker(clock=clock, chance=lambda: 1.0))
    made.probe()
    return made


def test_an_engine_is_offered_only_while_its_breaker_is_closed(engine, clock):
    assert engine.available
    engine.executor._away = True
    engine.probe()
    described = engine.described()
    assert (described["available"], described["engine_id"]) == (False, "e1")
    assert described["unavailable_since"] == engine.breaker.since.isoformat()
    engine.executor._away = False
    engine.probe()
    assert not engine.available
    clock.now += FIRST_PAUSE
    engine.probe()
    assert engine.available
    assert engine.described()["unavailable_since"] is None


def test_one_line_is_said_when_it_goes_and_one_when_it_is_back(engine, clock, caplog):
    caplog.set_level(logging.INFO)
    engine.executor._away = True
    for _ in range(3):
        engine.probe()
        clock.now += LONGEST_PAUSE
    engine.executor._away = False
    engine.probe()
    engine.probe()
    assert caplog.messages == [
        "Engine box: does not answer, its jobs wait: The engine is away.",
        "Engine box: answers again",
    ]


def test_a_bug_in_an_executor_makes_it_unavailable_and_is_told(engine, caplog):
    engine.executor.capabilities = lambda: 1 / 0
    engine.probe()
    assert not engine.available
    assert "cannot be asked" in caplog.text


def test_the_words_of_a_breaker_are_the_standard_ones():
    assert all(word in module.__doc__ for word in ("**closed**", "**open**", "**half-open**"))
