"""Tasks of runs in the admin: the page of one with its log, retry, skip and cancel."""

from __future__ import annotations

from html import unescape
from typing import Any

import pytest
from django.test import Client

from container_manager.models import ContainerJob, Dag, JobLog, StateHistory, TaskInstance
from container_manager.states import JobStatus
from tests.admin.conftest import page_of as page_of_job
from tests.admin.conftest import url
from tests.factories import AttemptFactory, TaskFactory
from tests.workflows.driving import (
    advance,
    begun,
    end,
    fresh,
    job_of,
    play,
    states_of,
    task,
    task_of,
)

pytestmark = pytest.mark.django_db

TASKS = "/admin/container_manager/taskinstance/"
CHAIN = {"a": task(), "b": task("a"), "c": task("b")}


def at(page: str, *arguments: Any) -> str:
    return url(page, *arguments, model="taskinstance")


def page_of(client: Client, one: TaskInstance) -> Any:
    answer = client.get(at("change", one.pk))
    assert answer.status_code == 200
    return answer


def verbs(client: Client, one: TaskInstance) -> list[str]:
    return [str(each["verb"]) for each in page_of(client, one).context["buttons"]]


def do(client: Client, one: TaskInstance, verb: str) -> str:
    answer = client.post(at("do", one.pk, verb), follow=True)
    assert answer.status_code == 200
    return unescape(answer.content.decode())


# Pages --------------------------------------------------------------------------------------------


def test_the_page_of_a_task_shows_the_log_of_its_job(operator: Client) -> None:
    run = play(begun(CHAIN), fails=["a"])
    job = job_of(run, "a")
    AttemptFactory(job=job, attempt=job.attempt, phase="done")
    JobLog.objects.create(
        job=job, attempt=job.attempt, stream="stdout", offset=0, data=b"reading\n"
    )
    shown = page_of(operator, task_of(run, "a"))
    page = unescape(shown.content.decode())
    assert "reading" in page
    assert page_of_job(job) in page
    assert "Exit code 1" in shown.context["why"]
    assert [each["name"] for each in shown.context["downstream"]] == ["b"]


def test_a_task_without_a_job_says_what_it_waits_for(operator: Client) -> None:
    run = begun({"a": task(), "b": task(), "c": task("a", "b")})
    end(run, "a")
    advance(run)
    shown = page_of(operator, task_of(run, "c"))
    assert shown.context["why"] == "Waits for b (queued)."
    assert "It has no job yet" in shown.content.decode()


def test_a_task_that_never_ran_names_what_failed(operator: Client) -> None:
    run = play(begun(CHAIN), fails=["a"])
    assert page_of(operator, task_of(run, "b")).context["why"] == "It never ran: a (failed)."
    assert "b (upstream failed)" in page_of(operator, task_of(run, "c")).context["why"]


def test_the_page_follows_and_is_loaded_anew_when_the_task_gets_a_job(operator: Client) -> None:
    run = begun(CHAIN)
    one = task_of(run, "b")
    before = page_of(operator, one).context
    asked = {"seen": before["seen"], "job": before["mark_of_job"]}
    assert operator.get(at("live", one.pk), asked).status_code == 204
    end(run, "a")
    advance(run)
    assert operator.get(at("live", one.pk), asked)["HX-Refresh"] == "true"
    asked["job"] = job_of(run, "b").pk.hex
    answer = operator.get(at("live", one.pk), asked)
    assert answer.context["seen"] != before["seen"]


def test_a_task_whose_job_is_gone_still_has_a_page(operator: Client) -> None:
    run = play(begun(CHAIN))
    ContainerJob.objects.all().delete()
    page = page_of(operator, task_of(run, "a")).content.decode()
    assert "Its job was deleted, with its log." in page


def test_tasks_are_listed_filtered_and_searched(
    operator: Client, django_assert_max_num_queries: Any
) -> None:
    play(begun({**CHAIN, "many": task(array=10)}), fails=["b"])

    def found(query: str) -> set[str]:
        return {one.task_id for one in operator.get(TASKS + query).context["cl"].result_list}

    with django_assert_max_num_queries(14):
        assert len(found("")) == 13
    assert found("?state=failed") == {"b"}
    assert found("?q=many%5B3") == {"many[3]"}
    assert operator.get(f"{TASKS}?state=nonsense").status_code in (302, 400)


# The page of its job ------------------------------------------------------------------------------


