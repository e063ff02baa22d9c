"""DAGs: taken in, changed, paused, backfilled, deleted; and the runs of their slots."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.core.exceptions import ValidationError
from django.db import connection, transaction
from django.db.utils import IntegrityError

from container_manager.exceptions import DagActive, DagPaused, StaleState
from container_manager.models import ContainerJob, Dag, DagRun, JobLog, StateHistory, TaskInstance
from container_manager.workflows import dags, runs
from container_manager.workflows.spec import validate
from tests.workflows.driving import fresh, made, moment, play, started, states_of, task

pytestmark = pytest.mark.django_db

TASKS = {"a": task(), "b": task("a")}
NOON = moment("2026-03-01T12:00:00+00:00")


@pytest.fixture
def clock(monkeypatch):
    """The database's clock, to be set by hand."""

    class Clock:
        now = NOON

        def __call__(self, _using):
            return self.now

    clock = Clock()
    monkeypatch.setattr(dags, "database_now", clock)
    return clock


def fired(dag):
    """Fire as often as there is something due; returns the slots that got their run."""
    found = []
    while made_now := dags.fire(dag.pk):
        found += made_now
    return sorted(DagRun.objects.filter(pk__in=found).values_list("execution_date", flat=True))


def hours(*numbers):
    return [NOON.replace(hour=number) for number in numbers]


# Taking in ----------------------------------------------------------------------------------------


def test_the_same_name_is_the_same_dag_and_its_document_is_kept_in_its_order():
    first = made({"zebra": task(), "ant": task("zebra")}, schedule="0 2 * * *")
    dag, new = dags.take_in(validate({**first.spec, "tags": {"team": "data"}}))
    assert (new, dag.pk, Dag.objects.count()) == (False, first.pk, 1)
    dag = Dag.objects.get_by_name("flow")
    assert list(dag.spec["tasks"]) == ["zebra", "ant"]
    assert (dag.tags, dag.schedule) == ({"team": "data"}, "0 2 * * *")


def test_a_second_dag_cannot_take_a_name():
    made(TASKS)
    other = made(TASKS, name="other")
    with pytest.raises(ValidationError, match="already"):
        dags.create(validate({**other.spec, "name": "flow"}))
    with pytest.raises(ValidationError, match="already"):
        dags.replace(other.pk, validate({**other.spec, "name": "flow"}))
    assert Dag.objects.get(pk=other.pk).name == "other"


def test_a_change_of_another_revision_is_refused():
    dag = made(TASKS)
    seen = dag.revision
    dags.replace(dag.pk, validate({**dag.spec, "description": "x"}), revision=seen)
    with pytest.raises(StaleState):
        dags.replace(dag.pk, validate(dag.spec), revision=seen)
    assert Dag.objects.get().description == "x"


def test_dags_are_found_by_their_tags():
    made(TASKS, tags={"team": "data"})
    made(TASKS, name="other", tags={"team": "web", "tier": "data"})
    assert [dag.name for dag in Dag.objects.with_tag("team", "data")] == ["flow"]


@pytest.mark.skipif(connection.vendor != "postgresql", reason="speaks of postgresql only")
def test_tags_have_an_index_of_their_own():
    with connection.cursor() as cursor:
        cursor.execute("SELECT indexdef FROM pg_indexes WHERE indexname = 'dags_tags'")
        assert "USING gin (tags" in cursor.fetchone()[0]


# Slots --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("missed", "slots"), [("all", hours(13, 14, 15)), ("latest", hours(15)), ("none", [])]
)
def test_slots_that_passed_get_the_runs_that_the_policy_says(clock, missed, slots):
    dag = made(TASKS, schedule="0 * * * *", missed_runs=missed)
    assert dag.next_slot_at == NOON + timedelta(hours=1)
    assert fired(dag) == []
    clock.now = NOON + timedelta(hours=3, minutes=30)
    assert fired(dag) == slots
    assert fired(dag) == []
    assert Dag.objects.get().next_slot_at == NOON + timedelta(hours=4)


def test_a_slot_that_has_just_come_is_not_missed(clock):
    dag = made(TASKS, schedule="0 * * * *", missed_runs="none")
    clock.now = NOON + timedelta(hours=1, seconds=20)
    assert fired(dag) == hours(13)
    run = DagRun.objects.get()
    assert (run.run_type, run.run_id) == ("scheduled", "scheduled__2026-03-01T13:00:00+00:00")


def test_more_slots_than_one_turn_takes_are_all_made_each_once(clock, monkeypatch):
    monkeypatch.setattr(dags, "AT_ONCE", 7)
    dag = made(TASKS, schedule="* * * * *", missed_runs="all")
    clock.now = NOON + timedelta(minutes=30)
    assert len(dags.fire(dag.pk)) == 7
    assert len(fired(dag)) == 23
    assert DagRun.objects.count() == 30


