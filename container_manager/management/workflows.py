"""What the commands about DAGs and runs share: which is meant, and how each is shown.

A DAG is named by its name; a run by `DAG/RUN_ID`, by its id, or by the beginning or end of its id.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence
from datetime import UTC, date, datetime, time
from difflib import get_close_matches
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

from django.db import models
from rich.cells import cell_len
from rich.table import Table
from rich.text import Text

from container_manager.management import tables
from container_manager.management.base import wrong_usage
from container_manager.management.selection import Kind, find_ids
from container_manager.management.tables import short_id, span, visible
from container_manager.models import Dag, DagRun, TaskInstance
from container_manager.models.base import batched
from container_manager.models.validators import plain_text
from container_manager.states import OVER, Reason, RunType, WorkflowState

_W = WorkflowState

COLOURS = {
    _W.QUEUED: "yellow",
    _W.RUNNING: "cyan",
    _W.SUCCESS: "green",
    _W.FAILED: "red",
    _W.RETRYING: "magenta",
    _W.SKIPPED: "blue",
    _W.UPSTREAM_FAILED: "bright_red",
}

# Which one is meant -------------------------------------------------------------------------------


def find_dag(name: str) -> Dag:
    """The DAG of this name. Raises CommandError, which proposes one that is spelled alike."""
    plain_text(name)
    try:
        return Dag.objects.get_by_name(name)
    except Dag.DoesNotExist:
        raise wrong_usage(f"there is no DAG {name!r}{_near(name)}") from None


def find_dags(names: Iterable[str]) -> list[Dag]:
    """Each once, in the order in which they were named. Raises CommandError."""
    return [find_dag(name) for name in dict.fromkeys(names)]


def _near(name: str) -> str:
    near = get_close_matches(name, Dag.objects.values_list("name", flat=True)[:500], n=1)
    return f"; did you mean {near[0]}?" if near else "; see `manage.py list_dags`"


RUN = Kind(DagRun, "run")


def find_run(given: str) -> DagRun:
    """The one run that was meant. Raises CommandError."""
    runs = DagRun.objects.select_related("dag").defer("spec", "dag__spec")
    plain_text(given)
    try:
        run: DagRun
        if "/" in given:
            dag_name, _, run_id = given.partition("/")
            run = runs.get(dag=find_dag(dag_name), run_id=run_id)
        else:
            run = runs.get(pk=find_ids([given], RUN)[0])
        return run
    except DagRun.DoesNotExist:
        raise wrong_usage(f"there is no run {given!r}") from None


def moment(text: str, zone: ZoneInfo, option: str, of_day: time = time.min) -> datetime:
    """A date or time as people write it, on the clock of `zone` where it names none.

    `of_day`: what a date alone means. Raises CommandError.
    """
    try:
        if len(text) <= len("2026-01-31"):
            read = datetime.combine(date.fromisoformat(text), of_day)
        else:
            read = datetime.fromisoformat(text)
        return (read if read.tzinfo else read.replace(tzinfo=zone)).astimezone(UTC)
    except (ValueError, OverflowError):
        message = f"{option}: {text[:60]!r} is no date or time such as 2026-01-31 or"
        raise wrong_usage(f"{message} 2026-01-31T02:00") from None


# In words -----------------------------------------------------------------------------------------


def state_text(state: str) -> Text:
    """A state in its colour."""
    return Text(str(state), style=COLOURS.get(state, ""))  # type: ignore[call-overload]


def minute(moment: datetime | None) -> str:
    """`2026-01-31 02:00`, in UTC; empty when there is none."""
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M}" if moment else ""


def next_run(dag: Dag, now: datetime) -> str:
    """When it begins a run by itself, or why it does not."""
    if dag.is_paused:
        return "paused"
    if not dag.schedule:
        return "by hand only"
    if dag.next_slot_at is None:
        return "no more"
    return "now" if dag.next_slot_at <= now else minute(dag.next_slot_at)


def run_described(run: DagRun) -> str:
    """Where a run stands, in one line: `failed (task_failed) after 3.1s`."""
    reason = f" ({run.reason})" if run.reason else ""
    took = f" after {span(run.duration)}" if run.ended_at and run.duration else ""
    return f"{run.state}{reason}{took}"


def task_result(task: TaskInstance) -> str:
    """How its latest try ended, in a word or two."""
    if task.reason in ("", Reason.EXIT_CODE):
        return f"exit {task.exit_code}" if task.exit_code is not None else ""
    return str(task.reason)


def counts_of(runs: Sequence[DagRun]) -> dict[UUID, Counter[str]]:
    """Of each run how many of its tasks stand where."""
    counts: dict[UUID, Counter[str]] = defaultdict(Counter)
    for batch in batched([run.pk for run in runs]):
        tasks = TaskInstance.objects.filter(dag_run__in=batch).order_by()
        for run_pk, state, n in tasks.values_list("dag_run", "state").annotate(n=models.Count("*")):
            counts[run_pk][state] = n
    return counts


def _progress(counts: Counter[str]) -> str:
    return f"{sum(counts[state] for state in OVER)}/{counts.total()}"


# Tables for people --------------------------------------------------------------------------------


def dags_table(dags: Iterable[Dag], now: datetime, width: int) -> Table:
    """DAGs that `with_latest_run` has read."""
    rows = [
        (
            visible(dag.name),
            visible(dag.schedule),
            next_run(dag, now),
            minute(dag.latest_date),  # type: ignore[attr-defined]
            state_text(dag.latest_state or ""),  # type: ignore[attr-defined]
        )
        for dag in dags
    ]
    headers = ("NAME", "SCHEDULE", "NEXT RUN (UTC)", "LATEST RUN (UTC)", "STATE")
    return _table(headers, rows, width, flexible=0, most={1: 18})


def runs_table(runs: Sequence[DagRun], width: int) -> Table:
    counts = counts_of(runs)
    rows = [
        (
            short_id(run.pk),
            visible(run.dag.name),
            minute(run.execution_date),
            str(run.run_type),
            state_text(run.state),
            _progress(counts[run.pk]),
            span(run.duration),
        )
        for run in runs
    ]
    headers = ("ID", "DAG", "DATE (UTC)", "TYPE", "STATE", "TASKS", "TOOK")
    return _table(headers, rows, width, flexible=1, right={5, 6})


def tasks_table(tasks: Iterable[TaskInstance], width: int) -> Table:
    rows = [
        (
            visible(task.task_id),
            state_text(task.state),
            f"{task.try_number}/{task.max_tries}",
            span(task.duration),
            visible(task_result(task)),
            short_id(task.job_id) if task.queued_at and task.job_id else "",
        )
        for task in tasks
    ]
    headers = ("TASK", "STATE", "TRIES", "TOOK", "RESULT", "JOB")
    return _table(headers, rows, width, flexible=0, right={2, 3}, most={4: 16})


def _table(
    headers: Sequence[str],
    rows: Sequence[Sequence[Any]],
    width: int,
    *,
    flexible: int,
    right: Collection[int] = (),
    most: dict[int, int] | None = None,
) -> Table:
    """The flexible column takes what the others leave of `width`."""
    made = tables.table(*headers)
    taken = 0
    for index, column in enumerate(made.columns):
        column.justify = "right" if index in right else "left"
        widest = max(
            cell_len(str(cell)) for cell in [headers[index], *(row[index] for row in rows)]
        )
        column.max_width = min(widest, (most or {}).get(index, widest))
        taken += 0 if index == flexible else column.max_width + 2
    made.columns[flexible].max_width = max(10, width - taken)
    for row in rows:
        made.add_row(*row)
    return made


# For pipes and programs ---------------------------------------------------------------------------


def with_latest_run(dags: models.QuerySet[Dag]) -> models.QuerySet[Dag]:
    """Each with `latest_date` and `latest_state`, those of its run of the latest date."""
    latest = DagRun.objects.filter(dag=models.OuterRef("pk")).order_by("-execution_date")
    return dags.defer("spec").annotate(
        latest_date=models.Subquery(latest.values("execution_date")[:1]),
        latest_state=models.Subquery(latest.values("state")[:1]),
    )


def dag_json(dag: Dag) -> dict[str, Any]:
    """What its row says, without its document."""
    told = ("id", "name", "description", "tags", "is_paused", "schedule", "timezone", "start_date")
    more = ("end_date", "missed_runs", "max_active_runs", "next_slot_at", "created_at")
    return {
        **{name: getattr(dag, name) for name in (*told, *more)},
        "latest_date": dag.latest_date,  # type: ignore[attr-defined]
        "latest_state": dag.latest_state,  # type: ignore[attr-defined]
    }


def run_json(run: DagRun, counts: Counter[str]) -> dict[str, Any]:
    told = ("id", "run_id", "run_type", "state", "reason", "execution_date", "params", "created_at")
    times = ("started_at", "ended_at", "duration_ms", "cancel_requested_at")
    return {
        "dag": run.dag.name,
        **{name: getattr(run, name) for name in (*told, *times)},
        "tasks": {state: counts[state] for state in _W if counts[state]},
    }


def task_json(task: TaskInstance) -> dict[str, Any]:
    told = ("id", "task_id", "name", "map_index", "state", "reason", "try_number", "max_tries")
    more = ("started_at", "ended_at", "duration_ms", "exit_code", "error")
    return {
        **{name: getattr(task, name) for name in (*told, *more)},
        "job": task.job_id if task.queued_at else None,
    }


def dag_line(dag: Dag) -> str:
    """Tab-separated: name, paused, schedule, time zone, next slot, latest date, latest state."""
    cells = (
        dag.name,
        "paused" if dag.is_paused else "active",
        visible(dag.schedule),
        dag.timezone,
        _iso(dag.next_slot_at),
        _iso(dag.latest_date),  # type: ignore[attr-defined]
        dag.latest_state or "",  # type: ignore[attr-defined]
    )
    return "\t".join(map(str, cells))


def run_line(run: DagRun) -> str:
    """Tab-separated: id, DAG, run id, date, type, state, seconds it took, reason."""
    took = run.duration
    cells = (
        run.pk,
        run.dag.name,
        visible(run.run_id),
        _iso(run.execution_date),
        RunType(run.run_type),
        run.state,
        "" if took is None else f"{took.total_seconds():.3f}",
        run.reason,
    )
    return "\t".join(map(str, cells))


def task_line(task: TaskInstance) -> str:
    """Tab-separated: task, state, tries, seconds it took, exit code, reason, job."""
    took = task.duration
    cells = (
        task.task_id,
        task.state,
        task.try_number,
        "" if took is None else f"{took.total_seconds():.3f}",
        "" if task.exit_code is None else task.exit_code,
        visible(task.reason),
        task.job_id if task.queued_at else "",
    )
    return "\t".join(map(str, cells))


def _iso(moment: datetime | None) -> str:
    return moment.astimezone(UTC).isoformat(timespec="seconds") if moment else ""
