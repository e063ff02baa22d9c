"""What list_dags, list_runs and list_tasks show: people, pipes and programs."""

from __future__ import annotations

import io
import re
from typing import Any

import pytest
from django.core.management import call_command

from container_manager.models import Dag, DagRun
from container_manager.workflows import dags
from tests.commands.shell import run
from tests.workflows.driving import begun, job_of, made, play, started, task

pytestmark = pytest.mark.django_db

CHAIN = {"first": task(), "second": task("first"), "third": task("second")}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def on_terminal(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> list[str]:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm")
    screen = Terminal()
    call_command(*arguments, "--no-color", stdout=screen)
    lines = re.sub(r"\x1b\[[012]?m", "", screen.getvalue()).splitlines()
    assert [line for line in lines if len(line) > 80] == []
    return lines


@pytest.fixture
def failed() -> DagRun:
    """The second of its three tasks failed."""
    return play(begun(CHAIN, tags={"team": "data"}), fails=["second"])


# DAGs


def test_dags_are_listed_by_name_with_their_latest_run(failed: DagRun) -> None:
    made({"only": task()}, name="earlier", schedule="0 2 * * *", timezone="Europe/Berlin")
    lines = [line.split("\t") for line in run("list_dags").lines]
    assert [cells[0] for cells in lines] == ["earlier", "flow"]
    assert lines[0][1:4] == ["active", "0 2 * * *", "Europe/Berlin"]
    assert lines[1][6] == "failed"


def test_a_table_of_dags_fits_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    made({"only": task()}, name="n" * 150, schedule="*/5 8-18 1-15 1,3,5 1-5")
    dags.pause(made({"only": task()}, name="tired").pk)
    made({"only": task()}, name="by-hand")
    header, *rows = on_terminal(monkeypatch, "list_dags")
    assert header.split("  ")[0] == "NAME"
    assert [row.split()[0][:7] for row in rows] == ["by-hand", "nnnnnnn", "tired"]
    assert "by hand only" in rows[0]
    assert "paused" in rows[2]


@pytest.mark.usefixtures("failed")
def test_dags_are_chosen_by_name_tag_and_pause() -> None:
    made({"only": task()}, name="other")
    dags.pause(Dag.objects.get_by_name("other").pk)

    def names(*arguments: str) -> list[str]:
        return [item["name"] for item in run("list_dags", "--json", *arguments).json]

    assert names() == ["flow", "other"]
    assert names("--tag", "team=data") == ["flow"]
    assert names("--paused") == ["other"]
    assert names("flow") == ["flow"]
    assert run("list_dags", "--tag", "team=x").code == 3
    assert run("list_dags", "nope").code == 2


def test_no_dags_at_all_is_a_friendly_line() -> None:
    answer = run("list_dags")
    assert (answer.code, answer.out) == (3, "")
    assert "`manage.py import_dag FILE` takes one in" in answer.err


def test_no_query_is_added_by_another_dag(failed: DagRun, django_assert_num_queries: Any) -> None:
    for number in range(5):
        started(made(CHAIN, name=f"dag-{number}"))
    with django_assert_num_queries(1):
        run("list_dags")
    with django_assert_num_queries(3):  # the runs, their tasks, how many there are
        run("list_runs", "--json")


# Runs


def test_runs_are_listed_latest_date_first(failed: DagRun) -> None:
    later = started(failed.dag, run_id="later")
    answer = run("list_runs")
    cells = [line.split("\t") for line in answer.lines]
    assert [line[0] for line in cells] == [str(later.pk), str(failed.pk)]
    assert cells[0][1:3] == ["flow", "later"]
    assert [line[5] for line in cells] == ["running", "failed"]
    assert cells[1][7] == "task_failed"


def test_runs_are_chosen_by_dag_and_state(failed: DagRun) -> None:
    other = begun(CHAIN, name="other")

    def found(*arguments: str) -> list[str]:
        return [item["id"] for item in run("list_runs", "--json", *arguments).json]

    assert found("flow") == [str(failed.pk)]
    assert found("--state", "running") == [str(other.pk)]
    assert set(found("--state", "running", "--state", "failed")) == {str(failed.pk), str(other.pk)}
    assert run("list_runs", "--state", "queued").code == 3
    assert run("list_runs", "--state", "done").code == 2


def test_more_than_are_shown_are_counted(failed: DagRun) -> None:
    started(failed.dag, run_id="later")
    answer = run("list_runs", "--limit", "1")
    assert len(answer.lines) == 1
    assert answer.err == "list_runs: 1 more; see them with --limit N or --all\n"
    assert len(run("list_runs", "--all").lines) == 2


def test_a_table_of_runs_shows_how_far_they_are(
    failed: DagRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun(CHAIN, name="x" * 100)
    header, first, second = on_terminal(monkeypatch, "list_runs")
    assert header.split() == ["ID", "DAG", "DATE", "(UTC)", "TYPE", "STATE", "TASKS", "TOOK"]
    assert " running " in first
    assert " 0/3" in first
    assert second.startswith(failed.pk.hex[-12:])
    assert " 3/3" in second


def test_no_runs_at_all_is_a_friendly_line() -> None:
    answer = run("list_runs")
    assert (answer.code, answer.out) == (3, "")
    assert "`manage.py trigger_dag NAME` begins one" in answer.err


# Tasks


def test_tasks_are_listed_in_the_order_of_the_document(failed: DagRun) -> None:
    lines = [line.split("\t") for line in run("list_tasks", f"flow/{failed.run_id}").lines]
    assert [cells[:3] for cells in lines] == [
        ["first", "success", "1"],
        ["second", "failed", "1"],
        ["third", "upstream_failed", "0"],
    ]
    assert lines[1][4:] == ["1", "exit_code", str(job_of(failed, "second").pk)]
    assert lines[2][6] == ""


def test_a_table_of_tasks_names_the_job_of_each(
    failed: DagRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    header, _first, second, third = on_terminal(monkeypatch, "list_tasks", str(failed.pk))
    assert header.split() == ["TASK", "STATE", "TRIES", "TOOK", "RESULT", "JOB"]
    assert second.split()[-3:] == ["exit", "1", job_of(failed, "second").pk.hex[-12:]]
    assert third.split()[:2] == ["third", "upstream_failed"]


def test_tasks_are_chosen_by_state(failed: DagRun) -> None:
    told = run("list_tasks", str(failed.pk), "--state", "failed", "--json").json
    assert [(item["task_id"], item["exit_code"]) for item in told] == [("second", 1)]
    assert run("list_tasks", str(failed.pk), "--state", "running").code == 3
    assert run("list_tasks", "flow/none").code == 2
