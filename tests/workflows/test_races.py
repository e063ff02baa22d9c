"""Several schedulers and people at once: nothing is made twice, and nothing is left lying."""

from __future__ import annotations

import threading
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from zoneinfo import ZoneInfo

import pytest

from container_manager.exceptions import InvalidTransition, RunExists
from container_manager.models import ContainerJob, Dag, DagRun
from container_manager.workflows import dags, runs
from tests.support.threads import in_threads
from tests.workflows.driving import begun, end, fresh, made, moment, started, states_of, task

pytestmark = pytest.mark.django_db(transaction=True)

SCHEDULERS = 5


def together(*actions):
    """As `in_threads`, and no action begins before all are ready."""
    ready = threading.Barrier(len(actions))

    def act(action):
        ready.wait()
        action()

    in_threads(*(partial(act, action) for action in actions))


# Slots --------------------------------------------------------------------------------------------

DAYS = {
    "Europe/Berlin": ("2026-03-28T13:00:00+00:00", "2026-10-24T13:00:00+00:00"),
    "America/New_York": ("2026-03-07T18:00:00+00:00", "2026-10-31T18:00:00+00:00"),
    "Australia/Lord_Howe": ("2026-10-03T03:00:00+00:00", "2026-04-04T03:00:00+00:00"),
    "Asia/Kolkata": ("2026-03-28T13:00:00+00:00", "2026-10-24T13:00:00+00:00"),
}
"""The 24 hours from these on have the night in which the clocks change, if they do."""

MINUTE = timedelta(minutes=1)


def minutes_of(begin, zone):
    """Each minute of 24 hours: the instant, and what the clock on the wall shows."""
    for n in range(1, 24 * 60 + 1):
        instant = begin + n * MINUTE
        yield instant, instant.astimezone(ZoneInfo(zone)).replace(tzinfo=None)


def every_half_hour(begin, zone):
    return [instant for instant, wall in minutes_of(begin, zone) if wall.minute in (0, 30)]


def each_night(begin, zone, hour, minute):
    """The first instant of that night at which the wall shows that time, or has passed it."""
    found = {}
    for instant, wall in minutes_of(begin, zone):
        if (wall.hour, wall.minute) >= (hour, minute) and wall.hour < 12:
            found.setdefault(wall.date(), instant)
    return sorted(found.values())


@pytest.mark.parametrize("zone", DAYS)
@pytest.mark.parametrize("change", [0, 1], ids=["forward", "back"])
def test_five_schedulers_give_each_slot_of_a_day_one_run(monkeypatch, zone, change):
    begin = moment(DAYS[zone][change])
    clock = {"now": begin}
    monkeypatch.setattr(dags, "database_now", lambda _using: clock["now"])
    common = {"timezone": zone, "missed_runs": "all"}
    made({"a": task()}, name="pace", schedule="*/30 * * * *", **common)
    made({"a": task()}, name="night", schedule="10 2 * * *", **common)
    ids = list(Dag.objects.values_list("pk", flat=True))

    def look():
        for pk in ids:
            dags.fire(pk)

    for _ in range(12):
        clock["now"] += timedelta(hours=2)
        together(*[look] * SCHEDULERS)
        look()  # the last of them may have met only rows that another held
    slots = {
        name: list(
            DagRun.objects.filter(dag__name=name)
            .order_by("execution_date")
            .values_list("execution_date", flat=True)
        )
        for name in ("pace", "night")
    }
    assert slots["pace"] == every_half_hour(begin, zone)
    assert slots["night"] == each_night(begin, zone, 2, 10)


@pytest.mark.parametrize(("missed", "expected"), [("all", 10), ("latest", 1), ("none", 0)])
def test_after_an_outage_of_ten_slots_five_schedulers_do_what_the_policy_says(
    monkeypatch, missed, expected
):
    now = datetime(2026, 5, 1, 12, 0, 30, tzinfo=UTC)
    monkeypatch.setattr(dags, "database_now", lambda _using: now)
    dag = made({"a": task()}, schedule="0 * * * *", missed_runs=missed)
    now += timedelta(hours=10, minutes=30)
    together(*[partial(dags.fire, dag.pk)] * SCHEDULERS)
    assert DagRun.objects.count() == expected


def test_the_same_slot_asked_for_by_many_at_once_is_one_run():
    dag = made({"a": task()})
    slot = moment("2026-05-01T00:00:00+00:00")
    refused = []

    def ask():
        try:
            dags.trigger(dag.pk, execution_date=slot, actor="ann")
        except RunExists as error:
            refused.append(error)

    together(*[ask] * 8)
    assert (DagRun.objects.count(), len(refused)) == (1, 7)


# Runs ---------------------------------------------------------------------------------------------


def test_many_who_advance_one_run_make_each_job_once():
    run = begun({"a": task(), "many": task("a", array=200), "after": task("many")})
    end(run, "a")
    together(*[partial(runs.advance, run.pk)] * 6)
    assert ContainerJob.objects.count() == 201
    assert {"success", "queued"} == set(states_of(run).values())


def test_many_who_start_the_runs_of_one_dag_start_no_more_than_it_allows():
    dag = made({"a": task()}, max_active_runs=3)
    for hour in range(8):
        slot = moment(f"2026-05-01T0{hour}:00:00+00:00")
        dags.trigger(dag.pk, execution_date=slot, actor="ann")

    def start_all():
        while runs.start_next(dag.pk):
            pass

    together(*[start_all] * 6)
    start_all()
    assert DagRun.objects.filter(state="running").count() == 3
    assert ContainerJob.objects.count() == 3


def test_a_cancel_in_the_middle_of_a_fan_out_leaves_no_job_behind():
    dag = made({"many": task(array=1_000)})
    run = dags.trigger(dag.pk, actor="ann")
    together(
        partial(runs.start_next, dag.pk),
        partial(runs.cancel, run.pk, actor="ann"),
        partial(runs.advance, run.pk),
    )
    while runs.advance(run.pk):
        pass
    assert fresh(run).state == "failed"
    assert set(states_of(run).values()) <= {"skipped", "failed"}
    left = ContainerJob.objects.exclude(status="cancelled").count()
    assert left == 0


def test_a_retry_and_a_cancel_at_once_end_in_one_truth():
    dag = made({"a": task(), "b": task("a")})
    for _ in range(5):
        run = started(dag)
        end(run, "a", exit_code=1)
        runs.advance(run.pk)

        def cancel(run=run):
            with suppress(InvalidTransition):
                runs.cancel(run.pk, actor="ann")

        together(partial(runs.retry, run.pk, actor="ben"), cancel)
        runs.advance(run.pk)
        states = states_of(run)
        if fresh(run).state == "failed":
            assert states == {"a": "failed", "b": "skipped"}
        else:
            assert states == {"a": "retrying", "b": "queued"}
            runs.cancel(run.pk, actor="ann")


def test_a_run_that_is_deleted_under_a_scheduler_is_nothing_to_it():
    run = begun({"a": task()})
    runs.cancel(run.pk, actor="ann")
    dags.delete(run.dag_id)
    assert runs.advance(run.pk) is False
    assert runs.start_next(run.dag_id) is None
    assert dags.fire(run.dag_id) == []
