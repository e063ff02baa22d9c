from __future__ import annotations

from collections.abc import Callable

import pytest
from django.core.management import call_command

from container_manager.models import ContainerJob
from tests.commands.shell import run
from tests.commands.test_list_jobs import Terminal

pytestmark = pytest.mark.django_db
Make = Callable[..., ContainerJob]


def test_json_has_the_keys_of_the_api(job: Make) -> None:
    job(status="completed", duration_ms=1000)
    job(status="queued")
    told = run("job_stats", "--json").json
    assert told.keys() == ContainerJob.objects.stats().keys()
    assert (told["total"], told["by_status"]["completed"], told["queue_depth"]) == (2, 1, 1)


def test_a_pipe_gets_a_line_for_each_number(job: Make) -> None:
    job(status="failed")
    assert {"total\t1", "by_status.failed\t1", "by_queue.default\t1"} <= {*run("job_stats").lines}


def test_a_terminal_gets_a_table_and_a_sentence(job: Make) -> None:
    job(status="completed", duration_ms=1000)
    screen = Terminal()
    call_command("job_stats", "--no-color", stdout=screen)
    assert "completed" in screen.getvalue()
    assert "Completed jobs took 1.0s on average, p50 1.0s, p95 1.0s." in screen.getvalue()


def test_an_empty_database_has_statistics_too() -> None:
    assert run("job_stats", "--json").json["total"] == 0
