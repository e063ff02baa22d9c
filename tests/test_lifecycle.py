"""The verbs of the spine, each by itself: what they write, and what they refuse."""

from __future__ import annotations

from datetime import timedelta
from uuid import uuid4

import pytest
from django.core.exceptions import ValidationError
from django.db import OperationalError, transaction
from django.utils import timezone

from container_manager import lifecycle
from container_manager.exceptions import InvalidTransition
from container_manager.executors.base import Outcome
from container_manager.lifecycle import Stopped
from container_manager.models import ContainerJob, JobAttempt, StateHistory
from container_manager.states import Reason, StopKind
from tests.support.spine import (
    LOST,
    Crash,
    a_worker,
    contradictions,
    crash_at,
    ending,
    failed,
    finish,
    held_by,
    path_of,
    queued,
    reaching,
)

pytestmark = pytest.mark.django_db

KILL, CANCEL = StopKind.KILL, StopKind.CANCEL
WANTED = {"image": "busybox:latest", "command": ["/bin/true"]}


@pytest.fixture(autouse=True)
def _records_agree(request):
    """Whatever a test did, history, rows, attempts and logs agree in the end."""
    yield
    if "db" in request.fixturenames or request.node.get_closest_marker("django_db"):
        assert contradictions() == []


def soon(job_id):
    """The backoff of a job is over."""
    past = timezone.now() - timedelta(seconds=1)
    ContainerJob.objects.filter(pk=job_id).update(scheduled_for=past)
    assert lifecycle.requeue_due() == 1


def test_who_says_of_a_new_job_what_nobody_may_is_told_what_one_may():
    with pytest.raises(ValidationError) as refused:
        lifecycle.submit(**WANTED, status="running")
    (told,) = refused.value.message_dict["status"]
    assert "command" in told
    assert "working_dir" in told


# submit -------------------------------------------------------------------------------------------


def test_a_submitted_job_is_pending():
    job = lifecycle.submit(**WANTED, name="n", labels={"a": "b"}, priority=70)
    job.refresh_from_db()
    assert (job.status, job.name, job.labels, job.priority) == ("pending", "n", {"a": "b"}, 70)
    assert path_of(job) == ["pending"]


def test_a_job_can_be_submitted_into_the_queue():
    job = lifecycle.submit(**WANTED, queue_now=True)
    assert path_of(job) == ["pending", "queued"]
    assert ContainerJob.objects.get().queued_at is not None


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("image", ""),
        ("image", "-v"),
        ("command", []),
        ("command", ["a\0b"]),
        ("command", "echo 'open"),
        ("isolation", "vault"),
        ("priority", 101),
        ("priority", "high"),
        ("memory_limit_mb", 0),
        ("timeout_seconds", -1),
        ("max_retries", -1),
        ("environment", {"A=B": "1"}),
        ("labels", {"a": 1}),
        ("queue", "no good"),
        ("executor", "unheard-of"),
        ("retry_policy", "unheard-of"),
        ("status", "running"),
        ("colour", "red"),
        ("id", uuid4()),
    ],
)
def test_what_cannot_be_is_told_by_field_and_nothing_is_written(field, value):
    with pytest.raises(ValidationError) as caught:
        lifecycle.submit(**{**WANTED, field: value}, queue_now=True)
    assert list(caught.value.message_dict) == [field]
    assert not ContainerJob.objects.exists()
    assert not StateHistory.objects.exists()


@pytest.mark.django_db(transaction=True)
def test_a_submit_that_dies_before_its_commit_has_written_nothing():
    with reaching(crash_at("S1")), pytest.raises(Crash):
        lifecycle.submit(**WANTED, queue_now=True)
    assert not ContainerJob.objects.exists()


# enqueue ------------------------------------------------------------------------------------------


