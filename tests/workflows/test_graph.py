"""What depends on what, and what a task does about how those before it ended."""

from __future__ import annotations

import doctest
import inspect
import sys
from collections import Counter
from graphlib import CycleError
from itertools import combinations, pairwise, product

import pytest

from container_manager.states import WorkflowState
from container_manager.workflows import graph
from container_manager.workflows.graph import (
    Decision,
    Graph,
    TriggerRule,
    decide,
    decide_by_count,
    find_cycle,
    instance_id,
    name_of,
)

KINDS = {
    "s": {"success"},
    "f": {"failed"},
    "u": {"upstream_failed"},
    "k": {"skipped"},
    "w": {"queued", "running", "retrying"},
}
KIND_OF = {state: kind for kind, states in KINDS.items() for state in states}
EVERY_KIND = ["".join(kinds) for size in (1, 2, 3) for kinds in combinations(KINDS, size)]
COMBINATIONS = [states for size in (1, 2, 3) for states in product(WorkflowState, repeat=size)]


def table_of(test):
    """{kinds that occur upstream: decision}, as the test's docstring says."""
    lines = (line.partition(":") for line in inspect.getdoc(test).splitlines() if ":" in line)
    pairs = [(kinds, decision) for decision, _, row in lines for kinds in row.split()]
    table = {kinds: decision.strip() for kinds, decision in pairs}
    assert sorted(table) == sorted(EVERY_KIND), "every set of kinds, once"
    assert len(pairs) == len(table)
    return table


def holds(rule, test):
    table = table_of(test)
    assert {state.value for state in WorkflowState} == set(KIND_OF)
    for states in COMBINATIONS:
        kinds = "".join(kind for kind in KINDS if kind in {KIND_OF[state] for state in states})
        assert decide(rule, states) == table[kinds], (rule, states)


# Which kinds of states occur among one to three upstream: success, failed, upstream_failed,
# skipped (k), and still to come (w: queued, running, retrying).


def test_all_success():
    """
    run:             s
    skip:            k sk kw skw
    upstream_failed: f u sf su fu fk fw uk uw sfu sfk sfw suk suw fuk fuw fkw ukw
    wait:            w sw
    """
    holds("all_success", test_all_success)


def test_all_failed():
    """
    run:  f u fu
    skip: s k sf su sk sw fk uk kw sfu sfk sfw suk suw skw fuk fkw ukw
    wait: w fw uw fuw
    """
    holds("all_failed", test_all_failed)


def test_all_done():
    """
    run:  s f u k sf su sk fu fk uk sfu sfk suk fuk
    wait: w sw fw uw kw sfw suw skw fuw fkw ukw
    """
    holds("all_done", test_all_done)


def test_all_skipped():
    """
    run:  k
    skip: s f u sf su sk sw fu fk fw uk uw sfu sfk sfw suk suw skw fuk fuw fkw ukw
    wait: w kw
    """
    holds("all_skipped", test_all_skipped)


def test_one_success():
    """
    run:             s sf su sk sw sfu sfk sfw suk suw skw
    skip:            k
    upstream_failed: f u fu fk uk fuk
    wait:            w fw uw kw fuw fkw ukw
    """
    holds("one_success", test_one_success)


def test_one_failed():
    """
    run:  f u sf su fu fk fw uk uw sfu sfk sfw suk suw fuk fuw fkw ukw
    skip: s k sk
    wait: w sw kw skw
    """
    holds("one_failed", test_one_failed)


def test_one_done():
    """
    run:             s f sf su sk sw fu fk fw sfu sfk sfw suk suw skw fuk fuw fkw
    skip:            k
    upstream_failed: u uk
    wait:            w uw kw ukw
    """
    holds("one_done", test_one_done)


def test_none_failed():
    """
    run:             s k sk
    upstream_failed: f u sf su fu fk fw uk uw sfu sfk sfw suk suw fuk fuw fkw ukw
    wait:            w sw kw skw
    """
    holds("none_failed", test_none_failed)


def test_none_failed_min_one_success():
    """
    run:             s sk
    skip:            k
    upstream_failed: f u sf su fu fk fw uk uw sfu sfk sfw suk suw fuk fuw fkw ukw
    wait:            w sw kw skw
    """
    holds("none_failed_min_one_success", test_none_failed_min_one_success)


def test_none_skipped():
    """
    run:  s f u sf su fu sfu
    skip: k sk fk uk kw sfk suk skw fuk fkw ukw
    wait: w sw fw uw sfw suw fuw
    """
    holds("none_skipped", test_none_skipped)


def test_all_done_min_one_success():
    """
    run:             s sf su sk sfu sfk suk
    skip:            k
    upstream_failed: f u fu fk uk fuk
    wait:            w sw fw uw kw sfw suw skw fuw fkw ukw
    """
    holds("all_done_min_one_success", test_all_done_min_one_success)


def test_always():
    """
    run: s f u k w sf su sk sw fu fk fw uk uw kw sfu sfk sfw suk suw skw fuk fuw fkw ukw
    """
    holds("always", test_always)


def test_each_rule_has_its_table_and_its_meaning():
    here = sys.modules[__name__]
    assert len(TriggerRule) == 12
    for rule in TriggerRule:
        assert table_of(getattr(here, f"test_{rule}"))
        assert rule.meaning.endswith(".")


