"""The ground of the browser tests itself."""

from __future__ import annotations

from collections.abc import Callable

from playwright.sync_api import Page, expect

from container_manager import lifecycle
from tests.browser.conftest import Console
from tests.support.web import Person, Site
from tests.support.workers import Workers, settled


def test_the_root_leads_to_the_login_of_the_admin(page: Page, live_site: Site) -> None:
    page.goto("/")
    assert page.url == f"{live_site.url}/admin/login/?next=/admin/"


def test_an_operator_can_log_in_by_the_form(
    sign_in: Callable[[Person], Page], operator: Person, live_site: Site
) -> None:
    page = sign_in(operator)
    assert page.url == f"{live_site.url}/admin/"


def test_a_wrong_password_does_not_log_in(page: Page, operator: Person) -> None:
    page.goto("/admin/login/")
    page.fill("input[name=username]", operator.name)
    page.fill("input[name=password]", "not this one")
    page.click("[type=submit]")
    expect(page.get_by_text("Please enter the correct username and password")).to_be_visible()


def test_a_worker_beside_the_site_runs_jobs(page: Page, workers: Workers) -> None:
    workers.start().wait_until_started()
    job = lifecycle.submit(
        name="hello", command="echo hello", executor="process", isolation="process", queue_now=True
    )
    assert settled(job).status == "completed"


def test_an_error_in_the_console_is_noticed(page: Page, console: Console) -> None:
    page.goto("/admin/login/")
    page.evaluate("console.error('something broke'), setTimeout(() => nonesuch(), 0)")
    page.wait_for_function("true")
    page.wait_for_timeout(100)
    told = console.unexpected()
    assert [line.split(" (")[0] for line in told if "something broke" in line]
    assert any("nonesuch is not defined" in line for line in told)
    console.expect("something broke")
    console.expect("nonesuch")
    assert console.unexpected() == []


def test_a_page_that_is_not_there_is_told_by_the_console(page: Page, console: Console) -> None:
    page.goto("/nonesuch/")
    assert any("404" in line for line in console.unexpected())
    console.expect("404")
