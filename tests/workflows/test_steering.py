"""People's verbs in the wrong moment: what ended first is told truly, and order is kept."""

from __future__ import annotations

import time
from functools import partial

import pytest
from django.utils import timezone

from container_manager import lifecycle
from container_manager.exceptions import InvalidTransition
from container_manager.models import ContainerJob, Dag, DagRun, JobAttempt, StateHistory
from container_manager.states import StopKind
from container_manager.workflows import dags, plan, runs
from container_manager.workflows.following import JobNow, moves
from container_manager.workflows.scheduler import Scheduler
from container_manager.workflows.spec import validate
from tests.workflows.driving import (
    advance,
    begun,
    end,
    fresh,
    job_of,
    made,
    play,
    queued_jobs,
    started,
    states_of,
    task,
    task_of,
)

pytestmark = pytest.mark.django_db


def held(job):
    """A worker holds it: it is asked to stop, and stops when the worker says so."""
    job.mark_as_running()
    return JobAttempt.objects.create(job=job, attempt=1, phase="started", cleaned_up=True)


# A retry keeps the order --------------------------------------------------------------------------


def test_a_failed_task_behind_a_failed_task_waits_for_it_and_is_made_anew():
    cleanup = task("a", trigger_rule="all_done", environment_from={"X": "a.output"})
    run = begun({"a": task(), "b": cleanup, "z": task("b")})
    end(run, "a", 1, output="bad\n")
    advance(run)
    end(run, "b", 1)
    advance(run)
    before = job_of(run, "b")
    assert before.environment["X"] == "bad"
    runs.retry(run.pk, actor="ann")
    assert states_of(run) == {"a": "retrying", "b": "retrying", "z": "queued"}
    assert queued_jobs(run) == ["a"]
    end(run, "a", output="good\n")
    advance(run)
    assert queued_jobs(run) == ["b"]
    assert job_of(run, "b").environment["X"] == "good"
    assert job_of(run, "b").pk != before.pk
    run = play(run)
    assert (run.state, task_of(run, "b").try_number) == ("success", 1)


def test_a_failed_task_whose_rule_says_no_the_second_time_is_failed_again():
    run = begun({"a": task(), "b": task("a", trigger_rule="one_failed"), "c": task("b")})
    run = play(run, fails=["a", "b"])
    assert states_of(run) == {"a": "failed", "b": "failed", "c": "upstream_failed"}
    runs.retry(run.pk, actor="ann")
    run = play(run)
    assert states_of(run) == {"a": "success", "b": "failed", "c": "upstream_failed"}
    assert (task_of(run, "b").reason, run.state) == ("upstream", "failed")


def test_a_retried_task_of_which_no_job_can_be_made_is_failed_and_the_run_ends():
    tasks = {"a": task(array=3), "b": task("a", environment_from={"ALL": "a.output"})}
    run = begun(tasks)
    for index in range(3):
        end(run, f"a[{index}]", output="x" * 60_000)
    advance(run)
    assert fresh(run).state == "failed"
    runs.retry(run.pk, actor="ann")
    assert (fresh(run).state, task_of(run, "b").reason) == ("failed", "not_runnable")


def test_the_verdict_of_a_cancel_outlives_a_retry():
    run = begun({"a": task(), "b": task("a")})
    runs.cancel(run.pk, actor="ann")
    runs.retry(run.pk, actor="ann")
    assert fresh(run).cancel_requested_at is None
    run = play(run)
    assert states_of(run) == {"a": "success", "b": "skipped"}
    assert (run.state, run.reason) == ("failed", "cancelled")


# What ended by itself -----------------------------------------------------------------------------


def test_a_failure_that_nobody_has_read_yet_is_not_skipped_away():
    run = begun({"a": task(), "b": task("a", trigger_rule="none_failed")})
    end(run, "a", 1)
    with pytest.raises(InvalidTransition):
        runs.skip_task(task_of(run, "a").pk, actor="ann")
    assert job_of(run, "a").status == "failed"
    advance(run)
    assert states_of(run) == {"a": "failed", "b": "upstream_failed"}


def test_a_task_that_waits_for_its_next_try_is_not_skipped():
    run = begun({"a": task(max_retries=1)})
    job_of(run, "a").mark_as_running()
    job_of(run, "a").mark_as_failed(should_retry=True)
    with pytest.raises(InvalidTransition):
        runs.skip_task(task_of(run, "a").pk, actor="ann")
    assert job_of(run, "a").status == "retrying"


def test_a_cancel_takes_no_end_away_that_came_first():
    run = begun({"a": task(skip_exit_codes=[99]), "b": task()})
    end(run, "a", 99)
    runs.cancel(run.pk, actor="ann")
    assert states_of(run) == {"a": "success", "b": "failed"}
    assert job_of(run, "a").status == "failed"


