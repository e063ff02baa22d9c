"""The API as a logged-in person calls it inside a test, and what every refusal must look like."""

from __future__ import annotations

import json
from typing import Any

from django.contrib.auth.models import Permission
from django.test import Client

from tests.factories import UserFactory

ROOT = "/api/v1/"


def a_person(*permissions: str, **fields: Any) -> Any:
    """A user with these permissions of the app."""
    user = UserFactory(**fields)
    user.user_permissions.set(Permission.objects.filter(codename__in=permissions))
    return user


def an_operator() -> Any:
    return a_person("operate_containerjob")


class Api:
    """Calls addresses below /api/v1/; bodies are given as Python values."""

    def __init__(self, user: Any = None, **headers: str) -> None:
        self.client = Client(headers=headers or None)
        if user is not None:
            self.client.force_login(user)

    def get(self, address: str, headers: dict[str, str] | None = None, **query: Any) -> Any:
        return self.client.get(ROOT + address, query, headers=headers)

    def send(self, method: str, address: str, body: Any = None) -> Any:
        content = b"" if body is None else json.dumps(body).encode()
        return self.client.generic(method, ROOT + address, content, "application/json")

    def post(self, address: str, body: Any = None) -> Any:
        return self.send("POST", address, body)

    def patch(self, address: str, body: Any) -> Any:
        return self.send("PATCH", address, body)


def problem(response: Any, status: int, code: str) -> dict[str, Any]:
    """The problem document, after a look at its shape."""
    assert response.status_code == status, response.content
    assert response.headers["Content-Type"] == "application/problem+json"
    told: dict[str, Any] = response.json()
    assert {"type", "title", "status", "code", "detail", "errors"} <= set(told)
    assert (told["status"], told["code"]) == (status, code)
    return told
