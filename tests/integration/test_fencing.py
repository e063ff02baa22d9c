"""Who lost an attempt writes nothing more of it, and is told so."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from uuid import uuid4

import pytest

from container_manager import lifecycle
from container_manager.models import ContainerJob, JobAttempt, JobLog, Worker
from container_manager.models.outcomes import LogChunk, Progress
from container_manager.states import StopKind
from tests.support.spine import (
    PLACE,
    a_worker,
    at_once,
    contradictions,
    ending,
    finish,
    held_by,
    path_of,
)

pytestmark = pytest.mark.django_db

together = pytest.mark.django_db(transaction=True)


def chunk(lease, data=b"text", offset=0):
    return LogChunk(**lease.key, stream="stdout", offset=offset, data=data)


def adopt(worker):
    """All orphans on the engine, by a worker that knows of no living one."""
    return lifecycle.adopt(worker, lifecycle.orphans((), [PLACE], 100))


def rows():
    """Everything that a worker's write could have changed."""
    return (
        list(ContainerJob.objects.order_by("pk").values()),
        list(JobAttempt.objects.order_by("pk").values()),
        list(JobLog.objects.values()),
    )


WRITES = {
    "progress": lambda worker, lease: lifecycle.progress(
        worker, [Progress(**lease.key, phase="started", execution_id="stale")]
    ),
    "signalled": lambda worker, lease: lifecycle.signalled(worker, [lease], StopKind.KILL),
    "keep_chunks": lambda worker, lease: lifecycle.keep_chunks(
        worker, [chunk(lease, b"stale")], [(lease, "stdout", 4, 1000)]
    ),
    "finish": lambda worker, lease: lifecycle.finish(worker, [ending(lease, 1)]),
    "release": lambda worker, lease: lifecycle.release(worker, [lease]),
}


@pytest.mark.parametrize("write", WRITES)
def test_the_holder_writes(write):
    worker = a_worker()
    lease = held_by(worker)
    before = rows()
    assert WRITES[write](worker, lease) in ({lease.job_id}, None)
    assert rows() != before


@pytest.mark.parametrize("write", WRITES)
def test_who_lost_the_epoch_writes_nothing_and_is_told(write):
    worker, other = a_worker("w1"), a_worker("w2")
    lease = held_by(worker)
    (adopted,) = adopt(other)
    lifecycle.keep_chunks(other, [chunk(adopted), chunk(adopted, b"more", 4)])
    before = rows()
    assert WRITES[write](worker, lease) in (set(), None)
    assert rows() == before


@pytest.mark.parametrize("write", WRITES)
def test_the_epoch_alone_does_not_make_one_the_holder(write):
    lease = held_by(a_worker("w1"))
    before = rows()
    assert WRITES[write](a_worker("w2"), lease) in (set(), None)
    assert rows() == before


@pytest.mark.parametrize("write", WRITES)
def test_a_worker_that_adopted_what_it_had_before_cannot_write_as_it_was(write):
    worker = a_worker()
    lease = held_by(worker)
    (again,) = adopt(worker)
    assert (again.epoch, again.adopted) == (2, True)
    before = rows()
    assert WRITES[write](worker, lease) in (set(), None)
    assert rows() == before


@pytest.mark.parametrize("write", WRITES)
def test_nothing_is_written_of_an_attempt_that_has_ended(write):
    worker = a_worker()
    lease = held_by(worker)
    finish(worker, lease)
    before = rows()
    assert WRITES[write](worker, lease) in (set(), None)
    assert rows() == before


@pytest.mark.parametrize("write", WRITES)
def test_nothing_is_written_of_an_attempt_that_never_was(write):
    worker = a_worker()
    lease = held_by(worker)
    before = rows()
    for stranger in (replace(lease, attempt=2), replace(lease, job_id=uuid4())):
        assert WRITES[write](worker, stranger) in (set(), None)
    assert rows() == before


