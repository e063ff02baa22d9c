"""Publishers and their dead letters, as operators see and steer them."""

from __future__ import annotations

from datetime import timedelta
from uuid import uuid4

import pytest
from django.utils import timezone

from container_manager.models import DeadLetter, Event, PublisherState
from container_manager.models.sequencing import take_all
from tests.factories import JobFactory
from tests.support.api import Api, a_person, an_operator, problem
from tests.support.publisher_rows import LOG, configured, happened, letter, named, publisher_row

__all__ = ["configured", "named"]

pytestmark = pytest.mark.django_db

ADDRESSES = ["publishers/", "publishers/ours/", "publishers/ours/dead-letters/"]
VERBS = ["redeliver", "discard"]


@pytest.fixture
def api():
    return Api(an_operator())


def do(api, verb, body, alias="ours"):
    return api.post(f"publishers/{alias}/dead-letters/{verb}/", body)


# Who may ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("address", ADDRESSES)
def test_publishers_are_for_operators(address):
    publisher_row()
    problem(Api().get(address), 401, "not_authenticated")
    for user in (a_person(), a_person("view_containerjob")):
        problem(Api(user).get(address), 403, "permission_denied")


@pytest.mark.parametrize("verb", VERBS)
def test_others_do_nothing_to_dead_letters(verb):
    publisher_row()
    made = letter()
    problem(do(Api(), verb, {"all": True}), 401, "not_authenticated")
    for user in (a_person(), a_person("view_containerjob")):
        problem(do(Api(user), verb, {"all": True}), 403, "permission_denied")
    assert DeadLetter.objects.get(pk=made.pk).wanted_at is None


@pytest.mark.parametrize("address", ADDRESSES)
def test_they_are_not_changed_by_other_methods(address, api):
    publisher_row()
    for method in ("POST", "PUT", "PATCH", "DELETE"):
        problem(api.send(method, address, {}), 405, "method_not_allowed")


@pytest.mark.parametrize("verb", VERBS)
def test_nothing_is_done_by_looking(verb, api):
    publisher_row()
    letter()
    problem(api.get(f"publishers/ours/dead-letters/{verb}/"), 405, "method_not_allowed")


# What is told -------------------------------------------------------------------------------------


def test_without_publishers_there_are_none(api, named):
    named()
    assert api.get("publishers/").json()["results"] == []


def test_a_publisher_tells_how_far_it_has_come(api, named):
    named("ours")
    happened(3, ago=600)
    happened(2, ago=100)
    delivered = timezone.now() - timedelta(seconds=200)
    publisher_row(position=3, delivered_at=delivered)
    (told,) = api.get("publishers/").json()["results"]
    assert (told["alias"], told["path"], told["state"]) == ("ours", LOG, "behind")
    assert (told["position"], told["lag"]) == (3, 2)
    assert 100 <= told["lag_seconds"] < 200
    assert told["delivered_at"] == delivered.isoformat()
    assert (told["failing_since"], told["failures"], told["last_error"]) == (None, 0, "")
    assert api.get("publishers/ours").json()["position"] == 3


def test_one_that_has_delivered_all_is_well(api, named):
    named("ours")
    happened(3, ago=600)
    publisher_row(position=3)
    told = api.get("publishers/ours/").json()
    assert (told["state"], told["lag"], told["lag_seconds"]) == ("ok", 0, 0.0)


def test_one_that_fails_tells_since_when_and_why(api, named):
    named("ours")
    publisher_row(failing_for=90)
    told = api.get("publishers/ours/").json()
    assert told["state"] == "failing"
    assert 90 <= told["failing_seconds"] < 150
    assert (told["failures"], told["last_error"]) == (3, "https://hooks.example.org answered 503")


def test_the_age_of_what_waits_is_told_when_the_oldest_was_thrown_away(api, named):
    named("ours")
    happened(3, ago=600)
    publisher_row(position=0)
    Event.objects.filter(sequence=1).delete()
    assert 600 <= api.get("publishers/ours/").json()["lag_seconds"] < 700


def test_one_whose_receiver_refuses_an_event_says_which(api, named):
    named("ours")
    publisher_row(failing_for=5, refused=7, tries=2)
    told = api.get("publishers/ours/").json()
    assert (told["state"], told["refused"], told["tries"]) == ("refused", 7, 2)


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("how", [{"holder": None}, {"updated_at": 1_000}])
def test_one_that_no_relay_serves_is_waiting_and_what_has_no_place_yet_counts(how, api, named):
    named("ours")
    ago = how.pop("updated_at", 0)
    publisher_row(**how, updated_at=timezone.now() - timedelta(seconds=ago))
    assert api.get("publishers/ours/").json()["lag"] == 0
    for _ in range(3):
        JobFactory()
    told = api.get("publishers/ours/").json()
    assert (told["state"], told["lag"]) == ("waiting", 3)
    assert told["lag_seconds"] > 0
    take_all()
    assert api.get("publishers/ours/").json()["lag"] == 3


