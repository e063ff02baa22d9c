"""Is it well? Told quickly, to everybody, and only in numbers."""

from __future__ import annotations

import json
import socket

import pytest
import requests

from container_manager import __version__
from tests import services
from tests.support.api import problem
from tests.support.fleet import worker_row
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
    }


def test_a_session_or_a_wrong_token_does_not_matter(client):
    assert client.get("/health", headers={"Authorization": "Token wrong"}).status_code == 200


def test_executors_and_workers_are_numbers(client):
    worker_row("lives")
    worker_row("dead", beat_ago=500)
    told = client.get("/health").json()
    assert told["workers"] == {"total": 2, "alive": 1}
    assert told["executors"] == {"configured": 2, "available": 1}


def test_other_methods_and_parameters_are_refused(client):
    problem(client.post("/health"), 405, "method_not_allowed")
    problem(client.get("/health", {"verbose": 1}), 400, "invalid")


def test_a_probe_that_speaks_no_https_is_not_sent_elsewhere(client, settings):
    settings.SECURE_SSL_REDIRECT = True
    assert client.get("/health").status_code == 200
    assert client.get("/api/v1/stats/").status_code == 301


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
