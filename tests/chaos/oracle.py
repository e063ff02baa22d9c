"""Judges a run: what the records say, against what was wanted and what really ran.

Each rule yields one line for each violation. What really ran is told by the marker files that the
jobs leave (see job.sh), containers of the run's own engine as well; of the machine's engine by its
events. The records are never asked about it, nor an engine that may have forgotten.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from uuid import UUID

from container_manager.lifecycle import Stopped
from container_manager.models import ContainerJob, JobAttempt, JobLog, StateHistory
from container_manager.models.attempt import attempt_name
from container_manager.states import SETTLED, JobStatus, Phase, Reason, StopKind, Stream
from tests.chaos.containers import Events, Seen
from tests.chaos.crew import Crew
from tests.chaos.engine import Engine
from tests.chaos.jobs import Plan
from tests.chaos.people import Answer
from tests.support.workers import ROOT, Workers

TAKEN_OVER = re.compile(
    r"^(\S+ \S+) WARNING Job (\S+): adopted, worker (\S+) (is gone|let it go) attempt=(\d+)$",
    re.MULTILINE,
)
UNANSWERED = re.compile(r" did not answer POST /containers/([0-9a-f]{64})/start: timed out")
UNFOLLOWED = "the last of its output may be missing"
LOST = "It was lost when its engine went away; how it ended is not known."
REMOVED = "removed by somebody else"
MADE_UP = 255
STOPPED = (Reason.TIMEOUT, Reason.WORKER_STOPPED)
SLACK = 2.0
"""Seconds between what happened and when who tells of it read the clock."""
LEFTOVER_SECONDS = 60.0
ASKED_AS = {StopKind.KILL: JobStatus.KILLED, StopKind.CANCEL: JobStatus.CANCELLED}


@dataclass(frozen=True)
class Takeover:
    """An attempt that came to another worker."""

    adopter: str
    former: str
    from_the_dead: bool
    marker: str
    at: float


@dataclass
class Run:
    """All that is known of a run when it is over."""

    notes: Path
    """What the jobs wrote down, see job.sh."""
    workers: Workers
    engine: Engine
    crew: Crew
    events: Events
    plans: dict[UUID, Plan]
    """Of each acknowledged job."""
    due: dict[UUID, datetime | None]
    answers: dict[UUID, list[Answer]]
    remarks: list[str] = field(default_factory=list)
    """What was seen while it went on: leftovers, workers that ended by themselves."""

    @cached_property
    def jobs(self) -> dict[UUID, ContainerJob]:
        return {job.pk: job for job in ContainerJob.objects.order_by()}

    @cached_property
    def attempts(self) -> dict[UUID, list[JobAttempt]]:
        found: dict[UUID, list[JobAttempt]] = defaultdict(list)
        for attempt in JobAttempt.objects.order_by("attempt"):
            found[attempt.job_id].append(attempt)
        return found

    def each_attempt(self) -> Iterator[tuple[Plan, JobAttempt, str]]:
        """With what its markers are called."""
        for pk, plan in self.plans.items():
            for attempt in self.attempts.get(pk, []):
                yield plan, attempt, f"{pk}.{attempt.attempt}"

    @cached_property
    def ran(self) -> set[str]:
        """Attempts of which the job itself, or the engine, says that they began."""
        containers = {name for name, seen in self.events.seen.items() if seen.starts}
        of_docker = {
            marker
            for _, attempt, marker in self.each_attempt()
            if attempt_name(attempt.job_id, attempt.attempt) in containers
        }
        return of_docker | set(os.listdir(self.notes / "starts"))

    @cached_property
    def takeovers(self) -> list[Takeover]:
        """Attempts that came to another worker, for whatever reason, as the workers' logs tell."""
        return [
            Takeover(adopter, former, fate == "is gone", f"{job}.{attempt}", _wall_clock(moment))
            for adopter, log in self.crew.logs()
            for moment, job, former, fate, attempt in TAKEN_OVER.findall(_text(log))
        ]

    @cached_property
    def unanswered(self) -> set[str]:
        """Containers whose start took the engine too long, as the workers' logs tell."""
        return {each for _, log in self.crew.logs() for each in UNANSWERED.findall(_text(log))}

    @cached_property
    def told_at(self) -> dict[tuple[UUID, int | None], float]:
        """When the end of each attempt was written down."""
        ends = StateHistory.objects.filter(entity_type="job", old_state=JobStatus.RUNNING)
        rows = ends.order_by().values_list("entity_id", "attempt", "changed_at")
        return {(job, attempt): at.timestamp() for job, attempt, at in rows}

    def without_engine(self, attempt: JobAttempt) -> bool:
        """Was its engine away or paused in its life: from its claim until its end was written?"""
        end = self.told_at.get((attempt.job_id, attempt.attempt), time.time())
        begin = attempt.created_at.timestamp()
        is_container = attempt.executor == "docker"
        return is_container and self.engine.was_away(begin - SLACK, end + SLACK)

    def lines(self, file: str) -> list[str]:
        return (self.notes / file).read_text().splitlines()


