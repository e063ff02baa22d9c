"""Queues, executors and workers as they stand, in a fixed number of queries."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from datetime import timedelta

import pytest
from django.db import connection
from django.utils import timezone

from container_manager.models import Queue
from container_manager.models.lanes import oldest_of_lanes
from container_manager.reports import machinery
from tests.factories import JobFactory, UserFactory
from tests.support.fleet import LOCAL, claim, engine, worker_row
from tests.support.spine import queued

pytestmark = pytest.mark.django_db


def test_a_queue_is_there_when_it_has_a_row_or_jobs():
    Queue.objects.create(name="licensed", paused=True, max_running=2)
    JobFactory(queue="default")
    rows = machinery.queues()
    assert [(row.name, row.paused, row.max_running) for row in rows] == [
        ("default", False, None),
        ("licensed", True, 2),
    ]


def test_a_queue_counts_its_jobs_by_state():
    for status in ("pending", "queued", "queued", "running", "retrying", "completed"):
        JobFactory(queue="a", status=status)
    (row,) = machinery.queues()
    assert (row.pending, row.queued, row.running, row.retrying) == (1, 2, 1, 1)


def test_the_oldest_queued_job_of_each_queue_is_told():
    queued(queue="a", queued_at=timezone.now() - timedelta(seconds=1000))
    queued(queue="a")
    JobFactory(queue="b")
    a, b = machinery.queues()
    assert 1000 <= a.oldest_queued_seconds < 1100
    assert b.oldest_queued_seconds == 0.0


def test_counts_are_of_the_owner_and_so_are_queues_without_a_row():
    owner = UserFactory()
    Queue.objects.create(name="shared")
    queued(queue="shared")
    queued(queue="private")
    queued(queue="mine", created_by=owner)
    assert [(row.name, row.queued) for row in machinery.queues(owner)] == [
        ("mine", 1),
        ("shared", 0),
    ]
    assert machinery.queue("private", owner) is None
    assert machinery.queue("mine", owner).queued == 1


def test_executors_are_those_of_the_settings_even_when_nobody_offers_them():
    by_alias = {each.alias: each for each in machinery.executors()}
    assert set(by_alias) == {"docker", "process"}
    docker = by_alias["docker"]
    assert docker.path == "container_manager.executors.docker.DockerExecutor"
    assert (docker.available, docker.isolations, docker.workers) == (False, [], 0)
    assert docker.outlives_worker is None


def test_executors_tell_what_living_workers_found():
    docker = engine("gvisor", "container", engine="Docker 29")
    worker_row("w1", offers={**LOCAL, "docker": docker})
    worker_row("w2", offers={"docker": {**docker, "available": False}})
    worker_row("dead", offers={"docker": engine("microvm")}, beat_ago=500)
    found = {each.alias: each for each in machinery.executors()}
    assert found["docker"].isolations == ["container", "gvisor"], "weakest first"
    assert (found["docker"].engine, found["docker"].workers) == ("Docker 29", 1)
    assert found["docker"].outlives_worker is True
    assert found["process"].outlives_worker is False


def test_an_executor_that_answers_nobody_says_since_when():
    away = {"available": False, "unavailable_since": "2026-01-02T03:04:05+00:00"}
    worker_row("w1", offers={"docker": engine("container", **away)})
    seen_later = {**away, "unavailable_since": "2026-01-02T03:04:09+00:00"}
    worker_row("w2", offers={"docker": engine("container", **seen_later)})
    (docker,) = (each for each in machinery.executors() if each.alias == "docker")
    assert (docker.available, docker.unavailable_since) == (False, "2026-01-02T03:04:09+00:00")
    worker_row("w3", offers={"docker": engine("container")})
    (docker,) = (each for each in machinery.executors() if each.alias == "docker")
    assert (docker.available, docker.unavailable_since) == (True, None)


def test_an_executor_that_only_a_worker_knows_is_listed_without_a_path():
    worker_row(offers={"far": engine("container")})
    far = next(each for each in machinery.executors() if each.alias == "far")
    assert (far.path, far.available) == ("", True)


def test_a_worker_lives_while_its_last_beat_is_younger_than_a_lease():
    worker_row("lives", beat_ago=20)
    worker_row("dead", beat_ago=40)
    assert {row.name: row.alive for row in machinery.workers()} == {"lives": True, "dead": False}


def test_a_worker_whose_clock_is_ahead_lives():
    worker_row(beat_ago=-3600)
    (row,) = machinery.workers()
    assert (row.alive, row.seconds_since_beat) == (True, 0.0)


def test_a_worker_tells_what_it_runs():
    row = worker_row(concurrency=3, queues=["default"])
    queued()
    queued()
    claim(row)
    (report,) = machinery.workers()
    assert (report.running, report.concurrency) == (2, 3)
    assert (report.queues, report.executors) == (["default"], ["process"])
    alone = machinery.worker(row.pk)
    assert replace(alone, seconds_since_beat=report.seconds_since_beat) == report
    assert machinery.worker("00000000-0000-0000-0000-000000000000") is None


def test_all_of_it_is_json():
    worker_row()
    queued()
    for rows in (machinery.queues(), machinery.executors(), machinery.workers()):
        assert json.loads(json.dumps([row.as_json() for row in rows]))


def test_more_rows_cost_no_more_queries(django_assert_max_num_queries):
    for number in range(20):
        worker_row(f"w{number}")
        Queue.objects.create(name=f"q{number}", max_running=1)
        queued(queue=f"q{number}")
    with django_assert_max_num_queries(4):
        assert len(machinery.queues()) == 20
    with django_assert_max_num_queries(3):
        assert len(machinery.workers()) == 20
    with django_assert_max_num_queries(3):
        machinery.executors()


def test_one_queue_and_one_worker_are_read_alone():
    for number in range(3):
        queued(queue=f"q{number}")
        worker_row(f"w{number}")
    Queue.objects.create(name="empty", paused=True)
    every_queue = {each.name: each for each in machinery.queues()}
    for name, report in every_queue.items():
        one = machinery.queue(name)
        assert replace(one, oldest_queued_seconds=0) == replace(report, oldest_queued_seconds=0)
        assert one.oldest_queued_seconds >= report.oldest_queued_seconds
    assert machinery.queue("nowhere") is None
    for report in machinery.workers():
        one = machinery.worker(report.id)
        assert replace(one, seconds_since_beat=0) == replace(report, seconds_since_beat=0)


def test_the_oldest_is_found_whatever_its_lane_and_priority():
    dice = random.Random(7)
    waits = {}
    for _ in range(120):
        name, seconds = dice.choice("abc"), dice.randrange(1000, 1000000) * 1000
        queued(
            queue=name,
            executor=dice.choice(["", "process"]),
            isolation=dice.choice(["auto", "process"]),
            priority=dice.choice([0, 1, 50, 100]),
            queued_at=timezone.now() - timedelta(seconds=seconds),
        )
        waits[name] = max(seconds, waits.get(name, 0))
    for name, seconds in waits.items():
        assert 0 <= machinery.queue(name).oldest_queued_seconds - seconds < 100
    told = {each.name: each.oldest_queued_seconds for each in machinery.queues()}
    assert all(0 <= told[name] - seconds < 100 for name, seconds in waits.items())


@pytest.mark.sqlite
def test_the_oldest_is_found_without_sorting_all_that_wait():
    with connection.cursor() as cursor:
        for name in (None, "a"):
            statement = oldest_of_lanes("default", name)
            cursor.execute(f"EXPLAIN QUERY PLAN {statement}", {"queue": name})
            plan = [row[3] for row in cursor.fetchall()]
            assert any("jobs_claim" in step for step in plan)
            assert not [step for step in plan if "FOR ORDER BY" in step or "LAST" in step], plan
