"""One job by itself: looking at it, changing it, and its verbs."""

from __future__ import annotations

import time
from collections.abc import Callable
from threading import BoundedSemaphore
from types import SimpleNamespace
from typing import Any

import pytest
from django.db import connection
from django.test import Client

from container_manager import lifecycle
from container_manager.api import waiting
from container_manager.models import ContainerJob, StateHistory
from container_manager.models.base import acting_as
from container_manager.states import JobStatus
from tests.factories import AttemptFactory, JobFactory
from tests.support.api import Api, a_person, an_operator, problem
from tests.support.spine import at_once, path_of

pytestmark = pytest.mark.django_db

ENDED = ("completed", "cancelled", "killed")


@pytest.fixture
def api() -> Api:
    return Api(an_operator())


def held(**fields: Any) -> ContainerJob:
    """A running job that a worker holds."""
    return AttemptFactory(**{f"job__{name}": value for name, value in fields.items()}).job


def status_of(job: ContainerJob) -> str:
    return str(ContainerJob.objects.values_list("status", flat=True).get(pk=job.pk))


def delete(api: Api, job: ContainerJob, **query: Any) -> Any:
    return api.client.delete(f"/api/v1/jobs/{job.pk}/", query_params=query)


# Looking at it ------------------------------------------------------------------------------------


def test_a_job_by_itself_has_its_output_and_what_may_be_done_with_it(api):
    job = JobFactory(
        status="failed", output="last words", error="oh", environment={"KEY": "secret"}
    )
    answer = api.get(f"jobs/{job.pk}/")
    told = answer.json()
    assert (told["output"], told["error"]) == ("last words", "oh")
    assert told["environment"] == {"KEY": "***"}
    assert b"secret" not in answer.content
    assert told["allowed_transitions"] == ["retrying", "cancelled"]
    assert set(told["changeable"]) == lifecycle.changeable("failed")
    assert answer.headers["ETag"] == f'"{job.revision}"' == f'"{told["revision"]}"'


@pytest.mark.parametrize("tag", ["{}", "W/{}", '"other", {}', "*"])
def test_who_has_this_revision_is_told_that_nothing_changed(tag, api):
    job = JobFactory()
    header = {"If-None-Match": tag.format(f'"{job.revision}"')}
    answer = api.get(f"jobs/{job.pk}/", headers=header)
    assert (answer.status_code, answer.content) == (304, b"")
    assert answer.headers["ETag"] == f'"{job.revision}"'
    lifecycle.amend(job.pk, {"name": "new"})
    if tag != "*":
        assert api.get(f"jobs/{job.pk}/", headers=header).status_code == 200


# Changing it --------------------------------------------------------------------------------------


def test_what_is_wanted_may_be_changed_before_it_runs(api):
    job = JobFactory(status="queued")
    answer = api.patch(f"jobs/{job.pk}/", {"priority": 90, "command": "echo new"})
    assert answer.status_code == 200
    told = answer.json()
    assert (told["priority"], told["command"], told["status"]) == (90, ["echo", "new"], "queued")
    assert answer.headers["ETag"] == api.get(f"jobs/{job.pk}/").headers["ETag"]


def test_what_may_not_be_changed_any_more_is_named_with_what_may(api):
    job = held()
    answer = api.patch(f"jobs/{job.pk}/", {"priority": 90, "name": "new"})
    told = problem(answer, 409, "not_changeable")
    assert list(told["errors"]) == ["priority"]
    assert (told["current_state"], told["changeable"]) == ("running", ["labels", "name"])
    job.refresh_from_db()
    assert job.name != "new"


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        ({"priority": 101}, ["priority"]),
        ({"priority": "5"}, ["priority"]),
        ({"status": "done"}, ["status"]),
        ({"status": None}, ["status"]),
        ({"name": "fine", "version": 2}, ["version"]),
        ({"created_by": 1}, ["created_by"]),
        ({"queue_now": True}, ["queue_now"]),
        ({"image": ""}, ["image"]),
        ({}, []),
    ],
)
def test_a_change_that_cannot_be_changes_nothing(body, fields, api):
    job = JobFactory(name="old")
    told = problem(api.patch(f"jobs/{job.pk}/", body), 400, "invalid")
    assert list(told["errors"]) == fields
    row = ContainerJob.objects.get()
    assert (row.name, row.revision) == ("old", job.revision)


