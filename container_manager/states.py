"""The state machines and the closed lists of words: plain data, importing nothing of ours.

Everything that knows about legal moves is derived from the two tables here: the transition
methods, the save() guard, the constraints, the triggers, the diagrams and the tests.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import EnumMeta, StrEnum
from types import MappingProxyType


class _WordsMeta(EnumMeta):
    """Gives an enum the three class properties that Django's fields and forms look for."""

    @property
    def choices(cls) -> list[tuple[str, str]]:
        return [(word.value, word.label) for word in _members(cls)]

    @property
    def values(cls) -> list[str]:
        return [word.value for word in _members(cls)]

    @property
    def labels(cls) -> list[str]:
        return [word.label for word in _members(cls)]


def _members(words: EnumMeta) -> Iterable[Words]:
    return words.__members__.values()


class Words(StrEnum, metaclass=_WordsMeta):
    """A closed list of words, each with one sentence that says what it means."""

    meaning: str

    def __new__(cls, value: str, meaning: str = "") -> Words:
        word = str.__new__(cls, value)
        word._value_ = value
        word.meaning = meaning
        return word

    @property
    def label(self) -> str:
        return self.value.replace("_", " ").capitalize()


class JobStatus(Words):
    """Where a job stands, and what a crash at that point leaves behind."""

    PENDING = "pending", "Written down, not asked to run yet. A crash leaves it as it is."
    QUEUED = "queued", "Waits for a worker. A crash leaves it in the queue."
    RUNNING = (
        "running",
        "A worker holds an attempt. A crash leaves the attempt's row and perhaps its container: "
        "the next worker on that engine adopts it or proves it absent.",
    )
    COMPLETED = "completed", "Ended by itself with exit code 0. Final."
    FAILED = (
        "failed",
        "Ended by itself in any other way, with no automatic retry to come.",
    )
    RETRYING = "retrying", "Waits out the backoff. Any worker puts it back into the queue when due."
    CANCELLED = "cancelled", "Withdrawn: never started, or asked to stop and proven gone. Final."
    KILLED = "killed", "Stopped by force and proven gone. Final."


class WorkflowState(Words):
    """Where a DAG run or a task instance stands."""

    QUEUED = "queued", "Waits for its turn."
    RUNNING = "running", "Its job, or one of its tasks, is under way."
    SUCCESS = "success", "Done. Final."
    FAILED = "failed", "Ended without success; a person may start it again."
    RETRYING = "retrying", "Failed and waits for its next try."
    SKIPPED = "skipped", "Not run on purpose. Final."
    UPSTREAM_FAILED = "upstream_failed", "Never ran, because something it depends on failed."


@dataclass(frozen=True)
class StateMachine:
    """One transition table: each state and, in order, the states it may go to."""

    name: str
    table: Mapping[str, tuple[str, ...]]
    active: str
    """The state in which work is under way, and the row must not be deleted."""

    @property
    def states(self) -> tuple[str, ...]:
        return tuple(self.table)

    @property
    def edges(self) -> tuple[tuple[str, str], ...]:
        return tuple((old, new) for old, targets in self.table.items() for new in targets)

    def can_transition(self, old: str, new: str) -> bool:
        """True when the table has the edge; an unknown word is never an edge."""
        return new in self.get_next_states(old)

    def get_next_states(self, state: str) -> tuple[str, ...]:
        """The states that `state` may go to, in the table's order; empty for unknown words."""
        return self.table.get(state, ()) if isinstance(state, str) else ()

    def is_terminal_state(self, state: str) -> bool:
        """True for a known state that nothing leads out of."""
        return isinstance(state, str) and state in self.table and not self.table[state]

    def sources_of(self, new: str, but: Iterable[str] = ()) -> list[str]:
        """The states from which `new` can be reached, without those in `but`."""
        return [old for old, target in self.edges if target == new and old not in but]


_J, _W = JobStatus, WorkflowState

