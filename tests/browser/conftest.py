"""A real Chromium, and the site that it looks at.

    def test_something(page, live_site, operator): ...

`page` is new for each test and fails it when the browser's console tells an error that was not
expected (`console.expect("409")`). `sign_in(operator)` gives a page that is logged in. What a
failed test looked like is kept in var/browser.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import BrowserContext, ConsoleMessage, Page

from tests.support import chromium
from tests.support.web import Person, Site, live_site, member, operator, superuser, workers

__all__ = ["live_site", "member", "operator", "superuser", "workers"]

HERE = Path(__file__).parent
PATIENCE_MILLISECONDS = 30_000


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> Iterator[None]:
    """All tests of this directory need a browser; they come last, see `_database_in_reach`."""
    for item in filter(_is_ours, items):
        item.add_marker(pytest.mark.browser)
        if why := chromium.why_not():
            item.add_marker(pytest.mark.skip(reason=why))
    yield
    items.sort(key=_is_ours)


def _is_ours(item: pytest.Item) -> bool:
    return HERE in item.path.parents


@pytest.fixture(scope="session", autouse=True)
def _database_in_reach() -> Iterator[None]:
    """Playwright leaves an event loop in this thread, at which Django's ORM would take offence."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DJANGO_ALLOW_ASYNC_UNSAFE", "true")
        yield


@pytest.fixture(scope="session")
def base_url() -> None:
    """Each test has a site of its own; the plugin's fixture of this name warns under pytest 9."""


@pytest.fixture(scope="session")
def browser_type_launch_args(browser_type_launch_args: dict[str, Any]) -> dict[str, Any]:
    ours = {"executable_path": chromium.path(), "args": chromium.ARGUMENTS}
    return {**browser_type_launch_args, **ours}


@pytest.fixture(scope="session")
def browser_context_args(browser_context_args: dict[str, Any]) -> dict[str, Any]:
    """A laptop's window; a test may ask for another by `browser_context_args` as a marker."""
    return {"viewport": {"width": 1366, "height": 900}, **browser_context_args}


class Console:
    """What the browser's console tells; errors that a test does not expect fail it."""

    def __init__(self, context: BrowserContext) -> None:
        self.errors: list[str] = []
        self._expected: list[str] = []
        context.on("console", self._hear)
        context.on("weberror", lambda error: self.errors.append(f"uncaught: {error.error}"))

    def expect(self, words: str) -> None:
        """Errors with these words in them are part of the test."""
        self._expected.append(words)

    def unexpected(self) -> list[str]:
        return [
            error for error in self.errors if not any(words in error for words in self._expected)
        ]

    def _hear(self, message: ConsoleMessage) -> None:
        if message.type == "error":
            self.errors.append(f"{message.text} ({message.location.get('url', '')})")


@pytest.fixture
def console(context: BrowserContext) -> Iterator[Console]:
    console = Console(context)
    yield console
    assert console.unexpected() == [], "the browser's console tells errors"


@pytest.fixture
def page(context: BrowserContext, console: Console, live_site: Site) -> Page:
    """A page of a fresh browser profile, nobody logged in; `page.goto("/admin/")` is enough."""
    context.set_default_timeout(PATIENCE_MILLISECONDS)
    return context.new_page()


@pytest.fixture
def context(new_context: Callable[..., BrowserContext], live_site: Site) -> BrowserContext:
    """Closed before the site ends."""
    return new_context(base_url=live_site.url)


@pytest.fixture
def sign_in(page: Page) -> Callable[[Person], Page]:
    """Logs somebody in as people do, by the form."""

    def sign_in(person: Person) -> Page:
        page.goto("/admin/login/")
        page.fill("input[name=username]", person.name)
        page.fill("input[name=password]", person.password)
        page.click("[type=submit]")
        page.wait_for_url("**/admin/")
        return page

    return sign_in
