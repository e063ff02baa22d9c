"""Each request has an id: in its answer, in every line of the log about it, and in its own line."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable
from typing import Any

from django.http import HttpRequest
from django.http.response import HttpResponseBase

from container_manager import ids, journal

HEADER = "X-Request-ID"

logger = logging.getLogger("container_manager.access")

_SANE = re.compile(r"[A-Za-z0-9._:+/=@-]{1,128}", re.ASCII)


class RequestLog:
    """Middleware, the first of all: an id that a proxy gave is kept, if it is a sane one."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponseBase]) -> None:
        self._get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        given = request.headers.get(HEADER, "")
        request_id = given if _SANE.fullmatch(given) else str(ids.uuid7())
        began = time.monotonic()
        with journal.about(request_id=request_id):
            response = self._get_response(request)
            response.headers[HEADER] = request_id
            _tell(request, response, round((time.monotonic() - began) * 1000, 1))
        return response


def _tell(request: HttpRequest, response: HttpResponseBase, milliseconds: float) -> None:
    """One line; of the query string nothing, and of a stream how long it took to begin."""
    asked = (request.method, request.path, response.status_code)
    told = dict(zip(("method", "path", "status"), asked, strict=True))
    who: dict[str, Any] = {}
    if user := getattr(request, "_cached_user", None):  # of a session, if anybody asked for it
        who = {"user": user.get_username()}
    logger.info("%s %s %s", *asked, extra=journal.told(**told, **who, duration_ms=milliseconds))
