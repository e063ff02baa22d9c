"""The recorder: what job threads report, written in batches and in the right order."""

from __future__ import annotations

import math
import time
from concurrent.futures import Future
from dataclasses import replace

import pytest
from django.db import OperationalError
from django.utils import timezone

from container_manager import lifecycle
from container_manager.executors.base import Chunk, Outcome
from container_manager.models import ContainerJob, JobAttempt, JobLog
from container_manager.states import Phase, StopKind
from container_manager.worker.output import Output
from container_manager.worker.recorder import NOTES_SECONDS, Recorder
from tests.support.spine import PLACE, a_worker, contradictions, ending, held_by, path_of

pytestmark = pytest.mark.django_db


@pytest.fixture
def worker():
    return a_worker()


@pytest.fixture
def woken():
    return []


@pytest.fixture
def recorder(worker, woken):
    return Recorder(worker, lambda: woken.append(1), log_seconds=0)


def outputs(lease, data=b"text", cap=10**6):
    output = Output(lease, cap, {})
    output.add(Chunk("stdout", 0, data))
    return output


def lose(lease):
    (adopted,) = lifecycle.adopt(
        a_worker("w2"),
        [each for each in lifecycle.orphans((), [PLACE], 10) if each.job_id == lease.job_id],
    )
    return adopted


def results(flushed):
    return {ending.job_id: ours for ending, ours in flushed}


def test_nothing_to_write_is_nothing_written(recorder, django_assert_num_queries):
    assert recorder.is_empty
    with django_assert_num_queries(0):
        assert recorder.flush() == []


def test_a_step_is_answered_when_it_is_written(recorder, worker, woken):
    lease = held_by(worker)
    told = recorder.step(lease, Phase.CREATED, execution_id="x")
    assert woken
    assert not told.done()
    recorder.flush()
    assert told.result(0) is True
    attempt = JobAttempt.objects.get()
    assert (attempt.phase, attempt.execution_id) == ("created", "x")


def test_a_step_of_what_was_lost_is_answered_so(recorder, worker):
    lease = held_by(worker)
    lose(lease)
    told = recorder.step(lease, Phase.CREATED)
    recorder.flush()
    assert told.result(0) is False


def test_steps_that_come_together_are_one_with_every_fact(recorder, worker):
    lease = held_by(worker)
    recorder.step(lease, Phase.CREATED, execution_id="x", image_digest="d")
    recorder.step(lease, Phase.STARTED)
    recorder.flush()
    attempt = JobAttempt.objects.get()
    assert (attempt.phase, attempt.execution_id, attempt.image_digest) == ("started", "x", "d")


def test_an_unreachable_engine_is_told_since_when_and_that_it_is_back(recorder, worker):
    lease = held_by(worker)
    recorder.step(lease, Phase.CLAIMED, unreachable=True)
    recorder.flush()
    since = JobAttempt.objects.get().unreachable_since
    assert since is not None
    recorder.step(lease, Phase.CLAIMED, unreachable=True)
    recorder.flush()
    assert JobAttempt.objects.get().unreachable_since == since
    recorder.step(lease, Phase.STARTED, unreachable=False)
    recorder.flush()
    assert JobAttempt.objects.get().unreachable_since is None


def test_an_end_comes_after_its_steps_and_its_output(recorder, worker):
    """All reported before one flush: none of it is lost."""
    lease = held_by(worker)
    output = outputs(lease)
    recorder.step(lease, Phase.STARTED, execution_id="x")
    recorder.follow(output)
    recorder.end(ending(lease), output)
    assert results(recorder.flush()) == {lease.job_id: True}
    job = ContainerJob.objects.get()
    assert (job.status, job.output) == ("completed", "text")
    assert JobAttempt.objects.get().execution_id == "x"
    assert JobLog.objects.content(job.pk, "stdout", 1) == b"text"
    assert recorder.is_empty
    assert contradictions() == []


def test_an_end_whose_answer_was_lost_is_told_as_ours(recorder, worker, monkeypatch):
    """So what it left is removed at once, and not by whoever looks for remains later."""
    lease, finish = held_by(worker), lifecycle.finish

    def committed_and_lost(*arguments):
        finish(*arguments)
        monkeypatch.setattr(lifecycle, "finish", finish)
        raise OperationalError("the connection broke")

    monkeypatch.setattr(lifecycle, "finish", committed_and_lost)
    recorder.end(ending(lease))
    with pytest.raises(OperationalError):
        recorder.flush()
    assert results(recorder.flush()) == {lease.job_id: True}
    assert path_of(lease.job_id) == ["queued", "running", "completed"]


