"""Every error of ours: the docstring is the message, `code` is the word for programs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from django.core.exceptions import ValidationError
from django_fsm import ConcurrentTransition, TransitionNotAllowed


class ContainerManagerError(Exception):
    """Something went wrong."""

    code = "error"

    def __init__(self, message: str = "", **details: Any) -> None:
        super().__init__(message or self.__doc__)
        self.details = details


class MoveRefused(ContainerManagerError, ValueError):
    """This move is not possible."""

    def __init__(
        self, message: str = "", *, entity: Any = None, old: str = "", new: str = ""
    ) -> None:
        super().__init__(message)
        self.entity, self.old, self.new = entity, old, new


class InvalidTransition(MoveRefused, TransitionNotAllowed):
    """The table of states has no such move."""

    code = "invalid_transition"

    @classmethod
    def between(cls, entity: Any, old: str, new: str, allowed: Iterable[str]) -> InvalidTransition:
        names = ", ".join(allowed) or "none"
        message = f"Invalid transition from {old} to {new}. Valid transitions: {names}"
        return cls(message, entity=entity, old=str(old), new=str(new))

    @classmethod
    def on_save(cls, entity: Any, old: str, new: str) -> InvalidTransition:
        message = f"Invalid status transition: {old} -> {new}"
        return cls(message, entity=entity, old=str(old), new=str(new))


class HeldByWorker(InvalidTransition):
    """A worker holds this job: only that worker moves it. Ask it with lifecycle.stop."""

    code = "held_by_worker"


class StopRequested(MoveRefused):
    """It was asked to stop before; its worker stops it."""

    code = "stop_requested"


class StillReached(MoveRefused):
    """Its engine answers: it is not abandoned."""

    code = "still_reached"


class StaleState(MoveRefused, ConcurrentTransition):
    """The row has moved since it was read: read it again."""

    code = "stale_state"


class NotChangeable(ContainerManagerError, ValueError):
    """These fields cannot be changed in this state any more."""

    code = "not_changeable"

    @classmethod
    def of(cls, entity: Any, fields: Iterable[str], allowed: Iterable[str]) -> NotChangeable:
        message = (
            f"Not changeable while {entity.status}: {', '.join(fields)}."
            f" Changeable: {', '.join(sorted(allowed))}"
        )
        return cls(message, entity=entity, fields=list(fields), allowed=sorted(allowed))


class KeyReused(ContainerManagerError, ValueError):
    """This Idempotency-Key was used for another request: take a new one."""

    code = "idempotency_key_reuse"


class NothingHeld(ContainerManagerError):
    """This worker does not hold the attempt any more."""

    code = "lease_lost"


class NameTaken(ValidationError):
    """Another has this name."""

    code = "name_taken"

    def __init__(self, name: str = "") -> None:
        super().__init__({"name": f"There is a DAG {name!r} already."})


class RunExists(ContainerManagerError, ValueError):
    """This DAG has a run for that moment."""

    code = "run_exists"

    @classmethod
    def of(cls, dag: Any, run: Any) -> RunExists:
        message = f"{dag.name} has a run {run.run_id} already; it is {run.state}"
        return cls(message, run=str(run.pk))


class DagPaused(ContainerManagerError, ValueError):
    """This DAG is paused: unpause it first."""

    code = "dag_paused"


class DagActive(ContainerManagerError, ValueError):
    """This DAG has runs under way: cancel them or wait for their end."""

    code = "dag_active"


class NothingToRetry(MoveRefused):
    """None of its tasks failed; what was skipped stays skipped: trigger a new run."""

    code = "nothing_to_retry"


class ManagedByTask(MoveRefused):
    """This job belongs to a task of a workflow: retry the task."""

    code = "managed_by_task"


@dataclass(frozen=True, slots=True)
class Problem:
    """One mistake of a document: where, what, and in which line of its text (from 1)."""

    path: str
    """Such as `tasks.load.depends_on[0]`; empty for the document as a whole."""
    message: str
    line: int | None = None

    def __str__(self) -> str:
        line = "" if self.line is None else f"line {self.line}"
        return ": ".join(part for part in (line, self.path, self.message) if part)


class SpecError(ContainerManagerError, ValueError):
    """The document of this DAG has mistakes; all that were found are told, each with its place."""

    code = "invalid_dag"

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = list(problems)
        super().__init__("\n".join(map(str, self.problems)))
