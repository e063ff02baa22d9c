"""Is it well? Told quickly, to everybody, and only in numbers."""

from __future__ import annotations

import json
import socket
from datetime import timedelta

import pytest
import requests
from django.db import connection
from django.db.migrations.recorder import MigrationRecorder
from django.utils import timezone

from container_manager import __version__, db_guard, schema
from container_manager.models import Event, PublisherState
from container_manager.models.base import guarded_tables
from container_manager.models.sequencing import take_all
from tests import services
from tests.factories import JobFactory
from tests.support.api import problem
from tests.support.fleet import process_row, worker_row
from tests.support.web import some_site, workers

__all__ = ["workers"]

pytestmark = pytest.mark.django_db(transaction=True)
"""It asks on a thread of its own, which sees what is committed."""

SOON = 20
"""Seconds after which the pool would still be waiting for a connection."""


@pytest.mark.parametrize("address", ["/health", "/health/"])
def test_everybody_may_ask(client, address):
    answer = client.get(address)
    assert answer.status_code == 200
    assert answer.json() == {
        "status": "healthy",
        "version": __version__,
        "service": "container-manager",
        "database": True,
        "redis": False,
        "executors": {"configured": 2, "available": 0},
        "workers": {"total": 0, "alive": 0},
        "schedulers": {"total": 0, "alive": 0},
        "relays": {"total": 0, "alive": 0},
        "publishers": {"configured": 0, "failing": 0, "lag_events": 0, "lag_seconds": 0.0},
    }


def test_a_session_or_a_wrong_token_does_not_matter(client):
    assert client.get("/health", headers={"Authorization": "Token wrong"}).status_code == 200


def test_executors_and_workers_are_numbers(client):
    worker_row("lives")
    worker_row("dead", beat_ago=500)
    told = client.get("/health").json()
    assert told["workers"] == {"total": 2, "alive": 1}
    assert told["executors"] == {"configured": 2, "available": 1}


def test_schedulers_and_relays_are_numbers_too(client):
    process_row("scheduler")
    process_row("scheduler", "dead", beat_ago=500)
    process_row("relay", beat_ago=500)
    told = client.get("/health").json()
    assert told["schedulers"] == {"total": 2, "alive": 1}
    assert told["relays"] == {"total": 1, "alive": 0}


def test_publishers_are_told_by_the_one_that_is_furthest_behind(client, settings):
    entry = {"class": "x.Y", "options": {}}
    given = {"PUBLISHERS": {"well": entry, "late": entry}}
    settings.CONTAINER_MANAGER = {**settings.CONTAINER_MANAGER, **given}
    JobFactory.create_batch(3)
    take_all()
    now = timezone.now()
    Event.objects.filter(sequence=2).update(changed_at=now - timedelta(seconds=90))
    PublisherState.objects.create(alias="well", position=3)
    PublisherState.objects.create(alias="late", position=1, failing_since=now)
    PublisherState.objects.create(alias="of old", position=0, failing_since=now)
    told = client.get("/health").json()["publishers"]
    assert 90 <= told.pop("lag_seconds") < 120
    assert told == {"configured": 2, "failing": 1, "lag_events": 2}


def test_other_methods_and_parameters_are_refused(client):
    problem(client.post("/health"), 405, "method_not_allowed")
    problem(client.get("/health", {"verbose": 1}), 400, "invalid")


@pytest.mark.parametrize("below", ["", "/live", "/ready", "/live/", "/ready/"])
def test_a_probe_that_speaks_no_https_is_not_sent_elsewhere(client, settings, below):
    settings.SECURE_SSL_REDIRECT = True
    assert client.get(f"/health{below}").status_code == 200
    assert client.get("/api/v1/stats/").status_code == 301


# Alive, ready


def test_a_process_that_answers_is_alive_and_asks_nobody(client, django_assert_num_queries):
    with django_assert_num_queries(0):
        answer = client.get("/health/live")
    expected = {"status": "alive", "version": __version__, "service": "container-manager"}
    assert (answer.status_code, answer.json()) == (200, expected)
    assert answer.headers["Cache-Control"] == "no-store"