Rule = Callable[[Run], Iterator[str]]
RULES: dict[str, Rule] = {}


def rule(function: Rule) -> Rule:
    RULES[function.__name__.replace("_", " ")] = function
    return function


def judge(run: Run) -> dict[str, list[str]]:
    """The violations of each rule."""
    return {name: list(ask(run)) for name, ask in RULES.items()}


# Each job has one end, and the right one ----------------------------------------------------------


@rule
def no_acknowledged_job_is_lost(run: Run) -> Iterator[str]:
    for pk in run.plans.keys() ^ run.jobs.keys():
        yield f"job {pk}: {'acknowledged, and not there' if pk in run.plans else 'unknown'}"


@rule
def every_job_is_settled(run: Run) -> Iterator[str]:
    for job in run.jobs.values():
        if job.status not in SETTLED:
            held = [(each.phase, each.worker_name) for each in run.attempts.get(job.pk, [])]
            yield f"job {job.pk} ({run.plans[job.pk].kind}) is {job.status}: {held}"


@rule
def every_job_ended_as_it_must(run: Run) -> Iterator[str]:
    for pk, plan in run.plans.items():
        job = run.jobs.get(pk)
        if job is None or plan.stop:
            continue
        wanted = (plan.status, plan.reason, None if plan.reason == "timeout" else plan.codes[-1])
        code = None if plan.reason == "timeout" else job.exit_code
        if (job.status, job.reason, code) != wanted and not _is_made_up(run, job):
            got = (job.status, job.reason, job.exit_code)
            yield f"job {pk} ({plan.kind}) ended as {got}, not as {wanted}: {job.error}"


def _is_made_up(run: Run, job: ContainerJob) -> bool:
    """It failed by the exit code that an engine makes up: docs/roadmap.md, known limits."""
    end = (job.status, job.reason, job.exit_code)
    attempts = run.attempts.get(job.pk, [])
    is_it = end == (JobStatus.FAILED, Reason.EXIT_CODE, MADE_UP)
    return is_it and bool(attempts) and _has_made_up_code(run, attempts[-1])


def _has_made_up_code(run: Run, attempt: JobAttempt) -> bool:
    """Its engine went before it knew the end, and its worker as well; or it says so itself."""
    if attempt.exit_code != MADE_UP or attempt.executor != "docker":
        return False
    return run.engine.lost_track_of(attempt.execution_id) or _changed_hands(run, attempt)


def _missed(run: Run, attempt: JobAttempt) -> float | None:
    """Since when a container's engine was gone, if that was before it knew of its end."""
    if attempt.executor != "docker" or attempt.ended_at is None:
        return None
    return run.engine.missed(attempt.execution_id, attempt.ended_at.timestamp())


