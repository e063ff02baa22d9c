from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.utils import timezone

from container_manager.management.commands import submit_job
from container_manager.models import ContainerJob, StateHistory
from tests.commands.shell import Script, run

pytestmark = pytest.mark.django_db

HELLO = ("--image", "busybox:latest", "--", "echo", "hello")


def submitted(*arguments: Any, **options: Any) -> ContainerJob:
    answer = run("submit_job", *arguments, **options)
    assert answer.code == 0, answer.err
    return ContainerJob.objects.get(pk=answer.out.strip())


def test_it_prints_the_id_of_a_queued_job() -> None:
    job = submitted(*HELLO)
    assert (job.status, job.image, job.command) == ("queued", "busybox:latest", ["echo", "hello"])


def test_every_option_reaches_its_field() -> None:
    job = submitted(
        *("--name", "nightly", "--label", "team=data", "--label", "tier=1", "--env", "A=b=c"),
        *("--queue", "slow", "--priority", "70", "--executor", "process"),
        *("--isolation", "process", "--network", "none", "--working-dir", "/srv"),
        *("--pull-policy", "never", "--timeout", "5", "--start-timeout", "6"),
        *("--queue-timeout", "7", "--grace", "8", "--memory-mb", "64", "--cpus", "0.5"),
        *("--pids", "9", "--max-retries", "1", "--retry-policy", "aggressive"),
        *("--", "date"),
    )
    wanted = {
        **{"name": "nightly", "labels": {"team": "data", "tier": "1"}},
        **{"environment": {"A": "b=c"}, "queue": "slow", "priority": 70, "executor": "process"},
        **{"isolation": "process", "network": "none", "working_dir": "/srv"},
        **{"pull_policy": "never", "timeout_seconds": 5, "start_timeout_seconds": 6},
        **{"queue_timeout_seconds": 7, "stop_grace_seconds": 8, "memory_limit_mb": 64},
        **{"cpu_limit": 0.5, "pids_limit": 9, "max_retries": 1, "retry_policy": "aggressive"},
        "command": ["date"],
    }
    assert {name: getattr(job, name) for name in wanted} == wanted


def test_only_the_first_pair_of_dashes_is_ours() -> None:
    job = submitted("--image", "busybox", "--", "sh", "-c", "echo", "--", "--name", "x")
    assert job.command == ["sh", "-c", "echo", "--", "--name", "x"]


def test_a_command_given_as_text_is_split_as_in_a_shell() -> None:
    assert submitted("--image", "busybox", "--command", "echo 'a b' c").command == [
        "echo",
        "a b",
        "c",
    ]


def test_hold_leaves_it_pending() -> None:
    assert submitted("--hold", *HELLO).status == "pending"


def test_a_retry_policy_may_be_json() -> None:
    job = submitted("--retry-policy", '{"strategy": "fixed", "base_seconds": 2}', *HELLO)
    assert job.retry_policy == {"strategy": "fixed", "base_seconds": 2}


def test_it_may_be_scheduled_after_a_while_or_for_a_moment() -> None:
    later = submitted("--scheduled-for", "+10m", *HELLO).scheduled_for
    assert later is not None
    assert abs(later - timezone.now() - timedelta(minutes=10)) < timedelta(seconds=30)
    moment = submitted("--scheduled-for", "2030-01-31T08:00", *HELLO).scheduled_for
    assert moment == datetime(2030, 1, 31, 8, tzinfo=UTC)


def test_django_code_may_give_the_same_as_keywords() -> None:
    job = submitted(image="busybox", command="echo hi", labels={"a": "b"}, priority=60)
    assert (job.command, job.labels, job.priority) == (["echo", "hi"], {"a": "b"}, 60)


def test_the_history_names_the_person() -> None:
    job = submitted(*HELLO)
    actors = StateHistory.objects.of(job).values_list("actor", flat=True)
    assert all(actor.startswith("cli:") for actor in actors)


def test_json_shows_the_job_without_the_values_of_its_environment() -> None:
    told = run("submit_job", "--json", "--env", "TOKEN=secret", *HELLO).json
    assert (told["status"], told["environment"]) == ("queued", {"TOKEN": "***"})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--image", "x y", "--", "a"], "image: 'x y' is not an image reference"),
        (["--", "a"], "image: Needed, unless"),
        (["--image", "x"], "say what to run"),
        (["--image", "x", "--command", "a", "--", "b"], "either after -- or with --command"),
        (["--image", "x", "--command", "'"], "command: Cannot be split"),
        (["--executor", "nope", *HELLO], "executor: 'nope' is not a known executor"),
        (["--priority", "101", *HELLO], "priority: Must be from 0 to 100"),
        (["--priority", "9" * 400, *HELLO], "priority:"),
        (["--priority", "high", *HELLO], "--priority: invalid int value"),
        (["--cpus", "nan", *HELLO], "cpu_limit: Must be from"),
        (
            ["--isolation", "none", *HELLO],
            "isolation: 'none' is not one of auto, process, container",
        ),
        (["--label", "team", *HELLO], "--label: 'team' is not KEY=VALUE"),
        (["--env", "CM_X=1", *HELLO], "environment: 'CM_X'"),
        (["--retry-policy", "{oops", *HELLO], "--retry-policy: not valid JSON"),
        (["--retry-policy", "nope", *HELLO], "retry_policy:"),
        (["--scheduled-for", "tomorrow", *HELLO], "--scheduled-for: 'tomorrow' is not a time"),
        (["--scheduled-for", "+9999999999999d", *HELLO], "--scheduled-for:"),
        (["--name", "a\x00b", *HELLO], "name: Must not contain NUL characters"),
        (["--name", "a\ud800b", *HELLO], "name: Must not contain lone surrogates"),
        (["--name", "n" * 256, *HELLO], "name: Ensure this value has at most 255"),
        (["--image", "busybox", "--", "a\x00b"], "command: Must not contain NUL characters"),
        (["--hold", "--wait", *HELLO], "--hold and --wait"),
    ],
)
def test_what_makes_no_sense_is_one_line_and_makes_no_job(
    arguments: list[str], message: str
) -> None:
    answer = run("submit_job", *arguments)
    assert (answer.code, answer.out) == (2, "")
    assert message in answer.err
    assert len(answer.err.splitlines()) == 1
    assert not ContainerJob.objects.exists()


def ends_as(monkeypatch: pytest.MonkeyPatch, *states: str) -> None:
    def move(state: str) -> None:
        ContainerJob.objects.get().transition_to(state)

    steps = [lambda state=state: move(state) for state in states]
    monkeypatch.setattr(submit_job, "time", Script(steps))


def test_wait_ends_when_the_job_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    ends_as(monkeypatch, "running", "completed")
    answer = run("submit_job", "--wait", *HELLO)
    assert answer.code == 0
    assert answer.lines[1].startswith("completed")


@pytest.mark.parametrize("ends", [("running", "failed"), ("killed",), ("cancelled",)])
def test_waiting_for_a_job_that_does_not_complete_fails(
    ends: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    ends_as(monkeypatch, *ends)
    answer = run("submit_job", "--wait", *HELLO)
    assert answer.code == 1
    assert answer.lines[1].startswith(ends[-1])


def test_waiting_for_a_job_that_is_deleted_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submit_job, "time", Script([ContainerJob.objects.all().delete]))
    answer = run("submit_job", "--wait", *HELLO)
    assert answer.code == 1
    assert "was deleted" in answer.err