def test_pending_jobs_are_queued_together(job, time_ahead):
    jobs = [job(), job()]
    ids = [each.pk for each in jobs]
    assert lifecycle.enqueue(ids, actor="user:ada", scheduled_for=time_ahead) == 2
    assert set(ContainerJob.objects.values_list("status", "scheduled_for")) == {
        ("queued", time_ahead)
    }
    assert set(StateHistory.objects.filter(version=2).values_list("actor", flat=True)) == {
        "user:ada"
    }


def test_one_job_that_is_not_pending_keeps_all_from_being_queued(job):
    waiting, ended = job(), job(status="completed")
    with pytest.raises(InvalidTransition, match="from completed to queued"):
        lifecycle.enqueue([waiting.pk, ended.pk])
    waiting.refresh_from_db()
    assert waiting.status == "pending"


# stop ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [KILL, CANCEL])
@pytest.mark.parametrize(
    ("status", "kill", "cancel"),
    [
        ("pending", Stopped.DONE, Stopped.DONE),
        ("queued", Stopped.DONE, Stopped.DONE),
        ("running", Stopped.DONE, Stopped.DONE),
        ("failed", Stopped.REFUSED, Stopped.DONE),
        ("retrying", Stopped.DONE, Stopped.DONE),
        ("completed", Stopped.REFUSED, Stopped.REFUSED),
        ("cancelled", Stopped.REFUSED, Stopped.REFUSED),
        ("killed", Stopped.REFUSED, Stopped.REFUSED),
    ],
)
def test_a_job_that_nobody_holds_is_stopped_at_once_where_the_table_allows_it(
    job, status, kind, kill, cancel
):
    stopped = job(status=status)
    expected = kill if kind == KILL else cancel
    assert lifecycle.stop([stopped.pk], kind) == {stopped.pk: expected}
    stopped.refresh_from_db()
    target = "killed" if kind == KILL else "cancelled"
    assert stopped.status == (target if expected == Stopped.DONE else status)
    if expected == Stopped.DONE:
        assert stopped.reason == target
        assert stopped.completed_at is not None


@pytest.mark.parametrize("kind", [KILL, CANCEL])
def test_stopping_a_job_that_a_worker_holds_only_writes_the_request_down(kind):
    lease = held_by(a_worker())
    assert lifecycle.stop([lease.job_id], kind) == {lease.job_id: Stopped.REQUESTED}
    job = ContainerJob.objects.get()
    assert job.status == "running"
    assert (job.kill_requested_at is not None) == (kind == KILL)
    assert (job.cancel_requested_at is not None) == (kind == CANCEL)
    assert job.signalled_at is None
    assert lifecycle.requests([lease.job_id]) == {lease.job_id: kind}


@pytest.mark.parametrize(
    ("first", "second", "told", "strongest"),
    [
        (KILL, KILL, Stopped.REQUESTED_BEFORE, KILL),
        (CANCEL, CANCEL, Stopped.REQUESTED_BEFORE, CANCEL),
        (CANCEL, KILL, Stopped.REQUESTED, KILL),
        (KILL, CANCEL, Stopped.REQUESTED_BEFORE, KILL),
    ],
)
def test_a_second_request_counts_only_when_it_is_stronger(first, second, told, strongest):
    lease = held_by(a_worker())
    lifecycle.stop([lease.job_id], first)
    assert lifecycle.stop([lease.job_id], second) == {lease.job_id: told}
    assert lifecycle.requests([lease.job_id]) == {lease.job_id: strongest}


def test_each_of_many_jobs_is_told_what_became_of_it(job):
    lease = held_by(a_worker())
    waiting, ended, unknown = job(), job(status="completed"), uuid4()
    ids = [unknown, ended.pk, waiting.pk, lease.job_id]
    assert lifecycle.stop(ids, KILL, actor="user:ada") == {
        unknown: Stopped.UNKNOWN,
        ended.pk: Stopped.REFUSED,
        waiting.pk: Stopped.DONE,
        lease.job_id: Stopped.REQUESTED,
    }
    assert StateHistory.objects.get(entity_id=waiting.pk, version=2).actor == "user:ada"


