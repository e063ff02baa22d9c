"""Which cases there are: each crash point, with the life and the workers that come to it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from container_manager.faults import COUNTED, POINTS

EXECUTORS = ("process", "docker")


@dataclass(frozen=True)
class Case:
    """One job, and the moments at which its workers crash, one worker after the other."""

    point: str
    executor: str
    life: str
    crashes: tuple[str, ...]
    submitter: str = ""
    """The moment at which the process that submits crashes."""
    number: int = 0
    """Of several runs of the same."""

    @property
    def title(self) -> str:
        return f"{self.point} on {self.executor}"


SUBMITTING = ("S1", "S2")
STOPPING = ("K1", "K2", "K3")
RESCUING = ("A1", "A2")
SCHEDULING = ("N1", "D1")
"""Not on a worker's way: tests/integration/test_workflow_crashes.py."""
PAUSABLE = tuple(
    point
    for point in POINTS
    if point not in (*SUBMITTING, *RESCUING, *SCHEDULING, "U3", "U4", "R2")
)
CHAINS = ("U2+U2+X3", "R4+C3+R3", "U1+A1+A2")
"""Several workers in a row, each killed where it stands."""

LIFE_AT = {
    **dict.fromkeys(STOPPING, "killed"),
    **dict.fromkeys(("R5", "U1", "U2", "U3", "U4"), "long"),  # the job must go on meanwhile
    **{"T1": "retried", "R2": "pulled"},
}
ONLY_ON = {"R2": "docker"}
"""What is pulled is an image."""


def named(executor: str) -> Iterator[Case]:
    """Each point of the table once."""
    for point in POINTS:
        if ONLY_ON.get(point, executor) != executor or point in SCHEDULING:
            continue
        if point in SUBMITTING:
            yield Case(point, executor, "done", (), submitter=point)
        elif point in RESCUING:
            yield Case(point, executor, "long", ("R5", point))
        else:
            yield Case(point, executor, LIFE_AT.get(point, "done"), (point,))


def further(executor: str) -> Iterator[Case]:
    """Cancel beside kill, a pause at each point, and several crashes in a row."""
    for point in STOPPING:
        yield Case(f"{point}/cancel", executor, "cancelled", (point,))
    for point in PAUSABLE:
        life = LIFE_AT.get(point, "done")
        yield Case(f"stop:{point}", executor, life, (f"stop:{point}",))
    for chain in CHAINS:
        yield Case(chain, executor, "long", tuple(chain.split("+")))


def numbered(executor: str, life: str, counts: Mapping[str, int]) -> Iterator[Case]:
    """One case for each statement, commit and call of an executor of a whole life."""
    for what in COUNTED:
        for number in range(1, counts.get(what, 0) + 1):
            moment = f"{what}:{number}"
            point = moment if life == "done" else f"{moment}/{life}"
            yield Case(point, executor, life, (moment,))


def spread(cases: list[Case], most: int) -> list[Case]:
    """At most so many of them, from the first to the last."""
    if len(cases) <= most:
        return cases
    return [cases[round(i * (len(cases) - 1) / (most - 1))] for i in range(most)]
