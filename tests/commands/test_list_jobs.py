from __future__ import annotations

import io
import re
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.core.management import call_command
from django.utils import timezone

from container_manager.models import ContainerJob
from container_manager.states import JobStatus
from tests.commands.shell import run

pytestmark = pytest.mark.django_db
Make = Callable[..., ContainerJob]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def on_terminal(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> list[str]:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm")
    screen = Terminal()
    call_command("list_jobs", *arguments, "--no-color", stdout=screen)
    return re.sub(r"\x1b\[[012]?m", "", screen.getvalue()).splitlines()


def test_the_newest_twenty_come_first_and_the_rest_is_counted(job: Make) -> None:
    start = timezone.now() - timedelta(hours=1)
    made = [job(created_at=start + timedelta(minutes=i)) for i in range(25)]
    answer = run("list_jobs")
    assert [line.split("\t")[0] for line in answer.lines] == [
        str(one.pk) for one in reversed(made[5:])
    ]
    assert answer.err == "list_jobs: 5 more; see them with --limit N or --all\n"
    assert len(run("list_jobs", "--all").lines) == 25


def test_a_line_in_a_pipe_is_separated_by_tabs(job: Make) -> None:
    failed = job(name="x", status="failed", reason="exit_code", exit_code=3, duration_ms=1500)
    cells = run("list_jobs").lines[0].split("\t")
    assert cells[:4] == [str(failed.pk), "x", "failed", "default"]
    assert cells[5:] == ["1.500", "3", "exit_code"]


def test_json_is_one_document_with_every_job(job: Make) -> None:
    made = [job(environment={"TOKEN": "secret"}) for _ in range(3)]
    answer = run("list_jobs", "--json")
    assert {item["id"] for item in answer.json} == {str(one.pk) for one in made}
    assert "secret" not in answer.out


def test_no_jobs_at_all_is_a_friendly_line() -> None:
    answer = run("list_jobs")
    assert (answer.code, answer.out) == (3, "")
    assert "there are no jobs yet" in answer.err
    assert run("list_jobs", "--json").json == []


def test_no_match_is_told(job: Make) -> None:
    job()
    answer = run("list_jobs", "--status", "failed")
    assert (answer.code, answer.err) == (3, "no job matches\n")


def test_a_terminal_shows_a_table_that_fits(job: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    for status in JobStatus:
        job(
            name="a name that is much longer than any column could be " * 2,
            status=status,
            queue="a-queue-with-a-long-name",
            reason="executor_unavailable",
        )
    lines = on_terminal(monkeypatch)
    assert lines[0].split() == ["ID", "NAME", "STATUS", "QUEUE", "AGE", "TOOK", "RESULT"]
    assert all(len(line) <= 80 for line in lines)
    assert len(lines) == 1 + len(JobStatus)
    assert "executor_unav" in lines[1]


def test_the_short_id_of_the_table_names_the_job(
    job: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = [job() for _ in range(3)]
    short = on_terminal(monkeypatch)[1].split()[0]
    answer = run("list_jobs", short, "--json")
    assert answer.json[0]["id"] in {str(one.pk) for one in made}


@pytest.mark.parametrize("steering", ["\x1b[31m", "\x1b]8;;http://x\x1b\\", "\x9b1m", "\u202e"])
def test_nobody_steers_the_terminal_by_a_name(
    steering: str, job: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    job(name=f"[bold]a{steering}b[/bold] :smile:", status="failed", error=steering)
    for text in ("\n".join(on_terminal(monkeypatch)), run("list_jobs").out):
        assert steering not in text
        assert "[bold]a\\" in text
    assert steering not in run("list_jobs", "--json").out


def test_many_jobs_cost_no_more_questions_than_few(
    job: Make, django_assert_max_num_queries: Any
) -> None:
    for _ in range(40):
        job(status="completed")
    with django_assert_max_num_queries(4):
        assert len(run("list_jobs", "--all").lines) == 40
