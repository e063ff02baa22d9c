"""What a run was made of, ready to be asked; read once and kept, for it never changes."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from uuid import UUID

from container_manager.models import DagRun
from container_manager.states import WorkflowState
from container_manager.workflows.graph import Decision, Graph, decide_by_count
from container_manager.workflows.spec import DagSpec, TaskSpec

KEPT_TASKS = 50_000
"""Tasks by name, of all the plans together that a process keeps; the latest it keeps anyhow."""

WAITING, WAITING_AGAIN = "waiting", "waiting_again"
"""In counts, beside the states: without a job, since it had none yet or is tried again."""

NEVER_RUNS = {
    Decision.SKIP: WorkflowState.SKIPPED,
    Decision.UPSTREAM_FAILED: WorkflowState.UPSTREAM_FAILED,
}
"""What becomes of tasks that wait; of those that wait to be tried again, `failed`."""


@dataclass(frozen=True)
class Plan:
    """The tasks of a run by name, and what depends on what."""

    tasks: dict[str, TaskSpec]
    graph: Graph

    def decide(
        self, counts: Mapping[str, Mapping[str, int]], names: Iterable[str]
    ) -> dict[str, Decision]:
        """What becomes of those of these names that wait.

        `counts`: of each name, and of each right before it, how many tasks stand where.
        """
        waiting = [
            name for name in names if counts[name].get(WAITING) or counts[name].get(WAITING_AGAIN)
        ]
        # Those of a layer mostly wait for the same ones, which are counted once.
        befores = {self.graph.upstream[name] for name in waiting}
        upstream = {before: _sum(counts[each] for each in before) for before in befores}
        return {
            name: decide_by_count(
                self.tasks[name].trigger_rule, upstream[self.graph.upstream[name]]
            )
            for name in waiting
        }

    def spread(
        self, counts: Mapping[str, Counter[str]], names: Iterable[str]
    ) -> dict[str, Decision]:
        """As `decide`, and of all behind them that never run for it; changes `counts`, of all."""
        decisions: dict[str, Decision] = {}
        wave = set(names)
        while wave:
            new = self.decide(counts, wave)
            for name, decision in new.items():
                if decision != Decision.WAIT:
                    _follow(counts[name], decision)
            decisions |= new
            wave = self.graph.after(name for name, made in new.items() if made in NEVER_RUNS)
        return decisions


def _sum(counts: Iterable[Mapping[str, int]]) -> Counter[str]:
    total: Counter[str] = Counter()
    for each in counts:
        total.update(each)
    return total


def _follow(count: Counter[str], decision: Decision) -> None:
    """What waited has become something else."""
    never = decision in NEVER_RUNS
    count[NEVER_RUNS.get(decision, WorkflowState.QUEUED)] += count.pop(WAITING, 0)
    again = WorkflowState.FAILED if never else WorkflowState.RETRYING
    count[again] += count.pop(WAITING_AGAIN, 0)


_plans: OrderedDict[UUID, Plan] = OrderedDict()


def plan_of(run: DagRun) -> Plan:
    """The plan of a run; its document is read only where it was not yet."""
    plan = _plans.get(run.pk)
    if plan is None:
        spec = DagSpec.stored(run.spec)
        plan = _plans[run.pk] = Plan(spec.tasks, spec.graph())
        while len(_plans) > 1 and sum(len(kept.tasks) for kept in _plans.values()) > KEPT_TASKS:
            _plans.popitem(last=False)
    return plan
