"""Delivers dead letters again, when somebody asks for it: each is tried once, in order.

They come late: whoever gets them knows by `version` what they are worth.
"""

from __future__ import annotations

import logging
from contextlib import closing

from django.db import Error, InterfaceError

from container_manager.conf import settings
from container_manager.events.base import (
    NotDelivered,
    Publisher,
    Refused,
    TransitionEvent,
    make,
)
from container_manager.models import DeadLetter
from container_manager.models.base import database_now
from container_manager.models.sql import storable

logger = logging.getLogger("container_manager")

LONGEST_ERROR = 2_000


def redeliver(alias: str) -> tuple[int, int]:
    """Try all of a publisher's dead letters; how many went, and how many are left.

    Raises LookupError for a publisher that is not in the settings, ValueError for one that cannot
    be made, Unavailable.
    """
    went = 0
    with closing(_publisher(alias)) as publisher:
        for letter in DeadLetter.objects.of(alias):
            went += _went(publisher, letter)
    return went, DeadLetter.objects.of(alias).count()


def deliver_wanted(alias: str, limit: int) -> bool:
    """Try so many of those that somebody wants to be delivered again; True: try more at once.

    What is refused again is wanted no more until somebody asks once more.
    """
    wanted = DeadLetter.objects.of(alias).wanted()
    letters = list(wanted[:limit])
    if not letters:
        return False
    went, goes_through = 0, True
    with closing(_publisher(alias)) as publisher:
        for letter in letters:
            try:
                went += _went(publisher, letter)
            except NotDelivered as error:
                _note(letter, error)
                goes_through = False
                break  # the others are wanted still
            except (Error, InterfaceError):
                raise
            except Exception as error:
                logger.exception("Publisher %s failed", alias)
                _note(letter, error)
    logger.info("Publisher %s: %d of %d dead letters delivered", alias, went, len(letters))
    return goes_through and len(letters) == limit


def note_refusal(alias: str, event: TransitionEvent, tries: int, error: Exception) -> None:
    """Put the event among the dead letters, or note there what the receiver said."""
    DeadLetter.objects.update_or_create(
        publisher=alias,
        sequence=event.sequence,
        defaults={
            "event": event.as_json(),
            "tries": tries,
            "error": told(error),
            "wanted_at": None,
            "updated_at": database_now("default"),
        },
    )


def told(error: Exception) -> str:
    """An error in words that a database takes."""
    text = str(error) or type(error).__name__
    return storable(text)[:LONGEST_ERROR]


def _publisher(alias: str) -> Publisher:
    """One of its own: that which delivers in order knows where it is."""
    if alias not in settings.PUBLISHERS:
        raise LookupError(alias)
    entry = settings.PUBLISHERS[alias]
    return make(entry["class"], entry.get("options"))


def _went(publisher: Publisher, letter: DeadLetter) -> bool:
    """False: it was refused again. Raises Unavailable."""
    try:
        publisher.publish_all([TransitionEvent.from_json(letter.event, letter.sequence)])
    except (Refused, ValueError) as error:
        _note(letter, error)
        return False
    letter.delete()
    return True


def _note(letter: DeadLetter, error: Exception) -> None:
    """Unless it was discarded meanwhile."""
    DeadLetter.objects.filter(pk=letter.pk).update(
        tries=letter.tries + 1,
        error=told(error),
        wanted_at=None,
        updated_at=database_now("default"),
    )
