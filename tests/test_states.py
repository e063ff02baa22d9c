"""The tables themselves: the one place where edges are written by hand."""

from __future__ import annotations

import pytest

from container_manager import states
from container_manager.states import (
    JOB,
    VALID_TRANSITIONS,
    WORKFLOW,
    Blame,
    JobStatus,
    Reason,
    WorkflowState,
    valid_transition,
)

JOB_TABLE = {
    "pending": ("queued", "running", "cancelled", "killed"),
    "queued": ("running", "cancelled", "killed"),
    "running": ("completed", "failed", "cancelled", "killed"),
    "completed": (),
    "failed": ("retrying", "cancelled"),
    "retrying": ("queued", "cancelled", "killed"),
    "cancelled": (),
    "killed": (),
}
WORKFLOW_TABLE = {
    "queued": ("running", "skipped", "failed", "upstream_failed"),
    "running": ("success", "failed", "retrying", "upstream_failed"),
    "success": (),
    "failed": ("retrying", "running"),
    "retrying": ("running", "failed", "success"),
    "skipped": (),
    "upstream_failed": ("queued",),
}
MACHINES = pytest.mark.parametrize("machine", [JOB, WORKFLOW], ids=lambda machine: machine.name)
NO_WORDS = [
    None,
    1,
    0,
    "",
    "x",
    "Pending",
    "pending ",
    [],
    {},
    ["pending"],
    ("pending",),
    b"pending",
]


def test_the_tables_are_those_of_the_contract():
    assert dict(JOB.table) == JOB_TABLE
    assert dict(WORKFLOW.table) == WORKFLOW_TABLE
    assert JOB.table is VALID_TRANSITIONS


def test_the_tables_cannot_be_changed():
    for machine in (JOB, WORKFLOW):
        with pytest.raises(TypeError):
            machine.table["completed"] = ("pending",)


@MACHINES
def test_every_pair_is_an_edge_or_not_as_the_table_says(machine):
    table = JOB_TABLE if machine is JOB else WORKFLOW_TABLE
    for old in table:
        assert machine.get_next_states(old) == table[old]
        assert machine.is_terminal_state(old) == (not table[old])
        for new in table:
            assert machine.can_transition(old, new) == (new in table[old])
    assert machine.states == tuple(table)
    assert machine.edges == tuple((old, new) for old, targets in table.items() for new in targets)


@MACHINES
def test_no_state_leads_to_itself(machine):
    assert [state for state in machine.states if machine.can_transition(state, state)] == []


@MACHINES
@pytest.mark.parametrize("word", NO_WORDS, ids=repr)
def test_an_unknown_word_is_no_state_and_no_error(machine, word):
    assert machine.get_next_states(word) == ()
    assert machine.is_terminal_state(word) is False
    for known in machine.states:
        assert machine.can_transition(word, known) is False
        assert machine.can_transition(known, word) is False
    assert valid_transition(word, word) is False


@MACHINES
def test_sources_are_the_edges_read_backwards(machine):
    for new in machine.states:
        assert machine.sources_of(new) == [old for old, target in machine.edges if target == new]
    assert JOB.sources_of("queued", but=["pending"]) == ["retrying"]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("pending", "running"),
        ("pending", "killed"),
        ("running", "completed"),
        ("running", "failed"),
        ("running", "killed"),
    ],
)
def test_the_five_valid_moves_of_the_workload_store_are_valid(old, new):
    assert valid_transition(old, new) is True


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("pending", "completed"),
        ("pending", "failed"),
        ("running", "pending"),
        ("completed", "running"),
        ("completed", "pending"),
        ("failed", "running"),
        ("failed", "pending"),
        ("killed", "running"),
        ("killed", "pending"),
    ],
)
def test_the_nine_invalid_moves_of_the_workload_store_are_invalid(old, new):
    assert valid_transition(old, new) is False


def test_the_eleven_paths_of_the_workflow_orchestrator_are_there_and_one_more():
    given = [edge for edge in WORKFLOW.edges if edge[1] != "upstream_failed" or edge[0] != "queued"]
    assert len(given) == 13
    assert set(WORKFLOW.edges) - set(given) == {("queued", "upstream_failed")}


@pytest.mark.parametrize(
    "words",
    [
        value
        for value in vars(states).values()
        if isinstance(value, type) and issubclass(value, states.Words)
    ],
)
def test_every_word_has_a_meaning_in_a_sentence(words):
    for word in words:
        assert word.meaning.endswith(".")
        assert str(word) == word.value == word
    assert words.choices == list(zip(words.values, words.labels, strict=True))


def test_the_states_of_the_machines_are_all_the_words():
    assert JOB.states == tuple(JobStatus)
    assert WORKFLOW.states == tuple(WorkflowState)


def test_every_reason_has_a_blame():
    assert {reason.blame for reason in Reason} == set(Blame)
    assert Reason.OOM.blame == Reason.EXIT_CODE.blame == Blame.USER
    assert Reason.WORKER_LOST.blame == Blame.INFRA
    assert Reason.TIMEOUT.blame == Blame.POLICY
    assert Reason.KILLED.blame == Reason.CANCELLED.blame == Blame.PERSON


def test_what_a_person_decided_or_cannot_get_better_is_permanent():
    assert Reason.IMAGE_NOT_FOUND.is_permanent
    assert all(reason.is_permanent for reason in Reason if reason.blame == Blame.PERSON)
    assert not Reason.EXIT_CODE.is_permanent
    assert not Reason.WORKER_LOST.is_permanent


def test_settled_is_terminal_or_failed():
    terminal = {state for state in JOB.states if JOB.is_terminal_state(state)}
    assert set(states.SETTLED) == terminal | {"failed"}
