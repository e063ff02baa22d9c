"""What every test may use: tests of one database are left out on the other."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from typing import Any

import pytest
from django.db import connection
from django.utils import timezone

from container_manager.models import ContainerJob
from tests.factories import JobFactory
from tests.support.feeds import end_listening
from tests.support.sessions import await_being_alone

ONLY_ON = {"postgres": "postgresql", "sqlite": "sqlite"}


def pytest_configure() -> None:
    """Ctrl-C and a closed terminal are tested on processes of their own, also under nohup.

    What starts something in the background ignores these signals for it, and children inherit that.
    """
    for number in (signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for marker, vendor in ONLY_ON.items():
            if item.get_closest_marker(marker) and connection.vendor != vendor:
                item.add_marker(pytest.mark.skip(reason=f"speaks of {vendor} only"))


@pytest.fixture(scope="session")
def django_db_setup(django_db_setup: None, django_db_blocker: Any) -> Iterator[None]:
    """The test database goes last: nobody uses it any more by then."""
    yield
    end_listening()
    if connection.vendor == "postgresql":
        with django_db_blocker.unblock():
            await_being_alone()


@pytest.fixture
def job(db: None) -> Callable[..., ContainerJob]:
    """Makes a stored job with coherent fields: job(), job(status="running")."""
    return JobFactory


@pytest.fixture
def time_ahead() -> datetime:
    """An hour from now, in whole seconds."""
    return timezone.now().replace(microsecond=0) + timedelta(hours=1)
