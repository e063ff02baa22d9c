"""The thread that looks for all who follow logs; it asks nothing while nobody does."""

from __future__ import annotations

import threading

import pytest
from django.db import OperationalError

from container_manager.models.followed import standings
from container_manager.reports import lookout as module
from container_manager.reports.lookout import Lookout
from tests.support.printing import Printing
from tests.support.workers import wait_until

pytestmark = pytest.mark.django_db(transaction=True)


class Ear:
    """A bell that only counts."""

    def __init__(self):
        self.heard = 0


@pytest.fixture(autouse=True)
def ears(monkeypatch):
    def ring(bells):
        for bell in bells:
            bell.heard += 1

    monkeypatch.setattr(module.sse, "ring", ring)


@pytest.fixture
def looks(monkeypatch):
    """Counts the questions, and may be told how the next ones go wrong."""
    asked, wrong = [], []

    def ask(job_ids):
        asked.append(set(job_ids))
        if wrong:
            raise wrong.pop()
        return standings(job_ids)

    monkeypatch.setattr(module, "standings", ask)
    return asked, wrong


@pytest.fixture
def lookout():
    """One whose thread has nothing to do when the test ends."""
    made = Lookout()
    yield made
    for watched in list(made._jobs.values()):
        for bell in list(watched.bells):
            made.leave(watched, bell)
    wait_until(lambda: made._rests, "it to rest")


def test_who_watches_hears_of_everything_new(lookout):
    prints, ear = Printing(), Ear()
    watched = lookout.watch(prints.job.pk, ear)
    wait_until(lambda: ear.heard == 1, "how it stands")
    prints(b"text")
    wait_until(lambda: ear.heard == 2, "what it printed")
    assert [chunk.data for chunk in watched.seen.window.chunks] == [b"text"]
    prints.end()
    wait_until(lambda: watched.seen.standing.status == "completed", "its end")


def test_who_comes_later_to_a_job_that_is_watched_knows_how_it_stands(lookout):
    prints, first, second = Printing(), Ear(), Ear()
    watched = lookout.watch(prints.job.pk, first)
    wait_until(lambda: first.heard)
    assert lookout.watch(prints.job.pk, second) is watched
    assert watched.seen is not None
    prints(b"text")
    wait_until(lambda: second.heard)


def test_while_nobody_watches_nothing_is_asked(lookout, looks):
    asked, _ = looks
    prints, other, ear = Printing(), Printing(), Ear()
    watched = lookout.watch(prints.job.pk, ear)
    wait_until(lambda: ear.heard)
    lookout.leave(watched, ear)
    lookout.leave(watched, ear)
    wait_until(lambda: lookout._rests, "it to rest")
    count = len(asked)
    prints(b"text")
    assert not lookout._jobs
    lookout.watch(other.job.pk, ear)
    wait_until(lambda: ear.heard == 2)
    assert asked[count] == {other.job.pk}, "the next question is for who came then"


def test_a_database_that_is_away_is_asked_again(lookout, looks, monkeypatch, caplog):
    monkeypatch.setattr(module, "AWAY_SECONDS", 0.01)
    _, wrong = looks
    prints, ear = Printing(), Ear()
    wrong += [OperationalError("away"), ZeroDivisionError("a mistake of ours")]
    watched = lookout.watch(prints.job.pk, ear)
    wait_until(lambda: ear.heard, "news, when it is back")
    assert watched.seen.standing.status == "running"
    assert "database: away" in caplog.text
    assert "a mistake of ours" in caplog.text


def test_the_pauses_grow_while_nothing_happens_and_are_short_again_when_it_does(
    lookout, monkeypatch
):
    monkeypatch.setattr(module, "GROWTH", 2.0)
    monkeypatch.setattr(module, "LONGEST_PAUSE", 0.2)
    prints, ear = Printing(), Ear()
    lookout.watch(prints.job.pk, ear)
    wait_until(lambda: lookout._pause == 0.2)
    prints(b"text")
    wait_until(lambda: lookout._pause < 0.2)


def test_many_come_and_go_while_it_looks(lookout):
    prints = [Printing() for _ in range(5)]

    def come_and_go():
        for each in prints * 10:
            ear = Ear()
            watched = lookout.watch(each.job.pk, ear)
            wait_until(lambda: ear.heard or watched.seen)  # noqa: B023
            lookout.leave(watched, ear)

    threads = [threading.Thread(target=come_and_go) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not lookout._jobs
