"""While workers are busy nothing looks like a contradiction."""

from __future__ import annotations

import pytest

from container_manager.models import ContainerJob
from tests.consistency.planting import told
from tests.support.fake_executor import World
from tests.support.loops import working
from tests.support.spine import queued
from tests.support.workers import SETTLED

pytestmark = pytest.mark.django_db(transaction=True)


def test_no_false_alarm_while_jobs_begin_and_end(engine: World) -> None:
    for _ in range(60):
        queued(environment={"TOKEN": "correct horse battery"})
    looks = 0
    with working(name="one"), working(name="two"):
        while ContainerJob.objects.exclude(status__in=SETTLED).exists():
            assert told() == []
            looks += 1
    assert looks > 0
    assert told() == []
