"""The first login of a new database: made once, told once, stored only as hashes."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from datetime import datetime

from django.contrib.auth import get_user_model
from django.db import IntegrityError, transaction
from knox.models import get_token_model

NAME = "admin"
LETTERS = "abcdefghijkmnpqrstuvwxyz23456789"
"""Without those that are easily taken for another."""

LENGTH = 20


@dataclass(frozen=True)
class Login:
    """The only moment at which password and token can be read."""

    name: str
    password: str
    token: str
    token_ends_at: datetime | None


def make_first_login() -> Login | None:
    """A superuser with a random password and an API token; None where there is any user."""
    password = "".join(secrets.choice(LETTERS) for _ in range(LENGTH))
    try:
        with transaction.atomic():
            if get_user_model().objects.exists():
                return None
            user = get_user_model().objects.create_superuser(NAME, password=password)
            row, token = get_token_model().objects.create(user)
    except IntegrityError:  # somebody else made it at the same moment
        return None
    return Login(NAME, password, token, row.expiry)


def who_can_log_in() -> list[str]:
    """The names of those whom the admin lets in, the oldest first."""
    staff = get_user_model().objects.filter(is_active=True, is_staff=True).order_by("pk")
    return [user.get_username() for user in staff if user.has_usable_password()]
