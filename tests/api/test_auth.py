"""Tokens, sessions, and who one is."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from django.contrib.auth import get_user_model
from django.core.cache import cache
from django.test import Client
from django.utils import timezone
from knox.models import AuthToken

from tests.support.api import ROOT, Api, an_operator, problem

pytestmark = pytest.mark.django_db
PASSWORD = "only-for-this-test"


@pytest.fixture(autouse=True)
def _no_tries_yet():
    cache.clear()


@pytest.fixture
def ada():
    return get_user_model().objects.create_user("ada", password=PASSWORD, first_name="Ada")


def login(username: Any = "ada", password: Any = PASSWORD, **more: Any) -> Any:
    return Api().post("auth/login/", {"username": username, "password": password, **more})


def with_token(token: str) -> Api:
    return Api(Authorization=f"Token {token}")


# Tokens


def test_a_token_for_name_and_password(ada):
    answer = login()
    told = answer.json()
    assert answer.status_code == 200
    assert answer.headers["Cache-Control"] == "no-store"
    assert told["user"] == {
        "username": "ada",
        "name": "Ada",
        "operator": False,
        "sees_all": False,
    }
    assert told["expiry"] > timezone.now().isoformat()
    assert with_token(told["token"]).get("auth/me/").json() == told["user"]
    ada.refresh_from_db()
    assert ada.last_login is not None


def test_of_a_token_only_its_hash_is_kept(ada):
    token = login().json()["token"]
    row = AuthToken.objects.get()
    assert token not in f"{row.digest} {row.token_key}"
    assert len(row.token_key) < len(token) / 2


def test_a_wrong_password_an_unknown_name_and_an_inactive_user_get_the_same_answer(ada):
    get_user_model().objects.create_user("gone", password=PASSWORD, is_active=False)
    answers = [login(password="wrong"), login("nobody"), login("gone"), login("gone", "wrong")]
    for answer in answers:
        problem(answer, 401, "wrong_credentials")
        assert answer.headers["WWW-Authenticate"] == "Token"
    assert len({answer.content for answer in answers}) == 1
    assert not AuthToken.objects.exists()


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        ({}, {"username", "password"}),
        ({"username": "ada"}, {"password"}),
        ({"username": None, "password": 1}, {"username", "password"}),
        ({"username": "ada", "password": PASSWORD, "otp": "1"}, {"otp"}),
    ],
)
def test_a_login_that_is_no_login_is_refused_by_field(body, fields, ada):
    told = problem(Api().post("auth/login/", body), 400, "invalid")
    assert set(told["errors"]) == fields


@pytest.mark.parametrize("body", [b"{", b"[]", b'"ada"', b"", b'{"username": "\\u0000"}'])
def test_a_body_that_is_no_login_is_refused(body):
    answer = Client().generic("POST", f"{ROOT}auth/login/", body, "application/json")
    assert answer.status_code == 400


@pytest.mark.parametrize("field", ["username", "password"])
def test_endless_names_and_passwords_are_refused_unhashed(field, ada):
    told = problem(login(**{field: "x" * 5000}), 400, "invalid")
    assert list(told["errors"]) == [field]


@pytest.mark.parametrize(
    "token", ["x", "0" * 64, "ä", "\x00", "' OR 1=1", "", "a b", "0" * 5000, "{}"]
)
def test_a_token_that_nobody_got_is_401(token, ada):
    answer = Api(Authorization=f"Token {token}").get("auth/me/")
    assert answer.status_code in ((400, 401) if "\0" in token else (401,))
    if answer.status_code == 401:
        assert answer.headers["WWW-Authenticate"] == "Token"


def test_an_expired_token_is_401(ada):
    token = login().json()["token"]
    AuthToken.objects.update(expiry=timezone.now() - timedelta(seconds=1))
    problem(with_token(token).get("auth/me/"), 401, "not_authenticated")


def test_the_token_of_somebody_who_was_made_inactive_is_401(ada):
    token = login().json()["token"]
    ada.is_active = False
    ada.save()
    problem(with_token(token).get("auth/me/"), 401, "not_authenticated")


def test_logging_out_ends_this_token_only(ada):
    one, other = login().json()["token"], login().json()["token"]
    assert with_token(one).post("auth/logout/").status_code == 204
    assert with_token(one).get("auth/me/").status_code == 401
    assert with_token(other).get("auth/me/").status_code == 200


def test_logging_out_everywhere_ends_all_tokens_of_this_person(ada):
    one, other = login().json()["token"], login().json()["token"]
    _, of_somebody_else = AuthToken.objects.create(an_operator())
    assert with_token(one).post("auth/logout-all/").status_code == 204
    assert with_token(other).get("auth/me/").status_code == 401
    assert with_token(of_somebody_else).get("auth/me/").status_code == 200


@pytest.mark.parametrize("address", ["auth/login/", "auth/logout/", "auth/logout-all/"])
def test_nothing_is_changed_by_looking(address, ada):
    token = login().json()["token"]
    problem(with_token(token).get(address), 405, "method_not_allowed")
    assert AuthToken.objects.exists()


def test_what_a_logout_says_is_not_ignored(ada):
    token = login().json()["token"]
    problem(with_token(token).post("auth/logout/", {"all": True}), 400, "invalid")
    assert AuthToken.objects.exists()


def test_an_operator_is_told_to_be_one():
    told = Api(an_operator()).get("auth/me/").json()
    assert (told["operator"], told["sees_all"]) == (True, True)


# Many tries


def test_many_tries_of_one_name_are_slowed_down_wherever_they_come_from(ada):
    for number in range(10):
        problem(login(password=f"guess {number}"), 401, "wrong_credentials")
    answer = login("ADA", "guess")
    problem(answer, 429, "throttled")
    assert 0 < int(answer.headers["Retry-After"]) <= 61
    problem(login(), 429, "throttled")
    problem(login("somebody else"), 401, "wrong_credentials")


def test_many_names_from_one_address_are_slowed_down_whatever_headers_say(ada):
    for number in range(60):
        assert login(f"name {number}").status_code == 401
    for forwarded in ("10.0.0.1", "10.0.0.2"):
        api = Api(**{"X-Forwarded-For": forwarded})
        body = {"username": f"from {forwarded}", "password": "x"}
        problem(api.post("auth/login/", body), 429, "throttled")


# Sessions


def test_a_session_may_look_and_must_prove_where_it_comes_from_to_change_anything():
    client = Client(enforce_csrf_checks=True)
    client.force_login(an_operator())
    assert client.get(f"{ROOT}auth/me/").json()["operator"]
    address, body = f"{ROOT}queues/a/", {"paused": True}
    refused = client.patch(address, body, "application/json")
    problem(refused, 403, "permission_denied")
    client.get("/admin/login/")  # any page with a form gives the cookie
    client.cookies["csrftoken"] = "0" * 32
    allowed = client.patch(address, body, "application/json", headers={"X-CSRFToken": "0" * 32})
    assert allowed.status_code == 200


def test_a_session_can_be_ended(ada):
    api = Api(ada)
    assert api.post("auth/logout/").status_code == 204
    assert api.get("auth/me/").status_code == 401


def test_logging_out_everywhere_from_a_session_ends_it_too(ada):
    token = login().json()["token"]
    api = Api(ada)
    assert api.post("auth/logout-all/").status_code == 204
    assert api.get("auth/me/").status_code == 401
    assert with_token(token).get("auth/me/").status_code == 401