def test_a_step_that_is_told_while_others_are_written_is_not_overtaken_by_its_end(
    recorder, worker, monkeypatch
):
    """A job that is over in no time reports start and end between two steps of a flush."""
    other, quick = held_by(worker), held_by(worker)
    recorder.step(other, Phase.STARTED)
    write = lifecycle.progress

    def meanwhile(claimant, steps):
        held = write(claimant, steps)
        if steps[0].job_id == other.job_id:
            recorder.step(quick, Phase.STARTED, execution_id="quick")
            recorder.end(ending(quick))
        return held

    monkeypatch.setattr(lifecycle, "progress", meanwhile)
    recorder.flush()
    recorder.flush()
    assert JobAttempt.objects.get(job=quick.job_id).execution_id == "quick"


def test_an_end_that_is_told_while_others_are_written_is_written_next(
    recorder, worker, monkeypatch
):
    slow, quick = held_by(worker), held_by(worker)
    finish = lifecycle.finish

    def meanwhile(*arguments):
        monkeypatch.setattr(lifecycle, "finish", finish)
        recorder.end(ending(quick))
        return finish(*arguments)

    monkeypatch.setattr(lifecycle, "finish", meanwhile)
    recorder.end(ending(slow))
    assert results(recorder.flush()) == {slow.job_id: True}
    assert results(recorder.flush()) == {quick.job_id: True}
    assert recorder.is_empty


def test_the_end_of_what_was_lost_is_told_and_not_written(recorder, worker):
    lost, kept = held_by(worker), held_by(worker)
    lose(lost)
    recorder.end(ending(lost), outputs(lost))
    recorder.end(ending(kept), outputs(kept))
    assert results(recorder.flush()) == {lost.job_id: False, kept.job_id: True}
    assert path_of(lost.job_id) == ["queued", "running"]
    assert not JobLog.objects.filter(job=lost.job_id).exists()


def test_what_the_cap_left_out_is_counted_to_the_byte(recorder, worker):
    lease = held_by(worker)
    output = Output(lease, 1000, {})
    recorder.follow(output)
    for offset in range(0, 500_000, 50_000):
        output.add(Chunk("stdout", offset, bytes(50_000)))
        recorder.flush()
    recorder.end(ending(lease), output)
    recorder.flush()
    attempt = JobAttempt.objects.get()
    kept = len(JobLog.objects.content(lease.job_id, "stdout", 1))
    assert (attempt.stdout_bytes, attempt.stdout_omitted) == (500_000, 500_000 - kept)
    assert attempt.stdout_omitted > 0
    assert contradictions() == []


@pytest.fixture
def rested(worker, woken, monkeypatch):
    """A recorder that rests for long when it has written output."""
    monkeypatch.setattr("container_manager.worker.recorder.PAUSE_SECONDS", 500)
    return Recorder(worker, lambda: woken.append(1), log_seconds=1000)


def followed(recorder, worker):
    lease = held_by(worker)
    output = Output(lease, 10**7, {}, news=recorder.output_came)
    recorder.follow(output)
    return lease.job_id, output


def test_what_comes_after_a_pause_is_written_at_once(rested, worker, woken):
    job_id, output = followed(rested, worker)
    output.add(Chunk("stdout", 0, b"one"))
    assert woken == [1]
    assert rested.seconds_to_wait(time.monotonic()) <= 0
    rested.flush()
    assert JobLog.objects.content(job_id, "stdout", 1) == b"one"
    assert rested.seconds_to_wait(time.monotonic()) == math.inf


def test_what_comes_soon_after_is_written_together(rested, worker, woken):
    job_id, output = followed(rested, worker)
    for offset, data in enumerate([b"a", b"b", b"c"]):
        output.add(Chunk("stdout", offset, data))
        rested.flush()
    assert JobLog.objects.content(job_id, "stdout", 1) == b"a"
    assert woken == [1, 1], "once for each time that it must be looked at"
    assert 0 < rested.seconds_to_wait(time.monotonic()) <= 500


