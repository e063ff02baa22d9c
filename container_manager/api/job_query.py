"""Which jobs: the filters of the list and of bulk requests, and a page of what they select."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from django.contrib.auth import get_user_model
from django.core.exceptions import ValidationError
from django.db.models import CharField, Q, TextField, Value
from django.db.models.functions import Cast, Replace

from container_manager import conf
from container_manager.api.job_fields import ROWS, tell_row
from container_manager.api.listing import (
    SEVERAL,
    dates,
    in_ranges,
    labels,
    order_terms,
    ordering,
    read_rows,
)
from container_manager.api.parameters import Parameter, names, text, words
from container_manager.models import ContainerJob, access, validators
from container_manager.models.expressions import CommandLine
from container_manager.models.job import ContainerJobQuerySet
from container_manager.models.job_counts import count_jobs
from container_manager.models.job_stats import DIMENSIONS
from container_manager.states import Isolation, JobStatus

ANY_EXECUTOR = "any"
"""Of jobs that leave the executor open, as in the statistics."""


def _executors() -> list[str]:
    return [ANY_EXECUTOR, *sorted(conf.settings.EXECUTORS)]


LABEL = labels("label", "With exactly this label, as `key:value`; repeated: with all of them.")
DATES = dates({"created": "Created", "completed": "Completed"})
FILTERS: tuple[Parameter, ...] = (
    words("status", lambda: JobStatus.values, f"In one of these states. {SEVERAL}"),
    names("queue", validators.QUEUE, 100, f"In one of these queues. {SEVERAL}"),
    words("isolation", lambda: Isolation.values, f"That ask for this isolation. {SEVERAL}"),
    words("executor", _executors, f"That ask for this executor; `any`: left open. {SEVERAL}"),
    text("owner", 150, "Submitted by this person: a username or an id. Others only see their own."),
    LABEL,
    *DATES,
    text("search", 200, "Name, id, image or command line contain this text, literally."),
)


@dataclass(frozen=True)
class Selected:
    """The jobs that filters select, of those that the person may see."""

    jobs: ContainerJobQuerySet
    count: Callable[[], int]
    """How many they are; from the counters where those know it."""


def select(user: Any, query: dict[str, Any]) -> Selected:
    """The jobs that `query`, read by FILTERS, means for this person. Raises Problem (400)."""
    jobs = in_ranges(
        ContainerJob.objects.all(), query, {"created": "created_at", "completed": "completed_at"}
    )
    try:
        owner = _owner(user, query["owner"])
    except _Nobody:
        return Selected(ContainerJob.objects.none(), lambda: 0)
    counted = {name: query[name] for name in DIMENSIONS if query[name] is not None}
    if ANY_EXECUTOR in counted.get("executor", ()):
        counted["executor"] = [*counted["executor"], ""]
    jobs = jobs.filter(**{f"{name}__in": wanted for name, wanted in counted.items()})
    jobs = jobs if owner is None else jobs.owned_by(owner)
    if any(query[name] is not None for name in _UNCOUNTED):
        jobs = _narrowed(jobs, query)
        return Selected(jobs, jobs.count)
    return Selected(jobs, lambda: count_jobs(owner=owner, **counted))


_UNCOUNTED = ("label", "search", *(date.name for date in DATES))


def _narrowed(jobs: ContainerJobQuerySet, query: dict[str, Any]) -> ContainerJobQuerySet:
    """By what nobody counts."""
    for key, value in query["label"] or ():
        jobs = jobs.with_label(key, value)
    return _containing(jobs, query["search"]) if query["search"] else jobs


def _containing(jobs: ContainerJobQuerySet, wanted: str) -> ContainerJobQuerySet:
    """A literal search: Django escapes what LIKE would take for a pattern."""
    in_command = Q(line__icontains=wanted)
    if parts := _WORD.findall(wanted):  # seen at once where it is not; the line is costly to make
        in_command &= Q(command_text__icontains=max(parts, key=len))
    found = Q(name__icontains=wanted) | Q(image__icontains=wanted) | in_command
    digits = wanted.replace("-", "").lower()
    if _HEX.fullmatch(digits):
        found |= Q(digits__contains=digits)
    narrowed: ContainerJobQuerySet = jobs.alias(
        line=CommandLine("command"), command_text=Cast("command", TextField()), digits=_DIGITS
    )
    return narrowed.filter(found)


_WORD = re.compile(r"[A-Za-z0-9]+")
_HEX = re.compile(r"[0-9a-f]{4,32}")
_DIGITS = Replace(Cast("id", CharField()), Value("-"), Value(""))


# Whose ----------------------------------------------------------------------------------------


class _Nobody(Exception):
    """The person who is named has no jobs that the asking one may see."""


def _owner(user: Any, named: str | None) -> Any:
    """Whose jobs: None means everybody's. Raises _Nobody."""
    mine = access.scope(user)
    if named is None:
        return mine
    person = _person(named)
    if person is None or (mine is not None and person.pk != mine.pk):
        raise _Nobody
    return person


def _person(named: str) -> Any:
    people = get_user_model()
    found = people._default_manager.filter(**{people.USERNAME_FIELD: named}).first()
    if found is not None:
        return found
    try:
        return people._default_manager.filter(pk=people._meta.pk.to_python(named)).first()
    except ValidationError:
        return None


# Pages --------------------------------------------------------------------------------------------

_SORTED_BY = (
    *("created_at", "updated_at", "queued_at", "launched_at", "completed_at", "duration_ms"),
    *("priority", "name", "status"),
)
ORDERING = ordering(_SORTED_BY)


def read_page(selected: Selected, wanted: list[str] | None, limit: int, offset: int) -> Any:
    """How many there are, and one page of them."""
    count = selected.count()
    if offset >= count:
        return count, []
    order = order_terms(ContainerJob, wanted or ["-created_at"])
    rows = read_rows(selected.jobs, ROWS, order, limit, offset)
    return count, [tell_row(row) for row in rows]
