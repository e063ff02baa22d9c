"""What depends on what, and what a task does about how those before it ended. Pure functions.

The edges are between names. An array of N tasks is one name, so that an array of 5,000 behind an
array of 5,000 is one edge, not 25 million; `instance_id` and `name_of` lead from one to the other.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from graphlib import CycleError, TopologicalSorter

from container_manager.states import Words, WorkflowState

Edges = Mapping[str, Iterable[str]]
"""Of each task the tasks that it depends on."""


class TriggerRule(Words):
    """How those that a task depends on must have ended for it to run."""

    ALL_SUCCESS = "all_success", "Every one succeeded."
    ALL_FAILED = "all_failed", "Every one failed, or never ran because of a failure."
    ALL_DONE = "all_done", "Every one ended, however."
    ALL_SKIPPED = "all_skipped", "Every one was skipped."
    ONE_SUCCESS = "one_success", "One succeeded; the others are not waited for."
    ONE_FAILED = "one_failed", "One failed; the others are not waited for."
    ONE_DONE = "one_done", "One ran to its end, well or badly; the others are not waited for."
    NONE_FAILED = "none_failed", "Every one ended and none failed."
    NONE_FAILED_MIN_ONE_SUCCESS = (
        "none_failed_min_one_success",
        "Every one ended, none failed and at least one succeeded.",
    )
    NONE_SKIPPED = "none_skipped", "Every one ended and none was skipped."
    ALL_DONE_MIN_ONE_SUCCESS = (
        "all_done_min_one_success",
        "Every one ended and at least one succeeded.",
    )
    ALWAYS = "always", "At once, whatever the others do."


class Decision(StrEnum):
    """What a waiting task does now."""

    WAIT = "wait"
    RUN = "run"
    SKIP = "skip"
    UPSTREAM_FAILED = "upstream_failed"


# Deciding -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Tally:
    """How many of those upstream stand where."""

    total: int
    success: int
    failed: int
    upstream_failed: int
    skipped: int

    @classmethod
    def of(cls, counts: Mapping[str, int]) -> Tally:
        return cls(
            total=sum(counts.values()),
            success=counts.get(WorkflowState.SUCCESS, 0),
            failed=counts.get(WorkflowState.FAILED, 0),
            upstream_failed=counts.get(WorkflowState.UPSTREAM_FAILED, 0),
            skipped=counts.get(WorkflowState.SKIPPED, 0),
        )


Condition = Callable[[Tally], bool]


def _success(tally: Tally) -> bool:
    return tally.success > 0


def _failure(tally: Tally) -> bool:
    return tally.failed + tally.upstream_failed > 0


def _ran(tally: Tally) -> bool:
    return tally.success + tally.failed > 0


def _skipped(tally: Tally) -> bool:
    return tally.skipped > 0


def _all_skipped(tally: Tally) -> bool:
    return tally.skipped == tally.total


def _done(tally: Tally) -> bool:
    ended = tally.success + tally.failed + tally.upstream_failed + tally.skipped
    return ended == tally.total


def _done_with_success(tally: Tally) -> bool:
    return _done(tally) and _success(tally)


def _done_with_upstream_failed(tally: Tally) -> bool:
    return _done(tally) and tally.upstream_failed > 0


def _at_once(_: Tally) -> bool:
    return True


_RUN, _SKIP, _FAIL = Decision.RUN, Decision.SKIP, Decision.UPSTREAM_FAILED

# The first condition that holds decides; while none does, the task waits.
_RULES: Mapping[TriggerRule, tuple[tuple[Condition, Decision], ...]] = {
    TriggerRule.ALL_SUCCESS: ((_failure, _FAIL), (_skipped, _SKIP), (_done, _RUN)),
    TriggerRule.ALL_FAILED: ((_success, _SKIP), (_skipped, _SKIP), (_done, _RUN)),
    TriggerRule.ALL_DONE: ((_done, _RUN),),
    TriggerRule.ALL_SKIPPED: ((_success, _SKIP), (_failure, _SKIP), (_done, _RUN)),
    TriggerRule.ONE_SUCCESS: ((_success, _RUN), (_all_skipped, _SKIP), (_done, _FAIL)),
    TriggerRule.ONE_FAILED: ((_failure, _RUN), (_done, _SKIP)),
    TriggerRule.ONE_DONE: ((_ran, _RUN), (_done_with_upstream_failed, _FAIL), (_done, _SKIP)),
    TriggerRule.NONE_FAILED: ((_failure, _FAIL), (_done, _RUN)),
    TriggerRule.NONE_FAILED_MIN_ONE_SUCCESS: (
        (_failure, _FAIL),
        (_done_with_success, _RUN),
        (_done, _SKIP),
    ),
    TriggerRule.NONE_SKIPPED: ((_skipped, _SKIP), (_done, _RUN)),
    TriggerRule.ALL_DONE_MIN_ONE_SUCCESS: (
        (_done_with_success, _RUN),
        (_all_skipped, _SKIP),
        (_done, _FAIL),
    ),
    TriggerRule.ALWAYS: ((_at_once, _RUN),),
}


def decide(rule: str, upstream: Collection[str]) -> Decision:
    """What a task with that rule does when those it depends on are in these states.

    `upstream` holds one WorkflowState for each of them; a task that ended with one of its
    `skip_exit_codes` counts as `skipped`. Raises ValueError for an unknown rule.

    >>> decide("all_success", ["success", "running"])
    <Decision.WAIT: 'wait'>
    >>> decide("all_success", ["failed", "running"])
    <Decision.UPSTREAM_FAILED: 'upstream_failed'>
    """
    return decide_by_count(rule, Counter(upstream))


def decide_by_count(rule: str, counts: Mapping[str, int]) -> Decision:
    """As `decide`, of how many are in which state: what waits for an array counts it once."""
    tally = Tally.of(counts)
    if not tally.total:
        return Decision.RUN
    conditions = _RULES[TriggerRule(rule)]
    return next((decision for holds, decision in conditions if holds(tally)), Decision.WAIT)


# The shape ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Graph:
    """Tasks and what they depend on: no cycle, every dependency a task itself."""

    upstream: Mapping[str, tuple[str, ...]]
    downstream: Mapping[str, tuple[str, ...]]
    order: tuple[str, ...]
    """Every task after all that it depends on; among equals as they were given."""

    @classmethod
    def of(cls, edges: Edges) -> Graph:
        """Raises graphlib.CycleError (a ValueError); KeyError for a dependency that is no task."""
        upstream = {task: tuple(dict.fromkeys(needed)) for task, needed in edges.items()}
        downstream: dict[str, list[str]] = {task: [] for task in upstream}
        for task, needed in upstream.items():
            for other in needed:
                downstream[other].append(task)
        return cls(
            upstream=upstream,
            downstream={task: tuple(after) for task, after in downstream.items()},
            order=tuple(TopologicalSorter(upstream).static_order()),
        )

    @property
    def roots(self) -> tuple[str, ...]:
        """Those that depend on nothing."""
        return tuple(task for task, needed in self.upstream.items() if not needed)

    def layers(self) -> list[list[str]]:
        """For drawing: each task one layer below the lowest of those that it depends on."""
        depth: dict[str, int] = {}
        for task in self.order:
            depth[task] = 1 + max((depth[other] for other in self.upstream[task]), default=-1)
        layers: list[list[str]] = [[] for _ in range(1 + max(depth.values(), default=-1))]
        for task in self.upstream:
            layers[depth[task]].append(task)
        return layers

    def after(self, tasks: Iterable[str]) -> set[str]:
        """All that depend directly on one of these."""
        return {after for task in tasks for after in self.downstream[task]}

    def before(self, tasks: Iterable[str]) -> set[str]:
        """All that one of these depends on directly."""
        return {before for task in tasks for before in self.upstream[task]}

    def below(self, tasks: Iterable[str]) -> set[str]:
        """All that depend on one of these, directly or through others."""
        found: set[str] = set()
        wave = self.after(tasks)
        while wave:
            found |= wave
            wave = self.after(wave) - found
        return found


def find_cycle(edges: Edges) -> tuple[str, ...] | None:
    """One cycle, from a task back to itself, each followed by one that depends on it; or None.

    >>> find_cycle({"a": ["b"], "b": ["a"], "c": []})
    ('a', 'b', 'a')
    """
    try:
        TopologicalSorter(edges).prepare()
    except CycleError as error:
        return tuple(error.args[1])
    return None


# Arrays -------------------------------------------------------------------------------------------


def instance_id(name: str, index: int | None) -> str:
    """
    >>> instance_id("load", None), instance_id("load", 2)
    ('load', 'load[2]')
    """
    return name if index is None else f"{name}[{index}]"


def name_of(task_id: str) -> str:
    """The task that an instance is one of: `load` of `load` and of `load[2]`."""
    return task_id.partition("[")[0]
