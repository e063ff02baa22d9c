"""`/metrics` for Prometheus. Default deny: a token of its own, or an operator's, opens it."""

from __future__ import annotations

import hmac
from typing import Any

from django.http import HttpResponse
from drf_spectacular.extensions import OpenApiAuthenticationExtension
from rest_framework.authentication import BaseAuthentication, get_authorization_header
from rest_framework.exceptions import AuthenticationFailed
from rest_framework.request import Request

from container_manager.api.asking import Asking
from container_manager.api.authentication import SessionAuthentication, TokenAuthentication
from container_manager.api.base import BaseView, refuse_unless_operator
from container_manager.api.errors import RETRY_AFTER_SECONDS, Problem
from container_manager.api.operations import operation
from container_manager.conf import settings
from container_manager.reports import measures, metrics

PATIENCE = 5.0
"""Seconds; a scraper gives up after ten."""


class Scraper:
    """Who has the METRICS_TOKEN: nobody in particular, and good for nothing else."""

    is_authenticated = True

    def get_username(self) -> str:
        return "scraper"


class ScraperAuthentication(BaseAuthentication):
    """`Authorization: Bearer …`, where a METRICS_TOKEN is set."""

    def authenticate(self, request: Request) -> tuple[Any, None] | None:
        scheme, _, given = get_authorization_header(request).partition(b" ")
        if scheme.lower() != b"bearer" or not settings.METRICS_TOKEN:
            return None
        if not hmac.compare_digest(given.strip(), settings.METRICS_TOKEN.encode()):
            raise AuthenticationFailed("Invalid token.")
        return Scraper(), None

    def authenticate_header(self, request: Request) -> str:
        return "Bearer"


class ScraperScheme(OpenApiAuthenticationExtension):  # type: ignore[no-untyped-call]
    """That token in the OpenAPI document."""

    target_class = ScraperAuthentication
    name = "scraper"

    def get_security_definition(self, auto_schema: Any) -> dict[str, Any]:
        return {"type": "http", "scheme": "bearer", "description": "The METRICS_TOKEN, if set."}


class MetricsView(BaseView):
    """What a monitoring system is told."""

    authentication_classes = (ScraperAuthentication, TokenAuthentication, SessionAuthentication)
    tag = "health"

    def get_authenticators(self) -> list[Any]:
        return [] if settings.METRICS_OPEN else super().get_authenticators()

    def get_permissions(self) -> Any:
        return [] if settings.METRICS_OPEN else super().get_permissions()

    def check_permissions(self, request: Request) -> None:
        super().check_permissions(request)
        if not (settings.METRICS_OPEN or isinstance(request.user, Scraper)):
            refuse_unless_operator(request)

    @operation(
        "Metrics",
        answers={200: {"type": "string"}},
        media_type="text/plain",
    )
    def get(self, request: Request) -> HttpResponse:
        """Prometheus' text format, for operators and for who has the METRICS_TOKEN."""
        text = _asking.answer()
        if text is None:
            raise Problem(
                503,
                "database_unavailable",
                "The database does not answer; try again.",
                headers={"Retry-After": str(RETRY_AFTER_SECONDS)},
            )
        return HttpResponse(
            text, content_type=metrics.CONTENT_TYPE, headers={"Cache-Control": "no-store"}
        )


_asking = Asking("Metrics", measures.as_text, PATIENCE)
