"""Do the engines have what the records say, nothing more and nothing less?

The engine is read first, then the rows: what belongs to an attempt was committed before it was
created, and is removed only after its end was. Whatever looks wrong is looked at again after a
while, in the same order, and told only if it still is.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID

from django.db.models import Count, Q

from container_manager.consistency.asking import FINDING, NOTE, Finding, Records, found
from container_manager.engines import Engine, Engines, Listing
from container_manager.executors.base import Execution, ExecutorError
from container_manager.models import JobAttempt
from container_manager.models.attempt import attempt_of_name
from container_manager.models.base import batched
from container_manager.states import Phase, Reason

LOOK_AGAIN_SECONDS = 3.0
GRACE = timedelta(minutes=2)
"""After its end: a worker removes what is left after one, and looks every half minute."""

BATCH = 500

Listings = dict[str, Listing]


@dataclass(frozen=True)
class Suspect:
    """What looks wrong, and how to tell whether it still does."""

    finding: Finding
    still: Callable[[Listings], bool]


def engine_findings(
    engines: Engines,
    instance: str,
    job_ids: Sequence[UUID] | None = None,
    *,
    using: str = "default",
    pause: float | None = None,
) -> Iterator[Finding]:
    """What the engines that answer here have, against the attempts of these jobs (or all)."""
    look = _Look(Records(using, job_ids), engines, instance)
    listings = look.listings()
    suspects = list(look.suspects(listings))
    if suspects:
        time.sleep(LOOK_AGAIN_SECONDS if pause is None else pause)
        again = look.listings()
        yield from (each.finding for each in suspects if each.still(again))
    yield from look.left_out(listings)


class _Look:
    def __init__(self, records: Records, engines: Engines, instance: str) -> None:
        self._records = records
        self._engines = engines
        self._instance = instance

    # The engines

    def listings(self) -> Listings:
        """What each engine has that answers, by its alias."""
        listed = {}
        for engine in self._engines:
            if listing := self._listing(engine):
                listed[engine.alias] = listing
        return listed

    def _listing(self, engine: Engine) -> Listing | None:
        if not engine.available or engine.capabilities.in_process:
            return None
        try:
            return engine.listing(self._instance)
        except ExecutorError:
            return None

    def _runs(self, alias: str, name: str) -> bool:
        try:
            found: Execution | None = self._engines[alias].executor.find(name, self._instance)
        except ExecutorError:
            return False
        return found is not None and found.running

    def left_out(self, listings: Listings) -> Iterator[Finding]:
        """Engines with attempts of ours that did not answer, or that are not configured here."""
        theirs = self._records.attempts.exclude(phase=Phase.DONE, cleaned_up=True)
        held = Count("pk", filter=~Q(phase=Phase.DONE))
        places = theirs.values_list("executor", "engine_id").annotate(held=held, of=Count("pk"))
        for alias, engine_id, active, count in places.exclude(engine_id=""):
            if self._is_inside_workers(alias) or _speaking(listings, alias, engine_id):
                continue
            text = (
                f"engine {alias} ({engine_id}) was not looked at: it is not configured here or does"
                f" not answer; {active} attempts are held there, {count - active} ended ones may"
                " have left something"
            )
            yield found("engine_not_looked_at", text, level=NOTE, engine=alias)

    def _is_inside_workers(self, alias: str) -> bool:
        return any(
            engine.alias == alias and engine.capabilities.in_process for engine in self._engines
        )

    # What looks wrong

    def suspects(self, listings: Listings) -> Iterator[Suspect]:
        for listing in _engines_of(listings):
            for names in batched(sorted(listing.names), BATCH):
                yield from self._remains(listing, names)
                yield from self._strangers(listing, names)
        yield from self._doubles(listings)
        yield from self._missing(listings)

    def _remains(self, listing: Listing, names: Sequence[str]) -> Iterator[Suspect]:
        """Of attempts that have been over for long."""
        over = self._records.attempts.over_since(self._records.now(), GRACE)
        alias = listing.engine.alias
        for attempt in over.named(names):
            if attempt.name in listing.names:
                finding = _remains_of(attempt, alias)
                yield Suspect(finding, lambda again, name=attempt.name: _has(again, alias, name))  # type: ignore[misc]

    def _strangers(self, listing: Listing, names: Sequence[str]) -> Iterator[Suspect]:
        """With our label, and of no attempt that these records know."""
        if self._records.job_ids is not None:
            return
        alias = listing.engine.alias
        for name in self._unknown(names):
            text = f"engine {alias} has {name} of this installation, which belongs to no attempt"
            yield Suspect(
                found("execution_unknown", text, engine=alias, execution=name),
                lambda again, name=name: _has(again, alias, name) and bool(self._unknown([name])),  # type: ignore[misc]
            )

    def _unknown(self, names: Sequence[str]) -> list[str]:
        known = {attempt.name for attempt in self._records.attempts.named(names)}
        return [name for name in names if name not in known]

    def _doubles(self, listings: Listings) -> Iterator[Suspect]:
        """Several that run of one job, be it on several engines."""
        for job_id, places in self._several(listings).items():
            alive = [place for place in places if self._runs(*place)]
            if len(alive) > 1:
                names = ", ".join(f"{name} on {alias}" for alias, name in alive)
                yield Suspect(
                    found("two_executions", f"several of its executions run: {names}", job_id),
                    lambda _again, alive=alive: all(self._runs(*place) for place in alive),  # type: ignore[misc]
                )

    def _several(self, listings: Listings) -> dict[UUID, list[tuple[str, str]]]:
        """Alias and name of what engines have of one job, where that is more than one thing."""
        places: dict[UUID, list[tuple[str, str]]] = defaultdict(list)
        for listing in _engines_of(listings):
            for name in sorted(listing.names):
                if key := attempt_of_name(name):
                    places[key[0]].append((listing.engine.alias, name))
        several = {job_id: found for job_id, found in places.items() if len(found) > 1}
        for job_ids in batched(sorted(several), BATCH):
            mine = self._records.attempts.filter(job__in=job_ids)
            wanted = set(mine.values_list("job", flat=True))
            given_up = {each.name for each in mine.filter(reason=Reason.UNPROVEN)}
            for job_id in job_ids:
                kept = [place for place in several[job_id] if place[1] not in given_up]
                several[job_id] = kept if job_id in wanted else []
        return several

    def _missing(self, listings: Listings) -> Iterator[Suspect]:
        """Attempts that run, as the records say, on an engine that does not have them."""
        now = self._records.now()
        started = self._records.attempts.filter(
            phase__in=(Phase.STARTED, Phase.STOPPING),
            unreachable_since__isnull=True,
            worker_id__in=self._records.living(now).values("pk"),
        )
        for attempt in started.iterator(BATCH):
            listing = _speaking(listings, attempt.executor, attempt.engine_id)
            if listing is not None and attempt.name not in listing.names:
                text = f"attempt {attempt.attempt} runs, and engine {attempt.executor} has it not"
                finding = found("execution_missing", text, attempt.job_id)
                yield Suspect(finding, lambda again, seen=attempt: self._is_missing(again, seen))  # type: ignore[misc]

    def _is_missing(self, again: Listings, seen: JobAttempt) -> bool:
        listing = _speaking(again, seen.executor, seen.engine_id)
        if listing is None or seen.name in listing.names:
            return False
        same = JobAttempt.objects.using(self._records.using).filter(
            pk=seen.pk,
            lease_epoch=seen.lease_epoch,
            worker_id=seen.worker_id,
            phase__in=(Phase.STARTED, Phase.STOPPING),
            unreachable_since__isnull=True,
        )
        return same.exists()


def _remains_of(attempt: JobAttempt, alias: str) -> Finding:
    given_up = attempt.reason == Reason.UNPROVEN
    text = f"engine {alias} still has {attempt.name}, which is over since {attempt.updated_at}"
    return found(
        "execution_of_abandoned" if given_up else "execution_left",
        text + (": it was given up, and a worker of that engine ends it" if given_up else ""),
        attempt.job_id,
        level=NOTE if given_up else FINDING,
        engine=alias,
        execution=attempt.name,
    )


def _engines_of(listings: Listings) -> Iterable[Listing]:
    """Each engine once, also where it has several aliases."""
    return {listing.engine_id: listing for listing in listings.values()}.values()


def _has(listings: Listings, alias: str, name: str) -> bool:
    return alias in listings and name in listings[alias].names


def _speaking(listings: Listings, alias: str, engine_id: str) -> Listing | None:
    """The listing that may say what there is, and is not, on that engine."""
    listing = listings.get(alias)
    return listing if listing is not None and listing.speaks_of(alias, engine_id) else None