def test_of_a_batch_what_is_held_is_written_and_the_rest_is_not():
    worker, other = a_worker("w1"), a_worker("w2")
    lost = held_by(worker)
    adopt(other)
    kept = held_by(worker)
    steps = [Progress(**lease.key, phase="started") for lease in (lost, kept)]
    assert lifecycle.progress(worker, steps) == {kept.job_id}
    assert lifecycle.signalled(worker, [lost, kept], StopKind.CANCEL) == {kept.job_id}
    lifecycle.keep_chunks(worker, [chunk(lost), chunk(kept)])
    assert set(JobLog.objects.values_list("job", flat=True)) == {kept.job_id}
    assert lifecycle.finish(worker, [ending(lost), ending(kept)]) == {kept.job_id}
    assert path_of(lost.job_id) == ["queued", "running"]
    assert path_of(kept.job_id) == ["queued", "running", "completed"]


def test_an_attempt_ends_once():
    worker = a_worker()
    lease = held_by(worker)
    first = finish(worker, lease, 0)
    assert lifecycle.finish(worker, [ending(lease, 7)]) == set()
    first.refresh_from_db()
    assert (first.status, first.exit_code, first.version) == ("completed", 0, 3)
    assert JobAttempt.objects.get().exit_code == 0


@together
def test_an_end_that_is_told_twice_at_once_is_written_once():
    worker = a_worker()
    for _ in range(5):
        lease = held_by(worker, max_retries=0)
        results = at_once(
            lambda lease=lease: lifecycle.finish(worker, [ending(lease, 1)]),
            lambda lease=lease: lifecycle.finish(worker, [ending(lease, 0)]),
        )
        assert sorted(map(len, results)) == [0, 1]
        assert len(path_of(lease.job_id)) == 3
    assert contradictions() == []


# Chunks


def test_a_chunk_that_is_there_already_is_left_alone():
    worker = a_worker()
    lease = held_by(worker)
    lifecycle.keep_chunks(worker, [chunk(lease, b"first"), chunk(lease, b"-more", 5)])
    lifecycle.keep_chunks(worker, [chunk(lease, b"again")])
    assert JobLog.objects.content(lease.job_id, "stdout", 1) == b"first-more"


def test_what_fell_out_of_the_tail_is_forgotten_and_nothing_else():
    worker = a_worker()
    lease, other = held_by(worker), held_by(worker)
    for each in (lease, other):
        lifecycle.keep_chunks(worker, [chunk(each, b"ab", offset) for offset in range(0, 10, 2)])
    lifecycle.keep_chunks(worker, [chunk(lease, b"ab", 10)], [(lease, "stdout", 2, 8)])
    offsets = JobLog.objects.order_by("offset").values_list("offset", flat=True)
    assert list(offsets.filter(job=lease.job_id)) == [0, 8, 10]
    assert list(offsets.filter(job=other.job_id)) == [0, 2, 4, 6, 8]


@together
@pytest.mark.postgres
def test_output_that_is_being_written_is_there_before_anybody_adopts_the_attempt():
    """Else the adopter would go on from an offset that the late write then fills differently."""
    import threading

    from django.db import connection, transaction

    from container_manager.models import outcomes

    worker, other = a_worker("w1"), a_worker("w2")
    lease = held_by(worker)
    (orphan,) = lifecycle.orphans((), [PLACE], 1)
    written, go_on = threading.Event(), threading.Event()

    def write():
        with transaction.atomic():
            outcomes.keep_chunks("default", worker, [chunk(lease, b"late")])
            written.set()
            go_on.wait(30)

    def take():
        written.wait(30)
        threading.Timer(0.3, go_on.set).start()
        (adopted,) = lifecycle.adopt(other, [orphan])
        return JobLog.objects.ends(adopted.job_id, adopted.attempt)

    _, ends = at_once(write, take)
    assert ends == {"stdout": 4}
    assert connection.vendor == "postgresql"


# Orphans and their adoption


def register(worker, **fields):
    return Worker.objects.create(
        id=worker.worker_id, name=worker.worker_name, hostname="h", pid=1, concurrency=1, **fields
    )


def orphaned(dead=()):
    return {attempt.job_id for attempt in lifecycle.orphans(dead, [PLACE], 100)}