def test_nobody_is_asked_to_stop_when_nobody_asked():
    lease = held_by(a_worker())
    assert lifecycle.requests([lease.job_id]) == {}


# finish: the verdict ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("outcome", "stopped", "status", "reason", "blame"),
    [
        (Outcome(0), None, "completed", "", ""),
        (failed(3), None, "failed", "exit_code", "user"),
        (failed(139, Reason.SIGNAL, signal=11), None, "failed", "signal", "user"),
        (failed(137, Reason.OOM, oom_killed=True), None, "failed", "oom", "user"),
        (failed(127, Reason.COMMAND_NOT_FOUND), None, "failed", "command_not_found", "user"),
        (Outcome(None, reason=Reason.IMAGE_NOT_FOUND), None, "failed", "image_not_found", "user"),
        (Outcome(0), StopKind.TIMEOUT, "failed", "timeout", "policy"),
        (failed(143, Reason.SIGNAL, signal=15), StopKind.TIMEOUT, "failed", "timeout", "policy"),
        (Outcome(0), CANCEL, "cancelled", "cancelled", "person"),
        (failed(143, Reason.SIGNAL, signal=15), CANCEL, "cancelled", "cancelled", "person"),
        (failed(137, Reason.SIGNAL, signal=9), KILL, "killed", "killed", "person"),
        (failed(137, Reason.OOM, oom_killed=True), KILL, "killed", "killed", "person"),
    ],
)
def test_every_end_has_its_state_its_reason_and_its_blame(outcome, stopped, status, reason, blame):
    worker = a_worker("builder")
    lease = held_by(worker, max_retries=0)
    job = finish(worker, lease, outcome, stopped)
    attempt = JobAttempt.objects.get(job=job)
    assert (job.status, job.reason) == (status, reason)
    assert (attempt.reason, attempt.blame) == (reason, blame)
    assert (job.exit_code, attempt.exit_code) == (outcome.exit_code, outcome.exit_code)
    assert job.oom_killed == attempt.oom_killed == outcome.oom_killed
    assert attempt.signal == outcome.signal
    assert attempt.phase == "done"
    assert job.completed_at is not None
    assert job.duration_ms >= 0


def test_the_history_of_an_end_names_the_worker_the_reason_and_the_exit_code():
    worker = a_worker("builder")
    job = finish(worker, held_by(worker, max_retries=0), 3)
    row = StateHistory.objects.get(entity_id=job.pk, version=3)
    assert (row.old_state, row.new_state, row.attempt) == ("running", "failed", 1)
    assert (row.actor, row.reason) == ("worker:builder", "exit_code")
    assert row.metadata["exit_code"] == 3
    assert row.metadata["worker"] == str(worker.worker_id)


def test_text_that_no_database_keeps_is_replaced():
    worker = a_worker()
    lease = held_by(worker, max_retries=0)
    job = finish(worker, lease, failed(1, error="a\0b\ud800c"))
    assert job.error == "a\ufffdb?c"


def test_many_ends_are_written_in_one_go():
    worker = a_worker()
    leases = [held_by(worker, max_retries=number % 2) for number in range(20)]
    endings = [ending(lease, number % 4) for number, lease in enumerate(leases)]
    assert lifecycle.finish(worker, endings) == {lease.job_id for lease in leases}
    for number, lease in enumerate(leases):
        last = "completed" if not number % 4 else "retrying" if number % 2 else "failed"
        assert path_of(lease.job_id)[-1] == last
    assert not JobAttempt.objects.active().exists()


# finish: the retry --------------------------------------------------------------------------------


def test_a_failure_is_retried_after_its_backoff_in_the_same_transaction():
    worker = a_worker()
    policy = {"strategy": "fixed", "base_seconds": 100, "jitter": 0}
    job = finish(worker, held_by(worker, retry_policy=policy), 1)
    assert path_of(job) == ["queued", "running", "failed", "retrying"]
    assert (job.retry_count, job.infra_retry_count) == (1, 0)
    wait = (job.scheduled_for - job.completed_at).total_seconds()
    assert 99 < wait < 101
    assert lifecycle.requeue_due() == 0
    assert lifecycle.claim(worker, 1) == []


