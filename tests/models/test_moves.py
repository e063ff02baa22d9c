"""Every pair of states, by every way a client may try."""

from __future__ import annotations

import pytest
from django.db import IntegrityError

from container_manager import states
from container_manager.exceptions import InvalidTransition
from container_manager.models import StateHistory
from container_manager.states import JOB, WORKFLOW
from tests.factories import JobFactory, RunFactory, TaskFactory
from tests.models import ways
from tests.models.ways import ILLEGAL_WAYS, LEGAL_WAYS, ORM_WAYS, name_of, stored, told

pytestmark = pytest.mark.django_db

ALL = [
    *((JobFactory, pair) for pair in ways.pairs(JOB)),
    *((RunFactory, pair) for pair in ways.pairs(WORKFLOW)),
    *((TaskFactory, pair) for pair in ways.pairs(WORKFLOW)),
]


def rows(kind, machine):
    """pytest parameters: the factory and one pair of states of its machine."""
    return [
        pytest.param(factory, pair, id=f"{factory._meta.model.__name__}-{'-'.join(pair)}")
        for factory, pair in ALL
        if factory._meta.model.machine is machine and pair in kind(machine)
    ]


def made(factory, state):
    model = factory._meta.model
    return model.objects.get(pk=factory(**{model.state_field: state}).pk)


def test_the_pairs_are_all_there_are():
    assert len(ALL) == 64 + 2 * 49
    kinds = (ways.legal, ways.illegal, ways.same)
    assert [len(kind(JOB)) for kind in kinds] == [16, 40, 8]
    assert [len(kind(WORKFLOW)) for kind in kinds] == [14, 28, 7]


@pytest.mark.parametrize("way", LEGAL_WAYS, ids=name_of)
@pytest.mark.parametrize(("factory", "pair"), [*rows(ways.legal, JOB), *rows(ways.legal, WORKFLOW)])
def test_a_legal_move_is_made_and_told_once(factory, pair, way):
    old, new = pair
    row = made(factory, old)
    way(row, new)
    row = type(row).objects.get(pk=row.pk)
    assert (row._state_now(), row.version) == (new, 2)
    assert told(row) == [(None, old, 1), (old, new, 2)]
    attempt = getattr(row, row.attempt_field or "", None)
    assert StateHistory.objects.of(row).last().attempt == attempt
    if factory is JobFactory and way is not ways.raw_sql:
        assert row.reason == (new if new in ("cancelled", "killed") else "")
        assert_times_follow(row, old, new, before=row.created_at)
    if factory is not JobFactory and way is not ways.raw_sql:
        assert_workflow_times_follow(row, old, new)


@pytest.mark.parametrize(
    ("factory", "pair"), [*rows(ways.illegal, JOB), *rows(ways.illegal, WORKFLOW)]
)
def test_an_illegal_move_is_refused_and_leaves_no_trace(factory, pair):
    old, new = pair
    before = stored(made(factory, old))
    for way in ILLEGAL_WAYS:
        row = factory._meta.model.objects.get(pk=before["id"])
        with ways.refusal_by(way):
            ways.tried(way, row, new)
        assert stored(row) == before, way
        assert told(row) == [(None, old, 1)], way


@pytest.mark.parametrize(("factory", "pair"), [*rows(ways.legal, JOB), *rows(ways.legal, WORKFLOW)])
def test_a_legal_move_by_raw_sql_must_raise_the_version(factory, pair):
    old, new = pair
    row = made(factory, old)
    before = stored(row)
    with ways.refusal_by(ways.raw_sql_without_version):
        ways.tried(ways.raw_sql_without_version, row, new)
    assert stored(row) == before
    assert told(row) == [(None, old, 1)]


@pytest.mark.parametrize(("factory", "pair"), [*rows(ways.same, JOB), *rows(ways.same, WORKFLOW)])
def test_the_same_state_is_no_move(factory, pair):
    state, _ = pair
    row = made(factory, state)
    before = stored(row)
    with pytest.raises(InvalidTransition):
        row.transition_to(state)
    with pytest.raises(InvalidTransition):
        ways.update_state(row, state)
    for way in ORM_WAYS[1:]:
        way(row, state)
    after = stored(row)
    assert after.pop("updated_at") > before.pop("updated_at")
    assert after == before
    ways.execute(f"UPDATE {row._meta.db_table} SET version = version")
    with pytest.raises(IntegrityError, match="version"):
        ways.tried(ways.raw_version_alone, row, state)
    assert told(row) == [(None, state, 1)]


def assert_workflow_times_follow(row, old, new):
    assert (row.ended_at is None) == (new in states.NOT_OVER)
    if new in states.NOT_OVER:
        assert row.duration_ms is None
    if new == "running":
        assert row.started_at >= row.created_at
    if new == "queued":
        assert row.started_at is None
    if old == "running" and new in states.OVER:
        assert 100_000 < row.duration_ms < 1_000_000


def assert_times_follow(job, old, new, before):
    if new == "queued":
        assert job.queued_at >= before
        assert (job.launched_at, job.completed_at, job.duration_ms) == (None, None, None)
    if new == "running":
        assert job.launched_at >= before
        assert job.completed_at is None
        assert job.attempt == 1
    if new in states.ENDED and old in states.NOT_ENDED:
        assert job.completed_at >= before
    if new in states.ENDED and old not in states.NOT_ENDED:
        assert job.completed_at < before
    if old == "running":
        assert 100_000 < job.duration_ms < 1_000_000
    if old in ("pending", "queued") and new in states.ENDED:
        assert (job.launched_at, job.duration_ms) == (None, None)


@pytest.mark.parametrize("way", ORM_WAYS, ids=name_of)
@pytest.mark.parametrize("word", ["", "x", "Queued", "queued "])
def test_an_unknown_word_is_refused(way, word):
    job = JobFactory()
    with pytest.raises(InvalidTransition):
        way(job, word)
    assert stored(job)["status"] == "pending"


@pytest.mark.parametrize(
    ("way", "message"),
    [
        (
            ways.transition_to,
            "Invalid transition from pending to completed."
            " Valid transitions: queued, running, cancelled, killed",
        ),
        (ways.assign_and_save, "Invalid status transition: pending -> completed"),
        (ways.queryset_update, "Invalid status transition: pending -> completed"),
    ],
    ids=["transition_to", "save", "update"],
)
def test_the_refusal_says_what_is_possible_and_carries_code_entity_from_and_to(way, message):
    job = JobFactory()
    with pytest.raises(InvalidTransition) as refused:
        way(job, "completed")
    assert str(refused.value) == message
    assert refused.value.code == "invalid_transition"
    assert refused.value.entity in (job, job.pk)
    assert (refused.value.old, refused.value.new) == ("pending", "completed")


def test_a_terminal_state_names_no_way_out():
    job = JobFactory(status="killed")
    with pytest.raises(InvalidTransition, match="Valid transitions: none"):
        job.transition_to("queued")
