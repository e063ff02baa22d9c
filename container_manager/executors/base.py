"""The executor contract: a job spec in, an outcome out. Plain Python; never sees the database.

One attempt of a job is one *execution*, found again by its deterministic name after any crash:

    execution = executor.create_or_adopt(spec, timeout=60, cancelled=event)
    executor.start(execution)                     # does nothing when it has started before
    for chunk in executor.attach(execution, {}):  # ends when the execution has ended
        ...
    outcome = executor.collect(execution)         # the evidence, readable until remove()
    executor.remove(execution)

Every method may raise `EngineUnavailable`: the engine did not answer, nothing is known, nothing
was decided. It is never a statement about the job.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime

from container_manager.states import Reason

LABEL_INSTANCE = "container-manager.instance"
LABEL_JOB = "container-manager.job"
LABEL_ATTEMPT = "container-manager.attempt"
LABEL_BARRED = "container-manager.barred"

CHUNK_BYTES = 64 * 1024

LIMITS = ("cpu_limit", "memory_limit_mb", "pids_limit")


class ExecutorError(Exception):
    """An executor could not do what it was asked."""


class EngineUnavailable(ExecutorError):
    """The engine did not answer; nothing is known about the execution."""


class EngineRefused(EngineUnavailable):
    """The engine answered that it could not, in words that say nothing about the job."""


class StartCancelled(ExecutorError):
    """The caller gave up while the execution was being created; nothing was started."""


class Barred(ExecutorError):
    """The name was taken to prove the attempt absent; it can never be created any more."""


class LaunchFailed(ExecutorError):
    """The execution could not be created or started, for a reason of the closed list."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True)
class Capabilities:
    """What an executor offers on this machine, now."""

    isolations: tuple[str, ...]
    outlives_worker: bool = True
    """Executions go on when the worker ends in an orderly way, and the next worker adopts them."""
    in_process: bool = False
    """Runs inside the worker itself: cannot be found again, nothing is saved before its start."""
    limits: tuple[str, ...] = ()
    """The JobSpec limits that are enforced: cpu_limit, memory_limit_mb, pids_limit."""
    engine: str = ""
    """Kind and version of the engine, for people."""


@dataclass(frozen=True)
class JobSpec:
    """All an executor needs to run one attempt."""

    name: str
    """Deterministic: cm-<job id>-<attempt>."""
    instance: str
    job_id: str
    attempt: int
    command: tuple[str, ...]
    image: str = ""
    working_dir: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)
    pull_policy: str = "missing"
    isolation: str = "auto"
    network: str = "none"
    """`none`, or the name of an engine's network."""
    cpu_limit: float | None = None
    """Cores."""
    memory_limit_mb: int | None = None
    pids_limit: int | None = None

    @property
    def labels(self) -> dict[str, str]:
        return {
            LABEL_INSTANCE: self.instance,
            LABEL_JOB: self.job_id,
            LABEL_ATTEMPT: str(self.attempt),
        }


@dataclass(frozen=True)
class Execution:
    """A handle on one execution that exists on the engine."""

    name: str
    execution_id: str
    """Container id, pod, or boot id + pid + start time."""
    running: bool = False
    started: bool = False
    """It has been started at some time; it may have ended since."""
    adopted: bool = False
    """It was there before the call."""
    started_at: datetime | None = None
    """UTC, by the engine's clock."""
    elapsed_seconds: float = 0.0
    """Seconds since it started, both ends read from the engine's clock; 0 before the start."""
    image_digest: str = ""


@dataclass(frozen=True)
class Chunk:
    """At most 64 KiB of one output stream, as bytes."""

    stream: str
    offset: int
    """Bytes of this stream before `data`, counted from the attempt's first byte."""
    data: bytes


@dataclass(frozen=True)
class Outcome:
    """How an execution ended: evidence only, no judgement about requests or retries."""

    exit_code: int | None
    """The command's exit code, 128 + signal when a signal ended it, None when there is none."""
    signal: int | None = None
    oom_killed: bool = False
    reason: Reason | None = None
    """None after exit code 0, else a word of the closed list."""
    error: str = ""
    """One sentence for people."""
    started_at: datetime | None = None
    ended_at: datetime | None = None
    """As the engine tells them, in UTC."""
    peak_memory_bytes: int | None = None
    cpu_seconds: float | None = None


class Executor(ABC):
    """Creates, watches, stops and removes executions on one engine. Safe to use from threads."""

    @abstractmethod
    def engine_id(self) -> str:
        """Which engine this is: the same for all workers that reach it, unlike all others."""

    @abstractmethod
    def capabilities(self) -> Capabilities:
        """What is offered here."""

    @abstractmethod
    def create_or_adopt(
        self, spec: JobSpec, *, timeout: float, cancelled: threading.Event
    ) -> Execution:
        """Create the execution `spec.name`, or find the one that is already there.

        `timeout`: seconds for pulling and creating together. `cancelled`: checked while waiting.
        Raises LaunchFailed, StartCancelled, Barred, EngineUnavailable.
        """

    @abstractmethod
    def start(self, execution: Execution) -> Execution:
        """Start it; one that has started before is returned as it is. Raises LaunchFailed."""

    @abstractmethod
    def find(self, name: str, instance: str) -> Execution | None:
        """The execution of that name and instance, running or ended; None when it is absent."""

    @abstractmethod
    def attach(self, execution: Execution, offsets: Mapping[str, int]) -> Iterator[Chunk]:
        """Its output from the given offset of each stream (0 where none is given) to the end.

        Follows while it runs; order is kept within a stream; returns when it has ended and
        everything was read. A pipe that a grandchild holds open does not keep it waiting.
        """

    @abstractmethod
    def collect(self, execution: Execution) -> Outcome:
        """The evidence of an execution that has ended; waits for the end if it has not."""

    @abstractmethod
    def stop(self, execution: Execution, *, grace: float) -> bool:
        """SIGTERM, up to `grace` seconds, then SIGKILL (at once when grace is 0); waits until gone.

        Returns True when a signal reached it alive, False when it had ended before by itself.
        A second call with a shorter grace, from another thread, shortens the first.
        """

    @abstractmethod
    def remove(self, execution: Execution) -> None:
        """Remove an ended execution and its remains; an absent one is fine."""

    @abstractmethod
    def discard(self, execution: Execution) -> bool:
        """Remove one that never started, so that it never will; False when it has started.

        May raise LaunchFailed where a start was tried and failed; it stays, as evidence.
        """

    @abstractmethod
    def bar(self, spec: JobSpec) -> bool:
        """Take the name of an absent execution, so that a late create of it raises Barred.

        True when the name is now barred; False when the execution turned up after all.
        """

    @abstractmethod
    def list_names(self, instance: str) -> list[str]:
        """Names of all executions with our instance label, running, ended or barred."""

    def applied_limits(self, spec: JobSpec) -> dict[str, float]:
        """The limits that such an execution runs under, those of the executor included."""
        given = {name: getattr(spec, name) for name in LIMITS}
        return {name: value for name, value in given.items() if value is not None}

    def proves_gone(self, engine_id: str) -> bool:
        """True when this engine's existence proves that nothing of that former engine runs.

        A rebooted host proves it for the processes of its earlier boots.
        """
        return False