def _changed_hands(run: Run, attempt: JobAttempt) -> bool:
    """Whoever told its end took it over when its engine was gone, or later: he never saw it alive.

    Another attempt of the same job says nothing of this one.
    """
    since = _missed(run, attempt)
    marker = f"{attempt.job_id}.{attempt.attempt}"
    return since is not None and any(
        each.marker == marker and each.at >= since for each in run.takeovers
    )


@rule
def every_exit_code_is_one_of_the_jobs_own(run: Run) -> Iterator[str]:
    """Of each attempt, not only of the last."""
    for plan, attempt, marker in run.each_attempt():
        is_stopped = plan.stop is not None or attempt.reason in STOPPED
        ended_by_us = attempt.exit_code in (137, 143) and is_stopped
        if attempt.exit_code is None or attempt.exit_code in plan.codes or ended_by_us:
            continue
        if not _has_made_up_code(run, attempt):
            told = f"{attempt.executor}, {attempt.exit_code}, {attempt.reason}: {attempt.error}"
            yield f"attempt {marker} ({plan.kind}) ended as {told}"


@rule
def an_engine_is_blamed_only_where_it_was_away(run: Run) -> Iterator[str]:
    """Lost output and lost ends are its doing: it was away, or paused, in that attempt's life."""
    for _, attempt, marker in run.each_attempt():
        if UNFOLLOWED in attempt.error and not run.without_engine(attempt):
            yield f"attempt {marker}, {attempt.executor}: {attempt.error}"
        if LOST in attempt.error and not _was_lost_with_its_engine(run, attempt):
            yield f"attempt {marker}, {attempt.executor}, {attempt.reason}: {attempt.error}"


def _was_lost_with_its_engine(run: Run, attempt: JobAttempt) -> bool:
    """It may have run or not: it was away, or too slow to say whether it had started it."""
    told = LOST in attempt.error and attempt.reason == Reason.EXECUTOR_UNAVAILABLE
    excused = run.without_engine(attempt) or attempt.execution_id in run.unanswered
    return told and attempt.exit_code is None and excused


@rule
def every_exit_code_is_counted(run: Run) -> Iterator[str]:
    """A failure of the job's own uses up one retry, and no other one does."""
    for pk, plan in run.plans.items():
        own = [a for a in run.attempts.get(pk, []) if a.reason == Reason.EXIT_CODE]
        job = run.jobs.get(pk)
        if job is None or plan.stop:
            continue
        if plan.kind == "fails" and len(own) != job.max_retries + 1:
            yield f"job {pk} failed {len(own)} times with {job.max_retries} retries"
        if plan.kind == "flaky" and len(own) != job.retry_count:
            yield f"job {pk} failed {len(own)} times and counts {job.retry_count} retries"


@rule
def nothing_starts_before_its_time(run: Run) -> Iterator[str]:
    for pk, due in run.due.items():
        for attempt in run.attempts.get(pk, []):
            if due and attempt.created_at < due:
                yield f"job {pk} was due at {due} and claimed at {attempt.created_at}"


# Requests -----------------------------------------------------------------------------------------


@rule
def requests_are_answered_truthfully(run: Run) -> Iterator[str]:
    for pk, answers in run.answers.items():
        if (job := run.jobs.get(pk)) is None:
            continue
        kind = run.plans[pk].stop
        assert kind is not None
        ends = {ASKED_AS[kind]}
        for answer in answers:
            told = f"job {pk}: {kind} was answered {answer.came} (then {answer.status})"
            if answer.came == Stopped.DONE and job.status not in ends:
                yield f"{told}, and it is {job.status}"
            if answer.came == Stopped.REFUSED and answer.status != job.status:
                yield f"{told}, and it is {job.status}"
            if answer.came in (Stopped.REQUESTED, Stopped.REQUESTED_BEFORE):
                if job.status not in ends and not _ended_before_its_stop(run, job):
                    yield f"{told}, and it is {job.status}, {job.reason}, {job.exit_code}"
                if job.attempt > answer.attempt:
                    yield f"{told} at attempt {answer.attempt}, and it had {job.attempt}"


