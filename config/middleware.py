"""What stands between the web server and the views: static files, and a database that is away."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from io import BytesIO
from typing import Any

from django.db import InterfaceError, OperationalError
from django.http import HttpRequest, HttpResponse
from whitenoise.middleware import WhiteNoiseMiddleware

RETRY_AFTER_SECONDS = "5"


class StaticFiles(WhiteNoiseMiddleware):  # type: ignore[misc]
    """Whitenoise, as it suits ASGI: a file is read by the thread that serves it.

    Its own answer is read by the event loop, which Django warns of with good reason.
    """

    @staticmethod
    def serve(static_file: Any, request: HttpRequest) -> HttpResponse:
        found = static_file.get_response(request.method, request.META)
        with closing(found.file or BytesIO()) as file:
            response = HttpResponse(file.read(), status=int(found.status))
        del response["Content-Type"]
        for name, value in found.headers:
            response[name] = value
        return response


class DatabaseAway:
    """503 where a view cannot have the database: it is down, too busy, or the pool is used up.

    The API says so in its own words before this is asked.
    """

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self._get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        return self._get_response(request)

    def process_exception(self, _request: HttpRequest, error: Exception) -> HttpResponse | None:
        if not isinstance(error, (OperationalError, InterfaceError)):
            return None
        return HttpResponse(
            "The database does not answer at the moment. Please try again in a few seconds.",
            status=503,
            content_type="text/plain; charset=utf-8",
            headers={"Retry-After": RETRY_AFTER_SECONDS},
        )
