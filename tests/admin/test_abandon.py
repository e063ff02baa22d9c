"""Giving up a job that nobody can reach: the button, the question, the result."""

from __future__ import annotations

from django.test import Client
from django.utils import timezone

from container_manager.models import ContainerJob, StateHistory
from tests.admin.conftest import LIST, page_of, url
from tests.factories import AttemptFactory
from tests.support.spine import a_worker, held_by
from tests.test_abandon import living


def a_lost_job() -> ContainerJob:
    made: ContainerJob = AttemptFactory(unreachable_since=timezone.now()).job
    return made


def a_reached_job() -> ContainerJob:
    worker = a_worker()
    living(worker)
    return ContainerJob.objects.get(pk=held_by(worker).job_id)


def buttons(client: Client, job: ContainerJob) -> list[str]:
    return [each["verb"] for each in client.get(page_of(job)).context["buttons"]]


def test_the_button_is_there_only_when_it_applies(operator: Client) -> None:
    assert buttons(operator, a_lost_job()) == ["cancel", "kill", "abandon"]
    assert buttons(operator, a_reached_job()) == ["cancel", "kill"]


def test_it_asks_first_and_says_what_it_means(operator: Client) -> None:
    lost, reached = a_lost_job(), a_reached_job()
    answer = operator.get(url("do", "abandon"), {"ids": f"{lost.pk},{reached.pk}"})
    assert answer.context["able"] == [lost]
    assert answer.context["others"] == [reached]
    assert b"Abandon 1 job?" in answer.content
    assert b"goes on until its engine is back" in answer.content
    assert {job.status for job in ContainerJob.objects.all()} == {"running"}


def test_it_is_done_and_the_timeline_tells_who_did_it(operator: Client) -> None:
    job = a_lost_job()
    answer = operator.post(url("do", "abandon"), {"ids": str(job.pk), "back": "job"})
    assert answer["Location"] == page_of(job)
    move = StateHistory.objects.of(job).last()
    assert move is not None
    assert (move.new_state, move.actor) == ("failed", "admin:olga")
    page = operator.get(page_of(job)).content.decode()
    assert "abandoned" in page
    assert "unproven" in page


def test_it_is_among_the_actions_of_the_list(operator: Client) -> None:
    job = a_lost_job()
    sent = {"action": "abandon_jobs", "_selected_action": [str(job.pk)]}
    assert operator.post(LIST, sent).context["able"] == [job]


def test_staff_who_are_no_operators_have_no_such_button(viewer: Client) -> None:
    owner = ContainerJob._meta.get_field("created_by").related_model.objects.get(username="vera")  # type: ignore[union-attr]
    job = a_lost_job()
    ContainerJob.objects.filter(pk=job.pk).update(created_by=owner)
    assert buttons(viewer, job) == ["cancel", "kill"]
    operator_only = viewer.post(url("do", "abandon"), {"ids": str(job.pk), "back": "job"})
    assert operator_only.status_code == 302
    assert ContainerJob.objects.get().status == "running"