def _ended_before_its_stop(run: Run, job: ContainerJob) -> bool:
    plan = run.plans[job.pk]
    by_itself = job.status == plan.status and job.exit_code == plan.codes[-1]
    return by_itself or _is_made_up(run, job) or _was_not_started(run, job)


def _was_not_started(run: Run, job: ContainerJob) -> bool:
    """An engine that goes while it starts a container cannot start that one any more.

    Who asks for a stop then wants no other attempt.
    """
    attempts = run.attempts.get(job.pk, [])
    if not attempts or job.exit_code is not None:
        return False
    refused = job.reason == Reason.LAUNCH_ERROR and REMOVED not in job.error
    by_its_engine = refused and run.without_engine(attempts[-1])
    return by_its_engine or _was_lost_with_its_engine(run, attempts[-1])


# What really ran ----------------------------------------------------------------------------------


@rule
def no_attempt_ran_twice(run: Run) -> Iterator[str]:
    for marker in run.lines("twice"):
        yield f"attempt {marker} was started a second time"
    for name, seen in run.events.seen.items():
        if len(seen.starts) > 1 or len(_made(seen)) > 1:
            yield f"{name}: {len(seen.starts)} starts of {len(_made(seen))} containers"


def _made(seen: Seen) -> set[str]:
    """Containers that could run: a name that is barred is borne by one that never will."""
    return set() if seen.barred and not seen.starts else seen.ids


@rule
def no_two_attempts_of_a_job_ran_at_once(run: Run) -> Iterator[str]:
    for marker in run.lines("overlaps"):
        yield f"attempt {marker} began while another of its job was alive"
    for pk in run.plans:
        lives = [
            run.events.seen[name]
            for attempt in run.attempts.get(pk, [])
            if (name := attempt_name(pk, attempt.attempt)) in run.events.seen
        ]
        spans = sorted((min(s.starts), max(s.ends, default=2**63)) for s in lives if s.starts)
        for (_, end), (begin, _) in pairwise(spans):
            if begin < end:
                yield f"job {pk}: two containers at once"


@rule
def records_tell_of_every_run(run: Run) -> Iterator[str]:
    """Evidence means that it ran, no evidence that it never began."""
    known = {marker for _, _, marker in run.each_attempt()}
    for marker in run.ran - known:
        yield f"attempt {marker} ran, and there is no record of it"
    for plan, attempt, marker in run.each_attempt():
        has_evidence = attempt.exit_code is not None or attempt.signal is not None
        began = marker in run.ran
        in_time = attempt.signal is None  # a signal may come before its first line
        if _was_lost_with_its_engine(run, attempt):
            continue  # it may have run or not
        if attempt.phase == Phase.DONE and has_evidence != began and (began or in_time):
            told = f"{attempt.reason}, exit code {attempt.exit_code}, signal {attempt.signal}"
            yield f"attempt {marker} ({plan.kind}) {'ran' if began else 'never ran'}: {told}"


@rule
def no_job_of_a_living_worker_was_taken(run: Run) -> Iterator[str]:
    for each in run.takeovers:
        is_theft = each.from_the_dead and each.former != each.adopter
        if is_theft and not run.crew.excuse(each.former, each.at):
            blows = [(b.what, b.began - each.at) for b in run.crew.blows[each.former]]
            told = f"{each.adopter} took {each.marker} from {each.former}"
            yield f"{told}, which lived: {blows}"
    epochs = [attempt.lease_epoch for _, attempt, _ in run.each_attempt()]
    if max(epochs, default=1) > 1 and not run.takeovers:
        yield "the records know of takeovers, and no worker's log does"


def seconds_to_adoption(run: Run) -> list[float]:
    """From the kill of a worker to each adoption of what it held."""
    return sorted(
        each.at - blow.began
        for each in run.takeovers
        for blow in run.crew.blows[each.former]
        if each.from_the_dead and blow.what == "worker killed" and each.at >= blow.began
    )


def _wall_clock(moment: str) -> float:
    seconds, _, milliseconds = moment.partition(",")
    return time.mktime(time.strptime(seconds, "%Y-%m-%d %H:%M:%S")) + int(milliseconds) / 1000