VALID_TRANSITIONS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        _J.PENDING: (_J.QUEUED, _J.RUNNING, _J.CANCELLED, _J.KILLED),
        _J.QUEUED: (_J.RUNNING, _J.CANCELLED, _J.KILLED),
        _J.RUNNING: (_J.COMPLETED, _J.FAILED, _J.CANCELLED, _J.KILLED),
        _J.COMPLETED: (),
        _J.FAILED: (_J.RETRYING, _J.CANCELLED),
        _J.RETRYING: (_J.QUEUED, _J.CANCELLED, _J.KILLED),
        _J.CANCELLED: (),
        _J.KILLED: (),
    }
)

_WORKFLOW_TRANSITIONS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        _W.QUEUED: (_W.RUNNING, _W.SKIPPED, _W.FAILED, _W.UPSTREAM_FAILED),
        _W.RUNNING: (_W.SUCCESS, _W.FAILED, _W.RETRYING, _W.UPSTREAM_FAILED),
        _W.SUCCESS: (),
        _W.FAILED: (_W.RETRYING, _W.RUNNING),
        _W.RETRYING: (_W.RUNNING, _W.FAILED, _W.SUCCESS),
        _W.SKIPPED: (),
        _W.UPSTREAM_FAILED: (_W.QUEUED,),
    }
)

JOB = StateMachine("job", VALID_TRANSITIONS, active=_J.RUNNING)
WORKFLOW = StateMachine("workflow", _WORKFLOW_TRANSITIONS, active=_W.RUNNING)


def valid_transition(old: str, new: str) -> bool:
    """May a job go from `old` to `new`? Unknown words: no."""
    return JOB.can_transition(old, new)


# Which life timestamps a job's status implies; constraints and stamps are derived from these.
NOT_LAUNCHED = (_J.PENDING, _J.QUEUED)
LAUNCHED = (_J.RUNNING, _J.COMPLETED, _J.FAILED, _J.RETRYING)
NOT_ENDED = (_J.PENDING, _J.QUEUED, _J.RUNNING)
ENDED = tuple(status for status in JobStatus if status not in NOT_ENDED)
SETTLED = (_J.COMPLETED, _J.FAILED, _J.CANCELLED, _J.KILLED)
"""Nothing more happens by itself. `failed` counts: an automatic retry leaves it at once."""
UNSETTLED = tuple(status for status in JobStatus if status not in SETTLED)

# The same of a run or a task.
NOT_OVER = (_W.QUEUED, _W.RUNNING, _W.RETRYING)
OVER = tuple(state for state in WorkflowState if state not in NOT_OVER)
STARTED = (_W.RUNNING, _W.RETRYING, _W.SUCCESS)
RUN_ACTIVE = (_W.RUNNING, _W.RETRYING)
WENT_WRONG = (_W.FAILED, _W.UPSTREAM_FAILED)


class Phase(Words):
    """How far one attempt has come."""

    CLAIMED = "claimed", "A worker has taken the job; nothing was created."
    PULLING = "pulling", "The image is being fetched."
    CREATED = "created", "The container or process exists and has not started."
    STARTED = "started", "It runs."
    STOPPING = "stopping", "It was asked to stop."
    COLLECTING = "collecting", "It ended; output and evidence are being read."
    DONE = "done", "Everything is recorded; no worker holds it."


class Blame(Words):
    """Whose doing an end was."""

    USER = "user", "The job itself."
    INFRA = "infra", "The machinery around it; does not use up the job's own retries."
    POLICY = "policy", "A limit that was set for it."
    PERSON = "person", "Somebody asked for it."