def changed_if(api: Api, job: ContainerJob, tag: str) -> Any:
    address = f"/api/v1/jobs/{job.pk}/"
    headers = {"If-Match": tag}
    return api.client.patch(address, {"name": "new"}, "application/json", headers=headers)


@pytest.mark.parametrize("tag", ["{}", '"other", {}', "*"])
def test_a_change_of_the_revision_that_was_read_is_made(tag, api):
    job = JobFactory()
    assert changed_if(api, job, tag.format(f'"{job.revision}"')).status_code == 200


@pytest.mark.parametrize("tag", ['"1-0"', "nonsense", "", 'W/"{}"', '"a", "b"'])
def test_a_change_of_another_revision_is_refused_with_the_one_there_is(tag, api):
    job = JobFactory(name="old")
    told = problem(changed_if(api, job, tag.format(job.revision)), 412, "stale_state")
    assert (told["current_revision"], told["current_version"]) == (job.revision, 1)
    assert ContainerJob.objects.get().name == "old"


def test_of_two_who_read_the_same_revision_one_changes_it(api):
    job = JobFactory()
    tag = f'"{job.revision}"'
    assert changed_if(api, job, tag).status_code == 200
    problem(changed_if(api, job, tag), 412, "stale_state")


# A status in PATCH --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "wanted", "ends"),
    [
        ("pending", "queued", "queued"),
        ("pending", "cancelled", "cancelled"),
        ("queued", "killed", "killed"),
        ("failed", "retrying", "queued"),
        ("failed", "cancelled", "cancelled"),
        ("pending", "running", "running"),
        ("running", "completed", "completed"),
        ("running", "failed", "failed"),
    ],
)
def test_a_status_is_the_verb_of_that_name(status, wanted, ends, api):
    job = JobFactory(status=status)
    answer = api.patch(f"jobs/{job.pk}/", {"status": wanted})
    assert (answer.status_code, answer.json()["status"]) == (200, ends)
    last = StateHistory.objects.of(job).last()
    assert last.actor.startswith("api:")


@pytest.mark.parametrize(
    ("status", "wanted"),
    [(status, wanted) for status in ENDED for wanted in JobStatus.values]
    + [
        ("pending", "completed"),
        ("queued", "pending"),
        ("failed", "running"),
        ("queued", "queued"),
    ],
)
def test_a_status_that_the_state_does_not_allow_is_refused(status, wanted, api):
    job = JobFactory(status=status)
    answer = api.patch(f"jobs/{job.pk}/", {"status": wanted, "name": "new"})
    told = problem(answer, 409, "invalid_transition")
    row = ContainerJob.objects.get()
    assert (told["current_state"], row.status) == (status, status)
    assert told["allowed_transitions"] == list(row.machine.get_next_states(status))
    assert row.name != "new", "fields and status change together or not at all"


def test_fields_and_status_change_together(api):
    job = JobFactory()
    told = api.patch(f"jobs/{job.pk}/", {"priority": 7, "status": "queued"}).json()
    assert (told["priority"], told["status"]) == (7, "queued")


def test_what_a_worker_holds_is_moved_by_that_worker_only(api):
    job = held()
    problem(api.patch(f"jobs/{job.pk}/", {"status": "completed"}), 409, "held_by_worker")
    answer = api.patch(f"jobs/{job.pk}/", {"status": "killed"})
    assert (answer.status_code, answer.json()["status"]) == (202, "running")
    assert answer.json()["kill_requested_at"] is not None


# The verbs ----------------------------------------------------------------------------------------