@pytest.mark.parametrize("rule", TriggerRule)
def test_what_depends_on_nothing_runs(rule):
    assert decide(rule, []) == Decision.RUN


def test_an_unknown_rule_is_refused():
    with pytest.raises(ValueError, match="'sometimes' is not a valid TriggerRule"):
        decide("sometimes", ["success"])


@pytest.mark.parametrize("rule", TriggerRule)
def test_ten_thousand_upstream_are_counted_not_compared(rule):
    states = ["success"] * 9_999 + ["running"]
    assert decide(rule, states) == decide_by_count(rule, Counter(states))
    assert decide(rule, states) == decide(rule, ["success", "running"])


def test_the_examples_in_the_documentation_are_true():
    assert doctest.testmod(graph).failed == 0
    assert doctest.testmod(graph).attempted > 0


# The shape ----------------------------------------------------------------------------------------

DIAMOND = {"end": ["left", "right"], "left": ["start"], "right": ["start"], "start": []}


def test_a_diamond_is_seen_from_both_sides():
    diamond = Graph.of(DIAMOND)
    assert diamond.upstream["end"] == ("left", "right")
    assert diamond.downstream["start"] == ("left", "right")
    assert diamond.roots == ("start",)
    assert diamond.order == ("start", "left", "right", "end")
    assert diamond.layers() == [["start"], ["left", "right"], ["end"]]


def test_below_is_all_that_depends_on_it_through_whatever():
    diamond = Graph.of({**DIAMOND, "alone": []})
    assert diamond.below(["start"]) == {"left", "right", "end"}
    assert diamond.below(["left"]) == {"end"}
    assert diamond.below(["end"]) == diamond.below(["alone"]) == set()


def test_a_task_is_drawn_below_the_lowest_that_it_depends_on():
    bypass = Graph.of({"a": [], "b": ["a"], "c": ["b"], "d": ["a", "c"], "e": ["a"]})
    assert bypass.layers() == [["a"], ["b", "e"], ["c"], ["d"]]


def test_a_dependency_named_twice_is_one():
    twice = Graph.of({"a": [], "b": ["a", "a"]})
    assert twice.upstream["b"] == ("a",)
    assert twice.downstream["a"] == ("b",)


def test_no_tasks_are_a_graph_too():
    nothing = Graph.of({})
    assert (nothing.roots, nothing.order, nothing.layers()) == ((), (), [])


def test_a_dependency_that_is_no_task_is_refused():
    with pytest.raises(KeyError, match="ghost"):
        Graph.of({"a": ["ghost"]})


@pytest.mark.parametrize(
    ("edges", "cycle"),
    [
        ({"a": ["a"]}, ("a", "a")),
        ({"a": ["b"], "b": ["a"]}, ("a", "b", "a")),
        ({"x": [], "a": ["x", "c"], "b": ["a"], "c": ["b"], "y": ["c"]}, ("a", "b", "c", "a")),
    ],
)
def test_a_cycle_is_named_in_the_order_of_the_work(edges, cycle):
    found = find_cycle(edges)
    assert found is not None
    assert found[0] == found[-1]
    assert sorted(found[1:]) == sorted(cycle[1:])
    assert all(before in edges[after] for before, after in pairwise(found))
    with pytest.raises(CycleError):
        Graph.of(edges)


def test_without_a_cycle_there_is_none_to_name():
    assert find_cycle(DIAMOND) is None
    assert find_cycle({"a": ["not a task"]}) is None


# Large ones: deeper than Python may recurse


DEPTH = 10 * sys.getrecursionlimit()
CHAIN = {"t0": [], **{f"t{n}": [f"t{n - 1}"] for n in range(1, DEPTH)}}


def test_a_chain_of_many_thousands_is_followed_to_its_end():
    chain = Graph.of(CHAIN)
    assert chain.order == tuple(CHAIN)
    assert chain.below(["t0"]) == set(CHAIN) - {"t0"}
    assert chain.layers() == [[task] for task in CHAIN]


def test_a_cycle_of_many_thousands_is_found():
    found = find_cycle({**CHAIN, "t0": [f"t{DEPTH - 1}"]})
    assert found is not None
    assert (len(found), set(found)) == (DEPTH + 1, set(CHAIN))


def test_ten_thousand_between_one_and_one():
    middle = [f"m{n}" for n in range(10_000)]
    fan = Graph.of({"start": [], **{key: ["start"] for key in middle}, "end": middle})
    assert fan.downstream["start"] == fan.upstream["end"] == tuple(middle)
    assert fan.layers() == [["start"], middle, ["end"]]
    assert len(fan.below(["start"])) == 10_001


def test_each_above_each_of_the_layer_below_it():
    """100 wide, 10 deep: 90,000 edges, and 100**9 paths that nobody walks."""
    layers = [[f"{depth}-{n}" for n in range(100)] for depth in range(10)]
    edges = {task: [] for task in layers[0]}
    for above, layer in pairwise(layers):
        edges |= dict.fromkeys(layer, above)
    dense = Graph.of(edges)
    assert dense.layers() == layers
    assert len(dense.below(["0-0"])) == 900


# Arrays


def test_a_member_of_an_array_is_known_by_name_and_place():
    assert [instance_id("load", index) for index in (None, 0, 12)] == [
        "load",
        "load[0]",
        "load[12]",
    ]
    assert {name_of(task_id) for task_id in ("load", "load[0]", "load[12]")} == {"load"}
