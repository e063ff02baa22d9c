"""Publishers and their dead letters, as an operator steers them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from container_manager.models import DeadLetter, PublisherState
from tests.support.publisher_rows import LOG, happened, letter, publisher_row
from tests.support.web import Person, Site, some_site
from tests.support.workers import Workers

LIST = "/admin/container_manager/publisherstate/"


@pytest.fixture
def live_site(workers: Workers, tmp_path: Path) -> Iterator[Site]:
    """Its settings name two publishers; a relay that beat once is taken for alive in all tests."""
    named = json.dumps({alias: {"class": LOG, "options": {}} for alias in ("ours", "theirs")})
    settings = {"PUBLISHERS": named, "LEASE_SECONDS": "3600"}
    given = {f"CONTAINER_MANAGER_{name}": value for name, value in settings.items()}
    with some_site(tmp_path, workers, **given) as site:
        yield site


def test_an_operator_sees_what_is_wrong_and_deals_with_dead_letters(
    sign_in: Callable[[Person], Page], operator: Person, workers: Workers
) -> None:
    happened(20, ago=300)
    publisher_row("ours", position=5, failing_for=120)
    publisher_row("theirs", position=20)
    for sequence in (2, 3, 4):
        letter("ours", sequence)
    page = sign_in(operator)

    expect(page.locator(".cm-trouble")).to_contain_text("Publisher ours has failed for 2 min")
    page.click(".cm-trouble a")
    page.check("[aria-label='Event 3']")
    page.click("text=Deliver chosen again")
    expect(page.locator("[data-letter='3']")).to_contain_text("wanted again")
    assert [each.sequence for each in DeadLetter.objects.wanted()] == [3]

    page.locator("[data-letter='4'] summary").click(position={"x": 5, "y": 5})
    expect(page.locator("[data-letter='4'] pre")).to_contain_text('"exit_code": 137')
    page.check("[aria-label='Event 4']")
    page.click("text=Discard chosen…")
    expect(page.locator(".cm-confirm h2")).to_contain_text("Discard 1 dead letter?")
    page.click("button:has-text('Discard 1 dead letter')")
    expect(page.locator("[data-letter]")).to_have_count(2)
    assert DeadLetter.objects.count() == 2


def test_the_list_follows_what_happens(
    sign_in: Callable[[Person], Page], operator: Person, workers: Workers
) -> None:
    happened(20, ago=300)
    publisher_row("ours", position=5, failing_for=120)
    page = sign_in(operator)
    page.goto(LIST)
    row = page.locator("[data-publisher='ours']")
    expect(row).to_contain_text("failing")
    expect(row).to_contain_text("15 events")
    PublisherState.objects.filter(pk="ours").update(position=20, failing_since=None, failures=0)
    expect(row).to_contain_text("ok")


@pytest.mark.parametrize("width", [390, 1280])
def test_no_page_is_wider_than_the_window(
    width: int, sign_in: Callable[[Person], Page], operator: Person, workers: Workers
) -> None:
    happened(20, ago=300)
    publisher_row("ours", position=5, failing_for=120, last_error="x" * 300)
    letter("ours", error="y" * 300)
    page = sign_in(operator)
    page.set_viewport_size({"width": width, "height": 800})
    for address in (LIST, f"{LIST}of/ours/", "/admin/"):
        page.goto(address)
        expect(page.locator(".cm-page").first).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth") <= width
