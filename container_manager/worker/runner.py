"""One attempt from its start to its end, on a thread of its own. Never touches the database."""

from __future__ import annotations

import logging
import random
import signal
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import TypeVar

from container_manager import journal, lifecycle
from container_manager.engines import Engine
from container_manager.executors.base import (
    Barred,
    EngineRefused,
    EngineUnavailable,
    Execution,
    Executor,
    ExecutorError,
    JobSpec,
    LaunchFailed,
    Outcome,
    StartCancelled,
)
from container_manager.executors.breaker import EngineAway
from container_manager.faults import reached
from container_manager.models.leases import Lease
from container_manager.states import Phase, Reason, StopKind
from container_manager.worker.output import Output
from container_manager.worker.recorder import Recorder

logger = logging.getLogger("container_manager")

T = TypeVar("T")

STRENGTH = (
    StopKind.DRAIN,
    StopKind.TIMEOUT,
    StopKind.CANCEL,
    StopKind.KILL,
)
"""Stops from the weakest to the strongest: the strongest that reached the job names its end."""

FIRST_WAIT, LONGEST_WAIT, LONGEST_LOOK = 0.2, 5.0, 1.0
"""Seconds between two calls of an engine that does not answer; between two looks at its breaker."""
LEAST_TIME_TO_START = 5.0
"""Seconds that an engine gets when it is back after the time to start was over."""
NOTHING_RAN = Outcome(exit_code=None)


class LeaseLost(Exception):
    """The attempt is somebody else's now: write nothing, start nothing, stop nothing."""


def spec_of(lease: Lease, instance: str) -> JobSpec:
    """What the executor is told of an attempt."""
    own = {"CM_JOB_ID": str(lease.job_id), "CM_ATTEMPT": str(lease.attempt)}
    words = [*lease.command, *lease.environment, *lease.environment.values()]
    if not all(isinstance(word, str) for word in words):
        raise TypeError("command and environment must be made of strings")
    return JobSpec(
        name=lease.name,
        instance=instance,
        job_id=str(lease.job_id),
        attempt=lease.attempt,
        command=tuple(lease.command),
        image=lease.image,
        working_dir=lease.working_dir,
        environment={**lease.environment, **own},
        pull_policy=lease.pull_policy,
        isolation=lease.isolation,
        network=lease.network,
        cpu_limit=lease.cpu_limit,
        memory_limit_mb=lease.memory_limit_mb,
        pids_limit=lease.pids_limit,
    )


def strongest(kinds: Sequence[StopKind]) -> StopKind | None:
    return max(kinds, key=STRENGTH.index, default=None)


