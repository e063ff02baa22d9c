from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from container_manager.management.commands import trigger_dag
from container_manager.models import Dag, DagRun, StateHistory
from container_manager.workflows import dags, runs
from tests.commands.shell import Script, run
from tests.workflows.driving import advance, end, fresh, made, task, task_of

pytestmark = pytest.mark.django_db

CHAIN = {"first": task(), "second": task("first")}


@pytest.fixture
def dag() -> Dag:
    return made(
        CHAIN, schedule="0 2 * * *", timezone="Europe/Berlin", params={"REGION": "eu", "DAY": "1"}
    )


def triggered(*arguments: Any) -> DagRun:
    answer = run("trigger_dag", "flow", *arguments)
    assert answer.code == 0, answer.err
    return DagRun.objects.get(pk=answer.out.strip())


@pytest.mark.usefixtures("dag")
def test_it_prints_the_id_of_a_queued_run() -> None:
    made = triggered()
    assert (made.state, made.run_type, made.params) == (
        "queued",
        "manual",
        {"REGION": "eu", "DAY": "1"},
    )


@pytest.mark.usefixtures("dag")
def test_params_date_and_name_of_the_run_may_be_given() -> None:
    made = triggered("--param", "REGION=us=1", "--date", "2026-01-31T02:00", "--run-id", "again")
    assert (made.params["REGION"], made.run_id) == ("us=1", "again")
    assert made.execution_date == datetime(2026, 1, 31, 1, tzinfo=UTC)  # on the clock of Berlin
    other = triggered("--date", "2026-01-31T02:00+05:00")
    assert other.execution_date == datetime(2026, 1, 30, 21, tzinfo=UTC)
    day = triggered("--date", "2026-07-01")
    assert day.execution_date == datetime(2026, 6, 30, 22, tzinfo=UTC)


@pytest.mark.usefixtures("dag")
def test_the_history_names_the_person() -> None:
    actors = StateHistory.objects.of(triggered()).values_list("actor", flat=True)
    assert all(actor.startswith("cli:") for actor in actors)


@pytest.mark.usefixtures("dag")
def test_json_shows_the_run() -> None:
    told = run("trigger_dag", "flow", "--json", "--run-id", "once").json
    assert (told["dag"], told["run_id"], told["state"]) == ("flow", "once", "queued")
    assert told["tasks"] == {"queued": 2}


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["flwo"], 2, "there is no DAG 'flwo'; did you mean flow?"),
        (["something-else"], 2, "there is no DAG 'something-else'; see `manage.py list_dags`"),
        (["fl\x00w"], 2, "Must not contain NUL characters."),
        (["flow", "--param", "REGION"], 2, "--param: 'REGION' is not KEY=VALUE"),
        (["flow", "--param", "SIZE=1"], 2, "params: Unknown: SIZE. There are: DAY, REGION."),
        (["flow", "--param", "CM_DAG=1"], 2, "params: 'CM_DAG'"),
        (["flow", "--date", "2026-02-30"], 2, "--date: '2026-02-30' is no date or time such as"),
        (["flow", "--date", "0001-01-01"], 2, "--date: '0001-01-01' is no date or time such as"),
        (["flow", "--date", "9999-12-31"], 2, "execution_date: Must be from"),
        (["flow", "--run-id", "a b"], 2, "run_id: Must be up to 250 letters"),
        (["flow", "--wait", "-1"], 2, "--wait: must be a number of seconds, 0 or more"),
        (["flow", "--wait", "nan"], 2, "--wait: must be a number of seconds, 0 or more"),
        (["flow", "--dry-run"], 2, "--dry-run goes with --from and --to"),
        (["flow", "--from", "2026-01-01"], 2, "--from and --to: give both, or neither"),
        (
            ["flow", "--from", "2026-01-01", "--to", "2026-01-02", "--run-id", "x"],
            2,
            "--run-id is for one run, --from and --to are for many",
        ),
        (["flow", "--from", "2026-01-02", "--to", "2026-01-01"], 2, "first: Must not be after"),
        (["flow", "--from", "2020-01-01", "--to", "2026-01-01"], 2, "More than 1000 slots"),
        (["flow", "--run-id", "there"], 1, "flow has a run there already; it is queued"),
    ],
)
def test_what_cannot_be_meant_is_one_line_and_makes_no_run(
    dag: Dag, arguments: list[str], code: int, message: str
) -> None:
    triggered("--run-id", "there")
    answer = run("trigger_dag", *arguments)
    assert (answer.code, answer.out) == (code, "")
    assert message in answer.err
    assert len(answer.err.splitlines()) == 1
    assert dag.runs.count() == 1


