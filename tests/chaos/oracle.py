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
from container_manager.models import ContainerJob, JobAttempt, JobLog
from container_manager.models.attempt import attempt_name
from container_manager.states import SETTLED, JobStatus, Phase, Reason, StopKind, Stream
from tests.chaos.containers import Events, Seen
from tests.chaos.crew import Crew
from tests.chaos.engine import Engine
from tests.chaos.jobs import Plan
from tests.chaos.people import Answer
from tests.support.workers import ROOT, Workers

TAKEN_OVER = re.compile(r"^(\S+ \S+) WARNING Job (\S+): adopted, worker ", re.MULTILINE)
ADOPTED = re.compile(r"^(\S+ \S+) WARNING Job (\S+): adopted, worker (\S+) is gone$", re.MULTILINE)
UNFOLLOWED = "the last of its output may be missing."
LOST = "It was lost when its engine went away; how it ended is not known."
ENGINES_CODES = (137, 143, 255)
LEFTOVER_SECONDS = 60.0
ASKED_AS = {StopKind.KILL: JobStatus.KILLED, StopKind.CANCEL: JobStatus.CANCELLED}


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
    def takeovers(self) -> dict[str, list[float]]:
        """When each job came to another worker, for whatever reason, as the workers' logs tell."""
        found: dict[str, list[float]] = defaultdict(list)
        for _, log in self.crew.logs():
            for moment, job in TAKEN_OVER.findall(log.read_text(errors="replace")):
                found[job].append(_wall_clock(moment))
        return found

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
        if (job.status, job.reason, code) != wanted and not _was_left_by_its_engine(run, job):
            got = (job.status, job.reason, job.exit_code)
            yield f"job {pk} ({plan.kind}) ended as {got}, not as {wanted}: {job.error}"


def _was_left_by_its_engine(run: Run, job: ContainerJob) -> bool:
    """Its worker and its engine went together, and it is told by the exit code that was kept.

    What the engine ends itself, or makes up for what it lost: docs/roadmap.md, known limits.
    """
    attempts = run.attempts.get(job.pk, [])
    return bool(attempts) and _is_by_the_engine(run, attempts[-1])


def _is_by_the_engine(run: Run, attempt: JobAttempt) -> bool:
    return attempt.exit_code in ENGINES_CODES and _changed_hands(run, attempt)


def _ended_in_an_outage(run: Run, attempt: JobAttempt) -> bool:
    return _outage(run, attempt) is not None


def _outage(run: Run, attempt: JobAttempt) -> float | None:
    """Since when a container's engine was away when it ended."""
    is_container = attempt.executor == "docker" and attempt.ended_at is not None
    return run.engine.outage(attempt.ended_at) if is_container else None


def _changed_hands(run: Run, attempt: JobAttempt) -> bool:
    """Whoever told its end took it over in that outage or later: he never saw it alive."""
    since = _outage(run, attempt)
    return since is not None and any(at >= since for at in run.takeovers[str(attempt.job_id)])


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
    return by_itself or _was_left_by_its_engine(run, job) or _was_not_started(run, job)


def _was_not_started(run: Run, job: ContainerJob) -> bool:
    """An engine that is killed while it starts a container cannot start that one any more.

    Who asks for a stop then wants no other attempt.
    """
    by_the_engine = job.executor == "docker" and bool(run.engine.faults)
    return by_the_engine and job.reason == Reason.LAUNCH_ERROR and job.exit_code is None


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
            continue
        if attempt.phase == Phase.DONE and has_evidence != began and (began or in_time):
            told = f"{attempt.reason}, exit code {attempt.exit_code}, signal {attempt.signal}"
            yield f"attempt {marker} ({plan.kind}) {'ran' if began else 'never ran'}: {told}"


def _was_lost_with_its_engine(run: Run, attempt: JobAttempt) -> bool:
    """Its engine had heard of its end, and not yet written it down when it was killed."""
    return LOST in attempt.error and _ended_in_an_outage(run, attempt)


@rule
def no_job_of_a_living_worker_was_taken(run: Run) -> Iterator[str]:
    for adopter, former, job, at in adoptions(run.crew):
        if former != adopter and not run.crew.excuse(former, at):
            blows = [(each.what, each.began - at) for each in run.crew.blows[former]]
            yield f"{adopter} took job {job} from {former}, which lived: {blows}"


def adoptions(crew: Crew) -> Iterator[tuple[str, str, str, float]]:
    """Who adopted from whom which job, and when, as the workers' logs tell."""
    for adopter, log in crew.logs():
        for moment, job, former in ADOPTED.findall(log.read_text(errors="replace")):
            yield adopter, former, job, _wall_clock(moment)


def seconds_to_adoption(crew: Crew) -> list[float]:
    """From the kill of a worker to each adoption of what it held."""
    return sorted(
        at - blow.began
        for _, former, _, at in adoptions(crew)
        for blow in crew.blows[former]
        if blow.what == "worker killed" and at >= blow.began
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
    is_told = UNFOLLOWED in attempt.error and _ended_in_an_outage(run, attempt)
    return is_told or _changed_hands(run, attempt)


def unfollowed(run: Run) -> int:
    """Attempts that say so."""
    return sum(UNFOLLOWED in attempt.error for _, attempt, _ in run.each_attempt())


def left_by_the_engine(run: Run) -> int:
    """Attempts that are told by the engine's exit code, because their worker was gone as well."""
    return sum(_is_by_the_engine(run, attempt) for _, attempt, _ in run.each_attempt())


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