class Run:
    """One attempt under way: prepare, start, watch, collect, finish."""

    def __init__(
        self, lease: Lease, engine: Engine, instance: str, recorder: Recorder, output: Output
    ) -> None:
        self.lease = lease
        self.engine = engine
        self.executor = engine.executor
        self.execution: Execution | None = None
        self.deadline: float | None = None
        """On the monotonic clock, once it has started."""
        self.asked: StopKind | None = None
        """The strongest stop that was begun here."""
        self.gave_up = False
        """Its thread failed: the attempt is still ours, and must be let go for another to adopt."""
        self._instance = instance
        self._recorder = recorder
        self._output = output
        self._lost = threading.Event()
        self._cancelled = threading.Event()
        self._lock = threading.Lock()
        self._started = threading.Event()
        self._stoppers: list[threading.Thread] = []
        self._reached_alive: list[StopKind] = []
        self._unanswered: list[StopKind] = []
        """Stops that may have reached it: the engine went away while it was asked for them."""
        self._unreachable = False
        self._start_by = time.monotonic() + lease.start_timeout_seconds

    # What the worker's main thread may ask

    @property
    def is_lost(self) -> bool:
        return self._lost.is_set()

    @property
    def has_started(self) -> bool:
        return self._started.is_set()

    def let_go(self) -> None:
        """Somebody else holds it, or will: stop watching it, leave it running."""
        self._lost.set()
        self._recorder.forget(self.lease)

    def give_up(self) -> None:
        """We cannot go on with it: whoever looks for orphans takes it over."""
        self.gave_up = True
        self.let_go()

    def may_ask(self, kind: StopKind) -> bool:
        """Would this stop be stronger than what was begun?"""
        return self.asked is None or STRENGTH.index(kind) > STRENGTH.index(self.asked)

    def stop(self, kind: StopKind) -> None:
        """Begin to stop it; the request is committed. Returns at once."""
        with self._lock:
            stopper = threading.Thread(target=self._stop, args=[kind], daemon=True)
            stopper.start()
            self._stoppers.append(stopper)
            self.asked = kind
            self._cancelled.set()  # last: who sees it looks for what was asked

    def _stop(self, kind: StopKind) -> None:
        with _about(self.lease):
            self._stop_it(kind)

    def _stop_it(self, kind: StopKind) -> None:
        self._started.wait()
        if self.execution is None or self.is_lost:
            return
        execution = self.execution
        grace = 0.0 if kind == StopKind.KILL else float(self.lease.stop_grace_seconds)
        reached("K1")
        try:
            alive = self._patiently(lambda: self._signal(kind, execution, grace))
        except LeaseLost:
            return
        except Exception:
            logger.exception("Job %s: not stopped; it will be tried again", self.lease.job_id)
            self._ask_again(kind)
            return
        reached("K2")
        if alive:
            self._reached_alive.append(kind)

    def _signal(self, kind: StopKind, execution: Execution, grace: float) -> bool:
        try:
            return self.executor.stop(execution, grace=grace)
        except EngineUnavailable:
            self._unanswered.append(kind)
            raise

    def _ask_again(self, kind: StopKind) -> None:
        """The worker's main thread asks for what is still wanted."""
        with self._lock:
            self.asked = None
        if kind == StopKind.TIMEOUT:
            self.deadline = time.monotonic() + LONGEST_WAIT

    # The run, step by step

    def run(self) -> None:
        """All of it, on the thread that calls; what goes wrong is logged, never raised."""
        with _about(self.lease):
            self._run()

    def _run(self) -> None:
        try:
            self._end(*self._from_start_to_end())
        except LeaseLost:
            self.let_go()
        except Exception:
            logger.exception(
                "Job %s: its thread failed; the attempt is given up", self.lease.job_id
            )
            self.give_up()
        finally:
            self._started.set()

    def _from_start_to_end(self) -> tuple[Outcome, StopKind | None]:
        try:
            self.spec = self._readable_spec()
            execution = self._prepare()
            if execution is None:
                return self._proven_absent(), None
            execution = self._start(execution)
        except StartCancelled:
            return self._never_started()
        except LaunchFailed as failure:
            return Outcome(None, reason=failure.reason, error=str(failure)), None
        except Barred as taken:
            return self._name_taken(taken), None
        self._watch(execution)
        return self._collect(execution)

    def _readable_spec(self) -> JobSpec:
        """A row that was written past every validation is a failed launch, no failed worker."""
        try:
            spec = spec_of(self.lease, self._instance)
        except (TypeError, ValueError, AttributeError) as error:
            raise LaunchFailed(Reason.NOT_PERMITTED, f"The job is malformed: {error}") from error
        self.lease.applied = self.executor.applied_limits(spec)
        return spec

    def _prepare(self) -> Execution | None:
        """The created execution, or the one that an earlier worker left; None when that is gone."""
        if self.lease.adopted:
            return self._find_or_bar()
        if self.spec.image:
            self._recorder.note(self.lease, Phase.PULLING)
        reached("R1")
        return self._patiently(
            lambda: self.executor.create_or_adopt(
                self.spec,
                timeout=max(self._start_by - time.monotonic(), LEAST_TIME_TO_START),
                cancelled=self._cancelled,
            )
        )

    def _find_or_bar(self) -> Execution | None:
        """What an earlier worker started; None when it started nothing, and can no longer do so.

        Only the worker that claimed an attempt starts it: two might each start it once.
        """
        while True:
            found = self._patiently(lambda: self.executor.find(self.lease.name, self._instance))
            if found is not None and found.started:
                return found
            if found is not None:
                self._patiently(partial(self.executor.discard, found))
            elif self._patiently(lambda: self.executor.bar(self.spec)):
                return None
            self._lost.wait(FIRST_WAIT)

    def _proven_absent(self) -> Outcome:
        return Outcome(None, reason=Reason.WORKER_LOST, error=Reason.WORKER_LOST.meaning)

    def _start(self, execution: Execution) -> Execution:
        """Start it, if it is still ours: the one step that must never be taken twice."""
        reached("R3")
        self.execution = execution
        self._note_created(execution)
        reached("R4")
        with self._lock:
            if self._cancelled.is_set() and not execution.started:
                raise StartCancelled
        execution = self._patiently(lambda: self.executor.start(execution))
        reached("R5")
        self.execution = execution
        self._set_deadline(execution)
        self._recorder.note(
            self.lease,
            Phase.STARTED,
            execution_id=execution.execution_id,
            started_at=execution.started_at,
        )
        self._started.set()
        return execution

    def _note_created(self, execution: Execution) -> None:
        """Whatever has an id by now has it committed before it starts.

        The others are known by their name, which the claim committed. Of those, too, none is
        started that somebody else holds: an adopter discards it or bars its name first.
        """
        facts = {"resolved": self.lease.applied, "unreachable": False}
        if not execution.execution_id:
            self._recorder.note(self.lease, Phase.CREATED, **facts)
            return
        digest = execution.image_digest or None
        self._still_held(
            Phase.CREATED, execution_id=execution.execution_id, image_digest=digest, **facts
        )

    def _name_taken(self, taken: Barred) -> Outcome:
        """Barred by the rescuer that holds the attempt now; or, if we do, by a stranger."""
        self._still_held(Phase.CLAIMED)
        return Outcome(None, reason=Reason.LAUNCH_ERROR, error=str(taken))

    def _still_held(self, phase: Phase, **facts: object) -> None:
        if not self._recorder.step(self.lease, phase, **facts).result():
            raise LeaseLost

    def _set_deadline(self, execution: Execution) -> None:
        if self.lease.timeout_seconds is not None:
            left = self.lease.timeout_seconds - execution.elapsed_seconds
            self.deadline = time.monotonic() + left

    def _never_started(self) -> tuple[Outcome, StopKind | None]:
        if self.execution is not None:
            created = self.execution
            self._patiently(lambda: self.executor.remove(created))
        return NOTHING_RAN, self.asked

    def _watch(self, execution: Execution) -> None:
        """Hand on its output until it has ended, from where the stored output ends."""
        self._recorder.follow(self._output)
        self._patiently(lambda: self._read(execution))
        reached("X1")
        self._recorder.note(self.lease, Phase.COLLECTING)

    def _read(self, execution: Execution) -> None:
        for chunk in self.executor.attach(execution, self._output.ends()):
            self._output.add(chunk)
            if self.is_lost:
                raise LeaseLost
            self._reachable_again()

    def _collect(self, execution: Execution) -> tuple[Outcome, StopKind | None]:
        outcome = self._patiently(lambda: self._evidence(execution))
        reached("X2")
        with self._lock:
            stoppers = list(self._stoppers)
        for stopper in stoppers:
            stopper.join()
        reached("K3")
        return outcome, strongest([*self._reached_alive, *self._borne_out(outcome)])

    def _borne_out(self, outcome: Outcome) -> list[StopKind]:
        """Stops of which no answer came, here or to an earlier worker, if the end fits them."""
        earlier = [StopKind(self.lease.stop_kind)] if self.lease.stop_kind else []
        return [kind for kind in (*earlier, *self._unanswered) if self._fits(kind, outcome)]

    def _fits(self, kind: StopKind, outcome: Outcome) -> bool:
        if kind == StopKind.TIMEOUT:
            return _seconds(outcome) >= (self.lease.timeout_seconds or 0)
        return outcome.signal in (signal.SIGTERM, signal.SIGKILL) and not outcome.oom_killed

    def _evidence(self, execution: Execution) -> Outcome:
        try:
            return self.executor.collect(execution)
        except (EngineUnavailable, LaunchFailed):
            raise
        except ExecutorError as error:
            if self.executor.find(execution.name, self._instance) is not None:
                raise EngineUnavailable(str(error)) from error
            gone = "Somebody removed it from its engine; how it ended is not known."
            return Outcome(None, reason=Reason.WORKER_LOST, error=gone)

    def _end(self, outcome: Outcome, stopped: StopKind | None) -> None:
        if self.is_lost:
            raise LeaseLost
        self._recorder.end(lifecycle.ending(self.lease, outcome, stopped), self._output)

    # An engine that is away decides nothing

    def _patiently(self, call: Callable[[], T]) -> T:
        """Call again, ever more slowly, while the engine does not answer.

        While its breaker is open the engine is not asked; only the breaker is looked at.
        """
        wait = FIRST_WAIT
        while True:
            if self.is_lost:
                raise LeaseLost
            try:
                result = self.engine.call(call)
            except EngineUnavailable as error:
                self._refused_for_good(error)
                self._note_unreachable(error)
                self._lost.wait(wait * random.uniform(0.5, 1.0))  # noqa: S311
                wait = min(2 * wait, LONGEST_LOOK if _was_not_asked(error) else LONGEST_WAIT)
            else:
                self._reachable_again()
                return result

    def _refused_for_good(self, error: EngineUnavailable) -> None:
        """An engine that answers, but will not start it in time, is not away."""
        late = not self.has_started and time.monotonic() > self._start_by
        if late and isinstance(error, EngineRefused) and not self.lease.adopted:
            raise LaunchFailed(Reason.LAUNCH_ERROR, str(error)) from error

    def _note_unreachable(self, error: EngineUnavailable) -> None:
        if isinstance(error, EngineRefused):
            self._reachable_again()
        elif self._tell_unreachable(True):
            logger.info("Job %s: engine unreachable: %s", self.lease.job_id, error)

    def _reachable_again(self) -> None:
        if self._unreachable:
            self._tell_unreachable(False)

    def _tell_unreachable(self, unreachable: bool) -> bool:
        """Told in the order in which it became so: a stopper's thread has its own experience."""
        with self._lock:
            is_news = self._unreachable != unreachable
            if is_news:
                self._unreachable = unreachable
                self._recorder.step(self.lease, self._phase, unreachable=unreachable)
        return is_news

    @property
    def _phase(self) -> Phase:
        if not self.has_started:
            return Phase.CLAIMED if self.execution is None else Phase.CREATED
        return Phase.STOPPING if self.asked else Phase.STARTED


