"""A run from its making to its end: what each verb does, and what it refuses."""

from __future__ import annotations

import json

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from container_manager import lifecycle
from container_manager.exceptions import (
    InvalidTransition,
    ManagedByTask,
    NothingToRetry,
    RunExists,
)
from container_manager.models import ContainerJob, DagRun, StateHistory, TaskInstance
from container_manager.states import RunType, StopKind
from container_manager.workflows import dags, runs
from tests.workflows.driving import (
    advance,
    begun,
    end,
    fresh,
    job_of,
    made,
    moment,
    play,
    queued_jobs,
    started,
    states_of,
    task,
    task_of,
)

pytestmark = pytest.mark.django_db

CHAIN = {"a": task(), "b": task("a"), "c": task("b")}
NOON = moment("2026-03-01T12:00:00+00:00")


def path_of(row):
    return [entry.new_state for entry in StateHistory.objects.of(row)]


# Making -------------------------------------------------------------------------------------------


def test_a_run_is_made_with_all_its_tasks_and_the_document_of_that_moment():
    dag = made({**CHAIN, "many": task("a", array=3, max_retries=2)})
    run = runs.create(dag, NOON, RunType.MANUAL, actor="tester")
    tasks = list(TaskInstance.objects.list_by_dag_run(run))
    assert [each.task_id for each in tasks] == ["a", "b", "c", "many[0]", "many[1]", "many[2]"]
    assert [each.map_index for each in tasks] == [None, None, None, 0, 1, 2]
    assert [each.max_tries for each in tasks] == [1, 1, 1, 3, 3, 3]
    assert not ContainerJob.objects.exists()
    dags.take_in(_other(dag))
    assert list(fresh(run).spec["tasks"]) == ["a", "b", "c", "many"]
    assert path_of(run) == ["queued"]
    assert StateHistory.objects.of(run).get().actor == "tester"


def _other(dag):
    from container_manager.workflows.spec import validate

    return validate({"name": dag.name, "tasks": {"z": {"image": "x", "command": ["y"]}}})


def test_a_slot_has_one_run():
    dag = made(CHAIN)
    runs.create(dag, NOON, RunType.MANUAL)
    before = TaskInstance.objects.count()
    with pytest.raises(RunExists, match="it is queued"):
        runs.create(dag, NOON, RunType.SCHEDULED)
    assert (DagRun.objects.count(), TaskInstance.objects.count()) == (1, before)


def test_a_run_id_is_one_run():
    dag = made(CHAIN)
    dags.trigger(dag.pk, run_id="mine", actor="tester")
    with pytest.raises(RunExists):
        dags.trigger(dag.pk, run_id="mine", actor="tester")


# From task to task --------------------------------------------------------------------------------


def test_a_chain_runs_link_by_link_and_each_task_is_one_job():
    run = begun(CHAIN)
    for expected in ("a", "b", "c"):
        assert queued_jobs(run) == [expected]
        end(run, expected)
        advance(run)
    run = fresh(run)
    assert (run.state, run.reason) == ("success", "")
    assert set(states_of(run).values()) == {"success"}
    assert ContainerJob.objects.count() == 3
    first = task_of(run, "a")
    assert path_of(first) == ["queued", "running", "success"]
    assert (first.try_number, first.exit_code) == (1, 0)
    assert first.started_at == job_of(run, "a").launched_at
    assert first.ended_at == job_of(run, "a").completed_at


def test_a_task_is_running_while_its_job_is_and_not_before():
    run = begun(CHAIN)
    advance(run)
    assert states_of(run)["a"] == "queued"
    job_of(run, "a").mark_as_running()
    advance(run)
    assert states_of(run) == {"a": "running", "b": "queued", "c": "queued"}


def test_whatever_waits_for_an_array_waits_for_all_of_it():
    run = begun({"many": task(array=3), "after": task("many")})
    end(run, "many[0]"), end(run, "many[2]")
    advance(run)
    assert queued_jobs(run) == ["many[1]"]
    end(run, "many[1]")
    advance(run)
    assert queued_jobs(run) == ["after"]


def test_a_failure_is_passed_on_and_what_waits_for_any_end_runs():
    run = begun({**CHAIN, "always": task("c", trigger_rule="all_done"), "free": task()})
    run = play(run, fails=["a"])
    assert states_of(run) == {
        "a": "failed",
        "b": "upstream_failed",
        "c": "upstream_failed",
        "always": "success",
        "free": "success",
    }
    assert (run.state, run.reason) == ("failed", "task_failed")
    failed = task_of(run, "a")
    assert (failed.reason, failed.exit_code, failed.error) == ("exit_code", 1, "said no")
    assert task_of(run, "b").reason == "upstream"


