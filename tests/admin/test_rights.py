"""Who may do what in the admin, and what forged requests come to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from django.contrib import admin
from django.contrib.auth import get_user_model
from django.test import Client
from knox.models import AuthToken

from container_manager.models import ContainerJob, JobAttempt, JobLog, Queue, StateHistory, Worker
from container_manager.states import JobStatus
from tests.admin.conftest import LIST, page_of, url
from tests.factories import JobFactory, UserFactory
from tests.support.fleet import worker_row

Job = Callable[..., ContainerJob]
Person = Callable[..., Client]


def everything() -> list[Any]:
    """All that a forged request could have touched."""
    tables = (ContainerJob, StateHistory, Queue, Worker, JobAttempt, JobLog)
    return [list(table.objects.order_by("pk").values()) for table in tables]


def read_pages(job: ContainerJob) -> list[str]:
    own = [page_of(job), *(url(page, job.pk) for page in ("live", "log"))]
    others = [url("changelist", model=model) for model in ("queue", "worker")]
    raw = url("raw_log", job.pk, "stdout")
    return [LIST, *own, *others, raw, url("counts"), url("dashboard"), url("live", model="worker")]


def test_an_operator_sees_every_page(operator: Client, job: Job) -> None:
    one = job(status=JobStatus.RUNNING)
    for address in [*read_pages(one), url("add"), url("edit", one.pk)]:
        assert operator.get(address).status_code in (200, 204), address


def test_a_viewer_sees_every_page_and_no_way_to_change_anything(viewer: Client, job: Job) -> None:
    one = job(status=JobStatus.FAILED)
    for address in read_pages(one):
        assert viewer.get(address).status_code in (200, 204), address
    page = viewer.get(page_of(one))
    assert page.context["buttons"] == []
    for address in (page_of(one), LIST, url("changelist", model="queue")):
        shown = viewer.get(address).content.decode()
        for way in ("/do/", "/edit/", "Submit again", "containerjob/add/", "steer", "kill_jobs"):
            assert way not in shown, (address, way)


def test_a_stranger_of_the_staff_sees_nothing(stranger: Client, job: Job) -> None:
    one = job(name="hidden", status=JobStatus.RUNNING)
    for address in [*read_pages(one), url("add"), url("edit", one.pk)]:
        assert stranger.get(address).status_code == 403, address
    index = stranger.get("/admin/").content.decode()
    assert "cm-dashboard" not in index
    assert "containerjob" not in index


def test_who_is_not_of_the_staff_is_sent_to_the_login(job: Job) -> None:
    client = Client()
    client.force_login(UserFactory(is_staff=False))
    for address in read_pages(job(status=JobStatus.RUNNING)):
        assert client.get(address)["Location"].startswith("/admin/login/"), address


def test_a_page_whose_session_has_ended_loads_itself_anew(job: Job) -> None:
    one = job(status=JobStatus.RUNNING)
    for address in (url("live", one.pk), url("log", one.pk), url("counts"), url("dashboard")):
        answer = Client().get(address, headers={"HX-Request": "true"})
        assert answer["HX-Refresh"] == "true"


def test_tokens_are_listed_and_revoked_and_never_made(person: Person) -> None:
    root = person("root", is_superuser=True)
    token, secret = AuthToken.objects.create(user=root.person)  # type: ignore[attr-defined]
    listed = "/admin/knox/authtoken/"
    assert root.get(f"{listed}add/").status_code == 403
    page = root.get(listed).content.decode()
    assert "root" in page
    for address in (listed, f"{listed}{token.pk}/change/"):
        page = root.get(address).content.decode()
        assert secret not in page
        assert f"{listed}add/" not in page
    assert root.post(f"{listed}{token.pk}/delete/", {"post": "yes"}).status_code == 302
    assert not AuthToken.objects.exists()


def test_who_may_only_look_may_still_move_the_own_jobs(viewer: Client, job: Job) -> None:
    mine = job(created_by=viewer.person)  # type: ignore[attr-defined]
    assert viewer.get(page_of(mine)).context["buttons"]
    assert viewer.post(url("do", "kill"), {"ids": mine.pk}).status_code == 200
    assert ContainerJob.objects.get().status == JobStatus.KILLED


@pytest.mark.parametrize("verb", ["queue", "retry", "cancel", "kill"])
@pytest.mark.parametrize("who", ["viewer", "stranger"])
def test_a_forged_verb_is_forbidden(
    request: pytest.FixtureRequest, job: Job, verb: str, who: str
) -> None:
    jobs = [job(status=status) for status in JobStatus]
    before = everything()
    client: Client = request.getfixturevalue(who)
    ids = [str(one.pk) for one in jobs]
    assert client.post(url("do", verb), {"ids": ids}).status_code == 403
    action = {"action": f"{verb}_jobs", "_selected_action": ids}
    assert client.post(LIST, action).status_code == 403
    assert everything() == before


@pytest.mark.parametrize("who", ["viewer", "stranger"])
def test_forged_forms_are_forbidden(request: pytest.FixtureRequest, job: Job, who: str) -> None:
    one = job()
    before = everything()
    client: Client = request.getfixturevalue(who)
    said = {"name": "forged", "command": "true", "image": "busybox", "status": "completed"}
    for address in (url("add"), url("edit", one.pk), page_of(one)):
        assert client.post(address, said).status_code == 403, address
    steer = {"name": "default", "decision": "pause"}
    assert client.post(url("steer", model="queue"), steer).status_code == 403
    assert everything() == before


FORGED = {
    "status": "completed",
    "_saveasnew": "1",
    "_save": "1",
    "version": "7",
    "exit_code": "0",
    "attempt": "9",
    "created_by": "1",
    "id": "00000000-0000-7000-8000-000000000000",
    "reason": "killed",
}


def test_the_page_of_a_job_takes_no_form_at_all(operator: Client, job: Job) -> None:
    one = job()
    before = everything()
    assert operator.post(page_of(one), {"name": "x", **FORGED}).status_code == 403
    assert everything() == before


def test_forged_fields_of_a_form_are_ignored(operator: Client, job: Job) -> None:
    one = job(name="before", status=JobStatus.FAILED, exit_code=3)
    moves = list(StateHistory.objects.of(one).values())
    said = {"name": "after", "command": "true", "image": "busybox", "isolation": "auto"}
    said |= {"pull_policy": "missing", **FORGED}
    assert operator.post(url("edit", one.pk), said).status_code == 302
    now = ContainerJob.objects.get()
    assert (now.pk, now.name, now.status, now.version) == (one.pk, "after", JobStatus.FAILED, 1)
    assert (now.exit_code, now.attempt, now.created_by) == (3, one.attempt, None)
    assert list(StateHistory.objects.of(one).values()) == moves


def test_a_new_job_begins_where_every_job_begins(operator: Client) -> None:
    said = {"command": "true", "image": "busybox", "isolation": "auto", "pull_policy": "missing"}
    assert operator.post(url("add"), {**said, **FORGED}).status_code == 302
    now = ContainerJob.objects.get()
    assert (now.status, now.version, now.attempt) == (JobStatus.PENDING, 1, 0)
    assert now.created_by == operator.person  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("address", "said"),
    [
        (lambda job: url("do", "kill"), lambda job: {"ids": job.pk}),
        (lambda job: url("add"), lambda job: {"command": "true", "image": "busybox"}),
        (lambda job: url("edit", job.pk), lambda job: {"name": "forged", "command": "true"}),
        (lambda job: url("steer", model="queue"), lambda job: {"name": "a", "decision": "pause"}),
        (lambda job: LIST, lambda job: {"action": "kill_jobs", "_selected_action": job.pk}),
    ],
)
def test_a_form_from_another_site_is_refused(
    operator: Client, job: Job, address: Any, said: Any
) -> None:
    one = job()
    before = everything()
    careful = Client(enforce_csrf_checks=True)
    careful.force_login(operator.person)  # type: ignore[attr-defined]
    assert careful.post(address(one), said(one)).status_code == 403
    assert everything() == before


@pytest.mark.parametrize("who", ["operator", "root"])
def test_nothing_of_ours_can_be_deleted(person: Person, job: Job, who: str) -> None:
    client = person(who, "operate_containerjob", is_superuser=who == "root")
    one = job(status=JobStatus.COMPLETED)
    worker = worker_row()
    before = everything()
    assert client.post(url("delete", one.pk), {"post": "yes"}).status_code == 403
    chosen = {"action": "delete_selected", "_selected_action": str(one.pk), "post": "yes"}
    client.post(LIST, chosen)
    for row, model in ((worker, "worker"), (Queue.objects.create(name="q"), "queue")):
        path = f"/admin/container_manager/{model}/{row.pk}/delete/"
        assert client.post(path, {"post": "yes"}).status_code == 404
    assert everything()[0] == before[0]
    assert everything()[3] == before[3]


def test_attempts_logs_and_history_have_no_pages_of_their_own() -> None:
    ours = {
        model.__name__
        for model in admin.site._registry
        if model._meta.app_label == "container_manager"
    }
    assert ours == {
        *("ContainerJob", "Queue", "Worker", "PublisherState"),
        *("Dag", "DagRun", "TaskInstance"),
    }


def test_deleting_a_person_keeps_the_jobs(person: Person) -> None:
    client = person("root", is_superuser=True)
    leaver = UserFactory()
    one = JobFactory(created_by=leaver, status=JobStatus.COMPLETED)
    answer = client.post(f"/admin/auth/user/{leaver.pk}/delete/", {"post": "yes"})
    assert answer.status_code == 302
    assert not get_user_model().objects.filter(pk=leaver.pk).exists()
    assert ContainerJob.objects.get().created_by is None
    assert StateHistory.objects.of(one).count() == 1
