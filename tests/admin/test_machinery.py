"""Queues, workers, executors and the dashboard."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from django.contrib.admin.models import LogEntry
from django.test import Client

from container_manager import lifecycle
from container_manager.admin.dashboard import chart
from container_manager.models import ContainerJob, Queue
from container_manager.reports import activity
from container_manager.states import JobStatus, Reason
from tests.admin.conftest import HOSTILE, url
from tests.factories import JobFactory
from tests.support.fleet import process_row, worker_row

Job = Callable[..., ContainerJob]
QUEUES = "/admin/container_manager/queue/"
WORKERS = "/admin/container_manager/worker/"


def steer(client: Client, name: str, decision: str, **more: str) -> str:
    answer = client.post(
        url("steer", model="queue"), {"name": name, "decision": decision, **more}, follow=True
    )
    assert answer.status_code == 200
    return answer.content.decode()


def test_a_queue_that_has_only_jobs_is_listed_and_can_be_paused_and_resumed(
    operator: Client, job: Job
) -> None:
    job(queue="slow", status=JobStatus.QUEUED)
    assert 'data-queue="slow"' in operator.get(QUEUES).content.decode()
    assert "Resume" in steer(operator, "slow", "pause")
    assert Queue.objects.get().paused
    assert "Queue slow goes on" in steer(operator, "slow", "resume")
    assert not Queue.objects.get().paused
    assert LogEntry.objects.count() == 2


def test_a_queue_can_be_limited_and_the_limit_lifted(operator: Client) -> None:
    steer(operator, "slow", "limit", max_running="3")
    assert Queue.objects.get().max_running == 3
    steer(operator, "slow", "limit", max_running="")
    assert Queue.objects.get().max_running is None


@pytest.mark.parametrize(
    ("name", "decision", "limit"),
    [
        ("", "pause", ""),
        ("a b", "pause", ""),
        ("a\x00", "pause", ""),
        ("x" * 200, "pause", ""),
        ("slow", "limit", "0"),
        ("slow", "limit", "-1"),
        ("slow", "limit", "many"),
        ("slow", "limit", "9" * 40),
        ("slow", "nonsense", ""),
        (HOSTILE, "pause", ""),
    ],
)
def test_a_bad_decision_is_a_message(
    operator: Client, name: str, decision: str, limit: str
) -> None:
    page = steer(operator, name, decision, max_running=limit)
    assert "Queue" in page
    assert "<script>alert" not in page
    assert not Queue.objects.exists()


def test_a_paused_queue_is_told_on_the_page_of_a_job_that_waits(operator: Client, job: Job) -> None:
    steer(operator, "slow", "pause")
    waits = job(queue="slow", status=JobStatus.QUEUED)
    assert "paused" in operator.get(url("change", waits.pk)).context["explanation"].sentence


def test_workers_are_shown_with_their_last_sign_of_life(operator: Client) -> None:
    worker_row("lively")
    worker_row("lost", beat_ago=3600)
    worker_row("leaving", draining=True)
    for address in (WORKERS, url("live", model="worker")):
        page = operator.get(address).content.decode()
        states = [page.index(word) for word in (">alive<", ">silent<", ">draining<")]
        assert all(states)
        assert "1 h 00 min ago" in page


def test_schedulers_are_shown_beside_them(operator: Client) -> None:
    assert "manage.py run_scheduler" in operator.get(WORKERS).content.decode()
    process_row("scheduler", f"lost {HOSTILE}", beat_ago=3600)
    process_row("relay", "lively")
    for address in (WORKERS, url("live", model="worker")):
        page = operator.get(address).content.decode()
        assert page.index(">scheduler<") < page.index(">silent<")
        assert ">relay<" in page
        assert "1 h 00 min ago" in page
        assert HOSTILE not in page


def test_executors_are_shown(operator: Client) -> None:
    worker_row()
    rows = {row.alias: row for row in operator.get(WORKERS).context["executors"]}
    assert rows["process"].available
    assert (
        "container_manager.executors.process.ProcessExecutor"
        in operator.get(WORKERS).content.decode()
    )


def test_without_workers_the_page_says_how_to_start_one(operator: Client) -> None:
    assert "manage.py run_worker" in operator.get(WORKERS).content.decode()


def test_the_dashboard_is_the_first_page(operator: Client, job: Job) -> None:
    job(status=JobStatus.QUEUED, queue="slow")
    for _ in range(3):
        job(status=JobStatus.FAILED, reason=Reason.OOM)
    job(status=JobStatus.FAILED)
    job(status=JobStatus.COMPLETED)
    worker_row("w1")
    lifecycle.steer_queue("slow", paused=True)
    for address in ("/admin/", url("dashboard")):
        answer = operator.get(address)
        page = answer.content.decode()
        assert answer.context["stats"]["queue_depth"] == 1
        assert answer.context["ended"] == 5
        assert '<rect class="cm-bar-failed"' in page
        assert "w1" in page
        assert ">paused<" in page


def test_failures_lead_to_their_jobs(operator: Client, job: Job) -> None:
    for _ in range(3):
        job(status=JobStatus.FAILED, reason=Reason.OOM)
    job(status=JobStatus.FAILED)
    failures = operator.get("/admin/").context["failures"]
    assert [(each["reason"], each["count"]) for each in failures] == [("oom", 3), ("by_hand", 1)]
    for each in failures:
        assert operator.get(each["url"]).context["cl"].result_count == each["count"]


def test_an_empty_dashboard_says_how_to_begin(operator: Client) -> None:
    page = operator.get("/admin/").content.decode()
    assert url("add") in page
    assert "manage.py run_worker" in page


def test_a_dashboard_of_many_jobs_costs_no_more_queries(
    operator: Client, django_assert_max_num_queries: Any
) -> None:
    for status in JobStatus:
        JobFactory.create_batch(5, status=status, queue=f"q-{status}")
    with django_assert_max_num_queries(30):
        operator.get("/admin/")


def test_bars_stand_on_each_other_and_fill_the_height(db: None) -> None:
    for status, count in ((JobStatus.COMPLETED, 6), (JobStatus.FAILED, 2)):
        JobFactory.create_batch(count, status=status)
    drawn = chart(activity.throughput())
    lowest, upper = drawn["bars"][-2:]
    assert (lowest.kind, upper.kind) == ("completed", "failed")
    assert upper.y + upper.height == pytest.approx(lowest.y)
    assert lowest.y + lowest.height == pytest.approx(drawn["height"])
