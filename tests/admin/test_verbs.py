"""Buttons and actions: which there are, what they do, and who did it."""

from __future__ import annotations

import re
from collections.abc import Callable
from html import unescape
from typing import Any

import pytest
from django.contrib.admin.models import LogEntry
from django.test import Client

from container_manager import lifecycle
from container_manager.admin import jobs
from container_manager.models import ContainerJob, StateHistory
from container_manager.states import JobStatus, StopKind
from tests.admin.conftest import LIST, page_of, url
from tests.consistency.planting import a_living_worker
from tests.factories import AttemptFactory, JobFactory

Job = Callable[..., ContainerJob]


def status_of(job: ContainerJob) -> str:
    return str(ContainerJob.objects.values_list("status", flat=True).get(pk=job.pk))


def post(client: Client, verb: str, *jobs: Any, **more: Any) -> Any:
    return client.post(url("do", verb), {"ids": [str(job.pk) for job in jobs], **more})


BUTTONS = {
    JobStatus.PENDING: ["queue", "cancel", "kill"],
    JobStatus.QUEUED: ["cancel", "kill"],
    JobStatus.RUNNING: ["cancel", "kill"],
    JobStatus.COMPLETED: [],
    JobStatus.FAILED: ["retry", "cancel"],
    JobStatus.RETRYING: ["retry", "cancel", "kill"],
    JobStatus.CANCELLED: [],
    JobStatus.KILLED: [],
}


@pytest.mark.parametrize("status", JobStatus)
def test_a_page_has_buttons_only_for_what_its_state_allows(
    operator: Client, job: Job, status: JobStatus
) -> None:
    answer = operator.get(page_of(job(status=status)))
    assert [each["verb"] for each in answer.context["buttons"]] == BUTTONS[status]


@pytest.mark.parametrize("status", JobStatus)
@pytest.mark.parametrize("verb", ["queue", "retry", "cancel", "kill"])
def test_every_button_works_and_no_other_verb_does(
    operator: Client, job: Job, status: JobStatus, verb: str
) -> None:
    one = job(status=status)
    answer = post(operator, verb, one, back="job")
    assert answer.status_code == 302
    assert answer["Location"] == page_of(one)
    also = verb == "queue" and status == JobStatus.RETRYING  # as `retry` does
    moved = status_of(one) != status
    assert moved == (verb in BUTTONS[status] or also)


def test_the_history_names_the_person(operator: Client, job: Job) -> None:
    one = job()
    post(operator, "queue", one)
    assert StateHistory.objects.of(one).last().actor == "admin:olga"
    entry = LogEntry.objects.get()
    assert (entry.user.username, entry.object_id) == ("olga", str(one.pk))
    assert entry.change_message == "Queue: done."


def test_a_button_that_was_pressed_is_not_there_any_more(operator: Client) -> None:
    one = AttemptFactory(worker_id=a_living_worker().pk).job
    post(operator, "cancel", one)
    answer = operator.get(page_of(one))
    assert [each["verb"] for each in answer.context["buttons"]] == ["kill"]
    post(operator, "kill", one)
    assert operator.get(page_of(one)).context["buttons"] == []


def test_killing_a_held_job_asks_its_worker_and_a_second_kill_is_a_message(
    operator: Client,
) -> None:
    one = AttemptFactory().job
    first = operator.post(url("do", "kill"), {"ids": one.pk, "back": "job"}, follow=True)
    assert "Kill: requested" in first.content.decode()
    assert status_of(one) == JobStatus.RUNNING
    second = operator.post(url("do", "kill"), {"ids": one.pk, "back": "job"}, follow=True)
    assert second.status_code == 200
    assert "asked to stop before" in second.content.decode()


def test_a_job_that_moved_meanwhile_is_a_message(operator: Client, job: Job) -> None:
    one = job()
    lifecycle.stop([one.pk], StopKind.KILL)
    answer = operator.post(url("do", "queue"), {"ids": one.pk, "back": "job"}, follow=True)
    assert answer.status_code == 200
    assert "Invalid transition from killed to queued" in answer.content.decode()


@pytest.mark.parametrize("verb", ["queue", "retry", "cancel", "kill"])
def test_looking_at_the_question_changes_nothing(operator: Client, job: Job, verb: str) -> None:
    each = [job(status=status) for status in JobStatus]
    before = list(ContainerJob.objects.order_by("pk").values())
    ids = "&".join(f"ids={one.pk}" for one in each)
    answer = operator.get(f"{url('do', verb)}?{ids}")
    assert answer.status_code == 200
    assert {one.status for one in answer.context["able"]} == {
        status for status, verbs in BUTTONS.items() if verb in verbs
    }
    assert list(ContainerJob.objects.order_by("pk").values()) == before


def choose(client: Client, action: str, *jobs: Any, **more: Any) -> Any:
    chosen = {"_selected_action": [str(job.pk) for job in jobs]}
    return client.post(LIST, {"action": action, **chosen, **more})


def test_a_bulk_action_asks_first_and_then_gives_a_result_per_job(
    operator: Client, job: Job
) -> None:
    able, ended = job(name="able"), job(name="ended", status=JobStatus.COMPLETED)
    question = choose(operator, "kill_jobs", able, ended)
    assert question.status_code == 200
    assert [one.pk for one in question.context["able"]] == [able.pk]
    assert [one.pk for one in question.context["others"]] == [ended.pk]
    assert status_of(able) == JobStatus.PENDING
    answer = post(operator, "kill", able, ended)
    results = {row["job"].name: row["result"] for row in answer.context["rows"]}
    assert (results["able"].good, results["ended"].good) == (True, False)
    assert "Invalid transition from completed to killed" in answer.content.decode()
    assert (status_of(able), status_of(ended)) == (JobStatus.KILLED, JobStatus.COMPLETED)