class Reason(Words):
    """Why an attempt ended: a closed list, each with a sentence and a blame."""

    EXIT_CODE = "exit_code", "The command ended with a non-zero exit code."
    SIGNAL = "signal", "A signal that did not come from us ended it; 9 may be a lack of memory."
    TIMEOUT = "timeout", "It ran longer than timeout_seconds and was stopped."
    START_TIMEOUT = "start_timeout", "Pulling and creating took longer than start_timeout_seconds."
    QUEUE_TIMEOUT = "queue_timeout", "It waited in the queue longer than queue_timeout_seconds."
    OOM = "oom", "It needed more memory than memory_limit_mb allows."
    IMAGE_NOT_FOUND = "image_not_found", "The image does not exist or may not be pulled."
    COMMAND_NOT_FOUND = "command_not_found", "The command does not exist in the image."
    NOT_EXECUTABLE = "not_executable", "The command exists and cannot be executed."
    NOT_PERMITTED = "not_permitted", "The engine or its policy refused what the job asked for."
    LAUNCH_ERROR = "launch_error", "The engine could not create or start it."
    EXECUTOR_UNAVAILABLE = "executor_unavailable", "Its engine went away and took it along."
    WORKER_LOST = "worker_lost", "Its worker died and it is proven absent from its engine."
    WORKER_STOPPED = "worker_stopped", "Its worker was shut down; it was stopped and queued again."
    DISK_FULL = "disk_full", "There was no space left to run it or to keep its output."
    OUTPUT_LIMIT = "output_limit", "It printed more than its executor may keep, and was ended."
    POISON = "poison", "The machinery failed around it too many times in a row."
    UNPROVEN = "unproven", "Its engine stayed away; nobody could prove how it ended."
    CANCELLED = "cancelled", "Somebody withdrew it."
    KILLED = "killed", "Somebody stopped it by force."

    @property
    def blame(self) -> Blame:
        return _BLAME.get(self, Blame.USER)

    @property
    def is_permanent(self) -> bool:
        """True when trying again cannot help, so that no automatic retry follows."""
        return self in _PERMANENT


_BLAME = {
    Reason.TIMEOUT: Blame.POLICY,
    Reason.START_TIMEOUT: Blame.POLICY,
    Reason.QUEUE_TIMEOUT: Blame.POLICY,
    Reason.OUTPUT_LIMIT: Blame.POLICY,
    Reason.LAUNCH_ERROR: Blame.INFRA,
    Reason.EXECUTOR_UNAVAILABLE: Blame.INFRA,
    Reason.WORKER_LOST: Blame.INFRA,
    Reason.WORKER_STOPPED: Blame.INFRA,
    Reason.DISK_FULL: Blame.INFRA,
    Reason.POISON: Blame.INFRA,
    Reason.UNPROVEN: Blame.INFRA,
    Reason.CANCELLED: Blame.PERSON,
    Reason.KILLED: Blame.PERSON,
}
_PERMANENT = {
    Reason.IMAGE_NOT_FOUND,
    Reason.COMMAND_NOT_FOUND,
    Reason.NOT_EXECUTABLE,
    Reason.NOT_PERMITTED,
    Reason.POISON,
    Reason.UNPROVEN,
    Reason.CANCELLED,
    Reason.KILLED,
}


class Isolation(Words):
    """How far a job is kept from the machine it runs on, weakest first."""

    AUTO = "auto", "The strongest that the configured executors offer."
    PROCESS = "process", "A process of the worker's machine."
    CONTAINER = "container", "A container (runc)."
    GVISOR = "gvisor", "A container with its own kernel in user space (runsc)."
    MICROVM = "microvm", "A small virtual machine (kata)."


class PullPolicy(Words):
    """When an image is fetched from its registry."""

    MISSING = "missing", "When the engine does not have it."
    NEVER = "never", "Never: the engine must have it."
    ALWAYS = "always", "Before every attempt."


class Stream(Words):
    """The two output streams of a job."""

    STDOUT = "stdout", "What the command wrote to its standard output."
    STDERR = "stderr", "What the command wrote to its standard error."


class StopKind(Words):
    """Why a running attempt is being stopped."""

    CANCEL = "cancel", "Withdrawn: asked to stop, given its grace, then by force."
    KILL = "kill", "By force, at once."
    TIMEOUT = "timeout", "Too long: asked to stop, given its grace, then by force."
    DRAIN = "drain", "Its worker shuts down and it cannot outlive the worker."


class MissedRuns(Words):
    """What becomes of a schedule's slots that passed while nobody could begin their runs."""

    LATEST = "latest", "Only the newest of them gets a run."
    ALL = "all", "Each gets its run, the oldest first."
    NONE = "none", "None of them; only a slot that has just come."


class RunType(Words):
    """Why a run exists."""

    SCHEDULED = "scheduled", "A slot of its schedule came."
    MANUAL = "manual", "Somebody triggered it."
    BACKFILL = "backfill", "Somebody asked for the slots of a stretch of time."
