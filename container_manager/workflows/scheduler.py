"""The scheduler process: makes the runs that are due, starts them, and advances them.

Any number of them may run: each verb of `runs` and `dags` holds the row that it works on, and a
slot has one run because the database says so. Nothing is kept in memory that a crash could lose.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import Any
from uuid import UUID

from django.db import InterfaceError, OperationalError, connection
from django.db.models import Q

from container_manager import conf, schema
from container_manager.duties import Duty, Turns
from container_manager.faults import reached
from container_manager.listener import Listener
from container_manager.models import Dag, DagRun, ProcessKind
from container_manager.models.base import database_now
from container_manager.models.job import MANAGERS_CHANNEL
from container_manager.signs import SignOfLife
from container_manager.states import RUN_ACTIVE, WorkflowState
from container_manager.workflows import dags, runs

logger = logging.getLogger("container_manager")

IDLE_SECONDS = 1.0
"""Between two looks while no run is under way: no slot comes later than that."""

BUSY_SECONDS, BUSY_SECONDS_ON_SQLITE = 0.25, 0.05
"""The same while some are; PostgreSQL also says when a job has ended."""

LOOK_SECONDS = 0.005
"""Between two looks at the least, whatever wakes us."""

REST, LONGEST_REST = 8.0, 0.25
"""After runs were advanced, so many times as long as it took only those are that stand still.

In the others something still runs, and what ends meanwhile is read together: the machine is free
for the tasks. Runs that wait to be started wait as long.
"""

LATER_SECONDS = 30.0
"""After which what went wrong with a run or a DAG is tried again."""

THOROUGH_SECONDS = 15.0
"""How often runs are looked at also where nothing seems to have changed."""


class Scheduler:
    """One scheduler from its start to its orderly end."""

    def __init__(self, *, until_idle: bool = False, name: str = "") -> None:
        self._until_idle = until_idle
        self._sign = SignOfLife(ProcessKind.SCHEDULER, name)
        self._woken = threading.Event()
        self._stopping = False
        self._idle = False
        self._outdated = False
        self._busy = False
        self._looked = self._took = 0.0
        """Seconds of the latest look at what has changed, and of that with what was done then."""
        self._rests = False
        """In this turn, for all of its duties."""
        self._rests_until: float = 0.0
        self._unfinished: set[UUID] = set()
        """Runs of which the latest advance did not read all that had ended."""
        self._schema: frozenset[str] = frozenset()
        self._not_before: dict[UUID, float] = {}
        self._listener = Listener(MANAGERS_CHANNEL, self._woken.set)
        self._turns = Turns("Scheduler")
        self._duties = [
            Duty("giving a sign of life", self._sign),
            Duty("making runs that are due", self._fire, IDLE_SECONDS),
            Duty("starting runs", self._start),
            Duty("advancing runs", self._advance),
            Duty("looking at runs thoroughly", self._look_thoroughly, THOROUGH_SECONDS),
            Duty("comparing the schema", self._compare_schema, 5.0),
            Duty("looking for an end", self._look_for_an_end),
        ]
        busy = BUSY_SECONDS_ON_SQLITE if connection.vendor == "sqlite" else BUSY_SECONDS
        self._busy_seconds: float = min(busy, conf.settings.POLL_SECONDS)

    @property
    def name(self) -> str:
        """What the lists of processes call it."""
        return self._sign.name

    def stop(self) -> None:
        """End after what is being done; only a flag, so that a signal handler may say it."""
        self._stopping = True

    def run(self) -> int:
        """Work until stopped or, with `until_idle`, until no run is left. Exit code."""
        self._schema = schema.applied("default")
        self._listener.start()
        logger.info("Scheduler: started")
        while not (self._stopping or self._idle):
            self._turn()
            self._wait()
        self._listener.stop()
        self._turns.insist("taking back the sign of life", self._sign.end)
        connection.close()
        logger.info("Scheduler: ended")
        return 1 if self._outdated else 0

    def _turn(self) -> None:
        self._rests = time.monotonic() < self._rests_until
        self._turns.take(self._duties)

    def _wait(self) -> None:
        """In pieces: the signal that says `stop` cannot wake us."""
        if not self._unfinished:
            time.sleep(min(max(LOOK_SECONDS, self._looked), LONGEST_REST))
        left = self._seconds_to_wait()
        while left > 0 and not self._stopping and not self._idle:
            if self._woken.wait(min(left, 0.25)):
                break
            left -= 0.25
        self._woken.clear()

    def _seconds_to_wait(self) -> float:
        """What was put off in a rest is done when that is over."""
        if self._unfinished:
            return 0.0
        if self._rests:
            return self._rests_until - time.monotonic()
        if self._busy:
            return min(max(self._busy_seconds, self._took), IDLE_SECONDS)
        return IDLE_SECONDS

    # Duties

    def _fire(self) -> None:
        due = Dag.objects.due(database_now("default")).order_by("next_slot_at")
        for dag_id in list(due.values_list("pk", flat=True)):
            for run_id in self._kept(dags.fire, dag_id) or ():
                logger.info("Scheduler: run %s was made", run_id)
            reached("N1")

    def _start(self) -> None:
        if self._rests:
            return
        for dag_id in runs.startable():
            while self._kept(runs.start_next, dag_id):
                pass
        self._busy = DagRun.objects.active().exists()

    def _advance(self) -> None:
        began = time.monotonic()
        behind = runs.behind() if self._busy else {}
        self._looked = time.monotonic() - began
        wanted = [
            run_id
            for run_id, stands_still in behind.items()
            if stands_still or not self._rests or run_id in self._unfinished
        ]
        self._unfinished = {run_id for run_id in wanted if self._kept(runs.advance, run_id)}
        self._took = time.monotonic() - began
        if wanted and not self._rests:
            self._rests_until = time.monotonic() + min(REST * self._took, LONGEST_REST)

    def _look_thoroughly(self) -> None:
        for run_id in runs.under_way() if self._busy else ():
            self._kept(runs.advance, run_id, thoroughly=True)

    def _kept(self, act: Any, pk: UUID, **options: Any) -> Any:
        """What is wrong with one run or DAG stops none of the others; it is tried again later."""
        if self._not_before.get(pk, 0.0) > time.monotonic():
            return None
        self._not_before.pop(pk, None)
        self._sign()
        try:
            return act(pk, **options)
        except (OperationalError, InterfaceError):
            raise
        except Exception:
            self._not_before[pk] = time.monotonic() + LATER_SECONDS
            logger.exception("Scheduler: %s of %s went wrong", act.__name__, pk)
        return None

    def _compare_schema(self) -> None:
        if schema.applied("default") != self._schema:
            self._outdated = self._stopping = True
            logger.error("Scheduler: the database was migrated; ending, start the code that fits")

    def _look_for_an_end(self) -> None:
        if self._until_idle and not self._unfinished:
            startable = Q(state=WorkflowState.QUEUED, dag__is_paused=False)
            left = DagRun.objects.filter(startable | Q(state__in=RUN_ACTIVE))
            self._idle = not left.exists()