def _about(lease: Lease) -> AbstractContextManager[None]:
    """What is logged inside is about this attempt."""
    return journal.about(job=lease.job_id, attempt=lease.attempt)


def _was_not_asked(error: EngineUnavailable) -> bool:
    return isinstance(error, EngineAway)


def _seconds(outcome: Outcome) -> float:
    """How long it ran, by the engine's own clock."""
    if outcome.started_at is None or outcome.ended_at is None:
        return 0.0
    return (outcome.ended_at - outcome.started_at).total_seconds()


def run_inline(
    leases: Sequence[Lease], executor: Executor, instance: str, recorder: Recorder
) -> None:
    """Run attempts that live inside the worker, one after the other."""
    never = threading.Event()
    for lease in leases:
        with _about(lease):
            outcome = _run_here(lease, executor, instance, never)
            recorder.end(lifecycle.ending(lease, outcome, None, cleaned_up=True))


def _run_here(lease: Lease, executor: Executor, instance: str, never: threading.Event) -> Outcome:
    try:
        spec = spec_of(lease, instance)
        execution = executor.create_or_adopt(spec, timeout=0, cancelled=never)
        outcome = executor.collect(executor.start(execution))
        executor.remove(execution)
    except LaunchFailed as failure:
        return Outcome(None, reason=failure.reason, error=str(failure))
    except Exception as error:
        logger.exception("Job %s: failed inside the worker", lease.job_id)
        return Outcome(None, reason=Reason.LAUNCH_ERROR, error=repr(error))
    return outcome
