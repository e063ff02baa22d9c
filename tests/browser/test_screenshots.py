"""The pictures of docs/admin.md. `make screenshots` writes them; each test run proves it could."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from django.utils import timezone
from playwright.sync_api import Page, expect

from container_manager import lifecycle
from container_manager.models import ContainerJob, Dag, DagRun, Event, TaskInstance, acting_as
from container_manager.models.sequencing import take_all
from container_manager.workflows import dags
from tests.browser.conftest import PATIENCE_MILLISECONDS
from tests.support.publisher_rows import happened, letter, publisher_row
from tests.support.web import Person, Site, some_site
from tests.support.workers import Workers, settled, wait_for
from tests.workflows.driving import made, play, started, task

MOST_BYTES = 200 * 1024
LIST = "/admin/container_manager/containerjob/"
LOCAL = {"executor": "process", "isolation": "process"}


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Where the pictures go: SCREENSHOTS, else nowhere that stays."""
    return Path(os.environ.get("SCREENSHOTS", tmp_path))


@pytest.fixture
def live_site(workers: Workers, tmp_path: Path) -> Iterator[Site]:
    named = {
        alias: {"class": "container_manager.events.webhook.WebhookPublisher", "options": {}}
        for alias in ("audit", "billing", "chat")
    }
    given = {
        "CONTAINER_MANAGER_PUBLISHERS": json.dumps(named),
        "CONTAINER_MANAGER_LEASE_SECONDS": "3600",
    }
    with some_site(tmp_path, workers, **given) as site:
        yield site


def submit(name: str, script: str, **wanted: object) -> ContainerJob:
    with acting_as("api:nightly"):
        return lifecycle.submit(
            name=name, command=["sh", "-c", script], queue_now=True, **{**LOCAL, **wanted}
        )


def some_work(workers: Workers) -> tuple[ContainerJob, ContainerJob]:
    """A failed job and a running one, among others."""
    lifecycle.steer_queue("archive", paused=True)
    lifecycle.steer_queue("thumbnails", max_running=4)
    batch = [
        submit(f"thumbnails {number:02}", f"exit {number % 7 // 6}", queue="thumbnails")
        for number in range(1, 25)
    ]
    submit("archive of last month", "true", queue="archive", labels={"team": "storage"})
    lifecycle.submit(name="draft", command="true", **LOCAL)
    failed = submit(
        "nightly report",
        "echo reading 3 sources; sleep 0.3; echo source 2 is missing >&2; exit 3",
        queue="reports",
        max_retries=0,
        labels={"team": "data", "env": "production"},
        environment={"REGION": "north"},
        memory_limit_mb=256,
        timeout_seconds=3600,
    )
    running = submit(
        "import of customers", "i=0; while :; do echo row $i; i=$((i+1)); sleep 1; done"
    )
    workers.start("--name", "worker-a", "--concurrency", "8").wait_until_started()
    settled(failed)
    wait_for(running, "running")
    for job in batch:
        wait_for(job, "completed", "failed", "retrying")
    return failed, running


PIPELINE = {
    "extract_orders": task(environment={"PASSWORD": "only for this picture"}),
    "extract_customers": task(),
    "clean": task("extract_orders", "extract_customers"),
    "regions": task("clean", array=8),
    "load": task("regions"),
    "archive": task("clean", skip_exit_codes=[9]),
    "notify": task("load", "archive", trigger_rule="all_done"),
}


TIMES = {
    "extract_orders": (0, 1, 42),
    "extract_customers": (0, 2, 17),
    "clean": (42, 43, 61),
    "regions": (61, 64, 118),
    "archive": (61, 62, 70),
    "notify": (118, 119, 120),
}
"""Seconds from the beginning of the run: queued, began, ended."""


def a_workflow(owner: Person) -> tuple[Dag, DagRun]:
    """A DAG with runs that ended well and one that did not, beside two others."""
    made({"collect": task(), "publish": task("collect")}, "metrics", schedule="*/15 * * * *")
    dags.pause(made({"compact": task()}, "cleanup").pk)
    dag = made(
        PIPELINE,
        "etl_pipeline",
        schedule="0 2 * * *",
        timezone="Europe/Berlin",
        tags={"team": "data"},
        params={"REGION": "north"},
        description="Orders and customers into the warehouse.",
    )
    endings: list[dict[str, int]] = [{}, {}, {"clean": 1}, {}, {"regions[3]": 4, "archive": 9}]
    for fails in endings:
        run = play(started(dag), fails=fails)
    for name, times in TIMES.items():
        queued, began, ended = (run.created_at + timedelta(seconds=each) for each in times)
        TaskInstance.objects.filter(dag_run=run, name=name).update(
            queued_at=queued,
            started_at=began,
            ended_at=ended,
            duration_ms=1000 * (times[2] - times[1]),
        )
    ended = run.created_at + timedelta(seconds=120)
    DagRun.objects.filter(pk=run.pk).update(
        started_at=run.created_at, ended_at=ended, duration_ms=120_000
    )
    Dag.objects.update(created_by=owner.user)
    return dag, run


def told_of_events() -> None:
    """Three publishers, of which one has trouble."""
    take_all()
    happened(400, ago=200)
    now = timezone.now()
    publisher_row("audit", position=Event.objects.newest(), delivered_at=now)
    publisher_row("billing", position=Event.objects.newest(), delivered_at=now)
    away = "https://hooks.example.org answered 503"
    publisher_row("chat", position=350, failing_for=170, failures=11, last_error=away)
    letter("chat", 212)


@pytest.mark.sqlite
def test_the_pictures_of_the_documentation(
    sign_in: Callable[[Person], Page], operator: Person, workers: Workers, pictures: Path
) -> None:
    dag, run = a_workflow(operator)  # before there are workers, which would take its jobs
    failed, running = some_work(workers)
    page = sign_in(operator)
    page.set_viewport_size({"width": 1280, "height": 800})

    def take(name: str, address: str, sight: str) -> None:
        page.goto(address)
        expect(page.locator(sight).first).to_be_visible(timeout=PATIENCE_MILLISECONDS)
        page.wait_for_function("document.fonts.status === 'loaded'")
        file = pictures / f"admin-{name}.png"
        page.screenshot(path=file)
        assert file.stat().st_size < MOST_BYTES

    take("dashboard", "/admin/", ".cm-chart rect")
    take("jobs", LIST, "#result_list .cm-name")
    take("failed", f"{LIST}{failed.pk}/change/", ".cm-stderr")
    take("running", f"{LIST}{running.pk}/change/", ".cm-stdout")
    take("submit", f"{LIST}add/?like={failed.pk}", ".cm-form")
    take("queues", "/admin/container_manager/queue/", "tr[data-queue]")
    take("workers", "/admin/container_manager/worker/", ".cm-open")

    ours = "/admin/container_manager"
    take("dags", f"{ours}/dag/", ".cm-squares")
    take("dag", f"{ours}/dag/{dag.pk}/change/", ".cm-grid .cm-square")
    take("run", f"{ours}/dagrun/{run.pk}/change/", ".cm-gantt-ran")

    told_of_events()
    take("publishers", f"{ours}/publisherstate/", "tr[data-publisher]")