def test_a_dag_of_many_tasks_gets_fewer_runs_in_one_turn(clock, monkeypatch):
    monkeypatch.setattr(dags, "TASKS_AT_ONCE", 10)
    dag = made({"a": task(array=4)}, schedule="* * * * *", missed_runs="all")
    clock.now = NOON + timedelta(minutes=5)
    assert len(dags.fire(dag.pk)) == 2


def test_no_more_runs_are_made_while_very_many_wait(clock, monkeypatch):
    monkeypatch.setattr(dags, "MOST_WAITING", 3)
    monkeypatch.setattr(dags, "AT_ONCE", 2)
    dag = made(TASKS, schedule="* * * * *", missed_runs="all")
    clock.now = NOON + timedelta(minutes=9)
    assert len(fired(dag)) == 4
    while runs.start_next(dag.pk):
        pass
    assert len(fired(dag)) == 4


def test_a_start_in_the_past_is_made_up_for_and_an_end_is_the_end(clock):
    dag = made(
        TASKS,
        schedule="0 0 * * *",
        missed_runs="all",
        start_date="2026-02-27",
        end_date="2026-03-02",
    )
    assert [slot.day for slot in fired(dag)] == [27, 28, 1]
    clock.now = NOON + timedelta(days=9)
    assert [slot.day for slot in fired(dag)] == [2]
    assert Dag.objects.get().next_slot_at is None


def test_slots_of_a_pause_are_missed_slots(clock):
    dag = made(TASKS, schedule="0 * * * *")
    dags.pause(dag.pk)
    clock.now = NOON + timedelta(hours=2, minutes=1)
    assert fired(dag) == []
    dags.pause(dag.pk, paused=False)
    assert fired(dag) == hours(14)


def test_a_new_schedule_has_missed_nothing(clock):
    dag = made(TASKS, schedule="0 0 * * *", missed_runs="all")
    clock.now = NOON + timedelta(hours=3)
    dags.take_in(validate({**dag.spec, "schedule": "0 * * * *"}))
    assert fired(dag) == []
    clock.now += timedelta(hours=1)
    assert fired(dag) == hours(16)


def test_a_run_made_by_hand_for_a_slot_is_that_slots_run(clock):
    dag = made(TASKS, schedule="0 * * * *")
    dags.trigger(dag.pk, execution_date=hours(13)[0], actor="ann")
    clock.now = NOON + timedelta(hours=1)
    assert fired(dag) == []
    assert DagRun.objects.get().run_type == "manual"


ZONES = ["Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kolkata"]
CHANGES = {
    "Europe/Berlin": ("2026-03-28T12:00:00+00:00", "2026-10-24T12:00:00+00:00"),
    "America/New_York": ("2026-03-07T12:00:00+00:00", "2026-10-31T12:00:00+00:00"),
    "Australia/Lord_Howe": ("2026-10-03T02:00:00+00:00", "2026-04-04T02:00:00+00:00"),
    "Asia/Kolkata": ("2026-03-28T12:00:00+00:00", "2026-10-24T12:00:00+00:00"),
}


@pytest.mark.parametrize("zone", ZONES)
@pytest.mark.parametrize("change", [0, 1], ids=["forward", "back"])
def test_a_day_in_which_the_clocks_change_has_each_slot_once(clock, zone, change):
    """24 hours, looked at every 20 minutes: fixed times once, wildcards at their pace."""
    clock.now = moment(CHANGES[zone][change])
    for name, cron in {"night": "30 1,2 * * *", "pace": "*/30 * * * *"}.items():
        made(TASKS, name=name, schedule=cron, timezone=zone, missed_runs="all")
    for _ in range(3 * 24):
        clock.now += timedelta(minutes=20)
        for dag in Dag.objects.all():
            dags.fire(dag.pk)
    slots = {
        name: sorted(DagRun.objects.filter(dag__name=name).values_list("execution_date", flat=True))
        for name in ("night", "pace")
    }
    assert len(slots["pace"]) == 48
    assert {
        later - slot for slot, later in zip(slots["pace"], slots["pace"][1:], strict=False)
    } == {timedelta(minutes=30)}
    assert 1 <= len(slots["night"]) <= 2


# By hand ------------------------------------------------------------------------------------------


def test_what_is_paused_is_not_triggered():
    dag = made(TASKS, schedule="0 * * * *")
    dags.pause(dag.pk)
    with pytest.raises(DagPaused):
        dags.trigger(dag.pk, actor="ann")
    with pytest.raises(DagPaused):
        dags.backfill(dag.pk, NOON, NOON, actor="ann")
    assert not DagRun.objects.exists()


