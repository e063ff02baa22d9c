"""The list of jobs: what it shows, filters and searches, and what it asks of the database."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from container_manager.admin import filters
from container_manager.models import ContainerJob
from container_manager.states import JobStatus, Reason
from tests.admin.conftest import HOSTILE, LIST, page_of, url
from tests.factories import JobFactory, UserFactory

Job = Callable[..., ContainerJob]


def listed(client: Client, query: str = "") -> list[str]:
    """The names on the first page."""
    answer = client.get(f"{LIST}?{query}")
    assert answer.status_code == 200, answer
    return [row.name for row in answer.context["cl"].result_list]


def test_jobs_of_every_state_are_listed_with_their_state(operator: Client, job: Job) -> None:
    for status in JobStatus:
        job(name=f"a {status} one", status=status)
    shown = operator.get(LIST).content.decode()
    for status in JobStatus:
        assert f"a {status} one" in shown
        assert f'<span class="cm-state cm-{status}"' in shown


def test_the_counts_above_the_list_lead_to_their_jobs(operator: Client, job: Job) -> None:
    for _ in range(3):
        job(status=JobStatus.FAILED)
    for address in (LIST, url("counts")):
        strip = {each["status"]: each for each in operator.get(address).context["strip"]}
        assert strip["failed"]["count"] == 3
        assert strip["completed"]["count"] == 0
        assert operator.get(strip["failed"]["url"]).context["cl"].result_count == 3


@pytest.mark.parametrize(
    ("query", "wanted"),
    [
        ("status=failed", {"status": JobStatus.FAILED}),
        ("queue=slow", {"queue": "slow"}),
        ("executor=process", {"executor": "process"}),
        ("isolation=container", {"isolation": "container"}),
        ("reason=oom", {"status": JobStatus.FAILED, "reason": Reason.OOM}),
        ("reason=by_hand", {"status": JobStatus.FAILED, "reason": ""}),
        ("age=older", {"created_at": timezone.now() - timedelta(days=8)}),
    ],
)
def test_a_filter_shows_its_jobs_and_no_others(
    operator: Client, job: Job, query: str, wanted: dict[str, Any]
) -> None:
    job(name="another", queue="default", executor="", isolation="auto")
    job(name="wanted", **wanted)
    assert listed(operator, query) == ["wanted"]


def test_filters_go_together_and_are_counted(operator: Client, job: Job) -> None:
    job(name="both", status=JobStatus.FAILED, queue="slow")
    job(name="one", status=JobStatus.FAILED, queue="fast")
    assert listed(operator, "status=failed&queue=slow") == ["both"]
    assert operator.get(f"{LIST}?status=failed&queue=slow").context["cl"].result_count == 1


def test_jobs_that_leave_the_executor_open_can_be_found(operator: Client, job: Job) -> None:
    job(name="open", executor="")
    job(name="named", executor="process")
    assert listed(operator, "executor=any") == ["open"]


def test_my_own_jobs_can_be_found(operator: Client, job: Job) -> None:
    job(name="theirs", created_by=UserFactory())
    job(name="mine", created_by=operator.person)  # type: ignore[attr-defined]
    assert listed(operator, "owner=me") == ["mine"]


def test_jobs_of_the_last_hour_can_be_found(operator: Client, job: Job) -> None:
    job(name="new")
    job(name="old", created_at=timezone.now() - timedelta(hours=2))
    assert listed(operator, "age=hour") == ["new"]
    assert listed(operator, "age=day") == ["new", "old"]


@pytest.mark.parametrize(
    "query",
    [
        "status=nonsense",
        "status=",
        "reason=nonsense",
        "executor=nonsense",
        "isolation=%00",
        "queue=%00",
        "queue=../x",
        "age=yesterday",
        "owner=1",
        "environment__contains=secret",
        "created_by__password__startswith=a",
        "output__icontains=x",
        "nonsense=1",
    ],
)
def test_an_unknown_filter_is_refused_never_ignored(operator: Client, job: Job, query: str) -> None:
    job()
    assert operator.get(f"{LIST}?{query}").status_code == 400


def test_a_queue_that_is_empty_by_now_lists_nothing(operator: Client, job: Job) -> None:
    job(queue="other")
    assert listed(operator, "queue=gone") == []


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("50%", ["50% done"]),
        ("a_b", ["a_b"]),
        ("back\\slash", ["back\\slash"]),
        ("it's", ["it's"]),
        ('"quoted', ['"quoted']),
        ("two words", ["two words"]),
        (".*", []),
        ("%", ["50% done"]),
    ],
)
def test_every_character_of_a_search_stands_for_itself(
    operator: Client, job: Job, text: str, names: list[str]
) -> None:
    for name in ("50% done", "50 done", "a_b", "axb", "back\\slash", "it's", '"quoted'):
        job(name=name)
    job(name="two words")
    job(name="words two")
    answer = operator.get(LIST, {"q": text})
    assert [row.name for row in answer.context["cl"].result_list] == names


def test_a_job_is_found_by_image_by_id_by_the_end_of_its_id_and_by_label(
    operator: Client, job: Job
) -> None:
    job(name="another")
    found = job(name="wanted", image="registry.example.org/tool:1", labels={"team": "a b"})
    for text in ("example.org/tool", str(found.pk), found.pk.hex[-12:], "team=a b"):
        answer = operator.get(LIST, {"q": text})
        assert [row.name for row in answer.context["cl"].result_list] == ["wanted"], text
    assert listed(operator, "q=team=a") == []


def test_a_search_with_a_null_character_is_told_and_finds_nothing_else(
    operator: Client, job: Job
) -> None:
    job()
    assert operator.get(LIST, {"q": "a\x00b"}).status_code == 200


@pytest.mark.parametrize("page", ["0", "-1", "99999999999", "abc"])
def test_a_page_that_is_not_there_is_no_error_of_the_server(
    operator: Client, job: Job, page: str
) -> None:
    job()
    assert operator.get(LIST, {"p": page}).status_code in (200, 302)


def queries_of(client: Client, address: str) -> list[str]:
    with CaptureQueriesContext(
        connection,
    ) as seen:
        assert client.get(address).status_code == 200
    return [each["sql"] for each in seen]


def test_the_list_makes_no_query_per_row(operator: Client) -> None:
    JobFactory.create_batch(2, created_by=UserFactory(), status=JobStatus.COMPLETED)
    few = queries_of(operator, LIST)
    for _ in range(20):
        JobFactory(created_by=UserFactory(), status=JobStatus.FAILED, reason=Reason.OOM)
    assert len(queries_of(operator, LIST)) == len(few)


@pytest.mark.parametrize("query", ["", "?status=failed", "?queue=default&executor=any&owner=me"])
def test_the_table_is_never_counted_where_counts_are_kept(
    operator: Client, job: Job, query: str
) -> None:
    job(status=JobStatus.FAILED)
    counting = [
        sql
        for sql in queries_of(operator, LIST + query)
        if "COUNT(" in sql.upper() and 'FROM "container_jobs"' in sql
    ]
    assert counting == []


def test_where_nobody_keeps_a_count_only_so_many_are_listed_and_that_is_said(
    operator: Client, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(filters, "MOST", 3)
    for number in range(5):
        job(name=f"found {number}")
    answer = operator.get(LIST, {"q": "found"})
    assert answer.context["cl"].result_count == 3
    assert "More than 3 jobs match" in answer.content.decode()
    assert "More than" not in operator.get(LIST).content.decode()


def test_hostile_text_is_shown_as_text(operator: Client, job: Job) -> None:
    hostile = job(name=HOSTILE, image="busybox", command=[HOSTILE])
    ContainerJob.objects.filter(pk=hostile.pk).update(queue=HOSTILE[:100], image=HOSTILE)
    for address in (LIST, "/admin/", url("changelist", model="queue")):
        shown = operator.get(address).content.decode()
        assert "&lt;script&gt;alert(1)" in shown
        assert "<script>alert" not in shown
        assert "<img src=x" not in shown
        assert 'href="javascript' not in shown


def test_an_empty_list_says_so(operator: Client) -> None:
    assert operator.get(LIST).status_code == 200


def test_the_list_leads_to_the_page_of_each_job(operator: Client, job: Job) -> None:
    one = job()
    assert f'href="{page_of(one)}"' in operator.get(LIST).content.decode()
