"""The output of a job as a stream: each event says which bytes of which stream it holds.

`log`: bytes of one stream, as `text` where they are UTF-8, else as `base64`. `attempt`: what
follows is of another attempt. `end`: nothing follows. The id of each is the place behind it.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from functools import partial
from typing import Any

from django.db import InterfaceError, OperationalError

from container_manager.api.parameters import Schema
from container_manager.models.connections import apart
from container_manager.reports.log_following import Began, Ended, Follower, Printed, Told
from container_manager.reports.log_pages import Place
from container_manager.reports.lookout import Watched, lookout
from container_manager.sse import Bell, Message, Source
from container_manager.states import Stream

AWAY_SECONDS = 1.0
"""When the database did not answer it is asked again after so long."""

SCHEMA: Schema = {
    "type": "string",
    "description": "Events `log` (`attempt`, `stream`, `offset`, `bytes`, `omitted_before`, and"
    " `text` or `base64`), `attempt` (`attempt`) and `end` (`attempt`, `status`, `reason`,"
    " `exit_code`).",
}
DELETED = "deleted"
"""The status that an `end` tells of a job that is not there any more."""


def cursor(place: Place) -> str:
    """The attempt, and how far each stream was read."""
    read = [f"-{name}-{place.read_to[name]}" for name in Stream.values if name in place.read_to]
    return f"{place.attempt}{''.join(read)}"


class LogSource(Source):
    """What one follower is told, as messages."""

    def __init__(self, follower: Follower) -> None:
        self._follower = follower
        self._watched: Watched | None = None

    @property
    def place(self) -> str:
        return cursor(self._follower.place)

    def open(self, bell: Bell) -> None:
        self._bell = bell
        self._watched = lookout.watch(self._follower.job_id, bell)

    async def next(self) -> Sequence[Message]:
        told = await self._told()
        self.over = self._follower.over
        return [_message(each) for each in told]

    async def _told(self) -> Sequence[Told]:
        seen = self._watched.seen if self._watched else None
        if seen is None:
            return []
        told = self._follower.at_hand(seen)
        if told is not None:
            return told
        try:
            return await apart(partial(self._follower.read, seen))
        except (OperationalError, InterfaceError):
            self._bell.ring_later(AWAY_SECONDS)
            return []

    def close(self) -> None:
        if self._watched:
            lookout.leave(self._watched, self._bell)
            self._watched = None


def _message(told: Told) -> Message:
    data = {"attempt": told.place.attempt, **_data(told)}
    return Message(_NAMES[type(told)], data, cursor(told.place))


_NAMES: dict[type[Told], str] = {Printed: "log", Began: "attempt", Ended: "end"}


def _data(told: Told) -> dict[str, Any]:
    if isinstance(told, Printed):
        return _printed(told)
    if isinstance(told, Ended):
        status = told.status or DELETED
        return {"status": status, "reason": told.reason, "exit_code": told.exit_code}
    return {}


def _printed(told: Printed) -> dict[str, Any]:
    return {
        "stream": told.chunk.stream,
        "offset": told.chunk.offset,
        "bytes": len(told.chunk.data),
        "omitted_before": told.omitted_before,
        **_content(told.chunk.data),
    }


def _content(data: bytes) -> dict[str, str]:
    """
    >>> _content("€".encode()), _content(b"\\xff")
    ({'text': '€'}, {'base64': '/w=='})
    """
    try:
        return {"text": data.decode()}
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(data).decode()}