VERBS = {
    "queue": {"pending": "queued", "retrying": "queued"},
    "cancel": dict.fromkeys(("pending", "queued", "running", "failed", "retrying"), "cancelled"),
    "kill": dict.fromkeys(("pending", "queued", "running", "retrying"), "killed"),
    "retry": {"failed": "queued", "retrying": "queued"},
}


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("status", JobStatus.values)
def test_a_verb_moves_a_job_where_its_state_allows_it_and_else_says_why_not(verb, status, api):
    job = JobFactory(status=status)
    answer = api.post(f"jobs/{job.pk}/{verb}/")
    if status in VERBS[verb]:
        assert (answer.status_code, answer.json()["status"]) == (200, VERBS[verb][status])
        assert answer.headers["ETag"] == f'"{ContainerJob.objects.get().revision}"'
    else:
        told = problem(answer, 409, "invalid_transition")
        assert told["current_state"] == status == status_of(job)
        assert told["allowed_transitions"] == list(job.machine.get_next_states(status))


def test_deleting_a_job_kills_it_and_keeps_its_row(api):
    job = JobFactory(status="queued")
    answer = delete(api, job)
    assert (answer.status_code, answer.json()["status"]) == (200, "killed")
    problem(delete(api, job), 409, "invalid_transition")
    assert path_of(job)[-1] == "killed"


def test_deleting_a_running_job_asks_its_worker(api):
    job = held()
    assert delete(api, job, wait=0).status_code == 202
    assert status_of(job) == "running"


@pytest.mark.parametrize("verb", ["cancel", "kill"])
def test_a_held_job_is_asked_to_stop_and_a_second_time_is_told_so(verb, api):
    job = held()
    first = api.post(f"jobs/{job.pk}/{verb}/?wait=0")
    assert (first.status_code, first.json()["status"]) == (202, "running")
    told = problem(api.post(f"jobs/{job.pk}/{verb}/?wait=0"), 409, "stop_requested")
    assert told["current_state"] == "running"


def test_a_kill_after_a_cancel_is_stronger(api):
    job = held()
    assert api.post(f"jobs/{job.pk}/cancel/").status_code == 202
    assert api.post(f"jobs/{job.pk}/kill/?wait=0").status_code == 202
    problem(api.post(f"jobs/{job.pk}/cancel/"), 409, "stop_requested")


def test_a_job_can_be_queued_for_later(api):
    job = JobFactory()
    told = api.post(f"jobs/{job.pk}/queue/", {"scheduled_for": "2030-01-31T08:00:00Z"}).json()
    assert (told["status"], told["scheduled_for"]) == ("queued", "2030-01-31T08:00:00+00:00")


def test_a_retry_uses_up_no_retry(api):
    job = JobFactory(status="failed", max_retries=0)
    told = api.post(f"jobs/{job.pk}/retry/").json()
    assert (told["status"], told["retry_count"]) == ("queued", 0)
    assert path_of(job)[-2:] == ["retrying", "queued"]


def test_the_history_names_the_person(api):
    ada = a_person(username="ada")
    job = JobFactory(created_by=ada)
    for verb in ("queue", "kill"):
        Api(ada).post(f"jobs/{job.pk}/{verb}/")
    moves = StateHistory.objects.of(job)[1:]
    assert [move.actor for move in moves] == ["api:ada"] * 2


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("body", [{"force": True}, {"status": "killed"}, [], "now"])
def test_a_verb_takes_nothing_that_it_does_not_know(verb, body, api):
    job = JobFactory(status="retrying")
    problem(api.post(f"jobs/{job.pk}/{verb}/", body), 400, "invalid")
    assert status_of(job) == "retrying"


@pytest.mark.parametrize("moment", ["tomorrow", 1, True, "2026-02-30T00:00:00Z"])
def test_a_job_is_not_queued_for_a_moment_that_is_none(moment, api):
    job = JobFactory()
    answer = api.post(f"jobs/{job.pk}/queue/", {"scheduled_for": moment})
    assert list(problem(answer, 400, "invalid")["errors"]) == ["scheduled_for"]
    assert status_of(job) == "pending"


# Waiting ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seconds", ["-1", "61", "nan", "inf", "soon", "", "1_0", "٣"])
@pytest.mark.parametrize("verb", ["cancel", "kill"])
def test_a_wait_that_is_none_from_0_to_60_seconds_is_refused(verb, seconds, api):
    job = JobFactory(status="queued")
    answer = api.client.post(f"/api/v1/jobs/{job.pk}/{verb}/", query_params={"wait": seconds})
    assert list(problem(answer, 400, "invalid")["errors"]) == ["wait"]
    assert status_of(job) == "queued"


