"""Do the records agree? History against row, row against attempts, attempts against logs; and the
counters against the rows.
"""

from __future__ import annotations

from collections.abc import Iterator

from django.db import connections, models
from django.db.models import Count, Exists, F, OuterRef, Q, Subquery, Sum, Window
from django.db.models.functions import Coalesce, Lag, Lead, Length

from container_manager import db_guard
from container_manager.consistency.asking import NOTE, Finding, Records, found, of_all, question
from container_manager.models import JobAttempt, JobLog
from container_manager.models.base import guarded_tables
from container_manager.states import ENDED, JOB, Blame, JobStatus, Phase, Reason, Stream

# The guard and what it counts (I4, I17) -----------------------------------------------------------


@of_all
def the_guard_stands(records: Records) -> Iterator[Finding]:
    """Every trigger and function is there as it was compiled."""
    for line in db_guard.differences(connections[records.using], guarded_tables()):
        yield found("guard", line)


@of_all
def counters_are_what_the_rows_say(records: Records) -> Iterator[Finding]:
    """How many jobs of each kind there are, and how long they took."""
    for line in db_guard.miscounts(connections[records.using], guarded_tables()):
        yield found("counter", line)


# History against row (I1, I3, I4) -----------------------------------------------------------------


@question
def history_is_whole(records: Records) -> Iterator[Finding]:
    """As many history rows as the version counts, and the last says the job's state."""
    rows = records.history_of_job()
    counted = rows.values("entity_id").annotate(n=Count("pk")).values("n")
    latest = rows.filter(version=OuterRef("version")).values("new_state")
    jobs = records.jobs.annotate(
        told=Coalesce(Subquery(counted), 0), latest=Subquery(latest)
    ).filter(~Q(told=F("version")) | Q(latest__isnull=True) | ~Q(latest=F("status")))
    for pk, status, version, told, latest_state in jobs.values_list(
        "pk", "status", "version", "told", "latest"
    ).iterator():
        if told != version:
            text = f"is at version {version}, its history has {told} rows"
            yield found("history_count", text, pk)
        if latest_state != status:
            text = f"is {status}, its history says {latest_state or 'nothing'} of version {version}"
            yield found("history_state", text, pk)


@question
def history_is_a_path(records: Records) -> Iterator[Finding]:
    """Each move begins where the one before it ended, along an edge of the table, not earlier."""
    moves = records.history.annotate(
        before=_of_move_before("new_state"), before_at=_of_move_before("changed_at")
    )
    begins = Q(before__isnull=True)
    legal = Q(pk__isnull=True)
    for edge in JOB.edges:
        legal |= Q(old_state=str(edge[0]), new_state=str(edge[1]))
    broken = (
        (begins & (Q(old_state__isnull=False) | ~Q(version=1)))
        | (~begins & (Q(old_state__isnull=True) | ~Q(old_state=F("before")) | ~legal))
        | Q(changed_at__lt=F("before_at"))
    )
    for pk, version, old, new, previous, at, at_before in (
        moves.filter(broken)
        .values_list(
            "entity_id", "version", "old_state", "new_state", "before", "changed_at", "before_at"
        )
        .iterator()
    ):
        step = f"version {version} ({old} -> {new})"
        if old != previous:
            text = (
                f"{step} does not begin where the history stood: {previous or 'at the beginning'}"
            )
            yield found("history_gap", text, pk)
        elif previous is None:
            yield found("history_begin", f"{step} has no beginning before it", pk)
        elif not JOB.can_transition(previous, new):
            text = f"{step} is no move of the table of states"
            yield found("history_edge", text, pk)
        if at_before is not None and at < at_before:
            text = f"{step} is told to be earlier than the move before it"
            yield found("history_time", text, pk)


def _of_move_before(column: str) -> Window:
    return Window(Lag(column), partition_by=[F("entity_id")], order_by=F("version").asc())


# Row against attempts (I1, I5, I7) ----------------------------------------------------------------


@question
def attempts_are_held_by_running_jobs(records: Records) -> Iterator[Finding]:
    """A worker holds an attempt only while its job runs, and only the latest one."""
    wrong = ~Q(job__status=JobStatus.RUNNING) | ~Q(attempt=F("job__attempt"))
    held = records.attempts.exclude(phase=Phase.DONE).filter(wrong)
    for pk, number, status, latest in held.values_list(
        "job", "attempt", "job__status", "job__attempt"
    ).iterator():
        text = f"is {status} at attempt {latest}, and attempt {number} is still held by a worker"
        yield found("attempt_held", text, pk)


@question
def running_jobs_without_a_worker(records: Records) -> Iterator[Finding]:
    """Made `running` by hand: they belong to nobody, and nobody will end them."""
    held = JobAttempt.objects.using(records.using).filter(job=OuterRef("pk"))
    alone = records.jobs.filter(status=JobStatus.RUNNING).exclude(
        Exists(held.exclude(phase=Phase.DONE))
    )
    for pk in alone.values_list("pk", flat=True).iterator():
        text = "is running and no worker holds it: it belongs to nobody"
        yield found("running_alone", text, pk, level=NOTE)