def test_one_that_no_relay_has_served_and_one_that_is_gone_from_the_settings(api, named):
    named("new")
    publisher_row("old", position=5)
    letter("older")
    told = {each["alias"]: each for each in api.get("publishers/").json()["results"]}
    assert {alias: each["state"] for alias, each in told.items()} == {
        "new": "waiting",
        "old": "removed",
        "older": "removed",
    }
    assert told["older"]["dead_letters"] == 1


@pytest.mark.parametrize("alias", ["nobody", "%00", "ours%20", "..%2e", "x" * 200, "OURS"])
@pytest.mark.parametrize("below", ["", "dead-letters/"])
def test_a_publisher_that_is_not_there_is_404(alias, below, api):
    publisher_row()
    problem(api.get(f"publishers/{alias}/{below}"), 404, "not_found")


@pytest.mark.parametrize("address", ADDRESSES)
def test_unknown_parameters_are_refused(address, api):
    publisher_row()
    assert list(problem(api.get(address, owner="x"), 400, "invalid")["errors"]) == ["owner"]


def test_they_come_in_pages(api, named):
    named(*(f"p{number}" for number in range(5)))
    told = api.get("publishers/", limit=2, offset=2).json()
    assert ([each["alias"] for each in told["results"]], told["count"]) == (["p2", "p3"], 5)


def test_lists_cost_no_query_per_row(api, named, django_assert_max_num_queries):
    named(*(f"p{number}" for number in range(20)))
    happened(20, ago=60)
    for number in range(20):
        publisher_row(f"p{number}", position=number)
        letter(f"p{number}", number)
    with django_assert_max_num_queries(4 + 8):
        assert api.get("publishers/", limit=100).json()["count"] == 20


# Dead letters -------------------------------------------------------------------------------------


def test_dead_letters_are_listed_with_their_event_as_they_happened(api):
    publisher_row()
    second, first = letter(sequence=7), letter(sequence=5)
    letter("theirs", 6)
    told = api.get("publishers/ours/dead-letters/").json()
    assert [each["id"] for each in told["results"]] == [str(first.pk), str(second.pk)]
    assert told["count"] == 2
    assert told["results"][0]["event"] == first.event
    assert (told["results"][0]["tries"], told["results"][0]["wanted_at"]) == (10, None)
    assert "422" in told["results"][0]["error"]
    assert len(api.get("publishers/ours/dead-letters/", limit=1).json()["results"]) == 1


def test_chosen_ones_are_asked_for_again(api, named):
    named("ours")
    publisher_row()
    first, second, theirs = letter(sequence=1), letter(sequence=2), letter("theirs", 1)
    answer = do(api, "redeliver", {"ids": [str(first.pk), str(theirs.pk), str(uuid4())]})
    assert (answer.status_code, answer.json()) == (202, {"letters": 1})
    wanted = set(DeadLetter.objects.wanted().values_list("pk", flat=True))
    assert wanted == {first.pk}
    assert api.get("publishers/ours/").json()["wanted_letters"] == 1
    assert do(api, "redeliver", {"all": True}).json() == {"letters": 2}
    assert set(DeadLetter.objects.wanted().values_list("pk", flat=True)) == {first.pk, second.pk}


def test_chosen_ones_are_discarded(api):
    publisher_row()
    first, second, theirs = letter(sequence=1), letter(sequence=2), letter("theirs", 1)
    assert do(api, "discard", {"ids": [str(first.pk), str(theirs.pk)]}).json() == {"letters": 1}
    assert set(DeadLetter.objects.all()) == {second, theirs}
    assert do(api, "discard", {"all": True}).json() == {"letters": 1}
    assert set(DeadLetter.objects.all()) == {theirs}
    assert PublisherState.objects.exists()


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"ids": []},
        {"ids": ["x"]},
        {"ids": [7]},
        {"ids": [None]},
        {"ids": "all"},
        {"ids": [str(uuid4())] * 1_001},
        {"all": False},
        {"all": "true"},
        {"all": None},
        {"all": True, "ids": [str(uuid4())]},
        {"everything": True},
        [],
    ],
)
@pytest.mark.parametrize("verb", VERBS)
def test_who_does_not_say_which_does_nothing(verb, body, api, named):
    named("ours")
    publisher_row()
    letter()
    problem(do(api, verb, body), 400, "invalid")
    assert DeadLetter.objects.filter(wanted_at=None).count() == 1


@pytest.mark.parametrize("verb", VERBS)
def test_letters_of_nobody_are_404(verb, api):
    problem(do(api, verb, {"all": True}, alias="nobody"), 404, "not_found")


def test_nobody_delivers_letters_of_a_publisher_that_is_gone_from_the_settings(api):
    publisher_row()
    letter()
    problem(do(api, "redeliver", {"all": True}), 409, "publisher_removed")
    assert not DeadLetter.objects.wanted().exists()
    assert do(api, "discard", {"all": True}).json() == {"letters": 1}
