"""Which jobs: the options that all commands share, and a walk over what they select.

A job is named by its id, by the beginning of it, or by the end of it, as `list_jobs` shows it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from django.core.management.base import CommandParser
from django.db import models
from django.db.models.functions import Cast, Replace
from django.utils import timezone

from container_manager.management.base import wrong_usage
from container_manager.models import ContainerJob
from container_manager.models.validators import plain_text
from container_manager.states import JobStatus

BATCH = 500
"""Jobs that one call of a verb is asked about."""

_SHORTEST = 8
_HEX = re.compile(r"[0-9a-f]{1,32}")
MOST = 2**31 - 1
"""A limit beyond which no database counts in the same way."""

_SPAN = re.compile(r"([0-9]+)([smhdw])")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}
_LIGHT = ("environment", "command", "output", "transition_info", "labels", "retry_policy")


def add_selection(parser: CommandParser, *, age: str = "created") -> None:
    """The options that say which jobs."""
    group = parser.add_argument_group("which jobs")
    group.add_argument(
        "ids",
        nargs="*",
        metavar="ID",
        help="an id, or 8 or more characters from its beginning or end",
    )
    group.add_argument(
        "--status", action="append", metavar="STATE", help="in this state (repeatable)"
    )
    group.add_argument(
        "--queue", action="append", metavar="NAME", help="in this queue (repeatable)"
    )
    group.add_argument(
        "--label", action="append", metavar="KEY=VALUE", help="with this label (repeatable: all)"
    )
    group.add_argument("--older-than", metavar="AGE", help=f"{age} before: 90s, 15m, 2h, 7d")
    group.add_argument("--newer-than", metavar="AGE", help=f"{age} since then")
    group.add_argument("--all", action="store_true", help="every one there is")
    group.add_argument("--limit", type=int, metavar="N", help="at most so many")


@dataclass(frozen=True)
class Selection:
    """The jobs that a command was asked about."""

    jobs: models.QuerySet[ContainerJob]
    ids: tuple[UUID, ...] | None = None
    limit: int | None = None

    def count(self) -> int:
        """How many there are now."""
        if self.ids is None:
            found = self.jobs.count()
        else:
            found = sum(self.jobs.filter(pk__in=part).count() for part in _parts(self.ids, BATCH))
        return found if self.limit is None else min(found, self.limit)

    def batches(self) -> Iterator[list[ContainerJob]]:
        """All of them, some hundred at a time, oldest first or as they were named.

        Jobs that come while we walk are left out, so that the walk ends.
        """
        return _limited(self._named() if self.ids is not None else self._oldest_first(), self.limit)

    def newest(self, columns: Iterable[str] = ()) -> Iterator[ContainerJob]:
        """One after the other, newest first; rows are read as they are asked for.

        `columns`: those that will be looked at; all but the output when none are named.
        """
        size = BATCH if self.limit is None else min(BATCH, max(1, self.limit))
        jobs = self.jobs.order_by("-created_at", "-id").defer("output", "transition_info")
        jobs = jobs.only("created_at", *columns) if columns else jobs
        jobs = jobs.filter(pk__in=self.ids) if self.ids is not None else jobs
        for batch in _limited(_newest_first(jobs, size), self.limit):
            yield from batch

    def _named(self) -> Iterator[list[ContainerJob]]:
        for part in _parts(self.ids or (), BATCH):
            found = self.jobs.defer(*_LIGHT).in_bulk(part)
            yield [found[pk] for pk in part if pk in found]

    def _oldest_first(self) -> Iterator[list[ContainerJob]]:
        jobs = self.jobs.defer(*_LIGHT).order_by("pk")
        newest = self.jobs.order_by("-pk").values_list("pk", flat=True).first()
        batch = list(jobs.filter(pk__lte=newest)[:BATCH]) if newest else []
        while batch:
            yield batch
            batch = list(jobs.filter(pk__gt=batch[-1].pk, pk__lte=newest)[:BATCH])


def _newest_first(jobs: models.QuerySet[ContainerJob], size: int) -> Iterator[list[ContainerJob]]:
    batch = list(jobs[:size])
    while batch:
        yield batch
        at, pk = batch[-1].created_at, batch[-1].pk
        older = models.Q(created_at__lt=at) | models.Q(created_at=at, pk__lt=pk)
        batch = list(jobs.filter(older, created_at__lte=at)[:BATCH])


def _limited(
    batches: Iterable[list[ContainerJob]], limit: int | None
) -> Iterator[list[ContainerJob]]:
    left = limit
    for batch in batches:
        if left is None:
            yield batch
            continue
        if left > 0:
            yield batch[:left]
        left -= len(batch)
        if left <= 0:
            return


def _parts(ids: tuple[UUID, ...], size: int) -> Iterator[tuple[UUID, ...]]:
    for start in range(0, len(ids), size):
        yield ids[start : start + size]


# From options to a selection ----------------------------------------------------------------------


def select(
    options: Mapping[str, Any],
    *,
    default: Iterable[JobStatus] = (),
    age_of: str = "created_at",
    anything: bool = False,
) -> Selection:
    """The jobs that the options name; `default`: the states meant when nothing says which.

    Raises CommandError when nothing selects, unless `anything` goes; and for what makes no sense.
    """
    ids = options.get("ids") or ()
    statuses = _words(options.get("status"))
    filters = ("status", "queue", "label", "older_than", "newer_than")
    named = bool(ids) or any(options.get(name) for name in filters)
    if not (named or anything or options.get("all")):
        raise wrong_usage(
            "say which jobs: ids, --status, --queue, --label, --older-than, --newer-than or --all"
        )
    jobs = ContainerJob.objects.all()
    if statuses or not ids:
        jobs = _in_states(jobs, statuses or [*default])
    if options.get("queue"):
        jobs = jobs.filter(queue__in=_words(options["queue"]))
    for key, value in pairs(options.get("label"), "--label").items():
        jobs = jobs.with_label(key, value)
    jobs = _of_age(jobs, options, age_of)
    selection = Selection(jobs, limit=_limit(options.get("limit")))
    return replace(selection, ids=tuple(find_ids(ids))) if ids else selection


def _words(given: Any) -> list[str]:
    """Repeated options, each of which may be a comma-separated list."""
    given = [given] if isinstance(given, str) else given or []
    plain_text("".join(map(str, given)))
    return [word.strip() for item in given for word in str(item).split(",") if word.strip()]


def _in_states(jobs: Any, statuses: list[str]) -> Any:
    for status in statuses:
        if status not in JobStatus.values:
            raise wrong_usage(f"--status: {status!r} is not a state: {', '.join(JobStatus.values)}")
    return jobs.filter(status__in=statuses) if statuses else jobs


def _of_age(jobs: Any, options: Mapping[str, Any], field: str) -> Any:
    now = timezone.now()
    if older := options.get("older_than"):
        jobs = jobs.filter(**{f"{field}__lt": moment_before(now, older, "--older-than")})
    if newer := options.get("newer_than"):
        jobs = jobs.filter(**{f"{field}__gte": moment_before(now, newer, "--newer-than")})
    return jobs


def moment_before(now: datetime, text: Any, option: str) -> datetime:
    try:
        return now - time_span(text, option)
    except OverflowError:
        raise wrong_usage(f"{option}: {text!r} is before the beginning of time") from None


def time_span(text: Any, option: str) -> timedelta:
    """90s, 15m, 2h, 7d, 2w. Raises CommandError."""
    found = _SPAN.fullmatch(str(text).strip())
    try:
        if found is not None:
            return timedelta(seconds=int(found[1]) * _SECONDS[found[2]])
    except (OverflowError, ValueError):
        pass
    raise wrong_usage(f"{option}: {text!r} is not a time span such as 90s, 15m, 2h or 7d")


def _limit(given: Any) -> int | None:
    if given is None:
        return None
    try:
        limit = int(given)
    except (TypeError, ValueError):
        limit = 0
    if not 1 <= limit <= MOST:
        raise wrong_usage(f"--limit: {given!r} is not a number of jobs (1 or more)")
    return limit


def pairs(given: Any, option: str) -> dict[str, str]:
    """Repeated KEY=VALUE options, or a mapping. Raises CommandError."""
    if isinstance(given, Mapping):
        return dict(given)
    found = {}
    for item in [given] if isinstance(given, str) else given or []:
        key, equals, value = str(item).partition("=")
        if not equals or not key:
            raise wrong_usage(f"{option}: {item!r} is not KEY=VALUE")
        plain_text(item)
        found[key] = value
    return found


# Names of single rows -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Kind:
    """What is named by an id."""

    model: type[models.Model]
    word: str

    @property
    def rows(self) -> models.QuerySet[Any]:
        return self.model._default_manager.order_by("pk")


JOB = Kind(ContainerJob, "job")


def find_ids(given: Iterable[Any], kind: Kind = JOB) -> list[UUID]:
    """The ids that were meant, each once. Raises CommandError for one that is none or several."""
    wanted = list(dict.fromkeys(str(item) for item in given))
    digits = {text: _digits(text, kind) for text in wanted}
    whole = {text: UUID(found) for text, found in digits.items() if len(found) == 32}
    _refuse_unknown(whole, kind)
    return list(dict.fromkeys(whole.get(text) or _only_one(text, kind) for text in wanted))


def find_job(given: Any) -> ContainerJob:
    """The one job that was meant. Raises CommandError."""
    try:
        return ContainerJob.objects.get(pk=find_ids([given])[0])
    except ContainerJob.DoesNotExist:
        raise wrong_usage(f"no job has the id {str(given)!r}") from None


def _digits(text: str, kind: Kind) -> str:
    digits = text.strip().lower().replace("-", "")
    if not _HEX.fullmatch(digits):
        raise wrong_usage(f"{text[:60]!r} is not the id of a {kind.word}")
    return digits


def _refuse_unknown(whole: Mapping[str, UUID], kind: Kind) -> None:
    there: set[UUID] = set()
    for part in _parts(tuple(whole.values()), BATCH):
        there |= set(kind.rows.filter(pk__in=part).values_list("pk", flat=True))
    for text, pk in whole.items():
        if pk not in there:
            raise wrong_usage(f"no {kind.word} has the id {text!r}")


def _only_one(text: str, kind: Kind) -> UUID:
    digits = _digits(text, kind)
    if len(digits) < _SHORTEST:
        raise wrong_usage(f"{text!r} is too short for an id: give at least {_SHORTEST} characters")
    found = list({*_beginning(digits, kind), *_ending(digits, kind)})
    if not found:
        raise wrong_usage(f"no {kind.word} has an id with {text!r}")
    if len(found) > 1:
        raise wrong_usage(f"{text!r} is the id of several {kind.word}s: give more characters of it")
    return found[0]


def _beginning(digits: str, kind: Kind) -> list[UUID]:
    low, high = UUID(digits.ljust(32, "0")), UUID(digits.ljust(32, "f"))
    return list(kind.rows.filter(pk__gte=low, pk__lte=high).values_list("pk", flat=True)[:2])


def _ending(digits: str, kind: Kind) -> list[UUID]:
    text = Replace(Cast("pk", models.CharField()), models.Value("-"), models.Value(""))
    rows = kind.rows.alias(digits=text).filter(digits__endswith=digits)
    return list(rows.values_list("pk", flat=True)[:2])