def test_only_verbs_that_stop_can_wait(api):
    for verb in ("queue", "retry"):
        answer = api.post(f"jobs/{JobFactory(status='retrying').pk}/{verb}/?wait=1")
        problem(answer, 400, "invalid")


def end_as(status: str, job: ContainerJob) -> None:
    job.attempts.update(phase="done", exit_code=137)
    with acting_as("worker:w"):
        ContainerJob.objects.filter(pk=job.pk).update(status=status)


def between_looks(monkeypatch: pytest.MonkeyPatch, happens: Callable[[float], None]) -> None:
    """Something happens in the pauses between two looks at the job."""
    clock = SimpleNamespace(monotonic=time.monotonic, sleep=happens)
    monkeypatch.setattr(waiting, "time", clock)


class Once:
    def __init__(self, act: Callable[[], None]) -> None:
        self.acts = [act]

    def __call__(self, _seconds: float) -> None:
        if self.acts:
            self.acts.pop()()


@pytest.mark.parametrize("ends", ["killed", "completed"])
def test_a_kill_waits_until_the_job_is_gone_and_tells_how_it_ended(ends, api, monkeypatch):
    job = held()
    between_looks(monkeypatch, Once(lambda: end_as(ends, job)))
    answer = api.post(f"jobs/{job.pk}/kill/")
    assert (answer.status_code, answer.json()["status"]) == (200, ends)


def test_a_wait_ends_when_its_time_is_over(api):
    job = held()
    answer = api.post(f"jobs/{job.pk}/kill/?wait=0.2")
    assert (answer.status_code, answer.json()["status"]) == (202, "running")


def test_a_job_that_is_deleted_while_one_waits_is_not_there(api, monkeypatch):
    job = held()

    def delete_it() -> None:
        end_as("killed", job)
        ContainerJob.objects.all().delete()

    between_looks(monkeypatch, Once(delete_it))
    problem(api.post(f"jobs/{job.pk}/kill/"), 404, "not_found")


def test_looks_become_rarer_the_longer_one_waits(api, monkeypatch):
    job, pauses = held(), []

    def look(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 6:
            end_as("killed", job)

    between_looks(monkeypatch, look)
    assert api.post(f"jobs/{job.pk}/kill/?wait=60").status_code == 200
    assert pauses == [0.1, 0.2, 0.4, 0.8, 1.0, 1.0]


def test_only_so_many_wait_and_others_are_answered_at_once(api, monkeypatch):
    monkeypatch.setattr(waiting, "PLACES", BoundedSemaphore(1))
    second, answers = held(), []

    def ask_meanwhile() -> None:
        answers.append(api.post(f"jobs/{second.pk}/kill/?wait=60"))
        end_as("killed", first)

    first = held()
    between_looks(monkeypatch, Once(ask_meanwhile))
    assert api.post(f"jobs/{first.pk}/kill/?wait=60").status_code == 200
    (answer,) = answers
    assert (answer.status_code, answer.json()["status"]) == (202, "running")
    third = held()
    between_looks(monkeypatch, Once(lambda: end_as("killed", third)))
    assert api.post(f"jobs/{third.pk}/kill/").status_code == 200, "the place is free again"


@pytest.mark.django_db(transaction=True)
def test_who_waits_keeps_no_database_connection_meanwhile(monkeypatch):
    job, user = held(), an_operator()
    seen = []

    def look(_seconds: float) -> None:
        seen.append(connection.connection is None)
        end_as("killed", job)

    between_looks(monkeypatch, look)
    client = Client()
    client.force_login(user)
    (answer,) = at_once(lambda: client.post(f"/api/v1/jobs/{job.pk}/kill/"))
    assert (answer.status_code, seen) == (200, [True])


@pytest.mark.parametrize("verb", ["kill", "cancel", "queue"])
def test_a_verb_for_a_revision_that_has_passed_is_refused(verb):
    ada = a_person()
    job = JobFactory(created_by=ada)
    headers = {"If-Match": '"1-1"'}
    told = Api(ada, **headers).post(f"jobs/{job.pk}/{verb}/")
    problem(told, 412, "stale_state")
    job.refresh_from_db()
    assert job.status == "pending"
