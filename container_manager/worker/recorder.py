"""Gathers what the job threads report and writes it in batches, on the worker's main thread.

Job threads never touch the database. What could not be written, because the database was away,
stays here and is written when it is back.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, fields, replace
from functools import reduce
from operator import or_
from typing import Any
from uuid import UUID

from django.db import DataError, IntegrityError
from django.db.models import Q, Sum
from django.db.models.functions import Length

from container_manager import journal, lifecycle
from container_manager.faults import reached
from container_manager.models import JobAttempt, JobLog
from container_manager.models.leases import Claimant, Lease
from container_manager.models.outcomes import FACTS, Ending, Progress
from container_manager.states import Phase, Stream
from container_manager.worker.output import Output

logger = logging.getLogger("container_manager")

PAUSE_SECONDS, SHARE = 0.1, 10
"""Output is written at once after such a pause; a longer one where writing would take more than one
part of so many of a worker's time, up to LOG_FLUSH_SECONDS."""

NOTES_SECONDS = 0.1
"""A step that nobody waits for is written with what is written after so long; or with the end."""

Identity = tuple[UUID, int, int]
"""Job, attempt, epoch: a worker may come to hold a second attempt while it still ends the first."""


@dataclass(frozen=True, slots=True, eq=False)
class _Step:
    """Something that a job's thread told, and when it is to be written at the latest."""

    told: Progress
    due_at: float
    answer: Future[bool]

    @property
    def identity(self) -> Identity:
        return _identity(self.told)


class Recorder:
    """The only way from a job's thread into the database."""

    def __init__(self, claimant: Claimant, wake: Callable[[], None], log_seconds: float) -> None:
        self._claimant = claimant
        self._wake = wake
        self._log_seconds = log_seconds
        self._lock = threading.Lock()
        self._steps: list[_Step] = []
        self._hurries = False
        self._endings: list[tuple[Ending, Output | None]] = []
        self._outputs: dict[Identity, Output] = {}
        self._logs_due_at = time.monotonic()
        self._output_waits = False

    # Called by job threads

    def step(self, lease: Lease, phase: str, **facts: Any) -> Future[bool]:
        """Report how far an attempt has come; the result says whether it is still held."""
        answer = self._add_step(Progress(**lease.key, phase=phase, **facts), 0.0)
        self._wake()
        return answer

    def note(self, lease: Lease, phase: str, **facts: Any) -> None:
        """The same, for what nobody waits for: it is written a little later, or with the end."""
        self._add_step(Progress(**lease.key, phase=phase, **facts), NOTES_SECONDS)

    def _add_step(self, told: Progress, seconds: float) -> Future[bool]:
        step = _Step(told, time.monotonic() + seconds, Future())
        with self._lock:
            self._steps.append(step)
        return step.answer

    def follow(self, output: Output) -> None:
        """Write what comes into `output` until its attempt has ended."""
        with self._lock:
            self._outputs[_identity(output.lease)] = output

    def output_came(self) -> None:
        """There is something to write in an output that is followed; wakes once until it is."""
        if not self._output_waits:
            self._output_waits = True
            self._wake()

    def end(self, ending: Ending, output: Output | None = None) -> None:
        """Report the end of an attempt; its output is written before."""
        with self._lock:
            self._endings.append((ending, output))
        self._wake()

    def forget(self, lease: Lease) -> None:
        """The attempt is somebody else's: write nothing more of it."""
        with self._lock:
            output = self._outputs.pop(_identity(lease), None)
        if output is not None:
            output.close()

    # Called by the main thread

    @property
    def is_empty(self) -> bool:
        with self._lock:
            return not self._steps and not self._endings

    def hurry(self) -> None:
        """From now on each flush writes all: what is let go of shall stand as it is."""
        self._hurries = True

    def seconds_to_wait(self, now: float) -> float:
        """When to flush next if nothing else comes."""
        with self._lock:
            due = [step.due_at for step in self._steps]
        return min([*due, self._logs_due_at if self._output_waits else math.inf]) - now

    def flush(self) -> list[tuple[Ending, bool]]:
        """Write what there is; returns the ends, and whether the attempt was still ours."""
        with self._lock:
            endings, steps = list(self._endings), list(self._steps)
        over = {_identity(ending) for ending, _ in endings}
        last = [step for step in steps if step.identity in over]
        due = steps if self._hurries else _due(steps)
        self._write([step for step in due if step.identity not in over])
        self._write_logs(endings)
        ended = self._write_endings(endings, _merged(last))
        self._answer(last, {ending.job_id for ending, was_ours in ended if was_ours})
        return ended

    def write_steps(self) -> None:
        """All that was told until now, though it may not be due."""
        with self._lock:
            steps = list(self._steps)
        self._write(steps)

    def _write(self, steps: list[_Step]) -> None:
        if steps:
            held = self._report(list(_merged(steps).values()))
            self._answer(steps, held)

    def _answer(self, steps: list[_Step], held: set[UUID]) -> None:
        """They are written: whoever waits learns whether its attempt was still ours."""
        answered = set(steps)
        with self._lock:
            self._steps = [step for step in self._steps if step not in answered]
        newest = _newest(step.told for step in steps)
        for step in steps:
            job_id = step.told.job_id
            step.answer.set_result(job_id in held and step.identity == newest[job_id])

    def _report(self, steps: list[Progress]) -> set[UUID]:
        """All in one go; if the database refuses one of them, each by itself."""
        try:
            return lifecycle.progress(self._claimant, steps)
        except (DataError, IntegrityError):
            if len(steps) == 1:
                with journal.about(job=steps[0].job_id, attempt=steps[0].attempt):
                    logger.exception("Job %s: its step was refused", steps[0].job_id)
                return set()
        return {job_id for step in steps for job_id in self._report([step])}

    def _write_logs(self, endings: list[tuple[Ending, Output | None]]) -> None:
        began = time.monotonic()
        due = self._logs_are_due(began)
        with self._lock:
            ended = [output for _, output in endings if output is not None]
            outputs = {id(output): output for output in ended}
            outputs |= {id(each): each for each in self._outputs.values() if due or each.is_full}
        try:
            for output in outputs.values():
                for _ in range(output.portions):
                    self._write_portion(output)
        finally:
            if due:
                self._rest_from_logs(began)

    def _logs_are_due(self, now: float) -> bool:
        late = now - self._logs_due_at
        if late < 0 or not (self._output_waits or late >= self._log_seconds):
            return False
        self._output_waits = False  # before anything is taken: what comes later wakes again
        return True

    def _rest_from_logs(self, began: float) -> None:
        now = time.monotonic()
        self._logs_due_at = now + min(max(PAUSE_SECONDS, SHARE * (now - began)), self._log_seconds)

    def _write_portion(self, output: Output) -> None:
        with output.taking() as (chunks, fallen):
            if chunks:
                reached("U1")
                lifecycle.keep_chunks(self._claimant, chunks, fallen)
                reached("U2")

    def _write_endings(
        self, endings: list[tuple[Ending, Output | None]], last: dict[Identity, Progress]
    ) -> list[tuple[Ending, bool]]:
        if not endings:
            return []
        reached("X3")
        newest = _newest(ending for ending, _ in endings)
        current = {_identity(each[0]) for each in endings} & set(newest.values())
        told = [
            _complete(ending, output, last.get(_identity(ending)))
            for ending, output in endings
            if _identity(ending) in current
        ]
        mine = self._finish(told)
        mine |= self._ended_before([each for each in told if each.job_id not in mine])
        reached("X4")
        with self._lock:
            del self._endings[: len(endings)]
            for ending, _ in endings:
                self._outputs.pop(_identity(ending), None)
        return [
            (ending, ending.job_id in mine and _identity(ending) in current)
            for ending, _ in endings
        ]

    def _ended_before(self, endings: list[Ending]) -> set[UUID]:
        """Those that we wrote already, when the answer to the commit was lost."""
        if not endings:
            return set()
        keys = [
            Q(job_id=each.job_id, attempt=each.attempt, lease_epoch=each.epoch) for each in endings
        ]
        ended = JobAttempt.objects.filter(worker_id=self._claimant.worker_id, phase=Phase.DONE)
        return set(ended.filter(reduce(or_, keys)).values_list("job_id", flat=True))

    def _finish(self, endings: list[Ending]) -> set[UUID]:
        """All in one go; if the database refuses one of them, each by itself."""
        try:
            return lifecycle.finish(self._claimant, endings)
        except (DataError, IntegrityError) as error:
            if len(endings) == 1:
                return self._finish_refused(endings[0], error)
        return {job_id for ending in endings for job_id in self._finish([ending])}

    def _finish_refused(self, ending: Ending, error: Exception) -> set[UUID]:
        """What was learned on the way may be what is wrong: the end does not need it."""
        with journal.about(job=ending.job_id, attempt=ending.attempt):
            logger.error("Job %s: its end was refused", ending.job_id, exc_info=error)
        nothing: dict[str, Any] = dict.fromkeys(FACTS)
        bare = replace(ending, **nothing)
        if bare != ending:
            return self._finish([bare])
        lifecycle.release(self._claimant, [ending])
        return set()


