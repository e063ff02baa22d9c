"""What Prometheus is told: what the database says, to who may know, in so many lines at most."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from datetime import timedelta
from typing import Any

import pytest
import requests
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone
from prometheus_client.parser import text_string_to_metric_families

from container_manager import conf, lifecycle
from container_manager.models import (
    ContainerJob,
    DeadLetter,
    Event,
    PublisherState,
    Queue,
    StateHistory,
    move_counts,
)
from container_manager.models.job_counts import job_stats
from container_manager.models.sequencing import take_all
from container_manager.reports import measures, metrics
from container_manager.reports.metrics import METRICS, PREFIX
from container_manager.states import JobStatus
from tests.factories import AttemptFactory, DagFactory, JobFactory, RunFactory
from tests.support.api import Api, a_person, an_operator, problem
from tests.support.fleet import engine, process_row, worker_row
from tests.support.web import some_site, workers
from tests.support.workers import Workers

__all__ = ["workers"]

pytestmark = pytest.mark.django_db(transaction=True)
"""It asks on a thread of its own, which sees what is committed."""

TOKEN = "a-token-for-the-scraper"
Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def parsed(text: str | bytes) -> Samples:
    """Each sample by its name and labels; none is told twice."""
    if isinstance(text, bytes):
        text = text.decode()
    found: Samples = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            key = (sample.name.removeprefix(PREFIX), frozenset(sample.labels.items()))
            assert key not in found, key
            found[key] = sample.value
    return found


def scrape() -> Samples:
    return parsed(measures.as_text())


def value(samples: Samples, name: str, **labels: str) -> float | None:
    return samples.get((name, frozenset(labels.items())))


def of(samples: Samples, name: str) -> list[tuple[dict[str, str], float]]:
    return [(dict(labels), told) for (each, labels), told in samples.items() if each == name]


def total(samples: Samples, name: str, **labels: str) -> float:
    return sum(told for given, told in of(samples, name) if labels.items() <= given.items())


@pytest.fixture
def use(settings: Any) -> Any:
    def change(**keys: Any) -> None:
        settings.CONTAINER_MANAGER = {**settings.CONTAINER_MANAGER, **keys}

    return change


# The form


def test_every_metric_is_described_in_a_sentence_and_named_as_is_usual(client) -> None:
    for name, metric in METRICS.items():
        assert re.fullmatch(r"container_manager_[a-z_]+", metric.name), name
        assert re.fullmatch(r"[A-Z0-9].*\.", metric.help), name
        assert (metric.kind == "counter") == metric.name.endswith("_total"), name
        if metric.kind == "histogram":
            assert metric.name.endswith("_seconds"), name
        assert not set(metric.labels) & {"le", "job", "instance"}, "these are the scraper's"
    families = list(text_string_to_metric_families(measures.as_text().decode()))
    told = {(each.name, each.type, each.documentation) for each in families}
    assert told == {
        (metric.name.removesuffix("_total"), metric.kind, metric.help)
        for metric in METRICS.values()
    }


def test_an_empty_installation_is_told_with_zeros() -> None:
    samples = scrape()
    assert value(samples, "workers", state="alive") == 0
    assert value(samples, "worker_slots") == 0
    assert value(samples, "executor_up", executor="docker") == 0
    assert value(samples, "job_wait_seconds_count") == 0
    assert value(samples, "job_run_seconds_bucket", state="failed", le="+Inf") == 0
    edge = {"entity": "job", "from": "queued", "to": "running"}
    assert value(samples, "transitions_total", **edge) == 0
    assert of(samples, "jobs") == []


# What is told is so


def test_jobs_are_told_as_the_statistics_tell_them() -> None:
    for status, number in zip(JobStatus.values, range(1, 9), strict=True):
        for queue in ("default", "slow"):
            for _ in range(number):
                JobFactory(status=status, queue=queue)
    samples, stats = scrape(), job_stats()
    for status in JobStatus.values:
        assert total(samples, "jobs", state=status) == stats["by_status"][status]
    assert total(samples, "jobs", queue="slow") == stats["by_queue"]["slow"]
    assert total(samples, "jobs") == stats["total"] == ContainerJob.objects.count()
    oldest = max(told for _, told in of(samples, "oldest_queued_seconds"))
    assert abs(oldest - stats["oldest_queued_seconds"]) < 5


def test_queues_are_told_with_what_an_operator_decided() -> None:
    lifecycle.steer_queue("nightly", paused=True, max_running=3)
    JobFactory(status="queued", queue="slow", queued_at=timezone.now() - timedelta(minutes=2))
    samples = scrape()
    assert value(samples, "queue_paused", queue="nightly") == 1
    assert value(samples, "queue_paused", queue="slow") == 0
    assert of(samples, "queue_max_running") == [({"queue": "nightly"}, 3)]
    assert value(samples, "oldest_queued_seconds", queue="nightly") == 0
    assert 115 < (value(samples, "oldest_queued_seconds", queue="slow") or 0) < 180


def test_workers_their_slots_and_engines_are_told_as_the_lists_tell_them() -> None:
    ours = {"docker": engine("container"), "process": engine("process", available=False)}
    lively = worker_row("lively", concurrency=4, offers=ours)
    worker_row("leaving", concurrency=2, draining=True)
    lost = worker_row("lost", concurrency=8, beat_ago=500)
    AttemptFactory(worker_id=lively.pk, executor="docker")
    AttemptFactory(worker_id=lively.pk, executor="docker", unreachable_since=timezone.now())
    AttemptFactory(worker_id=lost.pk, executor="process")
    AttemptFactory(phase="done", executor="process", cleaned_up=True)
    samples = scrape()
    states = {given["state"]: told for given, told in of(samples, "workers")}
    assert states == {"alive": 1, "draining": 1, "silent": 1}
    assert (value(samples, "worker_slots"), value(samples, "worker_slots_used")) == (6, 2)
    by_executor = {
        name: {given["executor"]: told for given, told in of(samples, name)}
        for name in ("executor_up", "executor_workers", "attempts_running", "attempts_unreachable")
    }
    assert by_executor == {
        "executor_up": {"docker": 1, "process": 1},
        "executor_workers": {"docker": 1, "process": 1},
        "attempts_running": {"docker": 2, "process": 1},
        "attempts_unreachable": {"docker": 1, "process": 0},
    }


def test_moves_are_told_as_the_history_tells_them_without_anybody_else_s_help() -> None:
    for _ in range(3):
        job = JobFactory()
        for state in ("queued", "running", "completed"):
            job.transition_to(state)
    samples = scrape()
    rows = StateHistory.objects.values_list("entity_type", "old_state", "new_state")
    for (entity, old, new), count in Counter(rows).items():
        edge = {"entity": entity, "from": old or "", "to": new}
        assert value(samples, "transitions_total", **edge) == count
    assert total(samples, "transitions_total") == value(samples, "events_total") == len(rows)
    assert value(samples, "job_run_seconds_count", state="completed") == 3
    assert value(samples, "job_wait_seconds_bucket", le="+Inf") == 3
    buckets = [
        told
        for given, told in of(samples, "job_run_seconds_bucket")
        if given["state"] == "completed"
    ]
    assert sorted(buckets) == buckets
    assert len(buckets) == len(metrics.UP_TO_MS) + 1


def test_where_a_relay_lives_a_scrape_leaves_its_work_to_it() -> None:
    process_row("relay")
    JobFactory()
    assert value(scrape(), "events_total") == 0
    assert Event.objects.count() == 0
    take_all()
    assert value(scrape(), "events_total") == 1
    assert move_counts.behind() == 1, "that too"


def test_a_scrape_folds_what_nobody_else_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measures, "MOST_UNFOLDED", 3)
    JobFactory.create_batch(3)
    before = total(scrape(), "transitions_total")
    assert move_counts.behind() == 3
    JobFactory()
    assert total(scrape(), "transitions_total") == before + 1
    assert move_counts.behind() == 0


def test_counters_never_fall_whatever_is_pruned() -> None:
    jobs = []
    for end in ("completed", "failed", "cancelled"):
        job = JobFactory()
        for state in ("queued", "running", end):
            job.transition_to(state)
        jobs.append(job.pk)
    kinds = {metric.name: metric.kind for metric in METRICS.values()}

    def counters(samples: Samples) -> Samples:
        return {
            key: told
            for key, told in samples.items()
            if kinds.get(PREFIX + key[0]) == "counter" or re.search(r"_(bucket|count|sum)$", key[0])
        }

    before = counters(scrape())
    assert len(before) > 100
    lifecycle.prune(jobs)
    assert counters(scrape()) == before
    Event.objects.all().delete()
    assert counters(scrape()) == before
    JobFactory()
    later = counters(scrape())
    assert later.keys() == before.keys()
    assert all(later[key] >= told for key, told in before.items())
    assert sum(later.values()) == sum(before.values()) + 2


def test_runs_slots_and_schedulers_are_told() -> None:
    RunFactory(state="running")
    RunFactory.create_batch(2)
    RunFactory(state="success")
    DagFactory(schedule="@hourly", next_slot_at=timezone.now() - timedelta(hours=1))
    DagFactory(schedule="@hourly", next_slot_at=timezone.now() - timedelta(seconds=5))
    DagFactory(next_slot_at=timezone.now() - timedelta(days=1), is_paused=True)
    process_row("scheduler")
    process_row("scheduler", "dead", beat_ago=500)
    samples = scrape()
    runs = {given["state"]: told for given, told in of(samples, "dag_runs")}
    assert runs == {"queued": 2, "running": 1, "retrying": 0}
    assert value(samples, "dag_slots_overdue") == 1
    assert 3590 < (value(samples, "dag_slot_overdue_seconds") or 0) < 3700
    assert value(samples, "schedulers", state="alive") == 1
    assert value(samples, "schedulers", state="silent") == 1
    assert value(samples, "relays", state="alive") == 0


def some_publishers(*aliases: str) -> dict[str, Any]:
    return {"PUBLISHERS": {alias: {"class": "x.Y", "options": {}} for alias in aliases}}


def test_publishers_are_told_with_their_lag_failures_and_dead_letters(use) -> None:
    use(**some_publishers("done", "late", "new"))
    JobFactory.create_batch(5)
    take_all()
    now = timezone.now()
    Event.objects.filter(sequence=3).update(changed_at=now - timedelta(minutes=3))
    Event.objects.filter(sequence=1).update(changed_at=now - timedelta(minutes=9))
    PublisherState.objects.create(alias="done", position=5)
    PublisherState.objects.create(
        alias="late", position=2, failures=4, failing_since=now - timedelta(minutes=1)
    )
    PublisherState.objects.create(alias="new", position=0)
    PublisherState.objects.create(alias="gone", position=0)
    DeadLetter.objects.create(publisher="late", sequence=1, event={}, tries=10, error="no")
    DeadLetter.objects.create(publisher="gone", sequence=1, event={}, tries=10, error="no")
    samples = scrape()

    def told(name: str) -> dict[str, float]:
        return {given["publisher"]: round(each) for given, each in of(samples, name)}

    assert told("publisher_lag_events") == {"done": 0, "late": 3, "new": 5}
    lag = told("publisher_lag_seconds")
    assert lag["done"] == 0
    assert 180 <= lag["late"] < 240
    assert 540 <= lag["new"] < 600
    assert told("publisher_failures") == {"done": 0, "late": 4, "new": 0}
    assert 60 <= told("publisher_failing_seconds")["late"] < 120
    assert told("dead_letters") == {"done": 0, "late": 1, "new": 0}


def test_a_publisher_whose_events_were_pruned_waits_for_the_oldest_that_is_kept(use) -> None:
    use(**some_publishers("far-behind"))
    JobFactory.create_batch(5)
    take_all()
    PublisherState.objects.create(alias="far-behind", position=1)
    Event.objects.filter(sequence=4).update(changed_at=timezone.now() - timedelta(minutes=3))
    Event.objects.filter(sequence__lt=4).delete()
    samples = scrape()
    assert value(samples, "publisher_lag_events", publisher="far-behind") == 4
    assert (value(samples, "publisher_lag_seconds", publisher="far-behind") or 0) >= 180


# Names are data


HOSTILE = ['"} 1\nforged 2', "a\\", "a\nb", "\x1b[2J", "ü\u2028\u202e", "x" * 100, "{}", ",="]


def test_whatever_a_queue_is_called_the_text_can_be_read(client) -> None:
    for name in HOSTILE:
        JobFactory(queue=name, status="queued")
    text = measures.as_text()
    assert {each for each in map(chr, range(32)) if each in text.decode()} == {"\n"}
    samples = parsed(text)
    queues = {given["queue"]: told for given, told in of(samples, "jobs") if told}
    assert len(queues) == len(HOSTILE)
    assert set(queues.values()) == {1}
    assert not any("forged" in name for name, _ in samples)


def test_names_that_look_alike_are_one_and_never_told_twice() -> None:
    for name in ("a\nb", "a\\nb", "(other)"):
        JobFactory(queue=name, status="queued")
        Queue.objects.create(name=name, paused=name == "a\nb", max_running=2)
    samples = scrape()
    assert value(samples, "jobs", queue="a\\nb", state="queued") == 2
    assert value(samples, "queue_paused", queue="a\\nb") == 1
    assert value(samples, "jobs", queue="(other)", state="queued") == 1


def test_of_too_many_queues_the_busiest_are_named_and_the_rest_is_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(measures, "MOST_NAMES", 5)
    for number in range(20):
        JobFactory(queue=f"q{number:02}", status="completed")
    JobFactory.create_batch(2, queue="q13", status="queued")
    JobFactory(queue="q17", status="running")
    lifecycle.steer_queue("steered", paused=True)
    before = scrape()
    named = {given["queue"] for given, _ in of(before, "jobs")}
    assert named == {"steered", "q13", "q17", "q00", "q01", "(other)"}
    assert total(before, "jobs") == ContainerJob.objects.count()
    assert total(before, "jobs", queue="(other)") == 16


def test_what_it_costs_does_not_grow_with_what_there_is(use) -> None:
    use(**some_publishers("p", *(f"p{number}" for number in range(30))))

    def asked() -> int:
        with CaptureQueriesContext(connection) as queries:
            text = measures.as_text()
        sizes.append(len(text.splitlines()))
        return len(queries)

    sizes: list[int] = []
    process_row("relay")
    PublisherState.objects.create(alias="p")
    JobFactory()
    take_all()
    one = asked()
    JobFactory.create_batch(30)
    for number in range(250):
        JobFactory(queue=f"q{number}", status="queued")
    for number in range(30):
        worker_row(f"w{number}", offers={f"engine-{number}": engine("container")})
        PublisherState.objects.create(alias=f"p{number}")
        RunFactory()
    take_all()
    assert asked() == one
    assert one <= 30
    assert sizes[1] < 2_500


# Who may know


def get(client: Any, **headers: str) -> Any:
    return client.get("/metrics", headers=headers)


def test_nobody_is_told_anything_who_does_not_say_who_he_is(client, use) -> None:
    for keys in ({}, {"METRICS_TOKEN": TOKEN}):
        use(**keys)
        for given in ("", "Bearer", "Bearer wrong", f"Bearer {TOKEN}x", "Basic eDp5", "Token 00"):
            answer = get(client, Authorization=given) if given else get(client)
            problem(answer, 401, "not_authenticated")
            assert answer.headers["WWW-Authenticate"] == "Bearer"
    use(METRICS_TOKEN="")
    problem(get(client, Authorization=f"Bearer {TOKEN}"), 401, "not_authenticated")
    problem(get(client, Authorization="Bearer "), 401, "not_authenticated")


@pytest.mark.parametrize("scheme", ["Bearer", "bearer"])
def test_who_has_the_token_of_the_settings_is_told(client, use, scheme) -> None:
    use(METRICS_TOKEN=TOKEN)
    answer = get(client, Authorization=f"{scheme} {TOKEN}")
    assert answer.status_code == 200
    assert answer.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert answer.headers["Cache-Control"] == "no-store"
    assert value(parsed(answer.content), "worker_slots") == 0


def test_that_token_opens_nothing_else(client, use) -> None:
    use(METRICS_TOKEN=TOKEN)
    answer = client.get("/api/v1/jobs/", headers={"Authorization": f"Bearer {TOKEN}"})
    problem(answer, 401, "not_authenticated")


def test_operators_are_told_and_other_people_are_not() -> None:
    client = Api(an_operator()).client
    assert get(client).status_code == 200
    for person in (a_person(), a_person("view_containerjob")):
        problem(get(Api(person).client), 403, "permission_denied")


def test_it_is_open_only_where_that_is_switched_on(client, use) -> None:
    use(METRICS_OPEN=True)
    assert get(client).status_code == 200
    assert get(client, Authorization="Bearer wrong").status_code == 200


def test_other_methods_and_parameters_are_refused(client, use) -> None:
    use(METRICS_OPEN=True)
    problem(client.post("/metrics"), 405, "method_not_allowed")
    problem(client.get("/metrics", {"name": "x"}), 400, "invalid")


@pytest.mark.parametrize("token", ["short", "with a blank in the middle", "ünlaut-und-sonst-was"])
def test_a_token_that_is_none_is_a_mistake_that_is_named_without_it(token: str) -> None:
    _, problems = conf.read({"METRICS_TOKEN": token})
    assert len(problems) == 1
    assert "METRICS_TOKEN" in problems[0]
    assert token not in problems[0]


def test_a_scraper_that_speaks_no_https_is_not_sent_elsewhere(client, use, settings) -> None:
    use(METRICS_OPEN=True)
    settings.SECURE_SSL_REDIRECT = True
    assert get(client).status_code == 200


# Real processes


MOVES_BY_ITSELF = re.compile(r"oldest_queued_seconds|overdue_seconds|(lag|failing)_seconds")


def steady(samples: Samples) -> Samples:
    return {key: told for key, told in samples.items() if not MOVES_BY_ITSELF.search(key[0])}


@pytest.mark.web
def test_two_web_servers_tell_the_same(workers: Workers, tmp_path: Any) -> None:
    for state in ("queued", "completed", "failed"):
        JobFactory(status=state, queue="slow")
    worker_row("silent for the whole test", beat_ago=500)
    (tmp_path / "other").mkdir()
    environment = {"CONTAINER_MANAGER_METRICS_TOKEN": TOKEN}
    headers = {"Authorization": f"Bearer {TOKEN}"}

    def told(sites: Iterable[Any]) -> list[Samples]:
        answers = [
            requests.get(f"{each.url}/metrics", headers=headers, timeout=30) for each in sites
        ]
        assert [answer.status_code for answer in answers] == [200, 200]
        return [steady(parsed(answer.text)) for answer in answers]

    with (
        some_site(tmp_path, workers, **environment) as one,
        some_site(tmp_path / "other", workers, **environment) as two,
    ):
        first, second = told([one, two])
        assert first == second
        assert total(first, "jobs", queue="slow") == 3
        JobFactory(status="queued").transition_to("running")
        first, second = told([two, one])
        assert first == second
        assert total(first, "jobs", state="running") == 1
        assert TOKEN not in one.said


@pytest.mark.web
def test_without_a_database_it_is_unavailable(workers: Workers, tmp_path: Any) -> None:
    environment = {
        "CONTAINER_MANAGER_METRICS_TOKEN": TOKEN,
        "DATABASE_URL": "postgres://somebody:hidden-word@127.0.0.1:1/nowhere",
        "DATABASE_POOL": "on",
    }
    with some_site(tmp_path, workers, **environment) as site:
        headers = {"Authorization": f"Bearer {TOKEN}"}
        answer = requests.get(f"{site.url}/metrics", headers=headers, timeout=30)
    assert (answer.status_code, answer.json()["code"]) == (503, "database_unavailable")
    assert answer.headers["Retry-After"]
    assert "hidden-word" not in answer.text
