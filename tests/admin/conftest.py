"""People who use the admin, and the addresses of its pages."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from django.contrib.auth import get_user_model
from django.contrib.auth.models import Permission
from django.test import Client
from django.urls import reverse

from tests.support.loops import configured

__all__ = ["configured"]

LIST = "/admin/container_manager/containerjob/"
HOSTILE = "<script>alert(1)</script>\"><img src=x onerror=alert(2)>'javascript:alert(3)"


def url(page: str, *arguments: Any, model: str = "containerjob") -> str:
    return reverse(f"admin:container_manager_{model}_{page}", args=arguments)


def page_of(job: Any) -> str:
    return url("change", job.pk)


@pytest.fixture
def person(db: None) -> Callable[..., Client]:
    """Somebody of the staff who is logged in: person("name", "permission", …)."""

    def person(name: str, *permissions: str, **flags: bool) -> Client:
        user = get_user_model().objects.create(username=name, is_staff=True, **flags)
        user.user_permissions.set(Permission.objects.filter(codename__in=permissions))
        client = Client()
        client.force_login(user)
        client.person = user  # type: ignore[attr-defined]
        return client

    return person


@pytest.fixture
def operator(person: Callable[..., Client]) -> Client:
    return person("olga", "operate_containerjob")


@pytest.fixture
def viewer(person: Callable[..., Client]) -> Client:
    """May look at everything and change nothing."""
    return person("vera", "view_containerjob")


@pytest.fixture
def stranger(person: Callable[..., Client]) -> Client:
    """Of the staff, with no right on jobs."""
    return person("nora")
