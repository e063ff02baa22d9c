"""Many at once: exactly one wins, and the history has no gap and no double."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from copy import deepcopy
from threading import Barrier

import pytest
from django.db import IntegrityError, connection, connections, transaction

from container_manager.exceptions import HeldByWorker, InvalidTransition, StaleState
from container_manager.models import ContainerJob, JobAttempt, StateHistory
from container_manager.states import JOB
from tests.factories import JobFactory, TrialFactory
from tests.trials.models import Trial

pytestmark = pytest.mark.django_db(transaction=True)

REFUSALS = (StaleState, InvalidTransition, IntegrityError)
THREADS = 4


@pytest.fixture
def shared(transactional_db, tmp_path) -> Iterator[str]:
    """The alias of a database that many connections may write at once.

    The SQLite of the tests lives in memory, where connections do not wait for each other: a copy
    of it in a file, with its triggers, does what users have.
    """
    if connection.vendor != "sqlite":
        yield "default"
        return
    path = str(tmp_path / "shared.sqlite3")
    connection.ensure_connection()
    in_memory, settings = connections["default"], connections.databases["default"]
    with closing(sqlite3.connect(path)) as target:
        in_memory.connection.backup(target)
    connections.databases["default"] = {**deepcopy(settings), "NAME": path}
    connections["default"] = connections.create_connection("default")
    yield "default"
    connections["default"].close()
    connections.databases["default"], connections["default"] = settings, in_memory


def at_once(alias: str, acts: list[Callable[[], object]]) -> list[object]:
    """Run all acts at the same moment, each on a connection of its own; errors are results."""
    barrier = Barrier(len(acts))

    def run(act: Callable[[], object]) -> object:
        try:
            connections[alias].ensure_connection()
            barrier.wait()
            return act()
        except REFUSALS as refusal:
            return refusal
        finally:
            connections[alias].close()

    with ThreadPoolExecutor(len(acts)) as pool:
        return list(pool.map(run, acts))


def read(model, alias, pk):
    return model.objects.using(alias).get(pk=pk)


def path(alias, row):
    rows = (
        StateHistory.objects.using(alias).of(row).values_list("old_state", "new_state", "version")
    )
    steps = list(rows)
    assert [version for _, _, version in steps] == list(range(1, len(steps) + 1))
    assert [new for _, new, _ in steps[:-1]] == [old for old, _, _ in steps[1:]]
    return [new for _, new, _ in steps]


def by_transition(job, alias, new):
    return lambda: job.transition_to(new)


def by_save(job, alias, new):
    def act():
        job.status = new
        job.save()
        return True

    return act


def by_update_state(job, alias, new):
    def act():
        job.__class__.objects.using(alias).update_state(job.pk, "pending", new)
        return True

    return act


def by_bulk_update(job, alias, new):
    def act():
        job.status = new
        return ContainerJob.objects.using(alias).bulk_update([job], ["status"]) == 1

    return act


def by_raw_sql(job, alias, new):
    def act():
        model = job.__class__
        pk = model._meta.pk.get_db_prep_value(job.pk, connections[alias])
        with transaction.atomic(using=alias), connections[alias].cursor() as cursor:
            cursor.execute(
                "UPDATE container_jobs SET status = %s, queued_at = created_at, version = 2,"
                " completed_at = CASE WHEN %s = 'queued' THEN NULL ELSE created_at END"
                " WHERE id = %s",
                [new, new, pk],
            )
        return True

    return act


WAYS = [by_transition, by_save, by_update_state, by_bulk_update, by_raw_sql]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_of_several_that_move_the_same_job_exactly_one_wins(shared, way):
    for _ in range(3):
        job = JobFactory.build()
        job.save(using=shared)
        targets = ["queued", "cancelled", "killed", "queued"]
        copies = [read(ContainerJob, shared, job.pk) for _ in targets]
        results = at_once(
            shared, [way(copy, shared, new) for copy, new in zip(copies, targets, strict=True)]
        )
        if way is by_raw_sql:
            # The same move told twice is no second move.
            assert len([result for result in results if result is True]) in (1, 2)
        else:
            assert [result for result in results if result is True] == [True]
        row = read(ContainerJob, shared, job.pk)
        assert row.version == 2
        assert path(shared, row) == ["pending", row.status]


def test_every_way_against_every_other_way(shared):
    job = JobFactory.build()
    job.save(using=shared)
    acts = [way(read(ContainerJob, shared, job.pk), shared, "cancelled") for way in WAYS[:4]]
    results = at_once(shared, acts)
    assert [result for result in results if result is True] == [True]
    assert path(shared, read(ContainerJob, shared, job.pk)) == ["pending", "cancelled"]


def test_updates_of_many_rows_in_different_order_lose_nothing_and_do_not_block_each_other(shared):
    jobs = [JobFactory.build() for _ in range(20)]
    ContainerJob.objects.using(shared).bulk_create(jobs)

    def move(new):
        def act():
            rows = ContainerJob.objects.using(shared).filter(status="pending")
            return rows.update(status=new)

        return act

    results = at_once(shared, [move(new) for new in ("queued", "cancelled", "killed")])
    moved = [result for result in results if isinstance(result, int)]
    assert sum(moved) == 20
    for job in ContainerJob.objects.using(shared).all():
        assert path(shared, job) == ["pending", job.status]
        assert job.version == 2


def test_many_who_retry_after_a_stale_read_all_get_their_turn(shared):
    trial = TrialFactory.build(state="failed")
    trial.save(using=shared)
    turns = 3

    def act():
        done = 0
        while done < turns:
            row = read(Trial, shared, trial.pk)
            try:
                row.transition_to("running" if row.state == "failed" else "failed")
                done += 1
            except StaleState:
                continue
        return done

    assert at_once(shared, [act] * THREADS) == [turns] * THREADS
    row = read(Trial, shared, trial.pk)
    assert row.version == 1 + turns * THREADS
    assert len(path(shared, row)) == row.version


def test_a_claim_and_a_cancel_at_once_leave_no_cancelled_job_with_a_live_attempt(shared):
    for _ in range(3):
        job = JobFactory.build(status="queued")
        job.save(using=shared)

        def claim(pk=job.pk):
            with transaction.atomic(using=shared):
                row = read(ContainerJob, shared, pk)
                row.transition_to("running")
                JobAttempt.objects.using(shared).create(job=row, attempt=1)
            return "claimed"

        def cancel(pk=job.pk):
            rows = ContainerJob.objects.using(shared).filter(pk=pk)
            return rows.update(status="cancelled") and "cancelled"

        results = at_once(shared, [claim, cancel])
        row = read(ContainerJob, shared, job.pk)
        live = JobAttempt.objects.using(shared).active().filter(job=row).exists()
        assert (row.status, live) in [("running", True), ("cancelled", False)]
        won = "claimed" if row.status == "running" else "cancelled"
        assert won in results
        loser = next((result for result in results if result != won), None)
        assert isinstance(loser, HeldByWorker | StaleState | InvalidTransition)
        assert path(shared, row) == ["queued", row.status]
        assert set(zip(path(shared, row)[:-1], path(shared, row)[1:], strict=True)) <= set(
            JOB.edges
        )
