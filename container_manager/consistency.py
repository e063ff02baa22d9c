"""Do the records agree? History against row, row against attempts, attempts against logs; and the
counters against the rows.

Every question is one statement that the database answers over all jobs at once, and one statement
sees one moment: what workers write meanwhile cannot look like a contradiction. Nothing is changed.
The names I1, I3 … are those of the invariants in docs/architecture.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from django.db import connections, models
from django.db.models import Count, Exists, F, OuterRef, Q, Subquery, Sum, Window
from django.db.models.functions import Coalesce, Lag, Lead, Length

from container_manager import db_guard
from container_manager.models import ContainerJob, JobAttempt, JobLog, StateHistory
from container_manager.models.base import guarded_tables
from container_manager.states import ENDED, JOB, Blame, JobStatus, Phase, Reason, Stream

FINDING, NOTE = "finding", "note"


@dataclass(frozen=True)
class Finding:
    """One contradiction, or with level `note` something that a person may want to know."""

    code: str
    invariant: str
    text: str
    job_id: UUID | None = None
    level: str = FINDING

    def __str__(self) -> str:
        about = f"job {self.job_id}: " if self.job_id else ""
        return f"{self.level} {self.code}: {about}{self.text}"


Question = Callable[["Records"], Iterator[Finding]]
_questions: list[Question] = []


def question(function: Question) -> Question:
    """Ask this, too."""
    _questions.append(function)
    return function


class Records:
    """The rows that are compared: those of some jobs, or all."""

    def __init__(self, using: str, job_ids: Sequence[UUID] | None = None) -> None:
        self.using = using
        self.jobs = ContainerJob.objects.using(using).order_by()
        self.attempts = JobAttempt.objects.using(using).order_by()
        self.logs = JobLog.objects.using(using).order_by()
        self.history = StateHistory.objects.using(using).filter(entity_type="job").order_by()
        if job_ids is not None:
            self.jobs = self.jobs.filter(pk__in=job_ids)
            self.attempts = self.attempts.filter(job__in=job_ids)
            self.logs = self.logs.filter(job__in=job_ids)
            self.history = self.history.filter(entity_id__in=job_ids)

    def history_of_job(self) -> Any:
        """The history of the job that the outer query looks at."""
        rows = StateHistory.objects.using(self.using).filter(entity_type="job")
        return rows.filter(entity_id=OuterRef("pk")).order_by()


def findings(using: str = "default", job_ids: Sequence[UUID] | None = None) -> Iterator[Finding]:
    """Every contradiction among the records of these jobs (all: guard and counters as well)."""
    records = Records(using, job_ids)
    if job_ids is None:
        yield from _guard(using)
        yield from _counters(using)
    for ask in _questions:
        yield from ask(records)


def _guard(using: str) -> Iterator[Finding]:
    for line in db_guard.differences(connections[using], guarded_tables()):
        yield Finding("guard", "I4", line)


def _counters(using: str) -> Iterator[Finding]:
    for line in db_guard.miscounts(connections[using], guarded_tables()):
        yield Finding("counter", "I17", line)


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
    ):
        if told != version:
            text = f"is at version {version}, its history has {told} rows"
            yield Finding("history_count", "I3", text, pk)
        if latest_state != status:
            text = f"is {status}, its history says {latest_state or 'nothing'} of version {version}"
            yield Finding("history_state", "I4", text, pk)


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
    for pk, version, old, new, previous, at, at_before in moves.filter(broken).values_list(
        "entity_id", "version", "old_state", "new_state", "before", "changed_at", "before_at"
    ):
        step = f"version {version} ({old} -> {new})"
        if old != previous:
            text = (
                f"{step} does not begin where the history stood: {previous or 'at the beginning'}"
            )
            yield Finding("history_gap", "I3", text, pk)
        elif previous is None:
            yield Finding("history_begin", "I3", f"{step} has no beginning before it", pk)
        elif not JOB.can_transition(previous, new):
            text = f"{step} is no move of the table of states"
            yield Finding("history_edge", "I1", text, pk)
        if at_before is not None and at < at_before:
            text = f"{step} is told to be earlier than the move before it"
            yield Finding("history_time", "I3", text, pk)


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
    ):
        text = f"is {status} at attempt {latest}, and attempt {number} is still held by a worker"
        yield Finding("attempt_held", "I1", text, pk)


@question
def running_jobs_without_a_worker(records: Records) -> Iterator[Finding]:
    """Made `running` by hand: they belong to nobody, and nobody will end them."""
    held = JobAttempt.objects.using(records.using).filter(job=OuterRef("pk"))
    alone = records.jobs.filter(status=JobStatus.RUNNING).exclude(
        Exists(held.exclude(phase=Phase.DONE))
    )
    for pk in alone.values_list("pk", flat=True):
        text = "is running and no worker holds it: it belongs to nobody"
        yield Finding("running_alone", "I10", text, pk, level=NOTE)


@question
def starts_have_attempts(records: Records) -> Iterator[Finding]:
    """Each start by a worker has its own row, and no row is of a start that never was."""
    rows = JobAttempt.objects.using(records.using)
    starts = records.history.filter(new_state=JobStatus.RUNNING, actor__startswith="worker:")
    lost = starts.exclude(
        Exists(rows.filter(job=OuterRef("entity_id"), attempt=OuterRef("attempt")))
    ).filter(entity_id__in=records.jobs.values("pk"))
    for pk, number in lost.values_list("entity_id", "attempt"):
        yield Finding("attempt_missing", "I5", f"attempt {number} was started and has no row", pk)
    early = records.attempts.filter(attempt__gt=F("job__attempt"))
    for pk, number, latest in early.values_list("job", "attempt", "job__attempt"):
        text = f"has a row for attempt {number}, but was started {latest} times"
        yield Finding("attempt_unknown", "I5", text, pk)


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
    for pk, made_, counted, most in jobs.values_list("pk", "made", "retry_count", "max_retries"):
        if counted > most:
            yield Finding("retries_exceeded", "I5", f"used {counted} of {most} retries", pk)
        if made_ > counted:
            text = f"was retried {made_} times by workers, and {counted} were counted"
            yield Finding("retries_uncounted", "I5", text, pk)


@question
def ended_attempts_have_evidence(records: Records) -> Iterator[Finding]:
    """An exit code, a signal, or a reason why there is none."""
    blank = records.attempts.filter(
        phase=Phase.DONE, exit_code__isnull=True, signal__isnull=True, reason=""
    )
    for pk, number in blank.values_list("job", "attempt"):
        text = f"attempt {number} ended without exit code, signal or reason"
        yield Finding("attempt_evidence", "I7", text, pk)


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
    ):
        text = f"says exit code {of_job}, its attempt {number} says {of_attempt}"
        if of_job == of_attempt:
            text = f"and its attempt {number} differ about being out of memory"
        yield Finding("result_differs", "I7", text, pk)


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
    ):
        text = f"attempt {number}: {stream} is stored to byte {end} and again from {following}"
        yield Finding("log_overlap", "I6", text, pk)


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
        for pk, number, kept, total, left_out in attempts.exclude(
            kept=F(emitted) - F(omitted)
        ).values_list("job", "attempt", "kept", emitted, omitted):
            text = (
                f"attempt {number}: {total} bytes of {stream} were emitted, {left_out} left out"
                f" by the cap, and {kept} are stored"
            )
            yield Finding("log_incomplete", "I6", text, pk)


@question
def logs_have_attempts(records: Records) -> Iterator[Finding]:
    """Every chunk is of an attempt that there is."""
    rows = JobAttempt.objects.using(records.using)
    strays = records.logs.exclude(
        Exists(rows.filter(job=OuterRef("job"), attempt=OuterRef("attempt")))
    )
    for pk, number in strays.values_list("job", "attempt").distinct():
        text = f"there is output of attempt {number}, which has no row"
        yield Finding("log_stray", "I6", text, pk)