def test_each_backoff_is_longer_than_the_one_before():
    worker = a_worker()
    policy = {"base_seconds": 100, "max_seconds": 350, "jitter": 0}
    lease = held_by(worker, retry_policy=policy, max_retries=3)
    waits = []
    for _ in range(3):
        job = finish(worker, lease, 1)
        waits.append(round((job.scheduled_for - job.completed_at).total_seconds(), -1))
        soon(job.pk)
        (lease,) = lifecycle.claim(worker, 1)
    assert waits == [100, 200, 350]
    assert finish(worker, lease, 1).status == "failed"


def test_a_job_is_started_once_more_than_it_has_retries():
    worker = a_worker()
    lease = held_by(worker, max_retries=2)
    for _ in range(2):
        assert finish(worker, lease, 1).status == "retrying"
        soon(lease.job_id)
        (lease,) = lifecycle.claim(worker, 1)
    job = finish(worker, lease, 1)
    assert (job.status, job.attempt, job.retry_count) == ("failed", 3, 2)
    assert job.is_settled


def test_a_retry_starts_with_a_clean_row():
    worker = a_worker()
    lease = held_by(worker)
    job = finish(worker, lease, failed(137, Reason.OOM, oom_killed=True, error="No."))
    soon(job.pk)
    job.refresh_from_db()
    assert job.status == "queued"
    assert (job.exit_code, job.error, job.reason, job.output) == (None, "", "", "")
    assert (job.launched_at, job.completed_at, job.duration_ms) == (None, None, None)
    assert not job.oom_killed
    assert JobAttempt.objects.get(job=job).exit_code == 137


@pytest.mark.parametrize(
    "reason",
    [
        Reason.IMAGE_NOT_FOUND,
        Reason.COMMAND_NOT_FOUND,
        Reason.NOT_EXECUTABLE,
        Reason.NOT_PERMITTED,
    ],
)
def test_a_permanent_error_is_not_retried(reason):
    worker = a_worker()
    job = finish(worker, held_by(worker, max_retries=5), Outcome(None, reason=reason))
    assert (job.status, job.reason, job.retry_count) == ("failed", reason, 0)


def test_a_failure_of_the_machinery_does_not_use_up_the_jobs_own_retries():
    worker = a_worker()
    job = finish(worker, held_by(worker, max_retries=0), LOST)
    assert (job.status, job.retry_count, job.infra_retry_count) == ("retrying", 0, 1)


@pytest.mark.parametrize(
    ("asked", "end"),
    [
        (None, ("failed", "poison")),
        (KILL, ("killed", "killed")),
        (CANCEL, ("cancelled", "cancelled")),
    ],
)
def test_too_many_failures_of_the_machinery_in_a_row_are_poison_unless_it_was_to_stop(asked, end):
    worker = a_worker()
    lease = held_by(worker, max_retries=5)
    for number in range(3):
        assert finish(worker, lease, LOST).infra_retry_count == number + 1
        soon(lease.job_id)
        (lease,) = lifecycle.claim(worker, 1)
    if asked:
        lifecycle.stop([lease.job_id], asked)
    job = finish(worker, lease, LOST)
    assert (job.status, job.reason, job.retry_count) == (*end, 0)
    assert JobAttempt.objects.get(job=job, attempt=4).blame == "infra"


def test_a_start_that_ran_forgives_earlier_failures_of_the_machinery():
    worker = a_worker()
    lease = held_by(worker)
    finish(worker, lease, LOST)
    soon(lease.job_id)
    (lease,) = lifecycle.claim(worker, 1)
    job = finish(worker, lease, 1)
    assert (job.retry_count, job.infra_retry_count) == (1, 0)


