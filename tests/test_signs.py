"""Schedulers say that they live: seldom, cheaply, and until they end."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from django.utils import timezone

from container_manager import signs
from container_manager.models import Process, ProcessKind
from container_manager.reports import machinery
from container_manager.signs import SignOfLife
from container_manager.workflows.scheduler import Scheduler
from tests.commands.shell import run
from tests.factories import DagFactory
from tests.support.fleet import process_row
from tests.support.web import workers
from tests.support.workers import Workers, wait_until

__all__ = ["workers"]

pytestmark = pytest.mark.django_db


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(signs, "time", made)
    return made


def beats() -> list[int]:
    return list(Process.objects.values_list("beat", flat=True))


def test_however_often_it_is_asked_it_beats_every_five_seconds(
    clock: Clock, django_assert_num_queries: Any
) -> None:
    sign = SignOfLife(ProcessKind.SCHEDULER, "one")
    sign()
    assert beats() == [1]
    with django_assert_num_queries(0):
        for _ in range(100):
            clock.now += 0.049
            sign()
    clock.now += 1
    with django_assert_num_queries(1):
        sign()
    assert beats() == [2]
    row = Process.objects.get()
    assert (row.kind, row.name) == ("scheduler", "one")
    assert row.started_at <= row.last_beat_at


def test_a_short_lease_is_beaten_three_times(clock: Clock, settings: Any) -> None:
    settings.CONTAINER_MANAGER = {**settings.CONTAINER_MANAGER, "LEASE_SECONDS": 3}
    sign = SignOfLife(ProcessKind.RELAY)
    for _ in range(4):
        sign()
        clock.now += 1
    assert beats() == [4]


def test_its_end_takes_the_row_back_and_nobody_else_s() -> None:
    stays = process_row("scheduler")
    sign = SignOfLife(ProcessKind.SCHEDULER)
    sign()
    sign.end()
    assert list(Process.objects.all()) == [stays]


def test_who_was_forgotten_while_it_stood_still_is_there_again(clock: Clock) -> None:
    sign = SignOfLife(ProcessKind.SCHEDULER, "back")
    sign()
    began = Process.objects.get().started_at
    Process.objects.all().delete()
    clock.now += 4000
    sign()
    assert Process.objects.get().started_at == began


def test_the_dead_are_shown_for_an_hour_and_then_forgotten(clock: Clock) -> None:
    process_row("scheduler", "just now", beat_ago=100)
    process_row("scheduler", "long ago", beat_ago=3700)
    SignOfLife(ProcessKind.RELAY, "me")()
    told = {each.name: each.alive for each in machinery.processes()}
    assert told == {"just now": False, "me": True}


def test_a_name_that_no_database_can_hold_is_made_to_fit() -> None:
    sign = SignOfLife(ProcessKind.SCHEDULER, "a\0\ud800" + "x" * 1000)
    sign()
    assert len(Process.objects.get().name) == 255


@pytest.mark.django_db(transaction=True)
def test_a_scheduler_is_there_while_it_runs_and_gone_when_it_has_ended() -> None:
    seen: list[str] = []
    scheduler = Scheduler(until_idle=True, name="mine")
    last = scheduler._duties[-1]
    look = last.do

    def look_around() -> None:
        seen.extend(Process.objects.values_list("name", flat=True))
        look()

    last.do = look_around
    assert scheduler.run() == 0
    assert seen == ["mine"]
    assert not Process.objects.exists()


@pytest.mark.processes
@pytest.mark.django_db(transaction=True)
def test_a_paused_scheduler_is_silent_and_its_slots_are_overdue(workers: Workers) -> None:
    scheduler = workers.start_scheduler("--name", "paused")
    wait_until(lambda: [each.alive for each in machinery.processes()] == [True], "a sign of life")
    scheduler.pause()
    late = DagFactory(schedule="@hourly", next_slot_at=timezone.now() - timedelta(hours=1))
    age(Process.objects.get())
    assert [each.alive for each in machinery.processes()] == [False]
    answer = run("check_jobs", "--no-engines")
    assert answer.code == 1
    assert f"finding slot_overdue: DAG {late.name} has no run for its slot" in answer.out
    assert "note process_silent: scheduler paused (process " in answer.out
    late.delete()
    scheduler.go_on()
    wait_until(lambda: machinery.processes()[0].alive, "the next sign of life")
    scheduler.terminate()
    assert scheduler.ended() == 0
    assert machinery.processes() == []


def age(row: Process) -> None:
    """As if it had stood still for long."""
    Process.objects.filter(pk=row.pk).update(last_beat_at=timezone.now() - timedelta(minutes=5))