def test_who_prints_so_much_that_it_must_wait_is_written_without_a_pause(rested, worker):
    job_id, output = followed(rested, worker)
    output.add(Chunk("stdout", 0, b"a"))
    rested.flush()
    output.add(Chunk("stdout", 1, bytes(600_000)))
    rested.flush()
    assert len(JobLog.objects.content(job_id, "stdout", 1)) == 600_001


def test_the_pause_grows_with_the_time_that_writing_takes(worker, monkeypatch):
    """So that many jobs that print at once cost no throughput."""
    recorder = Recorder(worker, lambda: None, log_seconds=5.0)
    _, output = followed(recorder, worker)
    clock = [time.monotonic()]
    monkeypatch.setattr("container_manager.worker.recorder.time.monotonic", lambda: clock[0])
    keep = lifecycle.keep_chunks
    for took, pause in ((0.001, 0.1), (0.1, 1.0), (1.0, 5.0)):

        def slowly(*given, took=took):
            clock[0] += took
            keep(*given)

        monkeypatch.setattr(lifecycle, "keep_chunks", slowly)
        clock[0] += 100
        output.add(Chunk("stdout", output.ends()["stdout"], b"x"))
        recorder.flush()
        output.add(Chunk("stdout", output.ends()["stdout"], b"y"))
        assert recorder.seconds_to_wait(clock[0]) == pytest.approx(pause)


def test_what_is_forgotten_is_not_written(recorder, worker):
    lease = held_by(worker)
    output = outputs(lease)
    recorder.follow(output)
    recorder.forget(lease)
    recorder.flush()
    assert not JobLog.objects.exists()


def test_forgetting_an_old_lease_leaves_the_new_one_alone(recorder, worker):
    lease = held_by(worker)
    (again,) = lifecycle.adopt(worker, lifecycle.orphans((), [PLACE], 1))
    recorder.follow(outputs(again))
    recorder.forget(lease)
    recorder.flush()
    assert JobLog.objects.content(lease.job_id, "stdout", 1) == b"text"


def test_a_note_is_written_with_the_end_where_that_comes_first(
    recorder, worker, woken, django_assert_num_queries
):
    lease, start = held_by(worker), timezone.now()
    recorder.note(lease, Phase.CREATED, resolved={"memory_limit_mb": 64})
    recorder.note(lease, Phase.STARTED, execution_id="x", started_at=start)
    with django_assert_num_queries(0):
        recorder.flush()
    assert not woken
    assert not recorder.is_empty
    assert 0 < recorder.seconds_to_wait(time.monotonic()) <= NOTES_SECONDS
    recorder.end(ending(lease))
    assert results(recorder.flush()) == {lease.job_id: True}
    attempt = JobAttempt.objects.get()
    assert (attempt.phase, attempt.execution_id, attempt.started_at) == ("done", "x", start)
    assert attempt.resolved == {"memory_limit_mb": 64}
    assert recorder.is_empty
    assert contradictions() == []


def test_a_step_that_is_due_takes_no_note_of_another_along(
    recorder, worker, django_assert_num_queries
):
    """So under load, when some step is always due, the notes still wait for their ends."""
    waits, other = held_by(worker), held_by(worker)
    recorder.note(waits, Phase.STARTED, execution_id="x")
    recorder.note(other, Phase.CREATED, execution_id="y")
    recorder.step(other, Phase.STARTED)
    recorder.flush()
    attempts = JobAttempt.objects.values_list("job_id", "phase", "execution_id")
    assert set(attempts) == {(waits.job_id, "claimed", ""), (other.job_id, "started", "y")}
    with django_assert_num_queries(0):
        recorder.flush()


def test_a_note_of_an_earlier_epoch_is_not_the_later_ones(recorder, worker):
    lease = held_by(worker)
    recorder.note(lease, Phase.STARTED, execution_id="old")
    (again,) = lifecycle.adopt(worker, lifecycle.orphans((), [PLACE], 1))
    recorder.end(ending(again))
    assert results(recorder.flush()) == {lease.job_id: True}
    assert JobAttempt.objects.get().execution_id == ""


