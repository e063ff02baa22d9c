"""Every error of ours: the docstring is the message, `code` is the word for programs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

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