def test_an_unknown_parameter_is_refused_with_those_there_are():
    dag = made(TASKS, params={"DAY": "monday"})
    with pytest.raises(ValidationError, match=r"Unknown: DYA. There are: DAY"):
        dags.trigger(dag.pk, params={"DYA": "x"}, actor="ann")
    assert dags.trigger(dag.pk, actor="ann").params == {"DAY": "monday"}


def test_a_backfill_ends_now(clock):
    dag = made(TASKS, schedule="0 * * * *")
    clock.now = NOON + timedelta(hours=1, minutes=30)
    filled = dags.backfill(dag.pk, NOON, NOON + timedelta(days=9), actor="ann")
    assert [slot.execution_date for slot in filled] == hours(12, 13)
    with pytest.raises(ValidationError, match="future"):
        dags.backfill(dag.pk, NOON + timedelta(days=1), NOON + timedelta(days=2), actor="ann")


def test_a_backfill_makes_what_is_missing_and_can_be_rehearsed():
    dag = made(TASKS, schedule="0 * * * *")
    dags.trigger(dag.pk, execution_date=hours(13)[0], actor="ann")
    first, last = hours(12, 14)
    rehearsed = dags.backfill(dag.pk, first, last, actor="ann", dry_run=True)
    assert [slot.execution_date for slot in rehearsed] == hours(12, 13, 14)
    assert [slot.run is not None for slot in rehearsed] == [False, True, False]
    assert DagRun.objects.count() == 1
    filled = dags.backfill(dag.pk, first, last, actor="ann")
    assert [slot.created for slot in filled] == [True, False, True]
    assert set(DagRun.objects.values_list("run_type", flat=True)) == {"manual", "backfill"}
    assert not any(slot.created for slot in dags.backfill(dag.pk, first, last, actor="ann"))


@pytest.mark.parametrize(
    ("schedule", "first", "last", "says"),
    [
        (None, NOON, NOON, "no schedule"),
        ("* * * * *", NOON, NOON - timedelta(days=1), "after"),
        ("* * * * *", NOON, NOON + timedelta(days=9), "More than 1000 slots"),
        ("0 * * * *", NOON, NOON + timedelta(days=9), "More than 100 tasks"),
    ],
)
def test_a_backfill_that_makes_no_sense_is_refused(monkeypatch, schedule, first, last, says):
    monkeypatch.setattr(dags, "MOST_TASKS_IN_BACKFILL", 100)
    dag = made(TASKS, schedule=schedule)
    with pytest.raises(ValidationError, match=says):
        dags.backfill(dag.pk, first, last, actor="ann")
    assert not DagRun.objects.exists()


# Deleting -----------------------------------------------------------------------------------------


def test_a_dag_takes_everything_of_it_along():
    other = play(started(made(TASKS, name="other")))
    dag = made(TASKS)
    run = play(started(dag))
    JobLog.objects.create(
        job=ContainerJob.objects.filter(name="flow.a").get(),
        attempt=1,
        stream="stdout",
        offset=0,
        data=b"x",
    )
    dags.delete(dag.pk)
    assert list(Dag.objects.all()) == [other.dag]
    assert list(DagRun.objects.all()) == [other]
    assert TaskInstance.objects.count() == ContainerJob.objects.count() == 2
    assert not JobLog.objects.exists()
    assert not StateHistory.objects.of(run).exists()
    told = StateHistory.objects.order_by().values_list("entity_type", "entity_id").distinct()
    assert len(told) == 5


def test_a_dag_with_a_run_under_way_is_not_deleted():
    dag = made(TASKS)
    run = started(dag)
    with pytest.raises(DagActive):
        dags.delete(dag.pk)
    with pytest.raises(IntegrityError), transaction.atomic():
        dag.delete()
    assert states_of(run) == {"a": "queued", "b": "queued"}
    runs.cancel(run.pk, actor="ann")
    dags.delete(dag.pk)
    assert not Dag.objects.exists()
    assert not ContainerJob.objects.exists()


def test_a_waiting_run_does_not_keep_its_dag():
    dag = made(TASKS)
    dags.trigger(dag.pk, actor="ann")
    dags.delete(dag.pk)
    assert not DagRun.objects.exists()


def test_a_dag_that_is_changed_while_it_runs_goes_on_as_it_began():
    dag = made(TASKS)
    run = started(dag)
    dags.take_in(validate({"name": "flow", "tasks": {"z": task(executor="process")}}))
    assert set(states_of(play(run))) == {"a", "b"}
    assert fresh(run).state == "success"