@pytest.mark.postgres
@pytest.mark.django_db(transaction=True)
def test_a_fact_that_the_database_refuses_does_not_refuse_the_end(recorder, worker, caplog):
    lease = held_by(worker)
    recorder.note(lease, Phase.CREATED, resolved={"cpu_limit": math.nan})
    recorder.end(ending(lease))
    assert results(recorder.flush()) == {lease.job_id: True}
    assert path_of(lease.job_id) == ["queued", "running", "completed"]
    assert "its end was refused" in caplog.text


def test_a_note_is_written_soon(recorder, worker, monkeypatch):
    lease = held_by(worker)
    recorder.note(lease, Phase.STARTED, execution_id="x")
    later = time.monotonic() + NOTES_SECONDS
    monkeypatch.setattr(time, "monotonic", lambda: later)
    recorder.flush()
    assert JobAttempt.objects.get().execution_id == "x"
    assert recorder.is_empty
    assert recorder.seconds_to_wait(later) == math.inf


def test_all_that_was_told_may_be_written_before_something_else_is(recorder, worker):
    """A stop that is written by others must not be followed by an earlier step."""
    lease = held_by(worker)
    recorder.note(lease, Phase.STARTED, execution_id="x")
    recorder.write_steps()
    lifecycle.signalled(worker, [lease], StopKind.KILL)
    recorder.flush()
    assert JobAttempt.objects.values_list("phase", "execution_id").get() == ("stopping", "x")
    assert recorder.is_empty


def test_in_a_hurry_a_note_is_written_at_once(recorder, worker):
    first, second = held_by(worker), held_by(worker)
    recorder.note(first, Phase.STARTED, execution_id="x")
    recorder.hurry()
    recorder.flush()
    recorder.note(second, Phase.STARTED, execution_id="y")
    recorder.flush()
    told = JobAttempt.objects.order_by("execution_id").values_list("job_id", "execution_id")
    assert list(told) == [(first.job_id, "x"), (second.job_id, "y")]


def test_when_the_database_is_away_everything_is_kept_for_later(recorder, worker, monkeypatch):
    lease, other = held_by(worker), held_by(worker)
    recorder.step(other, Phase.STARTED)
    told = recorder.step(lease, Phase.STARTED, execution_id="x")
    recorder.end(ending(lease), outputs(lease))

    def away(*_):
        raise OperationalError("away")

    for verb in ("progress", "keep_chunks", "finish"):
        with monkeypatch.context() as patch:
            patch.setattr(lifecycle, verb, away)
            with pytest.raises(OperationalError):
                recorder.flush()
        assert not recorder.is_empty
    assert results(recorder.flush()) == {lease.job_id: True}
    assert isinstance(told, Future)
    assert told.result(0) is True
    assert JobAttempt.objects.get(job=other.job_id).phase == "started"
    assert JobAttempt.objects.get(job=lease.job_id).execution_id == "x"
    assert JobLog.objects.content(lease.job_id, "stdout", 1) == b"text"


@pytest.mark.django_db(transaction=True)
def test_one_end_that_the_database_refuses_does_not_keep_the_others(recorder, worker, caplog):
    good = [held_by(worker) for _ in range(3)]
    bad = held_by(worker)
    refused = replace(ending(bad), exit_code=5)  # completed with exit code 5
    for lease in good[:2]:
        recorder.end(ending(lease))
    recorder.end(refused)
    recorder.end(ending(good[2]))
    told = results(recorder.flush())
    assert told == {**{lease.job_id: True for lease in good}, bad.job_id: False}
    assert path_of(bad.job_id) == ["queued", "running"]
    assert JobAttempt.objects.get(job=bad.job_id).worker_id is None
    assert "its end was refused" in caplog.text


def test_many_ends_take_as_few_statements_as_one(recorder, worker, django_assert_max_num_queries):
    for _ in range(50):
        recorder.end(ending(held_by(worker)))
    with django_assert_max_num_queries(6):
        assert len(recorder.flush()) == 50


def test_an_outcome_is_told_as_it_was(recorder, worker):
    lease = held_by(worker)
    recorder.end(ending(lease, Outcome(0, peak_memory_bytes=2**40, cpu_seconds=1.5)))
    recorder.flush()
    attempt = JobAttempt.objects.get()
    assert (attempt.peak_memory_bytes, attempt.cpu_seconds) == (2**40, 1.5)