def _identity(held: Lease | Progress | Ending) -> Identity:
    return held.job_id, held.attempt, held.epoch


def _newest(told: Iterable[Progress | Ending]) -> dict[UUID, Identity]:
    """By job the latest attempt and epoch of it: earlier ones are not held any more."""
    newest: dict[UUID, Identity] = {}
    for each in told:
        newest[each.job_id] = max(_identity(each), newest.get(each.job_id, _identity(each)))
    return newest


def _due(steps: Sequence[_Step]) -> list[_Step]:
    """Those of attempts of which one is due: what was told before it goes with it."""
    now = time.monotonic()
    due = {step.identity for step in steps if step.due_at <= now}
    return [step for step in steps if step.identity in due]


def _merged(steps: Iterable[_Step]) -> dict[Identity, Progress]:
    """One step for each attempt: the latest phase, and every fact that was told."""
    latest: dict[Identity, Progress] = {}
    for step in steps:
        told, before = step.told, latest.get(step.identity)
        if before is not None:
            known = {
                field.name: getattr(before, field.name)
                for field in fields(Progress)
                if getattr(told, field.name) is None
            }
            told = replace(told, **known)
        latest[step.identity] = told
    return latest


def _complete(ending: Ending, output: Output | None, last: Progress | None) -> Ending:
    """The ending with what is known of the output, and with the steps that were not written."""
    if last is not None:
        facts = {name: getattr(last, name) for name in FACTS}
        ending = replace(ending, started_at=ending.started_at or last.started_at, **facts)
    if output is None:
        return ending
    ends = output.ends()
    return replace(
        ending,
        output=output.last_text,
        stdout_bytes=ends[Stream.STDOUT],
        stderr_bytes=ends[Stream.STDERR],
        stdout_omitted=_omitted(ending, output, Stream.STDOUT),
        stderr_omitted=_omitted(ending, output, Stream.STDERR),
    )


def _omitted(ending: Ending, output: Output, stream: Stream) -> int:
    if not output.is_beyond_cap(stream):
        return 0
    chunks = JobLog.objects.filter(job_id=ending.job_id, attempt=ending.attempt, stream=stream)
    kept = chunks.order_by().aggregate(kept=Sum(Length("data")))["kept"] or 0
    return output.ends()[stream] - int(kept)