@rule
def all_output_is_kept(run: Run) -> Iterator[str]:
    """Of a run that came to its end every byte, of one that was ended a beginning."""
    kept: dict[tuple[UUID, int, str], bytearray] = defaultdict(bytearray)
    for chunk in JobLog.objects.order_by("job_id", "attempt", "stream", "offset").iterator(500):
        stream = kept[chunk.job_id, chunk.attempt, chunk.stream]
        if chunk.offset != len(stream):
            yield f"attempt {chunk.job_id}.{chunk.attempt}: a gap before byte {chunk.offset}"
        stream += bytes(chunk.data)
    for plan, attempt, marker in run.each_attempt():
        by_itself = attempt.exit_code in plan.codes and attempt.signal is None
        for name in map(str, Stream):
            stored = bytes(kept[attempt.job_id, attempt.attempt, name])
            printed = plan.printed(name, marker)
            if by_itself and stored != printed and not _may_have_lost(run, attempt):
                yield f"attempt {marker}: {name} has {len(stored)} of {len(printed)} bytes"
            elif not printed.startswith(stored):
                yield f"attempt {marker}: {name} is not what it printed: {stored[-99:]!r}"


def _may_have_lost(run: Run, attempt: JobAttempt) -> bool:
    """The last of what a container printed that ended while its engine was away.

    The engine keeps the exit code only. It is said, unless the worker was gone as well: only who
    saw it alive can know. See docs/roadmap.md, known limits.
    """
    is_told = UNFOLLOWED in attempt.error and _missed(run, attempt) is not None
    return is_told or _changed_hands(run, attempt)


def unfollowed(run: Run) -> int:
    """Attempts that say so."""
    return sum(UNFOLLOWED in attempt.error for _, attempt, _ in run.each_attempt())


def lost(run: Run) -> int:
    """Attempts of which nothing is known."""
    return sum(LOST in attempt.error for _, attempt, _ in run.each_attempt())


def made_up(run: Run) -> int:
    """Attempts that are told by an exit code of the engine's own."""
    return sum(_has_made_up_code(run, attempt) for _, attempt, _ in run.each_attempt())


def containers(run: Run) -> int:
    """Attempts that ran in one."""
    docker = {marker for plan, _, marker in run.each_attempt() if plan.executor == "docker"}
    return len(docker & run.ran)


# Afterwards ---------------------------------------------------------------------------------------


def leftovers(run: Run) -> list[str]:
    """Executions that are still there; a name that is only barred is kept for an hour."""
    known = [
        name
        for engine in run.workers.engines
        for name in engine.list_names(run.workers.instance)
        if engine.find(name, run.workers.instance) is not None
    ]
    return known or run.engine.running()


def stray_processes(directory: Path) -> list[str]:
    """Processes that belong to a job, or to an executor, of this run."""
    return [
        f"process {entry.name}: {_read(entry / 'cmdline')!r}"
        for entry in Path("/proc").iterdir()
        if entry.name.isdigit() and _belongs(entry, str(directory))
    ]


def _belongs(entry: Path, directory: str) -> bool:
    if f"CM_EXECUTION={directory}/".encode() in _read(entry / "environ"):
        return True
    try:
        return os.readlink(entry / "fd" / "2").startswith(directory)
    except OSError:
        return False


def _text(log: Path) -> str:
    return log.read_text(errors="replace")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


@rule
def nothing_is_left_and_nobody_had_to_help(run: Run) -> Iterator[str]:
    yield from run.remarks
    yield from run.crew.surprises


@rule
def check_jobs_finds_nothing(run: Run) -> Iterator[str]:
    command = [sys.executable, "-W", "ignore", "manage.py", "check_jobs"]
    checked = subprocess.run(
        command, cwd=ROOT, env=run.workers.environment(), capture_output=True, text=True
    )
    if checked.returncode:
        yield from (checked.stdout + checked.stderr).splitlines()
