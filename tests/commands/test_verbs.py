from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from container_manager import lifecycle
from container_manager.management import stopping
from container_manager.models import ContainerJob, StateHistory
from container_manager.models.base import acting_as
from container_manager.states import JobStatus
from tests.commands.shell import Script, run
from tests.factories import AttemptFactory

pytestmark = pytest.mark.django_db
Make = Callable[..., ContainerJob]


def status_of(job: ContainerJob) -> str:
    return str(ContainerJob.objects.values_list("status", flat=True).get(pk=job.pk))


def held(**fields: Any) -> ContainerJob:
    made: ContainerJob = AttemptFactory(**fields).job
    return made


def test_queue_jobs_takes_pending_jobs(job: Make) -> None:
    pending, failed = job(), job(status="failed")
    answer = run("queue_jobs", "--all")
    assert (answer.code, answer.lines) == (0, [f"{pending.pk}: done (queued)"])
    assert (status_of(pending), status_of(failed)) == ("queued", "failed")


def test_retry_jobs_takes_failed_jobs_and_uses_up_no_retry(job: Make) -> None:
    failed, killed = job(status="failed"), job(status="killed")
    assert run("retry_jobs", "--all").code == 0
    failed.refresh_from_db()
    assert (failed.status, failed.retry_count, status_of(killed)) == ("queued", 0, "killed")


def test_a_job_that_waits_out_its_backoff_may_be_named_for_retry(job: Make) -> None:
    waiting = job(status="retrying")
    assert run("retry_jobs", waiting.pk).code == 0
    assert status_of(waiting) == "queued"


@pytest.mark.parametrize(
    ("command", "ends"), [("cancel_jobs", "cancelled"), ("kill_jobs", "killed")]
)
def test_stopping_takes_every_job_that_has_not_ended(command: str, ends: str, job: Make) -> None:
    made = {status: job(status=status) for status in JobStatus}
    assert run(command, "--all").code == 0
    stopped = {status for status, one in made.items() if status_of(one) != status}
    assert stopped == {"pending", "queued", "running", "retrying"}
    assert {status_of(made[status]) for status in stopped} == {ends}


def test_a_held_job_is_asked_and_a_second_kill_is_told_so() -> None:
    running = held()
    first = run("kill_jobs", running.pk)
    assert (first.code, first.lines) == (0, [f"{running.pk}: requested (its worker stops it)"])
    second = run("kill_jobs", running.pk)
    assert second.code == 1
    assert "requested before" in second.out


def test_one_refusal_does_not_keep_the_others(job: Make) -> None:
    pending, done = job(), job(status="completed")
    answer = run("queue_jobs", pending.pk, done.pk)
    assert answer.code == 1
    assert answer.lines == [
        f"{pending.pk}: done (queued)",
        f"{done.pk}: refused (Invalid transition from completed to queued."
        " Valid transitions: none)",
    ]
    assert answer.err == "1 of 2 jobs could not be queued\n"
    assert status_of(pending) == "queued"


def test_a_second_kill_of_a_killed_job_is_refused_with_its_state(job: Make) -> None:
    answer = run("kill_jobs", job(status="killed").pk)
    assert answer.code == 1
    assert "refused (Invalid transition from killed to killed" in answer.out


def test_a_job_that_moves_or_vanishes_meanwhile_costs_only_itself(
    job: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    stays, moves, vanishes = job(), job(), job()
    enqueue = lifecycle.enqueue

    def late(ids: Any, **options: Any) -> int:
        if len(ids) == 3:
            ContainerJob.objects.filter(pk=moves.pk).update(status="cancelled")
            ContainerJob.objects.filter(pk=vanishes.pk).delete()
        return enqueue(ids, **options)

    monkeypatch.setattr(lifecycle, "enqueue", late)
    answer = run("queue_jobs", "--all", "--json")
    assert answer.code == 1
    assert {item["id"]: item["result"] for item in answer.json["results"]} == {
        str(stays.pk): "done",
        str(moves.pk): "refused",
        str(vanishes.pk): "unknown",
    }
    assert answer.json["counts"] == {"done": 1, "refused": 1, "unknown": 1}


@pytest.mark.parametrize("command", ["queue_jobs", "cancel_jobs", "kill_jobs"])
def test_a_dry_run_changes_nothing(command: str, job: Make) -> None:
    made = job()
    answer = run(command, "--all", "--dry-run")
    assert answer.code == 0
    assert "dry run (is pending, would be" in answer.out
    assert status_of(made) == "pending"


@pytest.mark.parametrize("command", ["queue_jobs", "retry_jobs", "cancel_jobs", "kill_jobs"])
def test_nothing_matched_has_its_own_exit_code(command: str, job: Make) -> None:
    job(status="completed")
    assert run(command, "--all").code == 3
    answer = run(command, "--all", "--json")
    assert (answer.code, answer.json) == (3, {"results": [], "counts": {}})


def test_the_history_names_the_person(job: Make) -> None:
    made = job()
    run("queue_jobs", "--all")
    run("kill_jobs", "--all")
    moves = StateHistory.objects.of(made)[1:]
    assert [move.actor.partition(":")[0] for move in moves] == ["cli", "cli"]


def test_many_jobs_cost_no_more_questions_than_few(
    job: Make, django_assert_max_num_queries: Any
) -> None:
    for _ in range(30):
        job()
    with django_assert_max_num_queries(15):
        assert len(run("queue_jobs", "--all").lines) == 30


def ending_as(status: str, job: ContainerJob) -> Callable[[], None]:
    def end() -> None:
        job.attempts.update(phase="done", exit_code=137)
        with acting_as("worker:w"):
            ContainerJob.objects.filter(pk=job.pk).update(status=status)

    return end


def test_kill_can_wait_until_the_jobs_are_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    running = held()
    monkeypatch.setattr(stopping, "time", Script([ending_as("killed", running)]))
    answer = run("kill_jobs", running.pk, "--wait", "5")
    assert (answer.code, answer.lines) == (0, [f"{running.pk}: done (killed)"])


def test_kill_waits_no_longer_than_told(monkeypatch: pytest.MonkeyPatch) -> None:
    running = held()
    monkeypatch.setattr(stopping, "time", Script([]))
    answer = run("kill_jobs", running.pk, "--wait", "5")
    assert answer.code == 1
    assert "not gone after 5 s" in answer.out


def test_a_wait_that_is_no_time_is_refused() -> None:
    for seconds in ("-1", "nan", "soon"):
        assert run("kill_jobs", "--all", f"--wait={seconds}").code == 2