def test_a_cancelled_task_that_had_ended_is_refused():
    run = begun({"a": task()})
    end(run, "a", 1)
    with pytest.raises(InvalidTransition):
        runs.cancel_task(task_of(run, "a").pk, actor="ann")
    assert job_of(run, "a").status == "failed"


@pytest.mark.parametrize("reason", ["timeout", "oom", "worker_lost"])
def test_what_was_ended_by_others_is_no_skip_whatever_its_exit_code(reason):
    assert moves("running", 1, JobNow("failed", 1, 99, reason), [99]) == ("failed",)
    assert moves("running", 1, JobNow("failed", 1, 99, "exit_code"), [99]) == ("success",)


def test_a_killed_job_of_a_cancelled_run_is_the_cancels_doing():
    run = begun({"a": task()})
    attempt = held(job_of(run, "a"))
    runs.cancel(run.pk, actor="ann")
    assert fresh(run).state == "running"
    attempt.delete()
    lifecycle.stop([job_of(run, "a").pk], StopKind.KILL, actor="ann")
    advance(run)
    assert (fresh(run).state, fresh(run).reason) == ("failed", "cancelled")


def test_nothing_is_started_again_in_a_run_that_is_being_cancelled():
    run = begun({"a": task(), "b": task()})
    end(run, "a", 1)
    held(job_of(run, "b"))
    advance(run)
    runs.cancel(run.pk, actor="ann")
    with pytest.raises(InvalidTransition, match="being cancelled"):
        runs.retry_task(task_of(run, "a").pk, actor="ann")
    assert queued_jobs(run) == []


def test_a_run_whose_tasks_were_all_skipped_before_it_began_ends_as_it_begins():
    dag = made({"a": task()})
    run = dags.trigger(dag.pk, actor="ann")
    runs.skip_task(task_of(run, "a").pk, actor="ann")
    runs.start_next(dag.pk)
    assert fresh(run).state == "success"


# Nothing is left behind ---------------------------------------------------------------------------


def test_jobs_that_got_a_successor_go_with_their_run():
    run = begun({"a": task()})
    for _ in range(2):
        lifecycle.stop([job_of(run, "a").pk], StopKind.KILL)
        advance(run)
        runs.retry(run.pk, actor="ann")
    run = play(run)
    assert ContainerJob.objects.count() == 3
    dags.delete(run.dag_id)
    assert not ContainerJob.objects.exists()
    assert not StateHistory.objects.exists()


# Schedules that are edited ------------------------------------------------------------------------


@pytest.fixture
def clock(monkeypatch):
    now = {"now": timezone.datetime.fromisoformat("2026-03-01T12:00:00+00:00")}
    monkeypatch.setattr(dags, "database_now", lambda _using: now["now"])
    return now


def slots():
    return [run.execution_date.hour for run in DagRun.objects.order_by("execution_date")]


@pytest.mark.parametrize("change", [{"schedule": "30 * * * *"}, {"timezone": "Asia/Kolkata"}])
def test_slots_that_were_due_are_made_before_the_schedule_changes(clock, change):
    dag = made({"a": task()}, schedule="0 * * * *", missed_runs="all")
    clock["now"] += timezone.timedelta(hours=3)
    dags.take_in(validate({**dag.spec, **change}))
    assert slots() == [13, 14, 15]
    assert Dag.objects.get().next_slot_at > clock["now"]


@pytest.mark.parametrize(
    "change", [{"end_date": "2027-01-01"}, {"schedule": "@hourly"}, {"description": "x"}]
)
def test_an_edit_that_leaves_the_rhythm_alone_loses_no_slot(clock, change):
    dag = made({"a": task()}, schedule="0 * * * *", missed_runs="all")
    clock["now"] += timezone.timedelta(hours=3)
    dags.take_in(validate({**dag.spec, **change}))
    assert slots() == []
    dags.fire(dag.pk)
    assert slots() == [13, 14, 15]


def test_whoever_takes_the_name_that_a_slots_run_usually_has_does_not_take_the_slot(clock):
    dag = made({"a": task()}, schedule="0 * * * *")
    name = "scheduled__2026-03-01T13:00:00+00:00"
    dags.trigger(dag.pk, run_id=name, actor="ann")
    clock["now"] += timezone.timedelta(hours=1)
    dags.fire(dag.pk)
    assert [run.run_id for run in DagRun.objects.order_by("execution_date")] == [name, f"{name}~1"]


# The scheduler ------------------------------------------------------------------------------------


def test_a_run_whose_document_cannot_be_read_fails_and_keeps_nobody_waiting():
    dag = made({"a": task()})
    broken = dags.trigger(dag.pk, actor="ann")
    DagRun.objects.filter(pk=broken.pk).update(spec={"nothing": "of use"})
    good = dags.trigger(dag.pk, actor="ann")
    assert [runs.start_next(dag.pk), runs.start_next(dag.pk)] == [broken.pk, good.pk]
    assert (fresh(broken).state, fresh(broken).reason) == ("failed", "unreadable")
    assert states_of(broken) == {"a": "skipped"}
    assert play(good).state == "success"


