"""Which lanes a worker serves: `auto` is the strongest, and a plain process only where alone."""

from __future__ import annotations

import pytest

from container_manager.engines import Engines
from container_manager.models.leases import Offer
from tests.support.loops import FAKE
from tests.support.workers import wait_until


@pytest.fixture
def engines(configured, start, started):
    def make(**kinds):
        """Alias to its isolations; an alias that ends in `_away` does not answer."""
        configured(
            EXECUTORS={
                alias: {
                    "class": FAKE,
                    "options": {
                        "engine": f"{alias}-engine",
                        "isolations": isolations,
                        "away": alias.endswith("_away"),
                    },
                }
                for alias, isolations in kinds.items()
            }
        )
        return start()

    yield make
    for each in started:
        each.stop()


@pytest.fixture
def started():
    return []


@pytest.fixture
def start(started, monkeypatch):
    monkeypatch.setattr("container_manager.engines.PROBE_SECONDS", 0.01)

    def start(*aliases):
        started.append(Engines(*aliases))
        started[-1].start()
        return started[-1]

    return start


def lanes(engines, elsewhere=()):
    """(executor, isolation) to (alias, runs as)."""
    offers = engines.offers(elsewhere)
    found = {(offer.executor, offer.isolation): (offer.alias, offer.runs_as) for offer in offers}
    assert len(found) == len(offers)
    return found


def test_an_engine_offers_what_it_can_by_its_name_and_without(engines):
    assert lanes(engines(box=("container",))) == {
        ("box", "container"): ("box", "container"),
        ("box", "auto"): ("box", "container"),
        ("", "container"): ("box", "container"),
        ("", "auto"): ("box", "container"),
    }


def test_auto_is_the_strongest_that_an_engine_offers(engines):
    found = lanes(engines(box=("container", "microvm", "gvisor")))
    assert found["box", "auto"] == ("box", "microvm")
    assert found["", "auto"] == ("box", "microvm")
    assert found["", "gvisor"] == ("box", "gvisor")


def test_auto_is_the_strongest_of_all_engines(engines):
    found = lanes(engines(box=("container",), local=("process",), vm=("microvm",)))
    assert found["", "auto"] == ("vm", "microvm")
    assert found["", "process"] == ("local", "process")
    assert found["local", "auto"] == ("local", "process")
    assert ("local", "container") not in found


def test_auto_is_a_process_where_there_is_nothing_else(engines):
    assert lanes(engines(local=("process",)))["", "auto"] == ("local", "process")


def test_auto_is_never_a_process_while_another_worker_offers_more(engines):
    elsewhere = [{"box": {"isolations": ["container"]}}]
    found = lanes(engines(local=("process",)), elsewhere)
    assert ("", "auto") not in found
    assert found["", "process"] == ("local", "process")


def test_auto_may_be_a_process_when_the_others_have_no_more(engines):
    elsewhere = [{"local": {"isolations": ["process"]}}, {}]
    assert ("", "auto") in lanes(engines(local=("process",)), elsewhere)


def test_an_engine_that_never_answered_offers_nothing_and_keeps_nobody(engines):
    found = lanes(engines(box_away=("container",), local=("process",)))
    assert found["", "auto"] == ("local", "process")
    assert not any("box_away" in lane for lane in found)


def test_auto_waits_for_an_engine_that_was_there_before(engines):
    both = engines(box=("container",), local=("process",))
    both["box"].executor._away = True
    wait_until(lambda: not both["box"].available, "the engine to be missed")
    found = lanes(both)
    assert ("", "auto") not in found
    assert ("box", "container") not in found
    both["box"].executor._away = False
    wait_until(lambda: both["box"].available, "the engine to be back")
    assert lanes(both)["", "auto"] == ("box", "container")


def test_an_offer_names_the_engine_behind_it(engines):
    offers = engines(box=("container",)).offers()
    assert Offer("", "container", "box", "container", "box-engine") in offers


def test_only_an_engine_that_answers_may_speak_of_its_executions(engines):
    both = engines(box=("container",), far_away=("container",))
    assert both.for_id("box", "box-engine") is both["box"]
    assert both.for_id("box", "another-engine") is None
    assert both.for_id("far_away", "") is None
    assert both.for_id("unheard-of", "box-engine") is None


def test_others_see_what_is_offered_here(engines):
    assert engines(box=("container",), far_away=("container",)).described() == {
        "box": {
            "engine_id": "box-engine",
            "engine": "",
            "isolations": ["container"],
            "outlives_worker": True,
            "available": True,
            "unavailable_since": None,
        }
    }


def test_a_worker_may_be_told_which_executors_to_use(engines, start):
    engines(box=("container",), local=("process",))
    chosen = start(["local"])
    assert {alias for _, alias in lanes(chosen)} <= {"auto", "process"}
    assert set(chosen.described()) == {"local"}
