"""The judgement: what must be true of a job after everything, whoever crashed."""

from __future__ import annotations

from collections.abc import Iterator

from container_manager.models import ContainerJob, JobAttempt, JobLog, StateHistory
from container_manager.states import JobStatus, Phase, Reason, Stream
from tests.crash.evidence import Evidence
from tests.crash.lives import STDERR, STDOUT, Life
from tests.support.running import processes_of
from tests.support.spine import contradictions

SPOKEN = {Stream.STDOUT: STDOUT, Stream.STDERR: STDERR}


def violations(life: Life, evidence: Evidence, crashes: int) -> list[str]:
    """One sentence for each promise that was not kept; there is one job in the database."""
    job = ContainerJob.objects.get()
    attempts = list(job.attempts.order_by("attempt"))
    return [
        *_of_the_end(job, life),
        *_of_the_attempts(job, attempts, life, crashes),
        *(each for attempt in attempts for each in _of_one(attempt, life, evidence)),
        *(f"ran while another attempt still lived: {each}" for each in evidence.overlaps),
        *_of_the_policy(job, attempts),
        *_of_the_holders(job, attempts),
        *contradictions(),
        *(f"process {pid} still lives" for pid in processes_of(job)),
    ]


def _of_the_end(job: ContainerJob, life: Life) -> Iterator[str]:
    if job.status != life.ends_as:
        yield f"is {job.status} ({job.reason} {job.error}), not {life.ends_as}"
    codes = {life.exit_code, None} if life.stop else {life.exit_code}
    if job.exit_code not in codes:
        yield f"has exit code {job.exit_code}, not {life.exit_code}"


def _of_the_attempts(
    job: ContainerJob, attempts: list[JobAttempt], life: Life, crashes: int
) -> Iterator[str]:
    numbers = [each.attempt for each in attempts]
    if numbers != list(range(1, job.attempt + 1)):
        yield f"has attempts {numbers} and says {job.attempt}"
    by_themselves = sum(each.exit_code == life.exit_code for each in attempts)
    if life.runs and by_themselves != life.runs:
        yield f"ran to its end {by_themselves} times, not {life.runs}"
    cut_short = [each for each in attempts if each.reason in _CUT_SHORT]
    if len(cut_short) > crashes:
        yield f"{len(cut_short)} attempts were cut short by {crashes} crashes"


_CUT_SHORT = (Reason.WORKER_LOST, Reason.WORKER_STOPPED)


def _of_one(attempt: JobAttempt, life: Life, evidence: Evidence) -> Iterator[str]:
    number, starts = attempt.attempt, evidence.starts[attempt.attempt]
    if starts > 1 or evidence.containers[number] > 1:
        yield f"attempt {number}: {evidence.containers[number]} containers, started {starts} times"
    if starts and attempt.reason == Reason.WORKER_LOST:
        yield f"attempt {number} ran and is told as lost"
    if not starts and attempt.exit_code is not None:
        yield f"attempt {number} never ran and has exit code {attempt.exit_code}"
    if attempt.phase != Phase.DONE or not attempt.cleaned_up:
        yield f"attempt {number} is {attempt.phase}, cleaned_up {attempt.cleaned_up}"
    for stream, spoken in SPOKEN.items():
        yield from _of_the_log(attempt, stream, spoken, life, ran=bool(starts))


def _of_the_log(
    attempt: JobAttempt, stream: Stream, spoken: bytes, life: Life, *, ran: bool
) -> Iterator[str]:
    kept = JobLog.objects.content(attempt.job_id, stream, attempt.attempt)
    by_itself = life.runs and ran and attempt.exit_code == life.exit_code
    is_whole = kept == spoken if by_itself else ran and spoken.startswith(kept)
    if not is_whole and (ran or kept):
        yield f"attempt {attempt.attempt}: {stream} is {kept!r}"


def _of_the_policy(job: ContainerJob, attempts: list[JobAttempt]) -> Iterator[str]:
    """The machinery's failures and the job's own are counted apart; an orderly end is neither."""
    retries = infra = 0
    for each in attempts[:-1]:
        if each.reason == Reason.WORKER_LOST:
            infra += 1
        elif each.reason != Reason.WORKER_STOPPED:
            retries, infra = retries + 1, 0
    if (job.retry_count, job.infra_retry_count) != (retries, infra):
        told = (job.retry_count, job.infra_retry_count)
        yield f"counts {told} retries of its own and of the machinery, not {(retries, infra)}"


def _of_the_holders(job: ContainerJob, attempts: list[JobAttempt]) -> Iterator[str]:
    """Who held it last told its end: whoever held it before writes nothing any more."""
    holders = {each.attempt: f"worker:{each.worker_name}" for each in attempts}
    ends = StateHistory.objects.filter(entity_id=job.pk, old_state=JobStatus.RUNNING)
    for number, actor in ends.values_list("attempt", "actor"):
        if actor != holders[number]:
            yield f"the end of attempt {number} was told by {actor}, held by {holders[number]}"
