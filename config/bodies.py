"""A limit for what Django would write to disk before any view sees it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

Scope = dict[str, Any]
Message = Mapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

MOST_BYTES = 16 * 1024 * 1024
"""Well above DATA_UPLOAD_MAX_MEMORY_SIZE, which the views refuse in their own words."""

TOO_LARGE = b"The body is larger than what is accepted here.\n"


class SmallBodies:
    """Answers 413 to a body that is absurdly large, as soon as that is known."""

    def __init__(self, application: Application) -> None:
        self._application = application

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = _Counted(receive)
        if _announced(scope) <= MOST_BYTES:
            await self._application(scope, body.receive, send)
            if not body.too_large:
                return
        await _refuse(send)


class _Counted:
    """The client's messages; to the application one who sends too much has gone."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._came = 0

    @property
    def too_large(self) -> bool:
        return self._came > MOST_BYTES

    async def receive(self) -> Message:
        message = await self._receive()
        self._came += len(message.get("body", b""))
        return {"type": "http.disconnect"} if self.too_large else message


def _announced(scope: Scope) -> int:
    length = dict(scope.get("headers", ())).get(b"content-length", b"")
    return int(length) if length.isdigit() else 0


async def _refuse(send: Send) -> None:
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": 413, "headers": headers})
    await send({"type": "http.response.body", "body": TOO_LARGE})