def test_a_paused_dag_begins_no_run(dag: Dag) -> None:
    dags.pause(dag.pk)
    answer = run("trigger_dag", "flow")
    assert (answer.code, answer.err) == (1, "This DAG is paused: unpause it first.\n")


# Waiting ------------------------------------------------------------------------------------------


def plays(monkeypatch: pytest.MonkeyPatch, *ends: tuple[str, int]) -> None:
    """While the command waits a scheduler starts the run, and its tasks end so, one by one."""

    def begin() -> None:
        runs.start_next(DagRun.objects.get().dag_id)

    def end_one(task_id: str, exit_code: int) -> None:
        end(DagRun.objects.get(), task_id, exit_code)
        advance(DagRun.objects.get())

    steps = [begin, *(lambda each=each: end_one(*each) for each in ends)]
    monkeypatch.setattr(trigger_dag, "time", Script(steps))


@pytest.mark.usefixtures("dag")
def test_wait_ends_when_the_run_has_succeeded(monkeypatch: pytest.MonkeyPatch) -> None:
    plays(monkeypatch, ("first", 0), ("second", 0))
    answer = run("trigger_dag", "flow", "--wait", "60")
    assert answer.code == 0
    assert answer.lines[1].startswith("success after ")


@pytest.mark.usefixtures("dag")
def test_waiting_for_a_run_that_fails_tells_the_tasks_that_did(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plays(monkeypatch, ("first", 3))
    answer = run("trigger_dag", "flow", "--wait", "60")
    assert answer.code == 1
    assert answer.lines[1].startswith("failed (task_failed)")
    assert answer.lines[2:] == [
        "first: failed (exit 3): said no",
        "second: upstream_failed (upstream)",
    ]
    assert answer.err == "the run did not succeed\n"


@pytest.mark.usefixtures("dag")
def test_waiting_in_vain_says_how_it_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trigger_dag, "time", Script([]))
    answer = run("trigger_dag", "flow", "--wait", "5")
    assert answer.code == 1
    assert answer.err == (
        "not over after 5 s: the run is queued; `manage.py run_scheduler` starts it\n"
    )


@pytest.mark.usefixtures("dag")
def test_waiting_for_a_run_that_is_deleted_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trigger_dag, "time", Script([lambda: dags.delete(Dag.objects.get().pk)]))
    answer = run("trigger_dag", "flow", "--wait", "5")
    assert answer.code == 1
    assert "was deleted" in answer.err


# A stretch of its schedule ------------------------------------------------------------------------

STRETCH = ("--from", "2026-03-28", "--to", "2026-03-30")


def test_a_backfill_makes_the_runs_of_slots_that_have_none(dag: Dag) -> None:
    triggered("--date", "2026-03-28T02:00")
    answer = run("trigger_dag", "flow", *STRETCH)
    assert answer.code == 0
    assert answer.lines == [
        "2026-03-28T01:00:00+00:00: unchanged (queued)",
        "2026-03-29T01:00:00+00:00: created",  # 02:00 is left out that night
        "2026-03-30T00:00:00+00:00: created",
        "1 run unchanged, 2 runs created",
    ]
    assert dag.runs.filter(run_type="backfill").count() == 2