@pytest.mark.parametrize("verb", ["queue", "retry", "cancel", "kill"])
def test_each_action_leads_to_its_verb(operator: Client, job: Job, verb: str) -> None:
    answer = choose(operator, f"{verb}_jobs", job())
    assert str(answer.context["verb"]) == verb


def test_too_many_at_once_are_refused_with_a_way_on(
    operator: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "AT_ONCE", 2)
    three = JobFactory.create_batch(3)
    for answer in (
        choose(operator, "kill_jobs", three[0], select_across="1"),
        post(operator, "kill", *three),
    ):
        assert answer.status_code == 302
    assert {status_of(job) for job in three} == {JobStatus.PENDING}
    assert "manage.py kill_jobs" in operator.get(LIST).content.decode()


def sent_by(page: str) -> dict[str, str]:
    """What a browser would send of a question's form."""
    form = re.search(r"<form[^>]*cm-confirm.*?</form>", page, re.S)
    assert form
    fields = re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)"', form[0])
    return {name: unescape(value) for name, value in fields}


def test_as_many_jobs_as_are_promised_are_moved_by_one_action(operator: Client) -> None:
    ContainerJob.objects.bulk_create(JobFactory.build_batch(jobs.AT_ONCE))
    first = ContainerJob.objects.order_by("-pk").first()
    question = choose(operator, "cancel_jobs", first, select_across="1")
    assert len(question.context["able"]) == 1_000
    answer = operator.post(url("do", "cancel"), sent_by(question.content.decode()))
    assert answer.status_code == 200
    assert not ContainerJob.objects.exclude(status=JobStatus.CANCELLED).exists()


def test_the_list_is_filtered_as_before_after_an_action(
    operator: Client, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, query = job(queue="slow", name="a & b"), "queue=slow&q=a+%26+b"
    said = {"action": "kill_jobs", "_selected_action": [str(one.pk)]}
    question = operator.post(f"{LIST}?{query}", said)
    back = f"{LIST}?{query}"
    assert question.context["way_back"] == back
    assert f'href="{back.replace("&", "&amp;")}"' in question.content.decode()
    given = sent_by(question.content.decode())
    assert operator.post(url("do", "kill"), given).context["way_back"] == back
    monkeypatch.setattr(jobs, "AT_ONCE", 0)
    assert operator.post(f"{LIST}?{query}", said)["Location"] == back
    assert operator.post(url("do", "kill"), given)["Location"] == back


def test_the_way_back_never_leads_to_another_site(operator: Client, job: Job) -> None:
    for listed in ("//evil.example", "\r\nX: y", "http://evil.example/?a=b"):
        answer = post(operator, "kill", job(), listed=listed)
        assert answer.context["way_back"].startswith(f"{LIST}?")
        assert "\n" not in answer.context["way_back"]


def test_no_goes_back_to_the_job_even_when_it_cannot_be_asked_any_more(
    operator: Client, job: Job
) -> None:
    for status in (JobStatus.PENDING, JobStatus.KILLED):
        one = job(status=status)
        question = operator.get(url("do", "kill"), {"ids": one.pk, "back": "job"})
        assert question.context["way_back"] == page_of(one)


def test_a_question_without_a_job_says_so(operator: Client, job: Job) -> None:
    question = choose(operator, "retry_jobs", job(status=JobStatus.COMPLETED))
    assert question.context["title"] == "None of these can be retried now"
    assert "0 jobs" not in question.content.decode()


@pytest.mark.parametrize("verb", ["cancel", "kill"])
def test_a_question_tells_what_is_sent_to_a_job(operator: Client, job: Job, verb: str) -> None:
    page = choose(operator, f"{verb}_jobs", job()).content.decode()
    assert "SIGTERM" in page
    assert "SIGKILL at once" in page


def test_no_job_at_all_is_no_error(operator: Client, db: None) -> None:
    for answer in (post(operator, "kill"), operator.get(url("do", "kill"))):
        assert answer.status_code == 200


def test_a_deleted_job_is_told(operator: Client, job: Job) -> None:
    gone, there = job(status=JobStatus.COMPLETED), job()
    pk = gone.pk
    lifecycle.prune([gone.pk])
    answer = operator.post(url("do", "kill"), {"ids": [str(pk), str(there.pk)]})
    assert answer.status_code == 200
    assert status_of(there) == JobStatus.KILLED


@pytest.mark.parametrize("ids", ["nonsense", "%00", "1", "../.."])
def test_ids_that_are_none_are_refused(operator: Client, db: None, ids: str) -> None:
    assert operator.post(url("do", "kill"), {"ids": ids}).status_code == 400
    assert operator.get(url("do", "kill"), {"ids": ids}).status_code == 400


@pytest.mark.parametrize("verb", ["nonsense", "running", "delete"])
def test_there_are_no_other_verbs(operator: Client, job: Job, verb: str) -> None:
    assert post(operator, verb, job()).status_code == 404


def test_many_jobs_cost_no_query_each(operator: Client, django_assert_max_num_queries: Any) -> None:
    many = JobFactory.create_batch(50)
    with django_assert_max_num_queries(50):
        assert post(operator, "queue", *many).status_code == 200