def test_with_a_database_that_is_migrated_and_guarded_it_is_ready(client):
    answer = client.get("/health/ready")
    expected = {"status": "ready", "database": True, "migrations": True, "guard": True}
    assert (answer.status_code, answer.json()) == (200, expected)
    assert answer.headers["Cache-Control"] == "no-store"


def test_while_a_migration_is_missing_it_is_not_ready(client):
    newest = max(schema.applied("default"))
    rows = MigrationRecorder(connection).migration_qs.filter(app=schema.APP)
    rows.filter(name=newest).update(name="0000_of_old")
    answer = client.get("/health/ready")
    rows.filter(name="0000_of_old").update(name=newest)
    assert answer.status_code == 503
    told = answer.json()
    assert (told["status"], told["database"], told["migrations"]) == ("not_ready", True, False)


def test_a_newer_database_is_served_until_the_new_code_takes_over(client):
    rows = MigrationRecorder(connection).migration_qs
    newer = rows.create(app=schema.APP, name="9999_of_the_next_release")
    answer = client.get("/health/ready")
    newer.delete()
    assert answer.status_code == 200


def test_while_the_guard_is_lifted_it_is_not_ready(client):
    db_guard.uninstall(connection)
    try:
        answer = client.get("/health/ready")
    finally:
        db_guard.install(connection, guarded_tables())
    assert (answer.status_code, answer.json()["guard"]) == (503, False)
    assert client.get("/health/ready").status_code == 200


def test_what_is_no_migration_or_guard_is_no_reason_to_be_asked_less(client):
    worker_row("dead", beat_ago=500)
    assert client.get("/health/ready").json()["status"] == "ready"


# Redis


def test_redis_is_there_when_it_answers(client, settings):
    with services.redis() as environment:
        settings.REDIS_URL = environment["REDIS_URL"]
        assert client.get("/health").json()["redis"] is True
    told = client.get("/health")
    assert (told.status_code, told.json()["redis"]) == (200, False)


@pytest.mark.parametrize("url", ["redis://127.0.0.1:1/0", "nonsense://x", "redis://[", "redis"])
def test_redis_alone_never_makes_it_unhealthy(client, settings, url):
    settings.REDIS_URL = url
    told = client.get("/health")
    assert (told.status_code, told.json()["status"]) == (200, "healthy")
    assert told.json()["redis"] is False


def test_a_redis_that_accepts_and_never_answers_is_not_waited_for(client, settings):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        settings.REDIS_URL = f"redis://127.0.0.1:{silent.getsockname()[1]}/0"
        told = client.get("/health")
    assert (told.status_code, told.json()["redis"]) == (200, False)


# The database


def without(workers, tmp_path, url):
    """What a web server says whose database is at `url`."""
    environment = {"DATABASE_URL": url, "DATABASE_POOL": "on"}
    with some_site(tmp_path, workers, **environment) as site:
        answer = requests.get(f"{site.url}/health", timeout=SOON)
        assert requests.get(f"{site.url}/health/live", timeout=SOON).status_code == 200
        ready = requests.get(f"{site.url}/health/ready", timeout=SOON)
        assert (ready.status_code, ready.json()["database"]) == (503, False)
        return answer.status_code, answer.json(), answer.text + json.dumps(dict(answer.headers))


@pytest.mark.parametrize(
    "url",
    [
        "postgres://somebody:hidden-word@127.0.0.1:1/nowhere",
        "sqlite:////nonexistent/hidden-word.sqlite3",
    ],
)
def test_without_a_database_it_is_unhealthy_and_tells_nothing_private(workers, tmp_path, url):
    status, told, everything = without(workers, tmp_path, url)
    assert status == 503
    assert told["status"] == "unhealthy"
    assert told["database"] is False
    assert told["version"] == __version__
    assert "hidden-word" not in everything
    assert "nowhere" not in everything


def test_a_database_that_accepts_and_never_answers_is_not_waited_for(workers, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"postgres://somebody:secret@127.0.0.1:{silent.getsockname()[1]}/nowhere"
        status, told, _ = without(workers, tmp_path, url)
    assert (status, told["database"]) == (503, False)