@question
def starts_have_attempts(records: Records) -> Iterator[Finding]:
    """Each start by a worker has its own row, and no row is of a start that never was."""
    rows = JobAttempt.objects.using(records.using)
    starts = records.history.filter(new_state=JobStatus.RUNNING, actor__startswith="worker:")
    lost = starts.exclude(
        Exists(rows.filter(job=OuterRef("entity_id"), attempt=OuterRef("attempt")))
    ).filter(entity_id__in=records.jobs.values("pk"))
    for pk, number in lost.values_list("entity_id", "attempt").iterator():
        yield found("attempt_missing", f"attempt {number} was started and has no row", pk)
    early = records.attempts.filter(attempt__gt=F("job__attempt"))
    for pk, number, latest in early.values_list("job", "attempt", "job__attempt").iterator():
        text = f"has a row for attempt {number}, but was started {latest} times"
        yield found("attempt_unknown", text, pk)


@question
def retries_are_counted(records: Records) -> Iterator[Finding]:
    """No more retries than allowed, and each that a worker made was counted."""
    infra = [str(reason) for reason in Reason if reason.blame == Blame.INFRA]
    made = (
        records.history_of_job()
        .filter(new_state=JobStatus.RETRYING, actor__startswith="worker:")
        .exclude(reason__in=infra)
        .values("entity_id")
        .annotate(n=Count("pk"))
        .values("n")
    )
    jobs = records.jobs.annotate(made=Coalesce(Subquery(made), 0)).filter(
        Q(retry_count__gt=F("max_retries")) | Q(made__gt=F("retry_count"))
    )
    for pk, made_, counted, most in jobs.values_list(
        "pk", "made", "retry_count", "max_retries"
    ).iterator():
        if counted > most:
            yield found("retries_exceeded", f"used {counted} of {most} retries", pk)
        if made_ > counted:
            text = f"was retried {made_} times by workers, and {counted} were counted"
            yield found("retries_uncounted", text, pk)


@question
def ended_attempts_have_evidence(records: Records) -> Iterator[Finding]:
    """An exit code, a signal, or a reason why there is none."""
    blank = records.attempts.filter(
        phase=Phase.DONE, exit_code__isnull=True, signal__isnull=True, reason=""
    )
    for pk, number in blank.values_list("job", "attempt").iterator():
        text = f"attempt {number} ended without exit code, signal or reason"
        yield found("attempt_evidence", text, pk)


@question
def results_are_the_attempts(records: Records) -> Iterator[Finding]:
    """What an ended job says of its end is what its latest attempt says."""
    ended = records.attempts.filter(
        phase=Phase.DONE,
        attempt=F("job__attempt"),
        job__status__in=[str(status) for status in ENDED],
        job__launched_at__isnull=False,
    )
    same_code = Q(exit_code=F("job__exit_code")) | Q(
        exit_code__isnull=True, job__exit_code__isnull=True
    )
    differ = ended.exclude(same_code & Q(oom_killed=F("job__oom_killed")))
    for pk, number, of_job, of_attempt in differ.values_list(
        "job", "attempt", "job__exit_code", "exit_code"
    ).iterator():
        text = f"says exit code {of_job}, its attempt {number} says {of_attempt}"
        if of_job == of_attempt:
            text = f"and its attempt {number} differ about being out of memory"
        yield found("result_differs", text, pk)


# Attempts against logs (I6) -----------------------------------------------------------------------


@question
def chunks_do_not_overlap(records: Records) -> Iterator[Finding]:
    """No byte of a stream is stored twice."""
    chunks = records.logs.annotate(
        end=F("offset") + Length("data"),
        following=Window(
            Lead("offset"),
            partition_by=[F("job_id"), F("attempt"), F("stream")],
            order_by=F("offset").asc(),
        ),
    ).filter(end__gt=F("following"))
    for pk, number, stream, end, following in chunks.values_list(
        "job", "attempt", "stream", "end", "following"
    ).iterator():
        text = f"attempt {number}: {stream} is stored to byte {end} and again from {following}"
        yield found("log_overlap", text, pk)


@question
def ended_logs_are_whole(records: Records) -> Iterator[Finding]:
    """Of each stream of an ended attempt: bytes kept + bytes left out = bytes emitted."""
    for stream in Stream:
        emitted, omitted = f"{stream}_bytes", f"{stream}_omitted"
        chunks = JobLog.objects.using(records.using).filter(
            job=OuterRef("job"), attempt=OuterRef("attempt"), stream=str(stream)
        )
        of_attempt = chunks.order_by().values("job")
        attempts = records.attempts.filter(phase=Phase.DONE).annotate(
            kept=Coalesce(
                Subquery(of_attempt.annotate(n=Sum(Length("data"))).values("n")),
                0,
                output_field=models.BigIntegerField(),
            ),
        )
        for pk, number, kept, total, left_out in (
            attempts.exclude(kept=F(emitted) - F(omitted))
            .values_list("job", "attempt", "kept", emitted, omitted)
            .iterator()
        ):
            text = (
                f"attempt {number}: {total} bytes of {stream} were emitted, {left_out} left out"
                f" by the cap, and {kept} are stored"
            )
            yield found("log_incomplete", text, pk)


@question
def logs_have_attempts(records: Records) -> Iterator[Finding]:
    """Every chunk is of an attempt that there is."""
    rows = JobAttempt.objects.using(records.using)
    strays = records.logs.exclude(
        Exists(rows.filter(job=OuterRef("job"), attempt=OuterRef("attempt")))
    )
    for pk, number in strays.values_list("job", "attempt").distinct().iterator():
        text = f"there is output of attempt {number}, which has no row"
        yield found("log_stray", text, pk)
