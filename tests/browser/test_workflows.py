"""A DAG from an empty list to its second try, in a real browser; jobs are moved by the test."""

from __future__ import annotations

from collections.abc import Callable

from playwright.sync_api import Page, expect

from container_manager.models import Dag, DagRun
from container_manager.workflows import runs
from tests.browser.conftest import PATIENCE_MILLISECONDS
from tests.support.web import Person
from tests.workflows.driving import play

DAGS = "/admin/container_manager/dag/"
expect.set_options(timeout=PATIENCE_MILLISECONDS)


def expect_state(page: Page, word: str) -> None:
    """The page comes to show that state, without being loaded again by anybody."""
    expect(page.locator("#cm-live .cm-who .cm-state")).to_have_text(word)


def test_a_dag_is_imported_mended_run_watched_and_retried(
    sign_in: Callable[[Person], Page], operator: Person
) -> None:
    page = sign_in(operator)

    # Import what the empty list proposes
    page.get_by_role("link", name="DAGs", exact=True).first.click()
    page.get_by_role("button", name="Import this example").click()
    expect(page.locator("svg.cm-graph .cm-node")).to_have_count(3)

    # A mistake is told beside its line, and shown there
    page.get_by_role("link", name="Edit").click()
    area = page.locator("[data-cm-editor] textarea")
    good = area.input_value()
    area.fill(good.replace("depends_on: [extract]", "depends_on: [extrakt]"))
    page.get_by_role("button", name="Save").click()
    expect(page.locator(".cm-problems")).to_contain_text("Did you mean 'extract'?")
    page.locator("[data-cm-line]").first.click()
    chosen = area.evaluate("area => area.value.slice(area.selectionStart, area.selectionEnd)")
    assert chosen.strip() == "depends_on: [extrakt]"
    area.fill(good)
    page.get_by_role("button", name="Save").click()
    expect(page.get_by_text("Saved.")).to_be_visible()

    # Pause and unpause it by the switch of the list
    page.goto(DAGS)
    page.get_by_role("switch").click()
    expect(page.get_by_role("switch", checked=False)).to_have_text("paused")
    page.get_by_role("switch").click()
    expect(page.get_by_role("switch", checked=True)).to_have_text("on")

    # Trigger it with another parameter, and watch it fail
    page.get_by_role("link", name="example", exact=True).click()
    page.get_by_role("link", name="Trigger…").click()
    page.get_by_label("GREETING").fill("good morning")
    page.get_by_role("button", name="Trigger").click()
    expect_state(page, "queued")
    run = DagRun.objects.get()
    assert run.params == {"GREETING": "good morning"}
    runs.start_next(Dag.objects.get().pk)
    expect_state(page, "running")
    play(run, fails=["transform"])
    expect_state(page, "failed")
    expect(page.locator(".cm-why")).to_contain_text("1 of 3 tasks failed: transform.")
    expect(page.locator(".cm-gantt-ran")).to_have_count(3)

    # From its box in the graph to the task, and once more
    page.locator("svg.cm-graph a", has_text="transform").click()
    expect_state(page, "failed")
    page.get_by_role("button", name="Retry").click()
    expect_state(page, "retrying")
    play(run)
    expect_state(page, "success")
    page.get_by_role("link", name="To the run").click()
    expect_state(page, "success")

    # No page is wider than a phone
    page.set_viewport_size({"width": 390, "height": 844})
    for address in (page.url, f"{DAGS}{run.dag_id}/change/", f"{DAGS}{run.dag_id}/edit/"):
        page.goto(address)
        too_wide = page.evaluate("document.documentElement.scrollWidth - innerWidth")
        assert too_wide <= 0, address
