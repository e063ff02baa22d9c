"""The filters of the job list, what is searched, and how many jobs there are without counting."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable
from datetime import datetime, timedelta
from functools import cached_property
from typing import Any

from django.contrib import admin
from django.contrib.admin.exceptions import DisallowedModelAdminLookup
from django.core.exceptions import ValidationError
from django.core.paginator import Paginator
from django.db.models import Q, QuerySet
from django.http import HttpRequest
from django.utils import timezone

from container_manager import conf
from container_manager.models import validators
from container_manager.models.expressions import HasLabel
from container_manager.models.job_counts import count_jobs, counts_by_queue
from container_manager.reports.activity import BY_HAND
from container_manager.states import Isolation, JobStatus, Reason

Choices = list[tuple[str, str]]

ANY = "any"
"""Jobs that leave the executor open."""

MOST = 10_000
"""So many jobs are listed at most where nobody keeps a count of what was asked for."""


class WordFilter(ABC, admin.SimpleListFilter):
    """One of a closed list of words; any other is refused, never ignored."""

    parameter_name: str

    @abstractmethod
    def words(self) -> Choices:
        """The words, each with what people read."""

    def lookups(self, request: HttpRequest, model_admin: Any) -> Choices:
        return self.words()

    def has_output(self) -> bool:
        self._refuse_unknown()
        return super().has_output()

    def _refuse_unknown(self) -> None:
        given = self.value()
        if given is not None and given not in dict(self.words()):
            raise DisallowedModelAdminLookup(f"{self.parameter_name} has no such value")

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        given = self.value()
        return queryset if given is None else self.narrow(queryset, given)

    def narrow(self, jobs: QuerySet[Any], word: str) -> QuerySet[Any]:
        """The jobs that have it."""
        return jobs.filter(**{self.parameter_name: stored(self.parameter_name, word)})


def stored(dimension: str, word: str) -> str:
    """What the column holds for the word of a filter."""
    return "" if (dimension, word) in (("executor", ANY), ("reason", BY_HAND)) else word


class StatusFilter(WordFilter):
    title, parameter_name = "state", "status"

    def words(self) -> Choices:
        return JobStatus.choices


class QueueFilter(WordFilter):
    title = parameter_name = "queue"

    def words(self) -> Choices:
        return [(name, name) for name in sorted(counts_by_queue())]

    def _refuse_unknown(self) -> None:
        """A queue that is empty by now is no mistake."""
        try:
            validators.queue_name(self.value() or "default")
        except ValidationError as error:
            raise DisallowedModelAdminLookup(str(error)) from error


class ExecutorFilter(WordFilter):
    title = parameter_name = "executor"

    def words(self) -> Choices:
        return [(ANY, "left open"), *((alias, alias) for alias in sorted(conf.executors()))]


class IsolationFilter(WordFilter):
    title = parameter_name = "isolation"

    def words(self) -> Choices:
        return Isolation.choices


class ReasonFilter(WordFilter):
    title = parameter_name = "reason"

    def words(self) -> Choices:
        return [*Reason.choices, (BY_HAND, "By hand")]

    def narrow(self, jobs: QuerySet[Any], word: str) -> QuerySet[Any]:
        ended = jobs.filter(status=JobStatus.FAILED) if word == BY_HAND else jobs
        return super().narrow(ended, word)


class AgeFilter(WordFilter):
    title, parameter_name = "age", "age"

    def words(self) -> Choices:
        return [
            ("hour", "Created in the last hour"),
            ("day", "Created in the last 24 hours"),
            ("week", "Created in the last 7 days"),
            ("older", "Older than 7 days"),
        ]

    def narrow(self, jobs: QuerySet[Any], word: str) -> QuerySet[Any]:
        if word == "older":
            return jobs.filter(created_at__lt=_before(days=7))
        since = {"hour": _before(hours=1), "day": _before(days=1), "week": _before(days=7)}
        return jobs.filter(created_at__gte=since[word])


def _before(**length: int) -> datetime:
    return timezone.now() - timedelta(**length)


class OwnerFilter(WordFilter):
    title, parameter_name = "owner", "owner"

    def words(self) -> Choices:
        return [("me", "Only mine")]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        return queryset.filter(created_by=request.user) if self.value() else queryset


FILTERS = (
    *(StatusFilter, QueueFilter, ExecutorFilter, IsolationFilter),
    *(ReasonFilter, AgeFilter, OwnerFilter),
)


# Counting -----------------------------------------------------------------------------------------

COUNTED = {"status", "queue", "executor", "isolation"}
"""Filters whose jobs are counted beforehand."""

NOT_FILTERS = {"p", "o", "all", "e"}
"""What an address of the list may have beside filters: page, order, show all, an error before."""


def kept_count(request: HttpRequest) -> int | None:
    """How many jobs a list has whose filters are all dimensions that are counted; else None."""
    said = {name: str(text) for name, text in request.GET.items() if text}
    given = {name: text for name, text in said.items() if name not in NOT_FILTERS}
    owner = request.user if given.pop("owner", None) else None
    if not set(given) <= COUNTED:
        return None
    return count_jobs(owner, **{name: [stored(name, text)] for name, text in given.items()})


class JobPaginator(Paginator):  # type: ignore[type-arg]
    """Pages of a list whose length is known; else of its first `MOST` rows."""

    def __init__(self, *given: Any, known: Callable[[], int | None], **named: Any) -> None:
        super().__init__(*given, **named)
        self._known = known

    @cached_property
    def count(self) -> int:
        known = self._known()
        return self._at_most() if known is None else known

    def _at_most(self) -> int:
        rows: Any = self.object_list
        found = int(rows.order_by()[: MOST + 1].count())
        self.cut_off = found > MOST
        return min(found, MOST)

    cut_off = False
    """More match than are listed."""


# Searching ----------------------------------------------------------------------------------------

_HEX = re.compile(r"[0-9a-f]{6,32}")
_LABEL = re.compile(r"([^=\s]+)=(.*)")


def search(jobs: QuerySet[Any], text: str) -> QuerySet[Any]:
    """By name, image, id or its end, or `label=value`; every character stands for itself."""
    found = Q(name__icontains=text) | Q(image__icontains=text)
    if label := _LABEL.fullmatch(text):
        found |= Q(HasLabel(*label.groups()))
    digits = text.lower().replace("-", "")
    if not _HEX.fullmatch(digits):
        return jobs.filter(found)
    if len(digits) == 32:
        return jobs.filter(found | Q(pk=digits))
    return jobs.filter(found | Q(pk__endswith=digits))
