"""What is told, and to whom: a move as others see it, and what a publisher promises.

Plain Python: a publisher never sees the database. It is given events in the order of their
sequence, each at least once, and either delivers them all or raises one of the errors below.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from importlib import import_module
from typing import Any, Self
from uuid import UUID

from container_manager.states import JobStatus, WorkflowState

KEYS = (
    *("id", "entity_type", "entity_id", "old_state", "new_state", "version", "attempt"),
    *("actor", "reason", "metadata", "changed_at"),
)
"""What the JSON of an event has, in this order."""

STATES: dict[str, tuple[str, ...]] = {
    "job": tuple(JobStatus.values),
    "dag_run": tuple(WorkflowState.values),
    "task_instance": tuple(WorkflowState.values),
}
"""The types of entities that events tell of, and the states of each."""


@dataclass(frozen=True, slots=True)
class TransitionEvent:
    """One move of one job, run or task, as it stands in the history."""

    id: UUID
    entity_type: str
    entity_id: UUID
    old_state: str | None
    """None: that is how it began."""
    new_state: str
    version: int
    """Counts the moves of the entity; whoever sees one twice, or a lower one, knows it already."""
    attempt: int | None
    actor: str
    reason: str
    metadata: dict[str, Any]
    changed_at: datetime
    sequence: int = 0
    """Its place among all events, without gaps; from it anybody goes on. Not part of the JSON."""
    owner: Any = field(default=None, compare=False, repr=False)
    """The key of whose it was, where it was read from the database. Not part of the JSON."""

    def as_json(self) -> dict[str, Any]:
        """The keys of KEYS, with values that JSON has."""
        told = {name: getattr(self, name) for name in KEYS}
        return {
            **told,
            "id": str(self.id),
            "entity_id": str(self.entity_id),
            "changed_at": self.changed_at.isoformat(),
        }

    def as_text(self) -> str:
        """The JSON in one line, as it goes over the wire."""
        return json.dumps(self.as_json(), ensure_ascii=False, separators=(",", ":"))

    @classmethod
    def from_json(cls, told: Mapping[str, Any], sequence: int = 0) -> Self:
        """The event of such a JSON. Raises ValueError when it is none."""
        try:
            given = {name: told[name] for name in KEYS}
            given["id"] = UUID(told["id"])
            given["entity_id"] = UUID(told["entity_id"])
            given["changed_at"] = datetime.fromisoformat(told["changed_at"])
            return cls(**given, sequence=int(sequence))
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not an event: {error!r}") from error

    def __str__(self) -> str:
        return f"{self.entity_type} {self.entity_id}: {self.old_state} -> {self.new_state}"


@dataclass(frozen=True, slots=True)
class Filter:
    """Which events somebody wants: of these types, states and entities; empty: of all."""

    entity_types: frozenset[str] = frozenset()
    states: frozenset[str] = frozenset()
    entity_ids: frozenset[UUID] = frozenset()

    @classmethod
    def of(
        cls,
        entity_types: Iterable[str] = (),
        states: Iterable[str] = (),
        entity_ids: Iterable[UUID] = (),
    ) -> Self:
        """Raises ValueError for a type or a state that there is not, or that no type has."""
        wanted = cls(frozenset(entity_types), frozenset(states), frozenset(entity_ids))
        for name in sorted(wanted.entity_types - STATES.keys()):
            raise ValueError(f"there is no entity type {name!r}, but {', '.join(STATES)}")
        known = {word for name in wanted.entity_types or STATES for word in STATES[name]}
        for state in sorted(wanted.states - known):
            raise ValueError(f"there is no state {state!r}, but {', '.join(sorted(known))}")
        return wanted

    def wants(self, event: TransitionEvent) -> bool:
        return (
            (not self.entity_types or event.entity_type in self.entity_types)
            and (not self.states or event.new_state in self.states)
            and (not self.entity_ids or event.entity_id in self.entity_ids)
        )


# What may go wrong --------------------------------------------------------------------------------


class NotDelivered(Exception):
    """The rest of the events was not delivered; `delivered` of those given were, before it."""

    def __init__(self, message: str = "", delivered: int = 0) -> None:
        super().__init__(message or (type(self).__doc__ or "").splitlines()[0])
        self.delivered = delivered


class Unavailable(NotDelivered):
    """Nobody is there, or nobody answers in time: the same is tried again later."""

    def __init__(
        self, message: str = "", delivered: int = 0, *, retry_after: float | None = None
    ) -> None:
        super().__init__(message, delivered)
        self.retry_after = retry_after
        """Seconds for which the receiver asks to be left alone; None: it did not say."""


class Refused(NotDelivered):
    """The receiver will not take this event: after some tries it is put among the dead letters."""

    def __init__(self, message: str = "", delivered: int = 0, *, tries: int = 1) -> None:
        super().__init__(message, delivered)
        self.tries = tries
        """How often it was tried since this publisher last said so of it."""


class OutOfStep(NotDelivered):
    """The receiver is not where we left it: ask `begin` from where to go on."""


# Who tells it -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Standing:
    """How far a publisher has come, as our records say; events are meant by their sequence."""

    position: int
    """All up to this one are delivered, or dead letters."""
    oldest: int
    """The oldest event that is still kept; the newest plus one when none is."""
    newest: int
    source: str = ""
    """Which installation tells: the name of its database."""


class Publisher(ABC):
    """Tells events to somebody outside; one thread uses it at a time.

    Made of the `options` in the settings, as keyword arguments. The constructor calls nobody; it
    raises ValueError or TypeError for options that make no sense.
    """

    max_tries = 10
    """How often an event may be refused before it is put among the dead letters."""

    def begin(self, standing: Standing) -> int:
        """The sequence behind which to go on; asked before the first event, and when out of step.

        Only a publisher whose receiver remembers what it has needs to know better than our records.
        Raises Unavailable, Refused.
        """
        return standing.position

    @abstractmethod
    def publish(self, events: Sequence[TransitionEvent]) -> int | None:
        """Deliver these, in this order, before returning. Raises NotDelivered.

        Who needs long for each may return early: how many were delivered, one at least; None: all.
        """

    def publish_all(self, events: Sequence[TransitionEvent]) -> None:
        """The same for who wants to hear of it only when all are delivered."""
        delivered = 0
        while delivered < len(events):
            try:
                count = self.publish(events[delivered:])
            except NotDelivered as error:
                error.delivered += delivered
                raise
            delivered = len(events) if count is None else delivered + count

    def close(self) -> None:  # noqa: B027  most have nothing to let go of
        """Let go of connections; it may be used again afterwards."""


def make(path: str, options: Mapping[str, Any] | None = None) -> Publisher:
    """The publisher of this class. Raises ValueError, which says what is wrong with it."""
    module, _, name = path.rpartition(".")
    try:
        made = getattr(import_module(module), name)(**(options or {}))
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error
    if not isinstance(made, Publisher):
        raise ValueError(f"{path}: is no Publisher")
    return made
