"""Publishers: how far each has come, and what is done about the events that one would not take."""

from __future__ import annotations

import logging
from typing import Any

from rest_framework.request import Request

from container_manager.api.base import Response, actor, is_id
from container_manager.api.bodies import read_object
from container_manager.api.errors import Problem, invalid, not_found
from container_manager.api.machinery import COUNT, SECONDS, OperatorsView, closed, listed
from container_manager.api.operations import UUID_SCHEMA, component, operation
from container_manager.api.pagination import PAGE, page_of, page_of_rows
from container_manager.api.parameters import MOMENT, Schema
from container_manager.reports import publishers
from container_manager.reports.publishers import PublisherReport, PublisherWord, letter_as_json

logger = logging.getLogger("container_manager")

MOST = 1_000
"""Dead letters that one request names."""

ONE = r"publishers/(?P<alias>[^/]+)"
ALIAS: Schema = {"type": "string", "minLength": 1, "maxLength": 64}
SOMETIME: Schema = {"type": ["string", "null"], "format": "date-time"}

PUBLISHER = component(
    "Publisher",
    closed(
        {
            "alias": {"type": "string"},
            "path": {
                "type": "string",
                "description": "Its class; empty when the settings do not name it any more.",
            },
            "state": {
                "type": "string",
                "enum": PublisherWord.values,
                "description": " ".join(f"`{word}`: {word.meaning}" for word in PublisherWord),
            },
            "position": {
                **COUNT,
                "description": "All events up to this one are delivered, or dead letters.",
            },
            "lag": {**COUNT, "description": "Moves that it was not told of yet."},
            "lag_seconds": {
                **SECONDS,
                "description": "How long ago the oldest of those happened; 0 when there is none.",
            },
            "delivered_at": SOMETIME,
            "failing_since": {**SOMETIME, "description": "null: the latest delivery went well."},
            "failing_seconds": SECONDS,
            "failures": {**COUNT, "description": "In a row."},
            "last_error": {"type": "string"},
            "next_try_at": SOMETIME,
            "refused": {
                "type": ["integer", "null"],
                "description": "The event that its receiver refuses; it is tried some times more.",
            },
            "tries": {**COUNT, "description": "How often that was refused."},
            "dead_letters": COUNT,
            "wanted_letters": {
                **COUNT,
                "description": "Of the dead letters, those that are to be delivered again.",
            },
        }
    ),
)
LETTER = component(
    "DeadLetter",
    closed(
        {
            "id": UUID_SCHEMA,
            "sequence": COUNT,
            "event": {"type": "object", "description": "As it was to be told."},
            "tries": COUNT,
            "error": {"type": "string", "description": "What the receiver said last."},
            "wanted_at": {
                **SOMETIME,
                "description": "Since when somebody wants it to be delivered again.",
            },
            "created_at": MOMENT,
        }
    ),
)
_CHOICE: dict[str, Schema] = {
    "ids": {"type": "array", "items": UUID_SCHEMA, "minItems": 1, "maxItems": MOST},
    "all": {"type": "boolean", "const": True},
}
CHOICE: Schema = {
    "type": "object",
    "additionalProperties": False,
    "properties": _CHOICE,
    "oneOf": [{"required": ["ids"]}, {"required": ["all"]}],
}
CHOSEN = component(
    "ChosenLetters",
    closed({"letters": {**COUNT, "description": "How many dead letters it is done to."}}),
)


class PublishersView(OperatorsView):
    """All publishers."""

    tag = "publishers"

    @operation("List publishers", answers={200: page_of(PUBLISHER)}, query=PAGE)
    def get(self, request: Request) -> Response:
        """For operators: those of the settings and those that have been, by alias."""
        return listed(self, request, publishers.publishers())


class OnePublisherView(OperatorsView):
    """What belongs to one publisher."""

    tag = "publishers"
    path_parameters = {"alias": ALIAS}

    def found(self, alias: str) -> PublisherReport:
        """Raises Problem (404)."""
        found = publishers.publisher(alias)
        if found is None:
            raise not_found()
        return found

    def chosen(self, request: Request, alias: str) -> Any:
        """The dead letters that the body names. Raises Problem (400)."""
        body = read_object(request.data, _CHOICE)
        if ("ids" in body) == ("all" in body):
            raise Problem(400, "invalid", "Give either `ids` or `all`.")
        letters = publishers.letters(alias)
        if "ids" in body:
            return letters.filter(pk__in=_ids(body["ids"]))
        if body["all"] is not True:
            raise invalid({"all": ["Must be true."]})
        return letters


class PublisherView(OnePublisherView):
    """One publisher."""

    @operation("One publisher", answers={200: PUBLISHER})
    def get(self, request: Request, alias: str) -> Response:
        """For operators."""
        return Response(self.found(alias).as_json())


class LettersView(OnePublisherView):
    """The events that a publisher's receiver would not take."""

    @operation("List dead letters", answers={200: page_of(LETTER)}, query=PAGE)
    def get(self, request: Request, alias: str) -> Response:
        """For operators: the events that its receiver would not take, as they happened."""
        self.found(alias)
        told = page_of_rows(request, self.query, publishers.letters(alias))
        return Response({**told, "results": [letter_as_json(each) for each in told["results"]]})


class RedeliverView(OnePublisherView):
    """Dead letters that are to be delivered again."""

    @operation("Deliver dead letters again", answers={202: CHOSEN}, body=CHOICE, problems=(409,))
    def post(self, request: Request, alias: str) -> Response:
        """For operators. The relay delivers them soon; one that is taken is no dead letter more.

        409 where the settings do not name the publisher any more.
        """
        if not self.found(alias).path:
            raise Problem(409, "publisher_removed", "The settings do not name this publisher.")
        count = self.chosen(request, alias).ask_again()
        logger.info("Publisher %s: %s wants %s again", alias, actor(request), _letters(count))
        return Response({"letters": count}, status=202)


class DiscardView(OnePublisherView):
    """Dead letters that nobody wants any more."""

    @operation("Discard dead letters", answers={200: CHOSEN}, body=CHOICE)
    def post(self, request: Request, alias: str) -> Response:
        """For operators. They are gone; what happened still stands in the history."""
        self.found(alias)
        count, _of_each = self.chosen(request, alias).delete()
        logger.info("Publisher %s: %s discarded %s", alias, actor(request), _letters(count))
        return Response({"letters": count})


def _letters(count: int) -> str:
    return f"{count} dead letter{'' if count == 1 else 's'}"


def _ids(given: list[Any]) -> list[str]:
    if not 1 <= len(given) <= MOST:
        raise invalid({"ids": [f"Must be from 1 to {MOST} ids."]})
    errors = {
        f"ids[{index}]": ["Must be the id of a dead letter."]
        for index, text in enumerate(given)
        if not isinstance(text, str) or not is_id(text)
    }
    if errors:
        raise invalid(errors, "Some ids are none.")
    return given
