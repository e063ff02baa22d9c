"""The door to a stream: who may have it, how many at once, and from which kind of server."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from types import SimpleNamespace
from typing import Any, TypeVar

from django.contrib import auth
from django.core.handlers.asgi import ASGIRequest
from django.db import InterfaceError, OperationalError
from django.http import StreamingHttpResponse
from django.utils import timezone
from knox.models import AuthToken
from rest_framework.authentication import CSRFCheck
from rest_framework.request import Request

from container_manager import sse
from container_manager.api.errors import Problem, invalid
from container_manager.api.parameters import Unreadable
from container_manager.conf import settings
from container_manager.models.connections import apart
from container_manager.sse import Patience, Seat, Seats, Source, Stream

T = TypeVar("T")

RETRY_AFTER_SECONDS = 5
LAST_EVENT_ID = "Last-Event-ID"
HEADERS = {
    "Cache-Control": "no-store",
    "X-Accel-Buffering": "no",  # nginx would keep it back
    "Content-Encoding": "identity",  # GZipMiddleware would, too
}
PROBLEMS = (429, 501)
"""What a stream may be refused with, beside what every answer may be."""

_seats = Seats()

MaySee = Callable[[Any], bool]
"""May this person have the stream?"""


def refuse_foreign_pages(request: Request) -> None:
    """A page of another origin must not use this person's session. Raises Problem (403)."""
    asked = request._request
    if "Origin" not in request.headers or isinstance(request.auth, AuthToken):
        return
    if not CSRFCheck(lambda _request: None)._origin_verified(asked):  # type: ignore[attr-defined, arg-type]
        raise Problem(403, "foreign_origin", "Streams are not for pages of another origin.")


def last_event(request: Request, read: Callable[[str], T]) -> T | None:
    """Where a client is that comes back: what `read` makes of it. Raises Problem (400)."""
    given = request.headers.get(LAST_EVENT_ID)
    try:
        return None if given is None else read(given)
    except Unreadable:
        raise no_event("Must be the id of an event.") from None


def no_event(why: str) -> Problem:
    """The client cannot be where it says."""
    return invalid({LAST_EVENT_ID: [why]})


def answer(request: Request, source: Source, may_see: MaySee) -> StreamingHttpResponse:
    """The source as a stream; it is closed with it. Raises Problem (429, 501)."""
    if not isinstance(request._request, ASGIRequest):
        raise Problem(
            501, "needs_asgi", "This server cannot stream: run it under ASGI, as uvicorn does."
        )
    body: AsyncIterator[bytes] = _nothing()
    if request.method != "HEAD":
        stream = Stream(source, _seat(request), _patience(), _asks_again(request, may_see))
        if not sse.hand_over(request._request.scope, stream):
            body = stream.bodies()
    return StreamingHttpResponse(body, content_type=sse.MEDIA_TYPE, headers=HEADERS)


def _seat(request: Request) -> Seat:
    most = settings.STREAMS_PER_USER
    try:
        return _seats.take(request.user.pk, most)
    except sse.NoSeat:
        raise Problem(
            429,
            "too_many_streams",
            f"You have {most} streams of this server already; close one.",
            headers={"Retry-After": str(RETRY_AFTER_SECONDS)},
        ) from None


def _patience() -> Patience:
    return Patience(
        heartbeat=settings.STREAM_HEARTBEAT_SECONDS,
        send=settings.STREAM_SEND_SECONDS,
        allowed=settings.STREAM_RIGHTS_SECONDS,
    )


async def _nothing() -> AsyncIterator[bytes]:
    for _ in ():
        yield b""


# Whose rights end, whose stream ends --------------------------------------------------------------


def _asks_again(request: Request, may_see: MaySee) -> Any:
    """Is this person still logged in as when it began, and may still see it?"""
    token = request.auth if isinstance(request.auth, AuthToken) else None
    session = getattr(request._request, "session", None)

    def ask() -> bool:
        user = _owner(token.pk) if token else _of_session(session)
        return user is not None and user.is_active and may_see(user)

    async def is_allowed() -> bool:
        try:
            return await apart(ask)
        except (OperationalError, InterfaceError):
            return True  # it is asked again

    return is_allowed


def _owner(token: Any) -> Any:
    row = AuthToken.objects.select_related("user").filter(pk=token).first()
    return row.user if row and (row.expiry is None or row.expiry > timezone.now()) else None


def _of_session(session: Any) -> Any:
    again = type(session)(session.session_key)
    return auth.get_user(SimpleNamespace(session=again))  # type: ignore[arg-type]
