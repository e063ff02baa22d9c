"""What real processes write to their logs as JSON: lines that parse, and one for each move."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest
import requests
from django.utils import timezone

from container_manager import lifecycle
from container_manager.models import ContainerJob, DagRun, StateHistory
from container_manager.states import StopKind
from container_manager.workflows import dags
from container_manager.workflows.spec import validate
from tests.support.running import queue_job
from tests.support.web import make_person, some_site
from tests.support.workers import WorkerProcess, Workers, settled, wait_until
from tests.workflows.driving import task

pytestmark = [pytest.mark.processes, pytest.mark.django_db(transaction=True)]

NOW = {"strategy": "fixed", "base_seconds": 0, "jitter": 0}
Line = dict[str, Any]


def lines_of(process: WorkerProcess) -> list[Line]:
    return [json.loads(line) for line in process.said.splitlines()]


def move_of(line: Line) -> tuple[str, ...]:
    return tuple(
        str(line.get(name, "")) for name in ("entity", "id", "from", "to", "reason", "actor")
    )


def moves_of_workers() -> Counter[tuple[str, ...]]:
    rows = StateHistory.objects.filter(old_state__isnull=False)
    return Counter(
        (row.entity_type, str(row.entity_id), row.old_state, row.new_state, row.reason, row.actor)
        for row in rows
        if row.actor.startswith(("worker:", "upkeep"))
    )


@pytest.mark.web
def test_every_move_of_a_worker_is_one_line_that_says_what_the_history_says(workers: Workers):
    workers.under = ["env", "LOG_FORMAT=json"]
    good = [queue_job("process", "echo out") for _ in range(12)]
    again = queue_job("process", '[ "$CM_ATTEMPT" = 2 ]', max_retries=1, retry_policy=NOW)
    bad = queue_job("process", "exit 3", max_retries=1, retry_policy=NOW)
    late = queue_job("process", "sleep 60", timeout_seconds=1, max_retries=0)
    killed = queue_job("process", "sleep 60")
    expired = queue_job("process", "true", queue_timeout_seconds=1)
    ContainerJob.objects.filter(pk=expired.pk).update(
        queued_at=timezone.now() - timezone.timedelta(hours=1), executor="nobody-has-it"
    )
    worker = workers.start("--concurrency", "4")
    wait_until(lambda: ContainerJob.objects.get(pk=killed.pk).status == "running")
    lifecycle.stop([killed.pk], StopKind.KILL, actor="tester")
    everything = [*good, again, bad, late, killed, expired]
    ends = [settled(job) for job in everything]
    wait_until(lambda: ContainerJob.objects.get(pk=bad.pk).retry_count == 1, "the retry")
    settled(bad)
    worker.terminate()
    assert worker.ended() == 0
    lines = lines_of(worker)
    told = Counter(move_of(line) for line in lines if "from" in line)
    assert told == moves_of_workers()
    assert {end.status for end in ends} >= {"completed", "failed", "killed", "cancelled"}
    for line in lines:
        assert {"time", "level", "logger", "message", "worker"} <= set(line)
        assert line["worker"] == "w1"
        if "from" in line:
            assert line["message"] == f"Job {line['id']}: {line['from']} -> {line['to']}"
            assert line["job"] == line["id"]
    ends_of_again = [line for line in lines if line.get("job") == str(again.pk)]
    assert {line["attempt"] for line in ends_of_again if line.get("from") == "running"} == {1, 2}


def test_every_move_of_runs_and_tasks_is_one_line_of_a_worker_or_a_scheduler(workers: Workers):
    workers.under = ["env", "LOG_FORMAT=json"]
    document = {
        "name": "told",
        "defaults": {"executor": "process", "max_retries": 1, "retry_policy": NOW},
        "tasks": {
            "good": task(command=["/bin/true"]),
            "bad": task("good", command=["/bin/false"]),
            "never": task("bad"),
            "skips": task(command=["/bin/sh", "-c", "exit 9"], skip_exit_codes=[9], max_retries=0),
        },
    }
    dag, _ = dags.take_in(validate(document))
    run = dags.trigger(dag.pk, actor="tester")
    processes = [
        workers.start(),
        workers.start_scheduler("--name", "s1"),
        workers.start_scheduler("--name", "s2"),
    ]
    wait_until(lambda: DagRun.objects.get(pk=run.pk).ended_at, "the run's end")
    for process in processes:
        process.terminate()
    assert [process.ended() for process in processes] == [0, 0, 0]
    lines = [line for process in processes for line in lines_of(process)]
    rows = StateHistory.objects.filter(old_state__isnull=False)
    expected = Counter(
        (row.entity_type, str(row.entity_id), row.old_state, row.new_state, row.reason, row.actor)
        for row in rows
    )
    assert Counter(move_of(line) for line in lines if "from" in line) == expected
    assert {entity for entity, *_ in expected} == {"job", "task_instance", "dag_run"}
    assert {reason for *_, reason, _ in expected} >= {"exit_code", "skip", "upstream"}
    assert {line["scheduler"] for line in lines if "scheduler" in line} == {"s1", "s2"}


@pytest.mark.web
def test_the_lines_of_a_request_carry_its_id_and_it_is_in_the_answer(workers: Workers, tmp_path):
    ada = make_person("ada")
    job = ContainerJob.objects.create(created_by=ada.user, command=["/bin/true"], image="a")
    with some_site(tmp_path, workers, LOG_FORMAT="json") as site:
        address = f"{site.url}/api/v1/jobs/{job.pk}"
        headers = {**ada.headers, "X-Request-ID": "from-the-proxy:1"}
        queued = requests.post(f"{address}/queue/?secret=word", headers=headers, timeout=30)
        refused = requests.post(f"{address}/queue/", headers=ada.headers, timeout=30)
        nobody = requests.get(f"{address}/", headers={"X-Request-ID": "x" * 200}, timeout=30)
        queued_again = requests.post(
            f"{address}/cancel/", headers={**ada.headers, "X-Request-ID": "a b\t{"}, timeout=30
        )
        static = requests.get(f"{site.url}/nowhere%0A%1b[2J", timeout=30)
    lines = lines_of(site)
    by_id = {line["request_id"]: line for line in lines if line["logger"].endswith("access")}
    asked = [queued, nobody, queued_again, static]
    asked_ids = [answer.headers["X-Request-ID"] for answer in asked]
    assert queued.status_code == 400, "an unknown parameter"
    assert asked_ids[0] == "from-the-proxy:1"
    assert len({*asked_ids, refused.headers["X-Request-ID"]}) == 5
    assert all(len(each) == 36 for each in asked_ids[1:])
    assert set(by_id) == {*asked_ids, refused.headers["X-Request-ID"]}
    line = by_id["from-the-proxy:1"]
    assert (line["method"], line["path"]) == ("POST", f"/api/v1/jobs/{job.pk}/queue/")
    assert (line["status"], line["user"]) == (400, "ada")
    assert line["duration_ms"] >= 0
    assert "word" not in site.said
    assert "user" not in by_id[nobody.headers["X-Request-ID"]]
    assert by_id[static.headers["X-Request-ID"]]["path"] == "/nowhere\n\x1b[2J"
    (moved,) = (line for line in lines if line.get("to") == "queued")
    assert moved["request_id"] == refused.headers["X-Request-ID"]
    assert (moved["job"], moved["actor"], moved["user"]) == (str(job.pk), "api:ada", "ada")


@pytest.mark.web
def test_as_text_there_is_no_line_for_a_request_unless_it_is_wanted(workers: Workers, tmp_path):
    with some_site(tmp_path, workers) as site:
        answer = requests.get(f"{site.url}/health", timeout=30)
    assert answer.headers["X-Request-ID"]
    assert "GET /health 200" not in site.said
    with some_site(tmp_path, workers, ACCESS_LOG="on", LOG_LEVEL="WARNING") as site:
        headers = {"X-Request-ID": "mine"}
        requests.get(f"{site.url}/health", headers=headers, timeout=30)
    assert "INFO GET /health 200 request_id=mine" in site.said
    assert site.said.count("GET /health") == 1, "the server's own line has the whole query string"
