"""The login of a new database."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from threading import Barrier

import pytest
from django.contrib.auth import authenticate, get_user_model
from django.contrib.auth.password_validation import validate_password
from django.db import connection
from django.utils import timezone
from knox.auth import TokenAuthentication
from knox.models import AuthToken

from container_manager.management.first_login import Login, make_first_login, who_can_log_in
from tests.factories import UserFactory


@pytest.mark.django_db
def test_it_is_a_superuser_with_a_password_that_nobody_guesses() -> None:
    login = make_first_login()
    assert login
    user = authenticate(username=login.name, password=login.password)
    assert (user.is_superuser, user.is_staff, user.is_active) == (True, True, True)
    validate_password(login.password, user)


@pytest.mark.django_db
def test_its_token_is_stored_as_a_hash_only_and_ends() -> None:
    login = make_first_login()
    assert login
    stored = AuthToken.objects.get()
    assert login.token not in (stored.digest, stored.token_key)
    user, _row = TokenAuthentication().authenticate_credentials(login.token.encode())
    assert user.get_username() == login.name
    assert login.token_ends_at == stored.expiry > timezone.now() + timedelta(hours=1)


@pytest.mark.django_db
@pytest.mark.parametrize("flags", [{}, {"is_superuser": True}, {"is_active": False}])
def test_a_database_with_any_user_gets_none(flags: dict[str, bool]) -> None:
    UserFactory(**flags)
    assert make_first_login() is None
    assert get_user_model().objects.count() == 1


@pytest.mark.django_db(transaction=True)
def test_made_by_many_at_once_it_is_one() -> None:
    barrier = Barrier(6)

    def make(_number: int) -> Login | None:
        try:
            barrier.wait()
            return make_first_login()
        finally:
            connection.close()

    with ThreadPoolExecutor(6) as starters:
        made = [login for login in starters.map(make, range(6)) if login]
    assert len(made) == get_user_model().objects.count() == 1
    assert authenticate(username=made[0].name, password=made[0].password)


@pytest.mark.django_db
def test_no_two_databases_have_the_same_password() -> None:
    first = make_first_login()
    get_user_model().objects.all().delete()
    second = make_first_login()
    assert first
    assert second
    assert first.password != second.password


@pytest.mark.django_db
def test_who_can_log_in_are_those_whom_the_admin_lets_in() -> None:
    UserFactory(username="no staff", password="md5$x$y")
    UserFactory(username="not active", is_staff=True, is_active=False, password="md5$x$y")
    UserFactory(username="no password", is_staff=True, password="!")
    UserFactory(username="first", is_staff=True, password="md5$x$y")
    UserFactory(username="second", is_staff=True, password="md5$x$y")
    assert who_can_log_in() == ["first", "second"]
