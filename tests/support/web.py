"""The real web server on the test database, and people who use it.

A conftest imports the fixtures it wants:

    from tests.support.web import live_site, operator, workers

    __all__ = ["live_site", "operator", "workers"]
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth import get_user_model
from django.contrib.auth.hashers import PBKDF2PasswordHasher
from django.contrib.auth.models import Permission
from knox.models import AuthToken

from tests.support.workers import WorkerProcess, Workers, some_workers, wait_until

PASSWORD = "only-for-this-test"
ADDRESS = re.compile(r"running on (http://\S+)")


class Site(WorkerProcess):
    """One uvicorn process on a free port; every warning in it is an error."""

    url: str

    def wait_until_started(self) -> Site:
        wait_until(lambda: ADDRESS.search(self.said) or self.has_ended, "the web server")
        assert not self.has_ended, self.said
        self.url = ADDRESS.search(self.said)[1]
        return self


def start_site(
    directory: Path, environment: dict[str, str], name: str = "web", options: Sequence[str] = ()
) -> Site:
    server = [sys.executable, "-W", "error", "-m", "uvicorn", "config.asgi:application"]
    how = ["--port", "0", "--lifespan", "off", "--timeout-graceful-shutdown", "2", *options]
    site = Site([*server, *how], environment, directory / f"{name}.log")
    return site.wait_until_started()


@contextmanager
def some_site(
    directory: Path, workers: Workers, options: Sequence[str] = (), **environment: str
) -> Iterator[Site]:
    """A web server of the same installation as these workers."""
    site = start_site(directory, {**workers.environment(), **environment}, options=options)
    try:
        yield site
        assert "Traceback" not in site.said, site.said
    except BaseException:
        print(f"--- the web server\n{site.said[-20_000:]}")
        raise
    finally:
        site.end()


@pytest.fixture
def workers(tmp_path: Path, transactional_db: None) -> Iterator[Workers]:
    """None runs yet: `workers.start()` starts one."""
    with some_workers(tmp_path) as workers:
        yield workers


@pytest.fixture
def live_site(workers: Workers, tmp_path: Path) -> Iterator[Site]:
    """The web server, reached at `live_site.url`; what goes wrong in it fails the test."""
    with some_site(tmp_path, workers) as site:
        yield site


@dataclass(frozen=True)
class Person:
    """Somebody with a password and an API token, as the server's own settings check them."""

    user: Any
    token: str
    password: str = PASSWORD

    @property
    def name(self) -> str:
        return str(self.user.get_username())

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Token {self.token}"}


def make_person(name: str, *permissions: str, **flags: bool) -> Person:
    # The test's settings know a faster hash only, the server's do not know that one.
    encoded = PBKDF2PasswordHasher().encode(PASSWORD, salt="salt", iterations=1000)
    user = get_user_model().objects.create(username=name, password=encoded, **flags)
    user.user_permissions.set(Permission.objects.filter(codename__in=permissions))
    _row, token = AuthToken.objects.create(user)
    return Person(user, token)


@pytest.fixture
def superuser(transactional_db: None) -> Person:
    return make_person("root", is_staff=True, is_superuser=True)


@pytest.fixture
def operator(transactional_db: None) -> Person:
    """Operates jobs, queues and workers, and may look at everything of the app."""
    ours = Permission.objects.filter(content_type__app_label="container_manager")
    viewing = ours.filter(codename__startswith="view_").values_list("codename", flat=True)
    return make_person("operator", "operate_containerjob", *viewing, is_staff=True)


@pytest.fixture
def member(transactional_db: None) -> Person:
    """Sees and moves the own jobs only."""
    return make_person("member")