@pytest.mark.parametrize(
    ("exit_code", "rules", "status"),
    [
        (2, [{"on_exit_codes": [2, 3], "action": "fail"}], "failed"),
        (4, [{"on_exit_codes": [2, 3], "action": "fail"}], "retrying"),
        (2, [{"on_exit_codes": [2], "action": "retry"}, {"action": "fail"}], "retrying"),
        (4, [{"on_exit_codes": [2], "action": "retry"}, {"action": "fail"}], "failed"),
        (1, [{"on_reason": ["oom"], "action": "fail"}], "retrying"),
    ],
)
def test_the_first_rule_that_speaks_of_an_end_decides(exit_code, rules, status):
    worker = a_worker()
    job = finish(worker, held_by(worker, retry_policy={"rules": rules}), exit_code)
    assert job.status == status


@pytest.mark.parametrize(
    ("limit", "factor", "next_limit"),
    [(100, 2, 200), (None, 2, None), (100, 1.55, 155), (1024 * 1024, 64, 16 * 1024 * 1024)],
)
def test_a_rule_may_give_the_next_attempt_more_memory_within_what_is_allowed(
    limit, factor, next_limit
):
    worker = a_worker()
    rules = [{"on_reason": ["oom"], "action": "retry", "memory_factor": factor}]
    lease = held_by(worker, memory_limit_mb=limit, retry_policy={"rules": rules})
    job = finish(worker, lease, failed(137, Reason.OOM, oom_killed=True))
    assert (job.status, job.memory_limit_mb) == ("retrying", next_limit)


def test_more_memory_is_more_than_what_was_applied():
    worker = a_worker()
    rules = [{"on_reason": ["oom"], "action": "retry", "memory_factor": 2}]
    lease = held_by(worker, retry_policy={"rules": rules})
    lease.applied = {"memory_limit_mb": 64}
    assert finish(worker, lease, failed(137, Reason.OOM)).memory_limit_mb == 128


@pytest.mark.parametrize("policy", ["gone-from-the-settings", {"strategy": "sometimes"}, [1]])
def test_a_policy_that_cannot_be_read_does_not_keep_a_job_from_ending(policy):
    worker = a_worker()
    job = finish(worker, held_by(worker, retry_policy=policy), 1)
    assert (job.status, job.retry_count) == ("retrying", 1)


@pytest.mark.parametrize("kind", [KILL, CANCEL])
@pytest.mark.parametrize("outcome", [failed(1), LOST])
def test_a_job_that_somebody_asked_to_stop_is_never_retried(kind, outcome):
    worker = a_worker()
    lease = held_by(worker, max_retries=5)
    lifecycle.stop([lease.job_id], kind)
    job = finish(worker, lease, outcome)
    asked = "killed" if kind == KILL else "cancelled"
    assert job.status == ("failed" if outcome.exit_code else asked)
    assert lifecycle.requeue_due() == 0


def test_a_natural_end_before_the_signal_is_told_as_it_was():
    worker = a_worker()
    lease = held_by(worker)
    lifecycle.stop([lease.job_id], KILL)
    job = finish(worker, lease, 0)
    assert (job.status, job.exit_code) == ("completed", 0)


def test_a_drained_job_is_queued_again_at_once_in_one_transaction():
    worker = a_worker()
    job = finish(worker, held_by(worker), failed(143, Reason.SIGNAL, signal=15), StopKind.DRAIN)
    assert path_of(job) == ["queued", "running", "failed", "retrying", "queued"]
    assert (job.retry_count, job.infra_retry_count) == (0, 0)
    attempt = JobAttempt.objects.get(job=job)
    assert (attempt.reason, attempt.blame, attempt.exit_code) == ("worker_stopped", "infra", 143)
    (lease,) = lifecycle.claim(a_worker("w2"), 1)
    assert lease.attempt == 2