def test_orphans_are_attempts_whose_worker_is_dead_unknown_or_let_go():
    living, dead, pruned = a_worker("living"), a_worker("dead"), a_worker("pruned")
    register(living)
    register(dead)
    held_by(living)
    of_dead, of_pruned, let_go = held_by(dead), held_by(pruned), held_by(living)
    lifecycle.release(living, [let_go])
    expected = {of_dead.job_id, of_pruned.job_id, let_go.job_id}
    assert orphaned([dead.worker_id]) == expected
    assert orphaned() == expected - {of_dead.job_id}


def test_orphans_on_an_engine_that_is_not_ours_are_not_ours_to_judge():
    held_by(a_worker("gone"))
    assert lifecycle.orphans((), [("process", "engine-2")], 100) == []
    assert lifecycle.orphans((), [], 100) == []


def test_what_has_ended_and_what_nobody_ever_held_are_no_orphans(job):
    worker = a_worker("gone")
    finish(worker, held_by(worker))
    job(status="running")
    assert orphaned() == set()


def test_an_adopted_attempt_stays_the_same_attempt():
    lease = held_by(a_worker("w1"), timeout_seconds=9)
    other = a_worker("w2")
    (adopted,) = adopt(other)
    assert (adopted.job_id, adopted.attempt, adopted.epoch) == (lease.job_id, 1, 2)
    assert (adopted.name, adopted.timeout_seconds) == (lease.name, 9)
    assert path_of(lease.job_id) == ["queued", "running"]
    finish(other, adopted)
    assert contradictions() == []


def test_an_adopter_knows_which_stop_was_begun():
    worker = a_worker("w1")
    lease = held_by(worker)
    lifecycle.signalled(worker, [lease], StopKind.CANCEL)
    (adopted,) = adopt(a_worker("w2"))
    assert adopted.stop_kind == "cancel"


def test_a_released_attempt_is_the_next_ones():
    worker = a_worker("w1")
    register(worker)
    lease = held_by(worker)
    assert lifecycle.release(worker, [lease]) == {lease.job_id}
    assert [each.job_id for each in adopt(a_worker("w2"))] == [lease.job_id]


def test_an_attempt_that_was_adopted_or_ended_since_it_was_seen_is_not_adopted():
    worker, other = a_worker("w1"), a_worker("w2")
    lease = held_by(worker)
    ended = held_by(worker)
    seen = lifecycle.orphans((), [PLACE], 100)
    finish(worker, ended)
    assert [each.job_id for each in lifecycle.adopt(other, seen)] == [lease.job_id]
    assert lifecycle.adopt(a_worker("w3"), seen) == []


@together
def test_of_two_rescuers_of_one_orphan_one_wins():
    for _ in range(5):
        lease = held_by(a_worker("gone"))
        seen = JobAttempt.objects.filter(job=lease.job_id)[:]
        rescuers = [a_worker("r1"), a_worker("r2")]
        results = at_once(*(partial(lifecycle.adopt, each, list(seen)) for each in rescuers))
        assert sorted(map(len, results)) == [0, 1]
        attempt = JobAttempt.objects.get(job=lease.job_id)
        assert attempt.lease_epoch == 2
        winner = rescuers[[len(result) for result in results].index(1)]
        assert attempt.worker_id == winner.worker_id


@together
def test_a_rescuer_that_dies_after_it_adopted_leaves_an_orphan_to_the_next():
    held_by(a_worker("gone"))
    (first,) = lifecycle.adopt(a_worker("first"), JobAttempt.objects.all())
    (second,) = lifecycle.adopt(a_worker("second"), JobAttempt.objects.all())
    assert (first.job_id, first.epoch, second.epoch) == (second.job_id, 2, 3)


def test_a_worker_that_others_take_for_dead_does_not_adopt_what_it_is_at():
    worker = a_worker("pruned, and alive")
    lease = held_by(worker)
    seen = lifecycle.orphans((), [PLACE], 100, own=worker.worker_id, under_way=[lease.job_id])
    assert seen == []
    assert orphaned() == {lease.job_id}


def test_a_claim_whose_answer_was_lost_is_an_orphan_of_the_worker_itself():
    worker = a_worker()
    register(worker)
    lost, known = held_by(worker), held_by(worker)
    seen = lifecycle.orphans((), [PLACE], 100, own=worker.worker_id, under_way=[known.job_id])
    assert [attempt.job_id for attempt in seen] == [lost.job_id]
