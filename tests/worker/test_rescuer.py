"""Who is dead: judged on one monotonic clock, by a beat that stands still."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from dataclasses import replace

import pytest
from django.db import OperationalError, connection

from container_manager import ids, journal, lifecycle
from container_manager.engines import Engines
from container_manager.models import JobAttempt, Worker, leases
from container_manager.models.leases import Offer
from container_manager.worker.rescuer import Rescuer
from tests.support.loops import FAKE
from tests.support.spine import a_worker, finish, held_by, reaching

pytestmark = pytest.mark.django_db

LEASE = 30.0
OFFER = Offer("", "auto", "fake", "container", "fake")


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def me():
    return a_worker("me", offers=[OFFER])


@pytest.fixture
def rescuer(me, clock):
    return Rescuer(me.worker_id, LEASE, clock)


@pytest.fixture
def engines(configured):
    configured(EXECUTORS={"fake": {"class": FAKE}})
    engines = Engines()
    engines.probe()
    return engines


def register(name="other", pk=None):
    return Worker.objects.create(
        id=pk or ids.uuid7(), name=name, hostname="h", pid=1, concurrency=1
    )


def beat(worker):
    worker.beat += 1
    worker.save()


def watch(rescuer, clock, seconds):
    """Look as a worker does, several times in a lease; what is seen dead at the end."""
    until = clock.now + seconds
    while clock.now < until:
        rescuer.dead()
        clock.now = min(until, clock.now + LEASE / 3)
    return rescuer.dead()


def test_a_worker_is_not_dead_at_first_sight_however_old_its_row_is(rescuer, clock):
    register()
    assert rescuer.dead() == set()
    assert watch(rescuer, clock, LEASE - 0.1) == set()


def test_a_worker_whose_beat_stood_still_for_a_lease_is_dead(rescuer, clock):
    other = register()
    assert watch(rescuer, clock, LEASE) == {other.pk}


def test_a_beat_begins_the_lease_anew(rescuer, clock):
    other = register()
    rescuer.dead()
    for _ in range(5):
        watch(rescuer, clock, LEASE - 1)
        beat(other)
        assert rescuer.dead() == set()
    assert watch(rescuer, clock, LEASE - 1) == set()
    assert watch(rescuer, clock, 1) == {other.pk}


def test_a_worker_that_comes_back_is_alive_again(rescuer, clock):
    other = register()
    assert watch(rescuer, clock, LEASE) == {other.pk}
    beat(other)
    assert rescuer.dead() == set()


def test_an_observer_that_slept_itself_gives_the_others_a_lease_to_show_themselves(rescuer, clock):
    """After a pause of its own it must see a beat stand still, not only time pass."""
    other = register()
    rescuer.dead()
    clock.now += 10 * LEASE
    beat(other)
    assert rescuer.dead() == set()


def test_a_time_in_which_nobody_could_look_is_no_sign_of_anybodys_death(rescuer, clock):
    """The database was away, for the beats of all as well as for our looks."""
    register()
    watch(rescuer, clock, LEASE / 2)
    clock.now += LEASE
    assert rescuer.dead() == set()


def test_looks_that_failed_are_no_looks(rescuer, clock):
    """Row 10: the database is away for longer than a lease, and refuses everybody meanwhile."""
    register()
    rescuer.dead()
    for _ in range(4):
        clock.now += LEASE / 3
        with broken_connection(), pytest.raises(OperationalError):
            rescuer.dead()
    clock.now += LEASE / 3
    assert rescuer.dead() == set()


def test_a_look_that_took_long_is_no_sign_of_anybodys_death(rescuer, clock):
    """Row 9: the database answers at last, and nobody else could say anything meanwhile, either."""
    register()
    watch(rescuer, clock, LEASE / 2)
    with slow_answers(clock, LEASE):
        assert rescuer.dead() == set()
    clock.now += LEASE / 3
    assert rescuer.dead() == set()


def test_also_an_observer_whose_every_look_is_late_finds_the_dead(rescuer, clock, me):
    """Row 1, on a machine that has too much to do: nobody else is there to rescue."""
    other, mine = register(), register("me", pk=me.worker_id)
    for _ in range(12):
        clock.now += LEASE * 0.6
        beat(mine)
        rescuer.dead()
    assert rescuer.known_dead == {other.pk}


def test_while_its_own_beats_are_not_taken_a_worker_takes_nobody_for_dead(rescuer, clock, me):
    """Row 9: the database takes no beats, those of the others as little as ours."""
    register()
    register("me", pk=me.worker_id)
    assert watch(rescuer, clock, LEASE) == set()


def test_beats_of_its_own_that_are_late_by_half_a_lease_are_not_late_yet(rescuer, clock, me):
    other, mine = register(), register("me", pk=me.worker_id)
    rescuer.dead()
    clock.now += LEASE / 2
    assert rescuer.dead() == set()
    beat(mine)
    clock.now += LEASE / 2
    assert rescuer.dead() == {other.pk}


@contextmanager
def broken_connection():
    def refuse(*_):
        raise OperationalError("the database is away")

    with connection.execute_wrapper(refuse):
        yield


@contextmanager
def slow_answers(clock, seconds):
    def wait(execute, *arguments):
        answer = execute(*arguments)
        clock.now += seconds
        return answer

    with connection.execute_wrapper(wait):
        yield


def test_nobody_takes_itself_for_dead(rescuer, clock, me):
    register("me", pk=me.worker_id)
    assert watch(rescuer, clock, 2 * LEASE) == set()


def test_the_attempts_of_the_dead_are_taken_over(rescuer, clock, me, engines):
    other = a_worker("other", offers=[OFFER])
    register(pk=other.worker_id)
    lease = held_by(other)
    assert rescuer.rescue(me, engines, 10) == []
    watch(rescuer, clock, LEASE)
    assert [each.job_id for each in rescuer.rescue(me, engines, 10)] == [lease.job_id]
    assert JobAttempt.objects.get().worker_id == me.worker_id
    assert not Worker.objects.exists()


def test_an_adoption_is_told_with_whom_the_job_was_before(rescuer, clock, me, engines, caplog):
    died = held_by(a_worker("w7", offers=[OFFER]))
    left = held_by(a_worker("w8", offers=[OFFER]))
    JobAttempt.objects.filter(job=left.job_id).update(worker_id=None)
    caplog.clear()
    rescuer.rescue(me, engines, 10)
    assert sorted(record.getMessage() for record in caplog.records) == sorted(
        [
            f"Job {died.job_id}: adopted, worker w7 is gone",
            f"Job {left.job_id}: adopted, worker w8 let it go",
        ]
    )


def test_the_points_of_a_rescue_are_reached_only_where_there_is_something_to_rescue(
    rescuer, me, engines
):
    seen = []
    with reaching(seen.append):
        rescuer.rescue(me, engines, 10)
        assert seen == []
        held_by(a_worker("gone", offers=[OFFER]))
        seen.clear()
        rescuer.rescue(me, engines, 10)
    assert seen == ["A2", "A1"]


def test_a_dead_worker_keeps_its_row_as_long_as_it_holds_something(rescuer, clock, me, engines):
    other = a_worker("other", offers=[Offer("", "auto", "fake", "container", "far away")])
    register(pk=other.worker_id)
    lease = held_by(other)
    watch(rescuer, clock, LEASE)
    assert rescuer.rescue(me, engines, 10) == []
    assert Worker.objects.exists()
    finish(other, lease)
    rescuer.rescue(me, engines, 10)
    assert not Worker.objects.exists()


def test_no_more_are_taken_over_than_asked_for(rescuer, me, engines):
    for _ in range(5):
        held_by(a_worker("gone", offers=[OFFER]))
    first = rescuer.rescue(me, engines, 2)
    rest = rescuer.rescue(me, engines, 10, under_way=[lease.job_id for lease in first])
    assert (len(first), len(rest)) == (2, 3)


def test_orphans_under_an_alias_that_is_gone_do_not_stand_in_the_way(rescuer, me, engines):
    held_by(a_worker("gone", offers=[replace(OFFER, alias="renamed")]))
    ours = held_by(a_worker("gone", offers=[OFFER]))
    assert [lease.job_id for lease in rescuer.rescue(me, engines, 1)] == [ours.job_id]


def test_what_this_worker_is_at_is_not_taken_over_from_itself(rescuer, me, engines):
    """Its row was pruned while it slept; it is alive."""
    mine, forgotten = held_by(me), held_by(me)
    found = rescuer.rescue(me, engines, 10, under_way=[mine.job_id])
    assert [(lease.job_id, lease.epoch) for lease in found] == [(forgotten.job_id, 2)]


def test_an_engine_that_is_away_is_not_spoken_for(rescuer, me, engines):
    held_by(a_worker("gone", offers=[OFFER]))
    engines["fake"].executor._away = True
    engines.probe()
    assert rescuer.rescue(me, engines, 10) == []


def meanwhile(monkeypatch, verb, happens, *, before):
    """Have something happen right before, or right after, the next call of a verb."""
    call = getattr(lifecycle, verb)

    def called(*arguments, **options):
        monkeypatch.setattr(lifecycle, verb, call)
        if before:
            happens()
            return call(*arguments, **options)
        answer = call(*arguments, **options)
        happens()
        return answer

    monkeypatch.setattr(lifecycle, verb, called)


def test_what_the_dead_claimed_after_they_had_come_back_stays_theirs(
    rescuer, clock, me, engines, monkeypatch
):
    """Row 1: paused, taken for dead, resumed, and at work again while the rescuer looks."""
    other = a_worker("other", offers=[OFFER])
    row = register(pk=other.worker_id)
    left = held_by(other)
    watch(rescuer, clock, LEASE)
    claimed = []

    def comes_back():
        beat(row)
        claimed.append(held_by(other))

    meanwhile(monkeypatch, "orphans", comes_back, before=True)
    assert rescuer.rescue(me, engines, 10) == []
    assert not JobAttempt.objects.filter(worker_id=me.worker_id).exists()
    held = set(JobAttempt.objects.held_by(other.worker_id).values_list("job_id", flat=True))
    assert held == {left.job_id, claimed[0].job_id}


def test_who_comes_back_while_its_row_is_to_be_removed_keeps_it(
    rescuer, clock, me, engines, monkeypatch
):
    """Without its row whatever it claims next would be an orphan at once."""
    row = register(pk=a_worker("other", offers=[OFFER]).worker_id)
    watch(rescuer, clock, LEASE)
    meanwhile(monkeypatch, "note_unreachable", lambda: beat(row), before=False)
    rescuer.rescue(me, engines, 10)
    assert Worker.objects.filter(pk=row.pk).exists()


def test_what_is_told_of_an_adoption_names_the_job_and_the_attempt(rescuer, clock, me, engines):
    """Whoever follows one job's lines must find it."""
    other = register()
    lease = held_by(replace(me, worker_id=other.pk, worker_name="other"))
    told = []

    class Collect(logging.Handler):
        def emit(self, record):
            told.append({**journal.context(), "said": record.getMessage()})

    watch(rescuer, clock, LEASE * 2)
    logger = logging.getLogger("container_manager")
    logger.addHandler(handler := Collect())
    try:
        rescuer.rescue(me, engines, 10)
    finally:
        logger.removeHandler(handler)
    (line,) = (each for each in told if "adopted" in each["said"])
    assert (line["job"], line["attempt"]) == (lease.job_id, 1)


def test_a_dead_workers_row_goes_alone(rescuer, clock, me, engines):
    """Also when a living one has beaten as often."""
    other, living = register(), register("living")
    for _ in range(8):
        rescuer.dead()
        clock.now += LEASE / 3
        beat(living)
    Worker.objects.filter(pk=living.pk).update(beat=other.beat)
    rescuer.rescue(me, engines, 10)
    assert set(Worker.objects.values_list("name", flat=True)) >= {"living"}
    assert not Worker.objects.filter(pk=other.pk).exists()


def test_who_saw_an_attempt_before_it_changed_hands_does_not_take_it(me):
    lease = held_by(me)
    seen = JobAttempt.objects.get(job=lease.job_id)
    for change in ({"lease_epoch": 2}, {"worker_id": ids.uuid7()}):
        JobAttempt.objects.filter(pk=seen.pk).update(**change)
        assert leases.take_over("default", me, [seen]) == []
        JobAttempt.objects.filter(pk=seen.pk).update(lease_epoch=1, worker_id=me.worker_id)
    assert len(leases.take_over("default", me, [seen])) == 1