def test_a_task_that_skips_itself_is_a_success_that_counts_as_skipped():
    run = begun(
        {
            "maybe": task(skip_exit_codes=[99]),
            "after": task("maybe"),
            "anyway": task("maybe", trigger_rule="none_failed"),
        }
    )
    run = play(run, fails={"maybe": 99})
    assert states_of(run) == {"maybe": "success", "after": "skipped", "anyway": "success"}
    assert task_of(run, "maybe").reason == "skip"
    assert run.state == "success"


def test_an_exit_that_means_skip_is_not_tried_again():
    run = begun({"maybe": task(skip_exit_codes=[99, 7], retry_policy="aggressive")})
    policy = job_of(run, "maybe").retry_policy
    assert policy["rules"][0] == {"on_exit_codes": [99, 7], "action": "fail"}
    assert policy["base_seconds"] == 1.0


def test_a_task_follows_each_try_of_its_job():
    run = begun({"a": task(max_retries=1)})
    job_of(run, "a").mark_as_running()
    advance(run)
    job_of(run, "a").mark_as_failed(should_retry=True)
    advance(run)
    assert (states_of(run)["a"], task_of(run, "a").try_number) == ("retrying", 1)
    job_of(run, "a").mark_as_queued()
    advance(run)
    assert states_of(run)["a"] == "retrying"
    end(run, "a")
    advance(run)
    one = task_of(run, "a")
    assert path_of(one) == ["queued", "running", "retrying", "running", "success"]
    assert (one.try_number, one.max_tries, fresh(run).state) == (2, 2, "success")


def test_a_task_whose_whole_retry_nobody_saw_still_tells_of_it():
    run = begun({"a": task(max_retries=1)})
    job_of(run, "a").mark_as_running()
    advance(run)
    job_of(run, "a").mark_as_failed(should_retry=True)
    job_of(run, "a").mark_as_queued()
    end(run, "a", exit_code=3)
    advance(run)
    assert path_of(task_of(run, "a"))[1:] == ["running", "retrying", "running", "failed"]
    assert task_of(run, "a").exit_code == 3


@pytest.mark.parametrize("kind", StopKind.values[:2])
def test_a_job_that_somebody_stops_ends_its_task(kind):
    run = begun(CHAIN)
    lifecycle.stop([job_of(run, "a").pk], StopKind(kind))
    advance(run)
    assert states_of(run) == {"a": "failed", "b": "upstream_failed", "c": "upstream_failed"}
    assert task_of(run, "a").reason == {"cancel": "cancelled", "kill": "killed"}[kind]


def test_a_job_that_was_deleted_ends_its_task_with_that_reason():
    run = begun(CHAIN)
    job_of(run, "a").delete()
    advance(run)
    assert (states_of(run)["a"], task_of(run, "a").reason) == ("failed", "job_deleted")
    assert fresh(run).state == "failed"


def test_a_job_of_a_task_is_retried_through_its_task_only():
    run = begun({"a": task()})
    end(run, "a", exit_code=1)
    job = job_of(run, "a")
    assert job.managed_by == f"task:{task_of(run, 'a').pk}"
    with pytest.raises(ManagedByTask, match="retry the task"):
        lifecycle.retry([job.pk])
    with pytest.raises(ManagedByTask) as refused:
        lifecycle.move(job.pk, "retrying")
    told = refused.value
    assert (told.entity, told.old, told.new) == (job, "failed", "retrying")
    assert job_of(run, "a").status == "failed"


# What a task is given -----------------------------------------------------------------------------


def test_what_is_nearer_to_a_task_wins_in_its_environment():
    dag = made(
        {
            "a": task(),
            "b": task(
                "a",
                environment={"WHERE": "task", "OWN": "1"},
                environment_from={"ROWS": "a.output", "CODE": "a.exit_code"},
            ),
        },
        params={"WHERE": "run", "DAY": "monday"},
    )
    run = started(dag, params={"DAY": "friday"}, execution_date=NOON)
    end(run, "a", output="4 2\n\n")
    advance(run)
    assert job_of(run, "b").environment == {
        "WHERE": "task",
        "OWN": "1",
        "DAY": "friday",
        "ROWS": "4 2",
        "CODE": "0",
        "CM_DAG": "flow",
        "CM_RUN_ID": run.run_id,
        "CM_TASK_ID": "b",
        "CM_EXECUTION_DATE": "2026-03-01T12:00:00+00:00",
    }


