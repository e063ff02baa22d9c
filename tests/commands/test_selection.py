from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
from django.utils import timezone

from container_manager.management import selection
from container_manager.models import ContainerJob
from tests.commands.shell import run

pytestmark = pytest.mark.django_db
Make = Callable[..., ContainerJob]


def listed(*arguments: Any) -> set[str]:
    return {line.split("\t")[1] for line in run("list_jobs", *arguments).lines}


@pytest.mark.parametrize("name_of", [lambda h: h, lambda h: h[:20], lambda h: h[-12:], str.upper])
def test_a_job_is_named_by_its_id_its_begin_or_its_end(
    name_of: Callable[[str], str], job: Make
) -> None:
    wanted, _other = job(name="wanted"), job(name="other")
    assert listed(name_of(str(wanted.pk))) == {"wanted"}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("", "is not the id of a job"),
        ("nope", "is not the id of a job"),
        ("../../etc/passwd", "is not the id of a job"),
        ("0" * 33, "is not the id of a job"),
        ("1234567", "too short"),
        ("1234567890ab", "no job has an id with"),
        (str(UUID(int=1)), "no job has the id"),
        ("12345678\x1b[31m", "is not the id of a job"),
    ],
)
@pytest.mark.parametrize("command", ["list_jobs", "kill_jobs", "job_logs", "check_jobs"])
def test_an_unknown_id_is_wrong_usage(command: str, given: str, message: str, job: Make) -> None:
    job()
    answer = run(command, given)
    assert answer.code == 2
    assert message in answer.err


def test_a_beginning_of_two_ids_is_refused(job: Make) -> None:
    for last in (1, 2):
        job(id=UUID(f"01a20104-28c5-7253-add9-{last:012}"))
    answer = run("kill_jobs", "01a20104-28c5-7253")
    assert answer.code == 2
    assert "several jobs" in answer.err


def test_one_jobs_beginning_may_not_be_anothers_end(job: Make) -> None:
    job(id=UUID("deadbeef-28c5-7253-add9-000000000001"))
    job(id=UUID("01a20104-28c5-7253-add9-0000deadbeef"))
    assert "several jobs" in run("kill_jobs", "deadbeef").err


def test_states_and_queues_may_be_repeated_or_listed(job: Make) -> None:
    for status in ("pending", "failed", "killed"):
        job(name=status, status=status, queue=f"q-{status}")
    assert listed("--status", "failed", "--status", "killed") == {"failed", "killed"}
    assert listed("--status", "failed,killed", "--queue", "q-killed") == {"killed"}


def test_a_label_is_matched_exactly_whatever_its_key_looks_like(job: Make) -> None:
    job(name="text", labels={"team": "data"})
    job(name="number", labels={"0": "data"})
    job(name="path", labels={"a.b/c__d": "x=y"})
    job(name="none")
    assert listed("--label", "team=data") == {"text"}
    assert listed("--label", "0=data") == {"number"}
    assert listed("--label", "a.b/c__d=x=y") == {"path"}
    assert listed("--label", "team=dat") == set()
    assert listed("--label", "team=data", "--label", "0=data") == set()


def test_age_counts_from_the_creation(job: Make) -> None:
    job(name="old", created_at=timezone.now() - timedelta(hours=3))
    job(name="new")
    assert listed("--older-than", "2h") == {"old"}
    assert listed("--newer-than", "120m") == {"new"}


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--older-than", "3 weeks"),
        ("--older-than", "-1d"),
        ("--newer-than", "9999999999d"),
        ("--newer-than", "9" * 5000 + "s"),
        ("--status", "asleep"),
        ("--label", "=x"),
        ("--queue", "a\x00"),
        ("--label", "a=\ud800"),
        ("--limit", "0"),
        ("--limit", "-1"),
    ],
)
def test_a_filter_that_makes_no_sense_is_refused(option: str, value: str, job: Make) -> None:
    job()
    answer = run("list_jobs", f"{option}={value}")
    assert answer.code == 2
    assert len(answer.err.splitlines()) == 1


@pytest.mark.parametrize("command", ["queue_jobs", "retry_jobs", "cancel_jobs", "kill_jobs"])
def test_nothing_is_done_to_all_jobs_unless_it_is_said(command: str, job: Make) -> None:
    made = job()
    answer = run(command)
    assert answer.code == 2
    assert "say which jobs" in answer.err
    made.refresh_from_db()
    assert made.version == 1


def test_the_walk_takes_every_job_once_and_no_more_than_the_limit(
    job: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(selection, "BATCH", 2)
    moment = timezone.now()
    made = [job(created_at=moment) for _ in range(5)]
    ids = [str(one.pk) for one in made]
    named = [line.split("\t")[0] for line in run("list_jobs", "--all").lines]
    assert named == sorted(ids, reverse=True)
    assert [line.split(":")[0] for line in run("queue_jobs", "--all", "--limit", 3).lines] == (
        sorted(ids)[:3]
    )
    assert len(run("queue_jobs", "--all").lines) == 2
    chosen = selection.select({"ids": ids})
    assert [one.pk for batch in chosen.batches() for one in batch] == [one.pk for one in made]
