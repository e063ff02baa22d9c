"""Publishers and their dead letters in the admin, and the notice on the first page."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import uuid4

import pytest
from django.contrib.admin.models import LogEntry
from django.test import Client

from container_manager.models import DeadLetter
from tests.admin.conftest import HOSTILE, url
from tests.support.publisher_rows import configured, happened, letter, named, publisher_row

__all__ = ["configured", "named"]

PUBLISHERS = "/admin/container_manager/publisherstate/"


def page_url(alias: str = "ours") -> str:
    return url("letters", alias, model="publisherstate")


def steer(client: Client, decision: str, *letters: DeadLetter, sure: bool = True) -> Any:
    told = {"decision": decision, "letter": [str(each.pk) for each in letters]}
    if sure:
        told["sure"] = "yes"
    return client.post(url("steer", "ours", model="publisherstate"), told, follow=True)


def test_publishers_are_shown_in_words(operator: Client, named: Callable[..., None]) -> None:
    named("ours", "away", "late", "new")
    happened(5, ago=300)
    publisher_row("ours", position=5)
    publisher_row("away", position=2, failing_for=90)
    publisher_row("late", position=2)
    publisher_row("gone", position=5)
    letter("away")
    for address in (PUBLISHERS, url("live", model="publisherstate")):
        page = operator.get(address).content.decode()
        for word in ("ok", "failing", "behind", "waiting", "removed"):
            assert f">{word}</span>" in page
        assert "https://hooks.example.org answered 503" in page
        assert "3 events" in page
        assert page_url("away") in page


def test_without_publishers_the_page_says_how_to_name_one(
    operator: Client, named: Callable[..., None]
) -> None:
    named()
    assert "PUBLISHERS" in operator.get(PUBLISHERS).content.decode()


def test_dead_letters_are_shown_with_their_event(operator: Client) -> None:
    publisher_row(failing_for=90)
    made = letter(sequence=4711)
    page = operator.get(page_url()).content.decode()
    assert "4711" in page
    assert "running" in page
    assert "answered 422" in page
    assert "&quot;exit_code&quot;: 137" in page
    assert url("change", made.event["entity_id"]) in page


@pytest.mark.parametrize(
    "event",
    [{}, [], "text", {"entity_type": "job"}, {"entity_type": [], "entity_id": 7}],
)
def test_an_event_that_is_none_is_shown_all_the_same(operator: Client, event: Any) -> None:
    publisher_row()
    letter(event=event)
    assert operator.get(page_url()).status_code == 200


def test_what_others_say_is_text(operator: Client, named: Callable[..., None]) -> None:
    named()
    publisher_row(HOSTILE.replace("/", "")[:64])
    publisher_row("ours", failing_for=90, last_error=HOSTILE)
    letter(error=HOSTILE, event={"entity_type": HOSTILE, "new_state": HOSTILE, "x": HOSTILE})
    for address in (PUBLISHERS, page_url(), "/admin/"):
        page = operator.get(address).content.decode()
        assert "<script>alert" not in page
        assert "<img src=x" not in page


def test_many_letters_come_in_pages(operator: Client) -> None:
    publisher_row()
    for number in range(60):
        letter(sequence=number)
    assert operator.get(page_url()).content.decode().count("data-letter") == 50
    assert operator.get(f"{page_url()}?page=2").content.decode().count("data-letter") == 10
    assert operator.get(f"{page_url()}?page=x").status_code == 200


def test_chosen_letters_are_asked_for_again(operator: Client, named: Callable[..., None]) -> None:
    named("ours")
    publisher_row()
    first, _second = letter(sequence=1), letter(sequence=2)
    page = steer(operator, "redeliver", first).content.decode()
    assert "1 dead letter will be delivered again" in page
    assert "wanted again" in page
    assert [each.sequence for each in DeadLetter.objects.wanted()] == [1]
    assert LogEntry.objects.get().object_id == "ours"
    steer(operator, "redeliver_all")
    assert DeadLetter.objects.wanted().count() == 2


def test_discarding_is_asked_twice(operator: Client) -> None:
    publisher_row()
    first, second = letter(sequence=1), letter(sequence=2)
    asked = steer(operator, "discard", first, sure=False).content.decode()
    assert "Discard 1 dead letter?" in asked
    assert str(first.pk) in asked
    assert DeadLetter.objects.count() == 2
    assert "1 dead letter discarded" in steer(operator, "discard", first).content.decode()
    assert list(DeadLetter.objects.all()) == [second]
    assert "Discard 1 dead letter?" in steer(operator, "discard_all", sure=False).content.decode()
    steer(operator, "discard_all")
    assert not DeadLetter.objects.exists()


@pytest.mark.parametrize("decision", ["redeliver", "discard"])
def test_who_chooses_nothing_is_told(
    operator: Client, named: Callable[..., None], decision: str
) -> None:
    named("ours")
    publisher_row()
    letter("theirs")
    address = url("steer", "ours", model="publisherstate")
    told = {"decision": decision, "sure": "yes", "letter": ["", "x", str(uuid4())]}
    assert "choose dead letters first" in operator.post(address, told, follow=True).content.decode()
    assert DeadLetter.objects.filter(wanted_at=None).count() == 1


@pytest.mark.parametrize("decision", ["", "nonsense", "redeliver_everything", "all"])
def test_other_decisions_are_refused(operator: Client, decision: str) -> None:
    publisher_row()
    letter()
    assert steer(operator, decision).status_code == 403
    assert DeadLetter.objects.filter(wanted_at=None).count() == 1


def test_what_the_settings_do_not_name_is_only_discarded(operator: Client) -> None:
    publisher_row()
    letter()
    page = operator.get(page_url()).content.decode()
    assert "Discard all" in page
    assert "Deliver all again" not in page
    assert steer(operator, "redeliver_all").status_code == 403
    assert not DeadLetter.objects.wanted().exists()


def test_looking_changes_nothing(operator: Client) -> None:
    publisher_row()
    letter()
    address = url("steer", "ours", model="publisherstate")
    assert operator.get(address, {"decision": "discard_all", "sure": "yes"}).status_code == 403
    assert DeadLetter.objects.exists()


def test_who_may_look_steers_nothing(
    person: Callable[..., Client], named: Callable[..., None]
) -> None:
    named("ours")
    publisher_row()
    letter()
    viewer = person("viewer", "view_containerjob")
    page = viewer.get(page_url())
    assert page.status_code == 200
    assert "Deliver all again" not in page.content.decode()
    for decision in ("redeliver_all", "discard_all"):
        assert steer(viewer, decision).status_code == 403
    assert DeadLetter.objects.filter(wanted_at=None).count() == 1


def test_others_see_nothing(person: Callable[..., Client]) -> None:
    publisher_row()
    other = person("other")
    for address in (PUBLISHERS, page_url(), url("live", model="publisherstate")):
        assert other.get(address).status_code == 403


def test_a_publisher_that_is_not_there_is_404(operator: Client) -> None:
    publisher_row()
    assert operator.get(page_url("nobody")).status_code == 404


def test_there_is_nothing_to_add_change_or_delete(operator: Client) -> None:
    publisher_row()
    for below in ("add/", "ours/change/", "ours/delete/", "ours/history/"):
        assert operator.get(PUBLISHERS + below).status_code == 404


# The first page -----------------------------------------------------------------------------------


def trouble(client: Client) -> list[str]:
    for address in ("/admin/", url("dashboard")):
        answer = client.get(address)
        told = [each.alias for each in answer.context["troubled"]]
        assert answer.content.decode().count("cm-trouble") == len(told)
    return told


def test_the_first_page_tells_of_publishers_that_need_somebody(
    operator: Client, named: Callable[..., None]
) -> None:
    named("ours", "brief", "dead", "well", "left")
    happened(2, ago=90)
    publisher_row("ours", failing_for=70, position=1)
    publisher_row("brief", failing_for=20)
    publisher_row("dead", position=2)
    publisher_row("well", position=2)
    publisher_row("left", position=0, holder=None)
    letter("dead")
    assert trouble(operator) == ["dead", "left", "ours"]
    page = operator.get("/admin/").content.decode()
    assert page_url("ours") in page
    assert "https://hooks.example.org answered 503" in page
    assert "1 event waits" in page
    assert "1 dead letter" in page
    assert "is served by no relay, 2 events wait" in page


def test_who_sees_no_publishers_is_not_told_of_them(person: Callable[..., Client]) -> None:
    publisher_row(failing_for=600)
    assert "hooks.example.org" not in person("other").get("/admin/").content.decode()
