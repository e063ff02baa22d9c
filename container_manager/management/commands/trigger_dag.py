"""Begin a run of a DAG, or the runs of a stretch of its schedule."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable
from datetime import time as time_of_day
from typing import Any

from django.core.management.base import CommandParser

from container_manager.management import tables
from container_manager.management.base import JobCommand, actor, failed, nothing, wrong_usage
from container_manager.management.selection import pairs
from container_manager.management.tables import visible
from container_manager.management.workflows import (
    counts_of,
    find_dag,
    moment,
    run_described,
    run_json,
    task_result,
)
from container_manager.models import Dag, DagRun, TaskInstance
from container_manager.states import OVER, WENT_WRONG, WorkflowState
from container_manager.workflows import dags
from container_manager.workflows.cron import BadSchedule, zone_of
from container_manager.workflows.dags import MOST_IN_BACKFILL, Slot

LOOK_SECONDS = 0.2
TASKS_TOLD = 20
END_OF_DAY = time_of_day(23, 59, 59)
OF_ONE_RUN = ("param", "date", "run_id", "wait")


class Command(JobCommand):
    help = (
        "Begin a run of a DAG and print its id; a scheduler advances it. With --from and --to: "
        "the runs of all slots of its schedule between them that have none (a backfill, of at "
        f"most {MOST_IN_BACKFILL} slots). Times without a zone are meant on the DAG's clock."
    )
    examples = """examples:
  manage.py trigger_dag etl_pipeline --param REGION=eu --wait 600
  manage.py trigger_dag etl_pipeline --date 2026-01-31T02:00 --run-id again
  manage.py trigger_dag etl_pipeline --from 2026-01-01 --to 2026-01-31 --dry-run
