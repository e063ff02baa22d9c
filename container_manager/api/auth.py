"""Who one is: a token for a name and a password, and its end."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from typing import Any

from django.contrib.auth import authenticate, get_user_model
from django.contrib.auth import logout as end_session
from django.contrib.auth.signals import user_logged_in, user_logged_out
from django.utils import timezone
from knox.models import AuthToken
from rest_framework.permissions import AllowAny
from rest_framework.request import Request
from rest_framework.throttling import SimpleRateThrottle

from container_manager.api.authentication import TokenAuthentication
from container_manager.api.base import BaseView, Response
from container_manager.api.bodies import read_object
from container_manager.api.errors import Problem, invalid
from container_manager.api.machinery import closed
from container_manager.api.operations import NO_BODY, component, operation
from container_manager.api.parameters import MOMENT, Schema
from container_manager.api.parsing import NO_NUL
from container_manager.models import access

CREDENTIALS: dict[str, Schema] = {
    "username": {"type": "string", "minLength": 1, "maxLength": 150, "pattern": NO_NUL},
    "password": {"type": "string", "minLength": 1, "maxLength": 4096, "pattern": NO_NUL},
}
ME = component(
    "Me",
    closed(
        {
            "username": {"type": "string"},
            "name": {"type": "string", "description": "In full, where it is known."},
            "operator": {
                "type": "boolean",
                "description": "May see and move all jobs, steer queues and see workers.",
            },
            "sees_all": {"type": "boolean", "description": "May see all jobs."},
        }
    ),
)
TOKEN = component(
    "Token",
    closed(
        {
            "token": {"type": "string", "description": "Shown once; only its hash is kept."},
            "expiry": MOMENT,
            "user": ME,
        }
    ),
)
NO_STORE = {"Cache-Control": "no-store"}


# Logging in ---------------------------------------------------------------------------------------


class LoginThrottle(ABC, SimpleRateThrottle):
    """So many tries in a minute, counted in the cache."""

    def __init__(self) -> None:
        self.num_requests, self.duration = self.parse_rate(self.rate)

    def get_cache_key(self, request: Request, view: Any) -> str:
        whom = hashlib.sha256(self.whom(request).encode()).hexdigest()
        return f"container_manager:{self.scope}:{whom}"

    @abstractmethod
    def whom(self, request: Request) -> str:
        """Whose tries are counted together."""


class PerAddress(LoginThrottle):
    """Against one who tries many names. Headers of the client's choice do not count."""

    scope = "login-address"
    rate = "60/min"

    def whom(self, request: Request) -> str:
        return str(request.META.get("REMOTE_ADDR", ""))


class PerName(LoginThrottle):
    """Against many who try one name."""

    scope = "login-name"
    rate = "10/min"

    def whom(self, request: Request) -> str:
        return str(_credentials(request)["username"]).casefold()


def _credentials(request: Request) -> dict[str, str]:
    """Name and password, neither of them endless. Raises Problem (400)."""
    given: dict[str, str] = read_object(request.data, CREDENTIALS, required=CREDENTIALS)
    errors = {
        name: [f"Must have from 1 to {CREDENTIALS[name]['maxLength']} characters."]
        for name, value in given.items()
        if not 0 < len(value) <= CREDENTIALS[name]["maxLength"]
    }
    if errors:
        raise invalid(errors)
    return given


class LoginView(BaseView):
    """A token for a name and a password."""

    authentication_classes = ()
    permission_classes = (AllowAny,)
    throttle_classes = (PerAddress, PerName)
    tag = "auth"

    def get_throttles(self) -> list[Any]:
        """Of logins only; another method is refused whatever it says."""
        return super().get_throttles() if self.request.method == "POST" else []

    @operation(
        "Log in",
        answers={200: TOKEN},
        body=closed(CREDENTIALS),
        problems=(401, 429),
        meanings={401: "Wrong name or password, or not active: the same answer for all."},
    )
    def post(self, request: Request) -> Response:
        """The token goes into `Authorization: Token …` of every other request."""
        user = authenticate(request, **_credentials(request))
        if user is None:
            raise Problem(
                401,
                "wrong_credentials",
                "There is no active user of that name and password.",
                headers={"WWW-Authenticate": TokenAuthentication().authenticate_header(request)},
            )
        AuthToken.objects.filter(user=user, expiry__lte=timezone.now()).delete()
        row, token = AuthToken.objects.create(user)
        user_logged_in.send(get_user_model(), request=request._request, user=user)
        shown = {"token": token, "expiry": row.expiry, "user": _shown(user)}
        return Response(shown, headers=NO_STORE)


# Who one is, and the end of it --------------------------------------------------------------------


class MeView(BaseView):
    """Who asks."""

    tag = "auth"

    @operation("Who am I?", answers={200: ME})
    def get(self, request: Request) -> Response:
        """Your name, and whether you are an operator."""
        return Response(_shown(request.user))


def _shown(user: Any) -> dict[str, Any]:
    return {
        "username": user.get_username(),
        "name": user.get_full_name(),
        "operator": access.operates(user),
        "sees_all": access.sees_all(user),
    }


class LogoutView(BaseView):
    """The end of this token or session."""

    tag = "auth"

    @operation("Log out", answers={204: None}, body=NO_BODY, body_required=False)
    def post(self, request: Request) -> Response:
        """Ends the token that was sent, or this session."""
        read_object(request.data, {})
        if isinstance(request.auth, AuthToken):
            request.auth.delete()
            _tell(request)
        else:
            end_session(request._request)
        return Response(status=204)


class LogoutAllView(BaseView):
    """The end of all tokens."""

    tag = "auth"

    @operation("Log out everywhere", answers={204: None}, body=NO_BODY, body_required=False)
    def post(self, request: Request) -> Response:
        """Ends all tokens of yours, and this session if there is one."""
        read_object(request.data, {})
        AuthToken.objects.filter(user=request.user).delete()
        if isinstance(request.auth, AuthToken):
            _tell(request)
        else:
            end_session(request._request)
        return Response(status=204)


def _tell(request: Request) -> None:
    user_logged_out.send(get_user_model(), request=request._request, user=request.user)
