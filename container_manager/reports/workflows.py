"""What pages show of DAGs and runs, each read with a fixed number of queries."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import reduce
from operator import or_
from typing import Any
from uuid import UUID

from django.db.models import Case, Count, Max, Min, OuterRef, Q, QuerySet, Subquery, Sum, When
from django.utils import timezone

from container_manager import states
from container_manager.models import Dag, DagRun, TaskInstance
from container_manager.states import WorkflowState

_W = WorkflowState

WORST_FIRST = (
    *(_W.FAILED, _W.UPSTREAM_FAILED, _W.RETRYING, _W.RUNNING, _W.QUEUED),
    *(_W.SKIPPED, _W.SUCCESS),
)
"""What is told of many tasks in one word: the first of these that one of them is in."""


def worst(counts: Mapping[str, int]) -> str:
    """
    >>> str(worst({"success": 9, "failed": 1}))
    'failed'
    """
    return next((state for state in WORST_FIRST if counts.get(state)), _W.QUEUED)


# Runs of DAGs -------------------------------------------------------------------------------------


def latest_runs(dags: Collection[UUID], count: int) -> dict[UUID, list[DagRun]]:
    """The `count` latest runs of each of these DAGs, oldest first; two queries for all of them."""
    found: dict[UUID, list[DagRun]] = defaultdict(list)
    since = _since(dags, count)
    if since:
        wanted = reduce(or_, (Q(dag=dag, **limit) for dag, limit in since.items()))
        rows = DagRun.objects.filter(wanted).defer("spec", "params").order_by("execution_date")
        for run in rows:
            found[run.dag_id].append(run)
    return found


def _since(dags: Collection[UUID], count: int) -> dict[UUID, dict[str, datetime]]:
    """For each DAG that has runs the filter that leaves the `count` latest."""
    runs = DagRun.objects.filter(dag=OuterRef("pk")).order_by("-execution_date")
    dates = runs.values("execution_date")
    rows = Dag.objects.filter(pk__in=dags).order_by()
    found = rows.annotate(newest=Subquery(dates[:1]), last=Subquery(dates[count - 1 : count]))
    return {
        dag: {"execution_date__gte": last} if last else {}
        for dag, newest, last in found.values_list("pk", "newest", "last")
        if newest
    }


# Tasks of a run -----------------------------------------------------------------------------------


@dataclass
class OfName:
    """The tasks of one name in one run: one, or those of an array."""

    name: str
    counts: dict[str, int] = field(default_factory=dict)
    """By state."""
    is_array: bool = False
    queued_at: datetime | None = None
    started_at: datetime | None = None
    ended_at: datetime | None = None
    """When the last of them ended; None while one has not."""

    @property
    def state(self) -> str:
        return worst(self.counts)

    @property
    def total(self) -> int:
        return sum(self.counts.values())

    def add(self, row: Mapping[str, Any]) -> None:
        """Tasks of one state."""
        self.counts[row["state"]] = row["n"]
        self.is_array = self.is_array or row["last_index"] is not None
        self.queued_at = _of_both(min, self.queued_at, row["queued"])
        self.started_at = _of_both(min, self.started_at, row["started"])
        self.ended_at = _of_both(max, self.ended_at, row["ended"])


def _of_both(choose: Any, one: datetime | None, other: datetime | None) -> datetime | None:
    given = [moment for moment in (one, other) if moment is not None]
    return choose(given) if given else None


def counts_by_state(tasks: QuerySet[Any]) -> dict[str, int]:
    """How many of these tasks stand where, in the order of the states, without those of none."""
    found = dict(tasks.order_by().values_list("state").annotate(n=Count("pk")))
    return {state: found[state] for state in WorkflowState if state in found}


def failed_names(run: DagRun, limit: int) -> list[str]:
    """Of which names a task failed, in the order of the document."""
    failed = TaskInstance.objects.filter(dag_run=run, state=_W.FAILED).order_by()
    names = failed.values("name").annotate(place=Min("position")).order_by("place")
    return [row["name"] for row in names[:limit]]


def by_name(run: DagRun) -> list[OfName]:
    """All tasks of a run, by name, in the order of the document."""
    return list(of_runs([run])[run.pk].values())


def of_runs(
    runs: Sequence[DagRun], names: Collection[str] | None = None
) -> dict[UUID, dict[str, OfName]]:
    """The same of some runs, {run: {name: tasks}}; with `names` only those."""
    tasks = TaskInstance.objects.filter(dag_run__in=[run.pk for run in runs])
    wanted = tasks if names is None else tasks.filter(name__in=names)
    rows = wanted.values("dag_run", "name", "state").annotate(
        n=Count("pk"),
        place=Min("position"),
        last_index=Max("map_index"),
        queued=Min("queued_at"),
        started=Min("started_at"),
        ended=Max("ended_at"),
    )
    found: dict[UUID, dict[str, OfName]] = {run.pk: {} for run in runs}
    for row in rows.order_by("place", "state"):
        of_run = found[row["dag_run"]]
        of_run.setdefault(row["name"], OfName(row["name"])).add(row)
    for of_run in found.values():
        for tasks_of_name in of_run.values():
            if any(tasks_of_name.counts.get(state) for state in states.NOT_OVER):
                tasks_of_name.ended_at = None
    return found


def failed_first(tasks: QuerySet[Any]) -> QuerySet[Any]:
    """What went wrong, then what is under way, then the rest, each in the order of the document."""
    ranks = [When(state=state, then=rank) for rank, state in enumerate(WORST_FIRST)]
    return tasks.order_by(Case(*ranks, default=len(ranks)), "position")


def mark_of(runs: Sequence[DagRun]) -> list[Any]:
    """Changes whenever one of these runs moves, or a task of one that is not over."""
    going_on = [run.pk for run in runs if run.state in states.NOT_OVER]
    tasks = TaskInstance.objects.filter(dag_run__in=going_on)
    moves = tasks.aggregate(n=Sum("version"))["n"] if going_on else 0
    return [moves, *((str(run.pk), run.version) for run in runs)]


# All of it ----------------------------------------------------------------------------------------


def overview(user: Any) -> dict[str, int]:
    """How many DAGs there are and are paused, and how many runs wait, go on, and failed lately."""
    day = timezone.now() - timedelta(days=1)
    dags = Dag.objects.visible_to(user).aggregate(
        dags=Count("pk"), paused=Count("pk", filter=Q(is_paused=True))
    )
    runs = DagRun.objects.visible_to(user).filter(
        Q(state__in=states.NOT_OVER) | Q(state=_W.FAILED, ended_at__gte=day)
    )
    counts: dict[str, int] = dict(runs.order_by().values_list("state").annotate(n=Count("pk")))
    return {
        **dags,
        "queued": counts.get(_W.QUEUED, 0),
        "active": sum(counts.get(state, 0) for state in states.RUN_ACTIVE),
        "failed": counts.get(_W.FAILED, 0),
    }