def test_of_an_array_the_outputs_are_a_json_list_in_its_order():
    run = begun({"a": task(array=3), "b": task("a", environment_from={"ALL": "a.output"})})
    for index in (2, 0, 1):
        assert job_of(run, f"a[{index}]").environment["CM_ARRAY_INDEX"] == str(index)
        end(run, f"a[{index}]", output=f'"{index}"\n')
    advance(run)
    assert json.loads(job_of(run, "b").environment["ALL"]) == ['"0"', '"1"', '"2"']


def test_a_task_whose_environment_grew_too_large_fails_and_says_why():
    tasks = {
        "a": task(array=3),
        "b": task("a", environment_from={"ALL": "a.output"}),
        "c": task("b"),
        "d": task("b", trigger_rule="all_done"),
    }
    run = begun(tasks)
    for index in range(3):
        end(run, f"a[{index}]", output="x" * 60_000)
    advance(run)
    refused = task_of(run, "b")
    assert (refused.state, refused.reason) == ("failed", "not_runnable")
    assert "at most 131072" in refused.error
    assert (states_of(run)["c"], queued_jobs(run)) == ("upstream_failed", ["d"])


def test_what_looks_like_a_template_reaches_the_job_as_it_was_written():
    run = begun({"a": task(command=["echo", "{{ ds }}", "${X}", "$(date)"])})
    assert job_of(run, "a").command == ["echo", "{{ ds }}", "${X}", "$(date)"]


# How many at once ---------------------------------------------------------------------------------


def test_no_more_runs_are_active_than_the_dag_allows_and_the_earliest_begin():
    dag = made(CHAIN, max_active_runs=2)
    made_runs = [
        dags.trigger(dag.pk, execution_date=moment(f"2026-03-0{day}T00:00:00+00:00"), actor="t")
        for day in (3, 1, 2)
    ]
    assert runs.start_next(dag.pk) == made_runs[1].pk
    assert runs.start_next(dag.pk) == made_runs[2].pk
    assert runs.start_next(dag.pk) is None
    assert runs.startable() == []
    play(made_runs[1])
    assert runs.startable() == [dag.pk]
    assert runs.start_next(dag.pk) == made_runs[0].pk


def test_a_paused_dag_begins_nothing_and_what_runs_goes_on():
    dag = made(CHAIN)
    running = started(dag)
    waiting = dags.trigger(dag.pk, actor="tester")
    dags.pause(dag.pk)
    assert runs.startable() == []
    assert runs.start_next(dag.pk) is None
    assert play(running).state == "success"
    assert fresh(waiting).state == "queued"
    dags.pause(dag.pk, paused=False)
    assert runs.start_next(dag.pk) == waiting.pk


# People -------------------------------------------------------------------------------------------


def test_a_run_that_is_cancelled_skips_what_waits_and_ends_when_its_jobs_are_gone():
    run = begun({**CHAIN, "free": task()})
    job_of(run, "a").mark_as_running()
    advance(run)
    assert runs.cancel(run.pk, actor="ann").state == "failed"
    # `a` ran without a worker: it is stopped at once.
    assert states_of(run) == {"a": "failed", "b": "skipped", "c": "skipped", "free": "failed"}
    run = fresh(run)
    assert (run.reason, run.cancel_requested_by) == ("cancelled", "ann")
    assert {job.status for job in ContainerJob.objects.all()} == {"cancelled"}
    with pytest.raises(InvalidTransition):
        runs.cancel(run.pk, actor="ann")


def test_a_run_that_has_not_begun_is_cancelled_at_once():
    dag = made(CHAIN)
    run = dags.trigger(dag.pk, actor="tester")
    runs.cancel(run.pk, actor="ann")
    assert path_of(run) == ["queued", "failed"]
    assert set(states_of(run).values()) == {"skipped"}
    assert not ContainerJob.objects.exists()


def test_a_failed_run_goes_on_from_what_failed_and_keeps_what_is_done():
    run = begun({**CHAIN, "done": task()})
    run = play(run, fails=["b"])
    kept = job_of(run, "a").pk
    runs.retry(run.pk, actor="ann")
    assert states_of(run) == {"a": "success", "b": "retrying", "c": "queued", "done": "success"}
    assert queued_jobs(run) == ["b"]
    run = play(run)
    assert (run.state, run.reason) == ("success", "")
    assert path_of(run) == ["queued", "running", "failed", "running", "success"]
    assert path_of(task_of(run, "c")) == [
        *("queued", "upstream_failed", "queued", "running", "success")
    ]
    assert (job_of(run, "a").pk, job_of(run, "b").attempt, task_of(run, "b").try_number) == (
        *(kept, 2, 2),
    )


