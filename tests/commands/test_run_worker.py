from __future__ import annotations

import pytest
from django.db import connection

from container_manager import db_guard, guarding
from tests.commands.shell import run

pytestmark = pytest.mark.django_db(transaction=True)


def test_a_worker_does_not_start_on_a_database_that_is_not_guarded() -> None:
    db_guard.uninstall(connection)
    try:
        answer = run("run_worker", "--until-idle")
        assert answer.code == 1
        assert "not guarded" in answer.err
    finally:
        guarding.after_migrate(using="default")


def test_an_unknown_executor_is_wrong_usage_and_names_those_that_there_are() -> None:
    answer = run("run_worker", "--executor", "nonesuch")
    assert answer.code == 2
    assert "'nonesuch' is not one of docker, process" in answer.err