def test_a_job_may_be_drained_more_often_than_the_machinery_may_fail():
    worker = a_worker()
    lease = held_by(worker, max_retries=0)
    for _ in range(6):
        assert finish(worker, lease, 143, StopKind.DRAIN).status == "queued"
        (lease,) = lifecycle.claim(worker, 1)


def test_a_job_that_was_cancelled_while_it_was_drained_is_not_queued_again():
    worker = a_worker()
    lease = held_by(worker)
    lifecycle.stop([lease.job_id], CANCEL)
    job = finish(worker, lease, 143, StopKind.DRAIN)
    assert path_of(job) == ["queued", "running", "cancelled"]


@pytest.mark.django_db(transaction=True)
def test_a_worker_that_dies_between_failed_and_retrying_has_written_neither():
    worker = a_worker()
    lease = held_by(worker)
    with reaching(crash_at("T1")), pytest.raises(Crash):
        lifecycle.finish(worker, [ending(lease, 1)])
    assert path_of(lease.job_id) == ["queued", "running"]
    assert finish(worker, lease, 1).status == "retrying"


# retry by a person --------------------------------------------------------------------------------


def test_a_person_may_retry_a_failed_job_at_any_time_and_it_uses_up_nothing():
    worker = a_worker()
    lease = held_by(worker, max_retries=0)
    for _ in range(3):
        finish(worker, lease, 1)
        assert lifecycle.retry([lease.job_id], actor="user:ada") == 1
        job = ContainerJob.objects.get()
        assert (job.status, job.retry_count, job.scheduled_for) == ("queued", 0, None)
        (lease,) = lifecycle.claim(worker, 1)
    assert lease.attempt == 4
    assert path_of(job)[-4:] == ["failed", "retrying", "queued", "running"]


def test_a_retry_is_of_the_jobs_that_were_named_and_of_no_others():
    worker = a_worker()
    one, other = (finish(worker, held_by(worker, max_retries=0), 1) for _ in range(2))
    assert lifecycle.retry([one.pk]) == 1
    assert path_of(one)[-2:] == ["retrying", "queued"]
    assert path_of(other)[-1] == "failed"


def test_a_retry_that_cannot_be_says_from_where_to_where():
    with pytest.raises(InvalidTransition, match="from queued to retrying"):
        lifecycle.retry([queued().pk])


def test_a_person_may_retry_what_was_poison():
    worker = a_worker()
    lease = held_by(worker, infra_retry_count=3)
    assert finish(worker, lease, LOST).reason == "poison"
    lifecycle.retry([lease.job_id])
    (lease,) = lifecycle.claim(worker, 1)
    assert finish(worker, lease, LOST).infra_retry_count == 1


def test_a_person_need_not_wait_for_the_backoff():
    worker = a_worker()
    job = finish(worker, held_by(worker, retry_policy={"base_seconds": 1000}), 1)
    assert lifecycle.retry([job.pk]) == 1
    assert [lease.job_id for lease in lifecycle.claim(worker, 1)] == [job.pk]


@pytest.mark.parametrize(
    "status", ["pending", "queued", "running", "completed", "cancelled", "killed"]
)
def test_what_did_not_fail_is_not_retried_and_nor_are_the_others(job, status):
    other, lost = job(status=status), job(status="failed")
    with pytest.raises(InvalidTransition):
        lifecycle.retry([lost.pk, other.pk])
    lost.refresh_from_db()
    assert lost.status == "failed"


def test_a_retry_forgets_earlier_requests_to_stop():
    worker = a_worker()
    lease = held_by(worker, max_retries=0)
    lifecycle.stop([lease.job_id], CANCEL)
    finish(worker, lease, 1)
    lifecycle.retry([lease.job_id])
    lifecycle.claim(worker, 1)
    assert lifecycle.requests([lease.job_id]) == {}


# upkeep -------------------------------------------------------------------------------------------


