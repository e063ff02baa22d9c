"""Bytes for clients that may take them slowly: who waits for them keeps no database connection."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Iterator

from asgiref.sync import sync_to_async
from django.core.handlers.asgi import ASGIRequest
from django.http import HttpRequest

from container_manager.models.connections import give_back_connection


def streamed(
    request: HttpRequest, pieces: Iterable[bytes]
) -> Iterator[bytes] | AsyncIterator[bytes]:
    """The same pieces, as the server of this request takes them."""
    let_go = _let_go(pieces)
    return _awaited(let_go) if isinstance(request, ASGIRequest) else let_go


def _let_go(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """The connection is back in the pool whenever a piece is being sent."""
    for piece in pieces:
        give_back_connection()
        yield piece


async def _awaited(pieces: Iterator[bytes]) -> AsyncIterator[bytes]:
    """Each piece read by the thread of this request, when the one before has been sent."""
    while (piece := await sync_to_async(lambda: next(pieces, None))()) is not None:
        yield piece