def test_a_job_that_was_killed_gets_a_successor():
    run = begun({"a": task()})
    killed = job_of(run, "a").pk
    lifecycle.stop([killed], StopKind.KILL)
    advance(run)
    runs.retry(run.pk, actor="ann")
    assert task_of(run, "a").job_id != killed
    assert play(run).state == "success"
    assert ContainerJob.objects.get(pk=killed).status == "killed"


def test_what_was_skipped_for_a_cancel_stays_skipped_and_there_may_be_nothing_to_retry():
    dag = made(CHAIN)
    run = dags.trigger(dag.pk, actor="tester")
    runs.cancel(run.pk, actor="ann")
    with pytest.raises(NothingToRetry):
        runs.retry(run.pk, actor="ann")
    assert fresh(run).state == "failed"


def test_only_a_failed_run_can_be_retried():
    run = begun({"a": task()})
    with pytest.raises(InvalidTransition):
        runs.retry(run.pk, actor="ann")
    run = play(run)
    with pytest.raises(InvalidTransition):
        runs.retry(run.pk, actor="ann")


def test_one_task_is_retried_with_what_is_behind_it_and_nothing_else():
    run = begun({"a": task(), "b": task("a"), "x": task(), "y": task("x"), "slow": task()})
    end(run, "a", 1), end(run, "x", 1)
    advance(run)
    assert fresh(run).state == "running"
    runs.retry_task(task_of(run, "a").pk, actor="ann")
    assert states_of(run) == {
        "a": "retrying",
        "b": "queued",
        "x": "failed",
        "y": "upstream_failed",
        "slow": "queued",
    }
    run = play(run)
    assert (states_of(run)["b"], run.state) == ("success", "failed")
    with pytest.raises(InvalidTransition):
        runs.retry_task(task_of(run, "a").pk, actor="ann")


def test_a_task_that_waits_can_be_skipped_by_hand():
    run = begun({"a": task(), "b": task("a"), "c": task("b", trigger_rule="none_failed")})
    runs.skip_task(task_of(run, "b").pk, actor="ann")
    runs.skip_task(task_of(run, "a").pk, actor="ann")
    assert states_of(run) == {"a": "skipped", "b": "skipped", "c": "queued"}
    assert queued_jobs(run) == ["c"]
    assert task_of(run, "a").reason == "skipped_by_hand"
    assert play(run).state == "success"
    with pytest.raises(InvalidTransition):
        runs.skip_task(task_of(run, "c").pk, actor="ann")


def test_the_last_waiting_task_that_is_skipped_ends_the_run():
    run = begun({"a": task()})
    runs.skip_task(task_of(run, "a").pk, actor="ann")
    assert fresh(run).state == "success"
    assert ContainerJob.objects.get().status == "cancelled"


# What it costs ------------------------------------------------------------------------------------


def queries_of_one_end(width):
    run = begun({"a": task(), "b": task("a"), "many": task(array=width)}, name=f"w{width}")
    advance(run)
    end(run, "a")
    with CaptureQueriesContext(
        connection,
    ) as seen:
        assert runs.advance(run.pk) is False
    assert "b" in queued_jobs(run)
    return len(seen)


def test_advancing_costs_as_many_queries_in_a_large_run_as_in_a_small_one():
    queries_of_one_end(2)
    assert queries_of_one_end(400) == queries_of_one_end(4)


def test_a_failure_that_is_passed_on_a_thousand_times_is_a_few_queries():
    length = 1_000
    tasks = {"t0": task()} | {f"t{n}": task(f"t{n - 1}") for n in range(1, length)}
    run = begun(tasks)
    end(run, "t0", 1)
    with CaptureQueriesContext(connection) as seen:
        advance(run)
    assert len(seen) < 60
    assert fresh(run).state == "failed"
    assert TaskInstance.objects.filter(state="upstream_failed").count() == length - 1


def test_a_look_at_everything_finds_what_a_lost_step_left_behind():
    """As if the process that saw `a` end had died between two steps that are not one."""
    run = begun(CHAIN)
    end(run, "a")
    task_a = task_of(run, "a")
    task_a.transition_to("running")
    task_a.transition_to("success")
    advance(run)
    assert queued_jobs(run) == []
    advance(run, thoroughly=True)
    assert queued_jobs(run) == ["b"]
