"""`check_jobs --repair` mends what needs no guess, says so, and leaves the rest as it is."""

from __future__ import annotations

from typing import Any

import pytest
from django.utils import timezone

from container_manager.consistency import CODES, liveness
from container_manager.engines import Engines
from container_manager.models import ContainerJob, IdempotencyKey, JobAttempt, StateHistory
from container_manager.repair import Repair
from tests.commands.shell import run
from tests.consistency.planting import LONG_AGO, age, chunk, lived, of, on_engine, put, told
from tests.consistency.test_plants import PLANTS
from tests.support.fake_executor import World

pytestmark = pytest.mark.django_db

REPAIRED = Repair(Engines(["process"]), "").codes
UNKNOWN = "execution_unknown"
NOTES = {
    *("running_alone", "attempt_orphaned", "engine_not_looked_at", "execution_of_abandoned"),
    "process_silent",
}


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(liveness, "MOST_EXPIRED_KEYS", 5)
    monkeypatch.setattr(liveness, "MOST_CHANGES", 40)


def rows() -> list[Any]:
    models = (ContainerJob, JobAttempt, StateHistory, IdempotencyKey)
    return [list(model.objects.order_by("pk").values()) for model in models]


@pytest.mark.parametrize("code", REPAIRED)
def test_what_can_be_mended_is_mended_and_found_no_more(code: str, engine: World) -> None:
    PLANTS[code](engine)
    answer = run("check_jobs", "--repair")
    assert answer.code == 0, answer
    assert answer.lines[0].startswith(f"repaired {code}: ")
    assert answer.lines[-1].startswith("All is well")
    assert told() == []
    again = run("check_jobs", "--repair")
    assert not any(line.startswith("repaired") for line in again.lines)


@pytest.mark.parametrize("code", sorted(CODES.keys() - set(REPAIRED) - NOTES))
def test_what_a_person_must_judge_stays_as_it_is(code: str, engine: World) -> None:
    PLANTS[code](engine)
    before, running = rows(), dict(engine.executions)
    answer = run("check_jobs", "--repair", "--json")
    assert answer.code == 1
    assert answer.json["repairs"] == []
    assert code in {each["code"] for each in answer.json["findings"]}
    assert (rows(), engine.executions) == (before, running)


def test_what_the_records_do_not_know_is_removed_only_when_that_is_asked_for(engine: World) -> None:
    PLANTS[UNKNOWN](engine)
    answer = run("check_jobs", "--repair", "--remove-unknown")
    assert answer.code == 0
    assert answer.lines[0].startswith(f"repaired {UNKNOWN}: ")
    assert not engine.executions
    assert run("check_jobs", "--remove-unknown").code == 2


def test_json_tells_repairs_and_what_is_left(engine: World) -> None:
    PLANTS["execution_left"](engine)
    PLANTS["retries_exceeded"](engine)
    answer = run("check_jobs", "--repair", "--json")
    assert answer.code == 1
    (name,) = [line.split()[2] for line in answer.json["repairs"]]
    assert name.startswith("cm-")
    assert [each["code"] for each in answer.json["findings"]] == ["retries_exceeded"]
    assert answer.json["jobs"] == 2


def test_what_runs_of_a_lost_job_is_ended_and_nothing_else(engine: World) -> None:
    mine = on_engine(engine, lived("running"))
    fresh = lived("running", "completed")
    ended_just_now = on_engine(engine, fresh, running=False)
    old = lived("running", "completed")
    age(old)
    left, stranger = on_engine(engine, old), put(engine, "something-of-ours")
    answer = run("check_jobs", "--repair", "--remove-unknown")
    assert answer.code == 0
    assert set(engine.executions) == {mine, ended_just_now}
    assert {name for what, name in engine.calls if what == "stop 0"} == {left, stranger}
    assert [each.cleaned_up for each in (fresh.attempts.get(), old.attempts.get())] == [False, True]


def test_an_engine_that_fails_is_told_and_tried_again_the_next_time(
    engine: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    PLANTS["execution_left"](engine)
    engine.hiccups = 1
    answer = run("check_jobs", "--repair")
    assert answer.code == 1
    assert answer.lines[0].startswith("not repaired execution_left: cm-")
    assert answer.lines[1].startswith("finding execution_left: ")
    engine.hiccups = 0
    assert run("check_jobs", "--repair").code == 0


def test_a_held_attempt_of_a_job_that_was_queued_again_ends_unproven(engine: World) -> None:
    other = lived("running", "completed")
    chunk(other, 0, b"printed by another job")
    other.attempts.update(stdout_bytes=len(b"printed by another job"))
    job = lived("running", "failed", "retrying", "queued", worker=True)
    of(job).update(retry_count=1)
    job.attempts.update(phase="started", exit_code=None)
    chunk(job, 0, b"12345")
    chunk(job, 10, b"67")
    assert run("check_jobs", "--repair").code == 0
    attempt = job.attempts.get()
    assert (attempt.phase, attempt.reason, attempt.lease_epoch) == ("done", "unproven", 2)
    assert (attempt.stdout_bytes, attempt.stdout_omitted) == (12, 5)


def test_a_held_attempt_of_an_ended_job_gets_that_jobs_result(engine: World) -> None:
    job = lived("running", "failed")
    of(job).update(reason="oom", oom_killed=True, exit_code=137)
    job.attempts.update(phase="stopping", exit_code=None)
    assert run("check_jobs", "--repair").code == 0
    attempt = job.attempts.get()
    assert (attempt.exit_code, attempt.reason, attempt.oom_killed) == (137, "oom", True)
    assert attempt.blame == "user"


def test_a_worker_that_holds_what_was_ended_is_fenced(engine: World) -> None:
    PLANTS["attempt_held"](engine)
    before = JobAttempt.objects.get().lease_epoch
    run("check_jobs", "--repair")
    assert JobAttempt.objects.get().lease_epoch == before + 1


def test_without_engines_none_is_asked(engine: World) -> None:
    PLANTS["execution_unknown"](engine)
    assert run("check_jobs", "--no-engines").code == 0
    assert run("check_jobs", "--no-engines", "--repair").code == 0
    assert len(engine.executions) == 1


def test_an_engine_that_is_away_is_named(engine: World, configured: Any) -> None:
    job = lived("running")
    fake = {"class": "tests.support.fake_executor.FakeExecutor", "options": {"away": True}}
    configured(EXECUTORS={"fake": fake})
    answer = run("check_jobs")
    assert answer.code == 0
    assert answer.lines[0].startswith("note engine_not_looked_at: engine fake (fake) was not")
    job.attempts.update(phase="done", exit_code=0, updated_at=timezone.now() - LONG_AGO)