"""
    waiting_for: DagRun | None = None

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("name", metavar="NAME", help="the DAG")
        one = parser.add_argument_group("one run")
        one.add_argument(
            "--param", action="append", metavar="KEY=VALUE", help="instead of the DAG's own"
        )
        one.add_argument("--date", metavar="TIME", help="the instant that it stands for (now)")
        one.add_argument("--run-id", metavar="TEXT", help="its name in the DAG (made of the date)")
        one.add_argument(
            "--wait", type=float, metavar="SECONDS", help="for its end; exit code 0 if it succeeded"
        )
        many = parser.add_argument_group("a backfill")
        many.add_argument("--from", dest="first", metavar="DATE", help="from its first moment on")
        many.add_argument("--to", dest="last", metavar="DATE", help="to its last moment")
        many.add_argument("--dry-run", action="store_true", help="only say what would be done")
        parser.add_argument("--json", action="store_true", help="one JSON document")

    def handle(self, **options: Any) -> None:
        _refuse_what_does_not_fit(options)
        dag = find_dag(options["name"])
        if options["first"] is not None:
            self._backfill(dag, options)
        else:
            self._trigger(dag, options)

    # One run

    def _trigger(self, dag: Dag, options: dict[str, Any]) -> None:
        run = dags.trigger(
            dag.pk,
            params=pairs(options["param"], "--param"),
            execution_date=_moment(dag, options["date"], "--date"),
            run_id=options["run_id"] or "",
            actor=actor(),
        )
        if not options["json"]:
            self.say(str(run.pk))
        if options["wait"] is not None:
            self._wait_for(run, options["wait"])
        self._show(run, options)
        if options["wait"] is not None and run.state != WorkflowState.SUCCESS:
            raise failed(_why_not(run, options["wait"]))

    def _wait_for(self, run: DagRun, seconds: float) -> None:
        self.waiting_for = run
        self._flush()
        ends_at = time.monotonic() + seconds
        while run.state not in OVER and time.monotonic() < ends_at:
            time.sleep(LOOK_SECONDS)
            try:
                run.refresh_from_db(fields=_LOOKED_AT)
            except DagRun.DoesNotExist:
                raise failed(f"run {run.pk} was deleted") from None

    def _show(self, run: DagRun, options: dict[str, Any]) -> None:
        if options["json"]:
            self.say(tables.dumps(run_json(run, counts_of([run])[run.pk])))
        elif options["wait"] is not None:
            self.say(run_described(run))
            for line in _what_went_wrong(run):
                self.say(line)

    def on_interrupt(self) -> str:
        run = self.waiting_for
        return f"interrupted; run {run.pk} goes on" if run else "interrupted"

    # A backfill

    def _backfill(self, dag: Dag, options: dict[str, Any]) -> None:
        first = _moment(dag, options["first"], "--from")
        last = _moment(dag, options["last"], "--to", END_OF_DAY)
        assert first is not None and last is not None  # noqa: PT018, S101 - both are given
        slots = dags.backfill(dag.pk, first, last, actor=actor(), dry_run=options["dry_run"])
        if not slots:
            raise nothing("its schedule has no slot between these dates")
        results = [_result(slot, dry_run=options["dry_run"]) for slot in slots]
        counts = Counter(result["result"] for result in results)
        if options["json"]:
            self.say(tables.dumps({"results": results, "counts": counts}))
            return
        for result in results:
            self.say(_line(result))
        self.say(", ".join(f"{_runs(n)} {word.replace('_', ' ')}" for word, n in counts.items()))


_LOOKED_AT = ("state", "version", "reason", "started_at", "ended_at", "duration_ms")


def _refuse_what_does_not_fit(options: dict[str, Any]) -> None:
    if (options["first"] is None) != (options["last"] is None):
        raise wrong_usage("--from and --to: give both, or neither")
    given = [f"--{name.replace('_', '-')}" for name in OF_ONE_RUN if options[name] is not None]
    many = options["first"] is not None
    if many and given:
        raise wrong_usage(f"{given[0]} is for one run, --from and --to are for many")
    if options["dry_run"] and not many:
        raise wrong_usage("--dry-run goes with --from and --to")
    if options["wait"] is not None and not options["wait"] >= 0:
        raise wrong_usage("--wait: must be a number of seconds, 0 or more")


def _moment(dag: Dag, text: Any, option: str, of_day: time_of_day = time_of_day.min) -> Any:
    if text is None:
        return None
    try:
        zone = zone_of(dag.timezone)
    except BadSchedule as error:
        raise failed(f"{dag.name}: {error}") from error
    return moment(str(text), zone, option, of_day)


def _why_not(run: DagRun, seconds: float) -> str:
    if run.state in OVER:
        return "the run did not succeed"
    hint = "; `manage.py run_scheduler` starts it" if run.state == WorkflowState.QUEUED else ""
    return f"not over after {seconds:g} s: the run is {run.state}{hint}"


def _what_went_wrong(run: DagRun) -> Iterable[str]:
    wrong = TaskInstance.objects.list_by_dag_run(run).filter(state__in=WENT_WRONG)
    for task in wrong[:TASKS_TOLD]:
        result = f" ({task_result(task)})" if task_result(task) else ""
        error = f": {task.error}" if task.error else ""
        yield visible(f"{task.task_id}: {task.state}{result}{error}")
    if (more := wrong.count() - TASKS_TOLD) > 0:
        yield f"and {more} more"


def _result(slot: Slot, *, dry_run: bool) -> dict[str, Any]:
    made = "would_be_created" if dry_run else "created"
    return {
        "execution_date": slot.execution_date,
        "result": "unchanged" if slot.run and not slot.created else made,
        "run": slot.run and slot.run.pk,
        "run_id": slot.run and slot.run.run_id,
        "state": slot.run and slot.run.state,
    }


def _line(result: dict[str, Any]) -> str:
    """`2026-01-31T01:00:00+00:00: unchanged (success)`."""
    there = f" ({result['state']})" if result["result"] == "unchanged" else ""
    when = result["execution_date"].isoformat()
    return f"{when}: {result['result'].replace('_', ' ')}{there}"


def _runs(count: int) -> str:
    return f"{count} run{'' if count == 1 else 's'}"