def test_the_page_of_a_job_says_to_which_task_it_belongs(operator: Client) -> None:
    run = play(begun(CHAIN), fails=["a"])
    shown = operator.get(page_of_job(job_of(run, "a")))
    page = shown.content.decode()
    assert "Belongs to task" in page
    assert at("change", task_of(run, "a").pk) in page
    assert url("change", run.pk, model="dagrun") in page
    assert "retry" not in [each["verb"] for each in shown.context["buttons"]]


@pytest.mark.parametrize("owner", ["task:nonsense", "task:", "other:1"])
def test_a_job_of_something_else_has_its_page(operator: Client, owner: str) -> None:
    job = ContainerJob.objects.create(command=["/bin/true"], executor="process", managed_by=owner)
    assert operator.get(page_of_job(job)).context["task"] is None


# Verbs --------------------------------------------------------------------------------------------


def test_buttons_are_only_for_what_the_state_allows(operator: Client) -> None:
    run = begun(CHAIN)
    assert verbs(operator, task_of(run, "a")) == ["skip", "cancel"]
    assert verbs(operator, task_of(run, "b")) == ["skip"]
    job_of(run, "a").mark_as_running()
    advance(run)
    assert verbs(operator, task_of(run, "a")) == ["cancel"]
    job_of(run, "a").transition_to(JobStatus.FAILED, exit_code=1, reason="exit_code")
    advance(run)
    assert verbs(operator, task_of(run, "a")) == ["retry"]
    assert verbs(operator, task_of(run, "b")) == []


def test_a_task_is_retried_with_what_never_ran_for_it(operator: Client) -> None:
    run = play(begun(CHAIN), fails=["a"])
    assert "Retry: it is retrying." in do(operator, task_of(run, "a"), "retry")
    assert states_of(run) == {"a": "retrying", "b": "queued", "c": "queued"}
    assert StateHistory.objects.of(task_of(run, "a")).last().actor == "admin:olga"


def test_a_task_is_skipped_after_a_question(operator: Client) -> None:
    run = begun(CHAIN)
    assert "Skip b?" in operator.get(at("do", task_of(run, "b").pk, "skip")).content.decode()
    assert states_of(run)["b"] == "queued"
    assert "Skip: it is skipped." in do(operator, task_of(run, "b"), "skip")
    assert states_of(run) == {"a": "queued", "b": "skipped", "c": "skipped"}


def test_cancelling_a_task_withdraws_its_job(operator: Client) -> None:
    run = begun(CHAIN)
    assert "no job yet" in do(operator, task_of(run, "b"), "cancel")
    assert "Cancel: it is failed." in do(operator, task_of(run, "a"), "cancel")
    assert job_of(run, "a").status == JobStatus.CANCELLED
    assert states_of(run)["a"] == "failed"


def test_what_the_state_does_not_allow_is_told(operator: Client) -> None:
    run = play(begun(CHAIN))
    for verb in ("retry", "skip"):
        assert "Invalid transition" in do(operator, task_of(run, "a"), verb)
    assert operator.post(at("do", task_of(run, "a").pk, "delete")).status_code == 404
    assert fresh(run).state == "success"


# Rights -------------------------------------------------------------------------------------------


def test_who_may_only_look_moves_only_tasks_of_the_own_dags(viewer: Client) -> None:
    run = begun(CHAIN)
    one = task_of(run, "b")
    assert verbs(viewer, one) == []
    for verb in ("retry", "skip", "cancel"):
        assert viewer.get(at("do", one.pk, verb)).status_code == 403
        assert viewer.post(at("do", one.pk, verb)).status_code == 403
    assert states_of(run)["b"] == "queued"
    Dag.objects.update(created_by=viewer.person)  # type: ignore[attr-defined]
    do(viewer, one, "skip")
    assert states_of(run)["b"] == "skipped"


def test_a_stranger_of_the_staff_sees_nothing(stranger: Client) -> None:
    one = task_of(begun(CHAIN), "a")
    for address in (TASKS, at("change", one.pk), at("live", one.pk), at("do", one.pk, "skip")):
        assert stranger.get(address).status_code == 403, address
        assert stranger.post(address).status_code == 403, address


def test_a_verb_needs_a_token_of_the_form_and_a_page_takes_no_post(operator: Client) -> None:
    one = task_of(begun(CHAIN), "b")
    client = Client(enforce_csrf_checks=True)
    client.force_login(operator.person)  # type: ignore[attr-defined]
    assert client.post(at("do", one.pk, "skip")).status_code == 403
    assert operator.post(at("change", one.pk), {"state": "success"}).status_code == 403
    assert operator.get(at("live", TaskFactory.build().pk)).status_code == 404
