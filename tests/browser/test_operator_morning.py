"""An operator's morning, with a real browser, web server and worker, in both looks of the admin."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from django.db import connection
from playwright.sync_api import Page, expect

from container_manager import lifecycle
from container_manager.models import ContainerJob, JobLog, StateHistory
from container_manager.states import JobStatus
from tests.admin.conftest import HOSTILE
from tests.browser.conftest import PATIENCE_MILLISECONDS, Console
from tests.factories import JobFactory
from tests.support.web import Person, Site, some_site
from tests.support.workers import Workers, settled, wait_for

LIST = "/admin/container_manager/containerjob/"
expect.set_options(timeout=PATIENCE_MILLISECONDS)

LOCAL = {"executor": "process", "isolation": "process", "max_retries": 0}

SignIn = Callable[[Person], Page]


@pytest.fixture(params=["on", "off"], ids=["unfold", "plain"])
def live_site(request: pytest.FixtureRequest, workers: Workers, tmp_path: Path) -> Iterator[Site]:
    if request.param == "off" and connection.vendor == "postgresql":
        pytest.skip("Django's own look is looked at on SQLite: it asks no other questions")
    with some_site(tmp_path, workers, ADMIN_UNFOLD=request.param) as site:
        yield site


def submit(name: str, script: str, **wanted: str) -> ContainerJob:
    return lifecycle.submit(
        name=name, command=["sh", "-c", script], queue_now=True, **LOCAL, **wanted
    )


def expect_state(page: Page, word: str) -> None:
    """The page of a job comes to show that state, without being loaded again by anybody."""
    expect(page.locator("#cm-live .cm-state")).to_have_text(word)


def test_an_operators_morning(
    sign_in: SignIn, operator: Person, workers: Workers, tmp_path: Path
) -> None:
    done_before = tmp_path / "done-before"
    report = submit(
        "nightly report",
        f"[ -e {done_before} ] && echo all is well && exit 0;"
        f" touch {done_before}; echo the input is missing >&2; exit 3",
    )
    submit("another one", "echo fine")
    endless = submit("endless", "i=0; while :; do i=$((i+1)); echo tick $i; sleep 0.2; done")
    workers.start().wait_until_started()
    wait_for(report, "failed")
    wait_for(endless, "running")

    page = sign_in(operator)

    # What failed, and why
    page.locator(".cm-count.cm-failed").click()
    expect(page.locator("#result_list .cm-name")).to_have_count(1)
    page.get_by_role("link", name="nightly report").click()
    expect_state(page, "failed")
    expect(page.locator(".cm-why")).to_contain_text("Exit code 3")
    expect(page.locator("#cm-log-text .cm-stderr")).to_have_text("the input is missing\n")

    # Retry it and see it finish
    page.get_by_role("button", name="Retry").click()
    expect(page.get_by_text("Retry: done (queued).")).to_be_visible()
    expect_state(page, "completed")
    expect(page.locator("#cm-log-text")).to_have_text("all is well\n")
    page.get_by_role("link", name="log", exact=True).last.click()
    expect(page.locator("#cm-log-text")).to_have_text("the input is missing\n")

    # Kill what runs, and see it gone
    page.goto(f"{LIST}?status=running")
    page.get_by_role("link", name="endless").click()
    expect_state(page, "running")
    expect(page.locator("#cm-log-text")).to_contain_text("tick 1\n")
    ticks = page.locator("#cm-log-text").inner_text().count("tick")
    expect(page.locator("#cm-log-text")).to_contain_text(f"tick {ticks + 5}\n")
    page.get_by_role("link", name="Kill…").click()
    expect_question = page.get_by_role("button", name="Kill 1 job")
    expect(page.get_by_role("link", name="endless")).to_be_visible()
    expect_question.click()
    expect_state(page, "killed")
    expect(page.locator("#cm-log-poll")).to_have_text("End of the log.")
    actors = StateHistory.objects.of(report).values_list("actor", flat=True)
    assert f"admin:{operator.name}" in actors

    # Pause a queue, and see jobs wait
    page.goto("/admin/container_manager/queue/")
    page.locator("tr[data-queue=default]").get_by_role("button", name="Pause").click()
    expect(page.locator("tr[data-queue=default] .cm-state")).to_have_text("paused")
    page.goto(f"{LIST}add/")
    page.get_by_label("Name", exact=True).fill("waits for the queue")
    page.get_by_label("Command").fill("echo 'my turn'")
    # Open already, for who submits for the first time is proposed an example with an executor
    page.get_by_label("Executor").select_option("process")
    page.get_by_role("button", name="Submit").click()
    expect_state(page, "queued")
    expect(page.locator(".cm-why")).to_contain_text("paused")
    waiting = page.url

    # Resume it, and see them go
    page.goto("/admin/container_manager/queue/")
    page.locator("tr[data-queue=default]").get_by_role("button", name="Resume").click()
    expect(page.locator("tr[data-queue=default] .cm-state")).to_have_text("open")
    page.goto(waiting)
    expect_state(page, "completed")
    expect(page.locator("#cm-log-text")).to_have_text("my turn\n")


def test_many_jobs_are_moved_by_one_action(sign_in: SignIn, operator: Person) -> None:
    able = JobFactory(name="able")
    JobFactory(name="ended", status=JobStatus.COMPLETED)
    page = sign_in(operator)
    page.goto(LIST)
    for box in page.locator("#result_list input.action-select").all():
        box.check()
    page.locator("select[name=action]").select_option("kill_jobs")
    page.locator("button[name=index]").first.click()
    expect(page.get_by_text("Left out, because their state does not allow it")).to_be_visible()
    page.get_by_role("button", name="Kill 1 job").click()
    expect(page.locator("td.cm-good")).to_have_text("killed")
    able.refresh_from_db()
    assert able.status == JobStatus.KILLED


def test_the_pages_follow_what_happens_elsewhere(sign_in: SignIn, operator: Person) -> None:
    job = JobFactory(name="watched")
    page = sign_in(operator)
    pending = page.locator(".cm-count.cm-pending b")
    expect(pending).to_have_text("1")
    JobFactory.create_batch(2)
    expect(pending).to_have_text("3")
    page.goto(LIST)
    lifecycle.enqueue([job.pk])
    expect(page.locator(".cm-count.cm-queued b")).to_have_text("1")
    page.get_by_role("link", name="watched").click()
    expect_state(page, "queued")
    lifecycle.stop([job.pk], lifecycle.StopKind.CANCEL)
    expect_state(page, "cancelled")
    expect(page.get_by_role("button", name="Kill")).to_have_count(0)


def test_rows_that_may_be_old_say_so(sign_in: SignIn, operator: Person) -> None:
    job = JobFactory(name="watched")
    page = sign_in(operator)
    page.goto(LIST)
    stale = page.locator("#cm-stale")
    expect(page.locator(".cm-count.cm-pending b")).to_have_text("1")
    expect(stale).to_be_hidden()
    lifecycle.stop([job.pk], lifecycle.StopKind.CANCEL)
    expect(stale).to_be_visible()
    stale.get_by_role("link").click()
    expect(page.locator("#result_list .cm-state")).to_have_text("cancelled")
    expect(stale).to_be_hidden()


def test_who_works_by_keyboard_keeps_the_place_when_a_page_follows(
    sign_in: SignIn, operator: Person
) -> None:
    page = sign_in(operator)
    for place in ("#cm-edit", "#cm-again", "#cm-live .cm-id"):
        job = JobFactory()
        page.goto(f"{LIST}{job.pk}/change/")
        expect_state(page, "pending")
        page.locator(place).focus()
        lifecycle.enqueue([job.pk])
        expect_state(page, "queued")
        expect(page.locator(place)).to_be_focused()


def test_a_page_of_a_job_that_is_deleted_says_so_and_asks_no_more(
    sign_in: SignIn, operator: Person, console: Console
) -> None:
    job = JobFactory()
    page = sign_in(operator)
    page.goto(f"{LIST}{job.pk}/change/")
    console.expect("404")
    ContainerJob.objects.filter(pk=job.pk).delete()
    expect(page.locator("body.cm-gone")).to_be_visible()
    expect(page.locator(".cm-page [hx-get]")).to_have_count(0)


def test_a_second_click_submits_nothing(sign_in: SignIn, operator: Person) -> None:
    page = sign_in(operator)
    page.goto(f"{LIST}add/")
    page.get_by_label("Image", exact=True).fill("busybox")
    page.get_by_label("Command").fill("true")
    page.get_by_role("button", name="Submit").dblclick()
    page.wait_for_url(re.compile("/change/"))
    assert ContainerJob.objects.count() == 1


def test_no_page_is_wider_than_a_phone(sign_in: SignIn, operator: Person) -> None:
    job = JobFactory(name="a-name-without-any-space-" * 8, queue="a-long-name-of-a-queue-" * 4)
    page = sign_in(operator)
    page.set_viewport_size({"width": 390, "height": 844})
    own = f"{LIST}{job.pk}/change/"
    for address in (own, f"{LIST}add/", "/admin/container_manager/queue/"):
        page.goto(address)
        too_wide = page.evaluate("document.documentElement.scrollWidth - innerWidth")
        assert too_wide <= 0, address
        for form in page.locator(".cm-card > form.cm-inline > *:not([type=hidden])").all():
            box = form.bounding_box()
            assert box is not None
            assert box["x"] + box["width"] <= 390, address
    page.goto(LIST)
    name = page.locator("#result_list .cm-name")
    box = name.bounding_box()
    assert box is not None
    assert box["x"] + box["width"] <= 390


def test_hostile_text_does_nothing_in_a_real_browser(sign_in: SignIn, operator: Person) -> None:
    job = JobFactory(
        name=HOSTILE,
        labels={"x": HOSTILE},
        error=HOSTILE,
        command=["sh", HOSTILE],
        status=JobStatus.FAILED,
    )
    ContainerJob.objects.filter(pk=job.pk).update(queue=HOSTILE[:100], image=HOSTILE)
    log = f"{HOSTILE}\x1b]8;;javascript:alert(4)\x07click\x1b]8;;\x07\n".encode()
    JobLog.objects.create(job=job, attempt=1, stream="stdout", offset=0, data=log)
    page = sign_in(operator)
    dialogs: list[str] = []
    page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
    own = f"{LIST}{job.pk}/change/"
    add = f"{LIST}add/?like={job.pk}"
    queues = "/admin/container_manager/queue/"
    for address in ("/admin/", LIST, own, add, queues, f"{LIST}do/cancel/?ids={job.pk}"):
        page.goto(address)
        expect(page.get_by_text("<script>alert(1)").first).to_be_attached()
        page.wait_for_load_state("networkidle") if address == add else None
    page.goto(own)
    expect(page.locator("#cm-log-text")).to_contain_text("click")
    assert page.locator("#cm-log-text a").count() == 0
    with page.expect_download() as downloading:
        page.get_by_role("link", name="stdout raw").click()
    assert Path(downloading.value.path()).read_bytes() == log
    assert dialogs == []


def test_an_id_is_copied_whole(sign_in: SignIn, operator: Person) -> None:
    job = JobFactory()
    page = sign_in(operator)
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.goto(f"{LIST}{job.pk}/change/")
    page.locator("#cm-live .cm-id").click()
    expect(page.locator("#cm-live .cm-id.cm-copied")).to_be_visible()
    assert page.evaluate("navigator.clipboard.readText()") == str(job.pk)


def test_an_example_can_be_submitted_on_an_empty_installation(
    sign_in: SignIn, operator: Person, workers: Workers
) -> None:
    workers.start().wait_until_started()
    page = sign_in(operator)
    page.get_by_role("link", name="Submit the first one.").click()
    page.get_by_role("button", name="Submit").click()
    page.wait_for_url(re.compile("/change/"))
    expect_state(page, "completed")
    assert settled(ContainerJob.objects.get()).exit_code == 0