def test_retries_that_are_due_are_queued_and_the_others_wait(job, time_ahead):
    due = job(status="retrying", scheduled_for=timezone.now() - timedelta(seconds=1))
    at_once = job(status="retrying")
    later = job(status="retrying", scheduled_for=time_ahead)
    assert lifecycle.requeue_due() == 2
    for each in (due, at_once):
        assert path_of(each) == ["retrying", "queued"]
    assert path_of(later) == ["retrying"]
    assert StateHistory.objects.get(entity_id=due.pk, version=2).actor == "upkeep"


def test_a_job_that_waited_too_long_is_cancelled():
    ago = timezone.now() - timedelta(seconds=60)
    late = queued(queued_at=ago, queue_timeout_seconds=30)
    early = queued(queued_at=ago, queue_timeout_seconds=90)
    patient = queued(queued_at=ago)
    due_since = timezone.now() - timedelta(seconds=5)
    planned = queued(queued_at=ago, queue_timeout_seconds=30, scheduled_for=due_since)
    assert lifecycle.expire_waiting() == 1
    late.refresh_from_db()
    assert (late.status, late.reason) == ("cancelled", "queue_timeout")
    assert StateHistory.objects.get(entity_id=late.pk, version=2).reason == "queue_timeout"
    for each in (early, patient, planned):
        each.refresh_from_db()
        assert each.status == "queued"


def test_patient_jobs_that_wait_longer_do_not_hide_the_one_that_is_late():
    for _ in range(25):
        queued(queued_at=timezone.now() - timedelta(minutes=5), queue_timeout_seconds=3600)
    late = queued(queued_at=timezone.now() - timedelta(minutes=1), queue_timeout_seconds=30)
    assert lifecycle.expire_waiting(limit=2) == 1
    late.refresh_from_db()
    assert late.status == "cancelled"


@pytest.mark.parametrize("upkeep", [lifecycle.requeue_due, lifecycle.expire_waiting])
def test_upkeep_of_nothing_does_nothing(upkeep):
    queued()
    assert upkeep() == 0


# In another's way ---------------------------------------------------------------------------------


class Refused(Exception):
    """What a driver raises, with the code of the SQL standard."""

    def __init__(self, sqlstate):
        self.sqlstate = sqlstate


def refusing(times, sqlstate=None, message="refused"):
    """A verb that writes a job and is then refused so many times; each call is counted."""
    calls = []

    @lifecycle.verb
    def act(name):
        calls.append(name)
        job = queued(name=name)
        if len(calls) <= times:
            raise OperationalError(message) from Refused(sqlstate)
        return job

    act.calls = calls
    return act


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    "why", [{"sqlstate": "40001"}, {"sqlstate": "40P01"}, {"message": "database is locked"}]
)
def test_a_verb_that_got_in_anothers_way_begins_again_and_writes_once(why, monkeypatch):
    monkeypatch.setattr(lifecycle.time, "sleep", lambda seconds: None)
    act = refusing(lifecycle.TRIES - 1, **why)
    assert act("once").name == "once"
    assert len(act.calls) == lifecycle.TRIES
    assert ContainerJob.objects.count() == 1


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    ("times", "sqlstate", "calls"), [(99, "40001", lifecycle.TRIES), (1, "57P01", 1)]
)
def test_a_verb_gives_up_after_a_while_and_at_once_when_the_database_is_away(
    times, sqlstate, calls, monkeypatch
):
    waits = []
    monkeypatch.setattr(lifecycle.time, "sleep", waits.append)
    act = refusing(times, sqlstate)
    with pytest.raises(OperationalError, match="refused"):
        act("never")
    assert len(act.calls) == calls
    assert len(waits) == calls - 1
    assert all(0 <= wait <= 0.05 * 2**number for number, wait in enumerate(waits))
    assert not ContainerJob.objects.exists()


def test_a_verb_within_a_transaction_is_not_begun_again_alone():
    act = refusing(1, "40001")
    with pytest.raises(OperationalError, match="refused"), transaction.atomic():
        act("never")
    assert len(act.calls) == 1
