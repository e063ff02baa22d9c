"""`/events/`: what happens, as a stream and in pages."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from typing import Any
from uuid import UUID

from django.http import StreamingHttpResponse
from rest_framework.request import Request

from container_manager import sse
from container_manager.api import streams
from container_manager.api.base import BaseView, Response, is_id
from container_manager.api.errors import invalid
from container_manager.api.event_stream import EventSource, IsFor, asked_by, resync
from container_manager.api.machinery import COUNT, closed
from container_manager.api.operations import Header, component, operation
from container_manager.api.pagination import LIMIT, MAX_LIMIT, MAX_OFFSET
from container_manager.api.parameters import MOMENT, Parameter, Schema, Unreadable, whole, words
from container_manager.events.base import STATES, Filter, TransitionEvent
from container_manager.events.feed import Forgotten, the_feed
from container_manager.models import Event, access, sequencing

LOOKED_AT = 5_000
"""Events that one page looks through for those that were asked for."""

PASSES = 10
"""Of the sequencer before somebody is answered; the rest comes to them as if it happened now."""

_SEQUENCE = re.compile(r"[0-9]{1,15}")


def _read_sequence(given: str) -> int:
    if not _SEQUENCE.fullmatch(given):
        raise Unreadable("Must be the number of an event.")
    return int(given)


def _read_id(given: str) -> UUID:
    if not is_id(given):
        raise Unreadable("Must be the id of a job, a run or a task.")
    return UUID(given)


ENTITY_TYPES = words("entity_type", lambda: STATES, "Only of these.")
ALL_STATES = words(
    "state",
    lambda: dict.fromkeys(word for of in STATES.values() for word in of),
    "Only into these.",
)
ENTITY_IDS = Parameter(
    "entity_id",
    _read_id,
    {"type": "array", "items": {"type": "string", "format": "uuid"}, "maxItems": 50},
    "Only of these jobs, runs and tasks; may be repeated.",
    many=True,
)
AFTER = whole(
    "after",
    0,
    MAX_OFFSET,
    "Begin behind the event of this number; else a stream begins with what happens from now on,"
    " a page with the oldest there is.",
)
RESUME = Header(
    streams.LAST_EVENT_ID,
    {"type": "string", "pattern": f"^{_SEQUENCE.pattern}$"},
    "Of a stream: go on behind the event of this `id`; `after` does not count then.",
)

_OR_NULL: Schema = {"type": ["string", "null"]}
EVENT_FIELDS: dict[str, Schema] = {
    "id": {"type": "string", "format": "uuid"},
    "entity_type": {"type": "string", "enum": list(STATES)},
    "entity_id": {"type": "string", "format": "uuid"},
    "old_state": {**_OR_NULL, "description": "null: that is how it began."},
    "new_state": {"type": "string"},
    "version": {"type": "integer", "minimum": 1, "description": "Counts its moves."},
    "attempt": {"type": ["integer", "null"], "minimum": 0},
    "actor": {"type": "string"},
    "reason": {"type": "string"},
    "metadata": {"description": "What else was told: exit code, worker, error."},
    "changed_at": MOMENT,
}
EVENT = component("Event", closed(EVENT_FIELDS))
NUMBERED = component(
    "NumberedEvent",
    closed(
        {"sequence": {**COUNT, "description": "The id that it has in a stream."}, **EVENT_FIELDS}
    ),
)
EVENT_PAGE = component(
    "EventPage",
    closed(
        {
            "results": {"type": "array", "items": NUMBERED, "maxItems": MAX_LIMIT},
            "after": {**COUNT, "description": "Of the next page."},
            "more": {"type": "boolean", "description": "There may be more to be read at once."},
            "oldest": {**COUNT, "description": "The oldest event that is still kept."},
        }
    ),
)
STREAM: Schema = {
    "type": "string",
    "description": "Each message is an `Event` as JSON, its `id` the place in the sequence. An"
    " event `resync` (`after`, `oldest`, `goes_on_after`): some are no longer kept.",
}


class EventsView(BaseView):
    """Moves of jobs, runs and tasks, in one sequence without gaps."""

    tag = "events"

    @operation(
        "Follow what happens",
        answers={200: EVENT_PAGE},
        query=(ENTITY_TYPES, ENTITY_IDS, ALL_STATES, AFTER, LIMIT),
        headers=(RESUME,),
        problems=streams.PROBLEMS,
        stream=STREAM,
    )
    def get(self, request: Request) -> Response | StreamingHttpResponse:
        """A stream of Server-Sent Events; with `Accept: application/json` a page.

        Every move once, those of one entity in their order. People see what became of their own
        jobs and DAGs, operators everything.
        """
        streams.refuse_foreign_pages(request)
        is_for = asked_by(request.user.pk, access.sees_all(request.user), self._wanted())
        last = streams.last_event(request, _read_sequence)
        if _prefers_a_page(request):
            return Response(_page(is_for, self.query["after"], self.query["limit"]))
        source = _begun(is_for, self.query["after"]) if last is None else _resumed(is_for, last)
        return streams.answer(request, source, partial(_sees, access.sees_all(request.user)))

    def _wanted(self) -> Filter:
        names = ("entity_type", "state", "entity_id")
        try:
            return Filter.of(*(self.query[name] or () for name in names))
        except ValueError as error:
            raise invalid({"state": [f"With this entity type {error}."]}) from None


def _sees(all_: bool, user: Any) -> bool:
    """What this person may see decides what was put together for the stream."""
    return access.sees_all(user) == all_


def _prefers_a_page(request: Request) -> bool:
    kinds = [sse.MEDIA_TYPE, "application/json"]
    return request._request.get_preferred_type(kinds) == "application/json"


def _catch_up() -> None:
    """Where nobody followed what happened, it has no place among the events yet."""
    for _ in range(PASSES):
        if not sequencing.take(wait=True):
            return


# Streams ------------------------------------------------------------------------------------------


def _begun(is_for: IsFor, after: int | None) -> EventSource:
    _catch_up()
    try:
        return EventSource(the_feed().place(after), is_for)
    except Forgotten as lost:
        return _out_of_step(is_for, after or 0, lost.oldest - 1)
    except ValueError as error:
        raise invalid({"after": [str(error).removeprefix("after: ").capitalize() + "."]}) from None


def _resumed(is_for: IsFor, last: int) -> EventSource:
    """Whose id is of events that there never were saw a database that was put back since."""
    newest = Event.objects.newest()
    return _begun(is_for, last) if last <= newest else _out_of_step(is_for, last, newest)


def _out_of_step(is_for: IsFor, after: int, position: int) -> EventSource:
    told = resync(after, Event.objects.oldest_kept(), position)
    return EventSource(position, is_for, [told])


# Pages --------------------------------------------------------------------------------------------


def _page(is_for: IsFor, after: int | None, limit: int) -> dict[str, Any]:
    """So many at most; whoever wants little of much gets pages with few of them, or none."""
    _catch_up()
    oldest, newest = Event.objects.oldest_kept(), Event.objects.newest()
    position = max(after or 0, oldest - 1)
    found: list[TransitionEvent] = []
    for event in _some_behind(position):
        position = event.sequence
        if is_for(event):
            found.append(event)
        if len(found) == limit:
            break
    return {
        "results": [{"sequence": each.sequence, **each.as_json()} for each in found],
        "after": position,
        "more": position < newest,
        "oldest": oldest,
    }


def _some_behind(first: int) -> Iterator[TransitionEvent]:
    feed, position = the_feed(), first
    while position < first + LOOKED_AT and (events := feed.after(position)):
        yield from events
        position = events[-1].sequence