def test_a_dry_run_only_tells(dag: Dag) -> None:
    dags.pause(dag.pk)
    answer = run("trigger_dag", "flow", *STRETCH, "--dry-run", "--json")
    assert answer.code == 0
    assert answer.json["counts"] == {"would_be_created": 3}
    assert answer.json["results"][0]["execution_date"] == "2026-03-28T01:00:00+00:00"
    assert not dag.runs.exists()


@pytest.mark.usefixtures("dag")
def test_a_stretch_without_slots_is_nothing() -> None:
    stretch = ("--from", "2026-03-28T03:00", "--to", "2026-03-28T04:00")
    answer = run("trigger_dag", "flow", *stretch)
    assert (answer.code, answer.err) == (3, "its schedule has no slot between these dates\n")


def test_a_dag_without_schedule_has_no_slots() -> None:
    made(CHAIN, name="by-hand")
    answer = run("trigger_dag", "by-hand", *STRETCH)
    assert (answer.code, answer.err) == (2, "It has no schedule: there are no slots to fill.\n")


# Verbs on runs and DAGs ---------------------------------------------------------------------------


def failed_run(dag: Dag, run_id: str = "bad") -> DagRun:
    begun = triggered("--run-id", run_id)
    runs.start_next(dag.pk)
    end(begun, "first", 1)
    advance(begun)
    return fresh(begun)


def test_a_failed_run_goes_on_from_its_failed_tasks(dag: Dag) -> None:
    bad = failed_run(dag)
    answer = run("retry_run", "flow/bad")
    assert (answer.code, answer.out) == (0, "flow/bad: done, now running\n")
    assert task_of(bad, "first").state == "retrying"


def test_a_run_is_cancelled(dag: Dag) -> None:
    begun = triggered("--run-id", "one")
    runs.start_next(dag.pk)
    answer = run("cancel_run", str(begun.pk)[-12:], "--json")
    assert answer.code == 0
    (result,) = answer.json["results"]
    assert (result["result"], result["dag"], result["run_id"]) == ("done", "flow", "one")
    assert (fresh(begun).state, fresh(begun).reason) == ("failed", "cancelled")


def test_each_run_gets_its_result_and_one_that_is_refused_makes_exit_code_1(dag: Dag) -> None:
    failed_run(dag)
    triggered("--run-id", "waits")
    answer = run("retry_run", "flow/waits", "flow/bad", "flow/bad")
    assert answer.code == 1
    assert answer.lines == [
        "flow/waits: refused: Invalid transition from queued to retrying."
        " Valid transitions: running, skipped, failed, upstream_failed",
        "flow/bad: done, now running",
    ]
    assert answer.err == "1 of 2 could not be retried\n"


@pytest.mark.parametrize("name", ["flow/none", "none/bad", "xyz", "0190a1b2", "flow/"])
def test_with_a_wrong_name_nothing_is_done(dag: Dag, name: str) -> None:
    bad = failed_run(dag)
    answer = run("retry_run", "flow/bad", name)
    assert (answer.code, answer.out) == (2, "")
    assert fresh(bad).state == "failed"


def test_dags_are_paused_and_unpaused(dag: Dag) -> None:
    assert run("pause_dag", "flow").out == "flow: paused\n"
    assert Dag.objects.get(pk=dag.pk).is_paused
    assert run("unpause_dag", "flow").out == "flow: unpaused\n"
    assert not Dag.objects.get(pk=dag.pk).is_paused
    assert run("pause_dag", "flow", "other").code == 2
    assert not Dag.objects.get(pk=dag.pk).is_paused


@pytest.mark.parametrize(
    "arguments", [["--from", "", "--to", ""], ["--date", ""], ["--from", "", "--to", "2026-01-01"]]
)
def test_an_empty_date_is_a_mistake_and_not_now(arguments):
    dag = made({"a": task()}, schedule="0 * * * *")
    assert run("trigger_dag", dag.name, *arguments).code == 2
    assert not DagRun.objects.exists()
