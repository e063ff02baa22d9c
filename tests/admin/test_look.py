"""Both looks, and what a browser is allowed to run."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from django.apps import apps
from django.test import Client

from tests.admin.conftest import LIST, page_of, url
from tests.factories import JobFactory
from tests.support.fleet import worker_row
from tests.workflows.driving import begun, play, task, task_of

HERE = Path(__file__).resolve().parent

with_unfold = pytest.mark.skipif(
    not apps.is_installed("unfold"), reason="the tests run in Django's own look"
)


@with_unfold
def test_everything_works_in_djangos_own_look_too() -> None:
    """Some tests of this directory once more, without unfold, on a database of their own."""
    mine = ("DATABASE_URL", "PYTEST_")
    kept = {name: text for name, text in os.environ.items() if not name.startswith(mine)}
    files = [str(HERE / f"test_{name}.py") for name in ("look", "machinery", "rights")]
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files],
        cwd=HERE.parents[1],
        env={**kept, "ADMIN_UNFOLD": "off"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout[-8000:] + ran.stderr[-2000:]


def test_the_look_is_the_one_that_was_asked_for(operator: Client) -> None:
    page = operator.get("/admin/").content.decode()
    assert ("unfold/css/styles.css" in page) == apps.is_installed("unfold")
    assert ("admin/css/base.css" in page) != apps.is_installed("unfold")


def policy(client: Client, address: str) -> dict[str, list[str]]:
    header = client.get(address)["Content-Security-Policy"]
    words = [part.split() for part in header.split(";") if part.strip()]
    return {name: sources for name, *sources in words}


def test_no_script_that_is_written_into_a_page_may_run(operator: Client) -> None:
    one = JobFactory()
    for address in ("/admin/", "/admin/login/", LIST, page_of(one), url("add")):
        allowed = policy(operator, address)
        assert allowed["default-src"] == ["'none'"]
        assert {*allowed["script-src"]} <= {"'self'", "'unsafe-eval'"}
        assert allowed["style-src"] == ["'self'"]
        assert allowed["frame-ancestors"] == ["'none'"]
    if not apps.is_installed("unfold"):
        assert allowed["script-src"] == ["'self'"]
        assert allowed["style-src-attr"] == ["'none'"]


def test_no_page_needs_what_the_policy_forbids(operator: Client) -> None:
    one = JobFactory(status="running")
    worker_row()
    pages = ["/admin/", LIST, page_of(one), url("add"), url("edit", one.pk)]
    pages += [url("changelist", model=model) for model in ("queue", "worker")]
    pages += [f"{url('do', 'kill')}?ids={one.pk}", "/admin/login/"]
    pages += pages_of_workflows()
    for address in pages:
        page = operator.get(address).content.decode()
        assert not re.search(r"<script(?![^>]*\bsrc=)[^>]*>", page), address
        assert not re.search(r"<style|\son\w+=[\"']|href=[\"']javascript:", page), address
        own = page.partition('class="cm-page')[2]
        assert " style=" not in own, address
        assert not re.search(r"(?:src|href)=[\"'](?:https?:)?//(?!testserver)", page), address


def pages_of_workflows() -> list[str]:
    run = play(begun({"a": task(), "b": task("a")}, schedule="@daily"), fails=["a"])
    pages = [url("changelist", model=model) for model in ("dag", "dagrun", "taskinstance")]
    own = ("change", "edit", "trigger", "backfill", "delete")
    pages += [url(page, run.dag_id, model="dag") for page in own]
    pages += [url("change", run.pk, model="dagrun"), url("do", run.pk, "cancel", model="dagrun")]
    return [*pages, url("change", task_of(run, "a").pk, model="taskinstance")]


def test_users_and_groups_have_the_look_of_the_others(person: object) -> None:
    client = person("root", is_superuser=True)  # type: ignore[operator]
    for address in ("/admin/auth/user/", "/admin/auth/group/add/", "/admin/auth/user/add/"):
        assert client.get(address).status_code == 200
