"""The connection pool under the real web server: bounded, never leaking, never a long silence."""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest
import requests
from django.test import Client

from container_manager.models import JobLog
from tests.factories import JobFactory
from tests.support.web import Person, Site, some_site
from tests.support.workers import Workers, database_url, wait_until

pytestmark = [pytest.mark.postgres, pytest.mark.web]

MOST = 3
"""Connections of the pool; far fewer than there are visitors."""


@contextmanager
def pooled(workers: Workers, directory: Path, patience: int) -> Iterator[Site]:
    """A site whose visitors wait so many seconds for a connection."""
    pool = {"DATABASE_POOL": "on", "DATABASE_POOL_MIN": "1", "DATABASE_POOL_MAX": str(MOST)}
    with some_site(directory, workers, **pool, DATABASE_POOL_TIMEOUT=str(patience)) as site:
        yield site


@pytest.fixture
def site(workers: Workers, tmp_path: Path) -> Iterator[Site]:
    with pooled(workers, tmp_path, patience=60) as site:
        yield site


@pytest.fixture
def impatient_site(workers: Workers, tmp_path: Path) -> Iterator[Site]:
    with pooled(workers, tmp_path, patience=1) as site:
        yield site


@pytest.fixture
def cookies(operator: Person) -> dict[str, str]:
    """Of somebody who is logged in: each of their requests needs the database."""
    client = Client()
    client.force_login(operator.user)
    return {name: morsel.value for name, morsel in client.cookies.items()}


@pytest.fixture
def outside() -> Iterator[psycopg.Connection[Any]]:
    """Another client of the database."""
    with psycopg.connect(database_url()) as connection:
        yield connection


def ask(site: Site, cookies: dict[str, str], times: int) -> Counter[int]:
    """So many visitors at once; how many got which answer."""

    def visit(_number: int) -> int:
        url = f"{site.url}/admin/password_change/"
        return requests.get(url, cookies=cookies, timeout=60).status_code

    with ThreadPoolExecutor(times) as visitors:
        return Counter(visitors.map(visit, range(times)))


def test_fifty_at_once_are_answered_by_few_connections(
    site: Site, cookies: dict[str, str], outside: psycopg.Connection[Any]
) -> None:
    assert sum((ask(site, cookies, 50) for _ in range(3)), Counter()) == {200: 150}
    query = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
    (count,) = outside.execute(query).fetchone() or (0,)
    of_this_test = 2
    assert count <= MOST + of_this_test


def test_who_finds_the_pool_used_up_is_told_to_come_again(
    impatient_site: Site, cookies: dict[str, str], outside: psycopg.Connection[Any]
) -> None:
    site = impatient_site
    outside.execute("LOCK TABLE django_session IN ACCESS EXCLUSIVE MODE")
    with ThreadPoolExecutor(1) as background:
        held = background.submit(ask, site, cookies, MOST)
        wait_until(lambda: waiting() == MOST, "all connections to be in use")
        assert ask(site, cookies, 4) == {503: 4}
        told = requests.get(f"{site.url}/admin/password_change/", cookies=cookies, timeout=60)
        assert (told.status_code, told.headers["Retry-After"]) == (503, "5")
        assert told.text.startswith("The database does not answer at the moment.")
        outside.rollback()
        assert held.result() == {200: MOST}
    assert ask(site, cookies, 1) == {200: 1}


def test_visitors_who_leave_take_no_connection_along(
    site: Site, cookies: dict[str, str], outside: psycopg.Connection[Any]
) -> None:
    outside.execute("LOCK TABLE django_session IN ACCESS EXCLUSIVE MODE")
    with ExitStack() as visitors:
        for _ in range(10):
            visitors.enter_context(visitor(site, cookies))
        wait_until(lambda: waiting() == MOST, "all connections to be in use")
    outside.rollback()
    assert ask(site, cookies, 20) == {200: 20}


def test_downloads_that_nobody_reads_on_keep_no_connection(
    impatient_site: Site, cookies: dict[str, str]
) -> None:
    job, block = JobFactory(status="completed", attempt=1), b"x" * 64 * 1024
    JobLog.objects.bulk_create(
        JobLog(job=job, attempt=1, stream="stdout", offset=number * len(block), data=block)
        for number in range(320)
    )
    raw = f"{impatient_site.url}/api/v1/jobs/{job.pk}/logs/raw/"
    with ExitStack() as downloads:
        for _ in range(MOST):
            answer = requests.get(raw, cookies=cookies, stream=True, timeout=60)
            downloads.enter_context(answer)
            assert next(answer.iter_content(1024)) == block[:1024]
        assert ask(impatient_site, cookies, 4) == {200: 4}


def visitor(site: Site, cookies: dict[str, str]) -> socket.socket:
    """A connection on which a request was sent."""
    where = urlsplit(site.url)
    cookie = "; ".join(f"{name}={value}" for name, value in cookies.items())
    head = f"GET /admin/password_change/ HTTP/1.1\r\nHost: {where.netloc}\r\nCookie: {cookie}\r\n"
    made = socket.create_connection((where.hostname or "", where.port or 0))
    made.sendall(f"{head}\r\n".encode())
    return made


def waiting() -> int:
    with psycopg.connect(database_url()) as look:
        query = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
        (count,) = look.execute(query).fetchone() or (0,)
    return int(count)