def test_a_scheduler_that_can_do_nothing_about_a_run_does_not_spin(monkeypatch, caplog):
    scheduler = Scheduler()
    run = begun({"a": task()})
    end(run, "a")

    def fail(*_args, **_options):
        raise KeyError("a bug")

    monkeypatch.setattr(runs, "advance", fail)
    for _ in range(3):
        scheduler._start()
        scheduler._advance()
        assert scheduler._busy
        assert not scheduler._unfinished
    assert caplog.text.count("went wrong") == 1


def test_a_run_that_stands_still_is_advanced_at_once_others_after_a_rest():
    scheduler = Scheduler()
    quick, wide = begun({"a": task()}), begun({"a": task(), "b": task(), "c": task("a", "b")})
    end(quick, "a")
    end(wide, "a")
    assert runs.behind() == {quick.pk: True, wide.pk: False}
    scheduler._start()
    scheduler._rests, scheduler._rests_until = True, time.monotonic() + 60
    scheduler._advance()
    assert fresh(quick).state == "success"
    assert states_of(wide)["a"] == "queued"
    assert 59 < scheduler._seconds_to_wait() <= 60
    end(wide, "b")
    scheduler._advance()
    assert states_of(wide) == {"a": "success", "b": "success", "c": "queued"}


def test_a_rest_ends_whatever_stands_still_meanwhile():
    """Else a chain whose tasks are short would keep others from being started."""
    scheduler = Scheduler()
    run = begun({"a": task(), "b": task("a"), "c": task("b")})
    scheduler._start()
    end(run, "a")
    scheduler._advance()
    rests_until = scheduler._rests_until
    assert rests_until > 0
    scheduler._rests = True
    end(run, "b")
    scheduler._advance()
    assert states_of(run)["c"] == "queued"
    assert scheduler._rests_until == rests_until


def test_runs_are_started_beside_a_chain_that_goes_on():
    scheduler = Scheduler()
    chain = begun({"t0": task(), **{f"t{n}": task(f"t{n - 1}") for n in range(1, 60)}})
    waiting = dags.trigger(made({"a": task()}, name="other").pk, actor="ann")
    for number in range(60):
        end(chain, f"t{number}")
        scheduler._turn()
        if fresh(waiting).state == "running":
            break
        time.sleep(0.005)
    assert fresh(waiting).state == "running"
    assert number < 59


def test_a_task_behind_its_job_in_a_run_that_is_over_is_nothing_to_do():
    run = begun({"a": task()})
    DagRun.objects.filter(pk=run.pk).update(state="failed")
    end(run, "a")
    assert runs.behind() == {}


def test_until_idle_waits_for_what_runs_also_of_a_paused_dag():
    scheduler = Scheduler(until_idle=True)
    run = begun({"a": task()})
    dags.pause(run.dag_id)
    scheduler._look_for_an_end()
    assert not scheduler._idle
    play(run)
    dags.pause(run.dag_id, paused=False)
    dags.trigger(run.dag_id, actor="ann")
    dags.pause(run.dag_id)
    scheduler._look_for_an_end()
    assert scheduler._idle


def test_plans_are_kept_as_long_as_they_are_few(monkeypatch):
    monkeypatch.setattr(plan, "KEPT_TASKS", 5)
    monkeypatch.setattr(plan, "_plans", type(plan._plans)())
    for number in range(4):
        plan.plan_of(started(made({"a": task(), "b": task("a")}, name=f"dag{number}")))
    assert len(plan._plans) == 2


# Two at once --------------------------------------------------------------------------------------


@pytest.mark.django_db(transaction=True)
def test_the_same_new_dag_taken_in_by_many_at_once_is_one():
    from tests.support.threads import in_threads

    document = validate({"name": "flow", "tasks": {"a": task(executor="process")}})
    in_threads(*[partial(dags.take_in, document)] * 4)
    assert Dag.objects.count() == 1


# A zone that is not known here --------------------------------------------------------------------


def test_a_dag_whose_zone_is_not_known_here_is_shown_and_can_be_mended(clock):
    from django.core.exceptions import ValidationError

    dag = made({"a": task()}, schedule="0 * * * *")
    Dag.objects.update(timezone="Mars/Olympus_Mons")
    dag = Dag.objects.get()
    assert dags.next_slots(dag, 3) == []
    with pytest.raises(ValidationError, match="no time zone"):
        dags.backfill(dag.pk, clock["now"], clock["now"], actor="ann")
    dags.take_in(validate({**dag.spec, "timezone": "Europe/Berlin"}))
    assert Dag.objects.get().next_slot_at > clock["now"]
