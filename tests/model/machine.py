"""The life of jobs as a hypothesis state machine: the real verbs, two workers, any order.

After every step the rows are what the model says and the history is its path; now and then and at
the end `consistency` finds nothing and the counters are what the rows are. What the model expects
to be refused must be refused, with nothing written.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any
from uuid import uuid4

from django.core.exceptions import ValidationError
from django.db import transaction
from django.db.models import F
from django.utils import timezone
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
)

from container_manager import consistency, lifecycle
from container_manager.exceptions import HeldByWorker, InvalidTransition, NotChangeable
from container_manager.executors.base import Outcome
from container_manager.lifecycle import Stopped
from container_manager.models import ContainerJob, JobAttempt, Worker
from container_manager.models.job_stats import stats_of_rows
from container_manager.models.leases import Claimant, Lease
from container_manager.models.outcomes import LogChunk, Progress
from container_manager.states import VALID_TRANSITIONS, JobStatus, Phase, Reason, StopKind
from tests.model.expected import Expected, Start, expectation, rows
from tests.support.spine import LOST, PLACE, a_worker, ending, failed

QUEUES = ("default", "narrow")
WORKERS = ("w1", "w2")
EARLIER = timedelta(days=1)
LOOK_EVERY = 10
"""Steps between two looks at everything."""

some_queue = st.sampled_from(QUEUES)
some_worker = st.sampled_from(WORKERS)
some_number = st.integers(0, 2)
some_stop = st.sampled_from([StopKind.KILL, StopKind.CANCEL])

ENDS: dict[str, tuple[Outcome, str, int | None, StopKind | None]] = {
    "success": (Outcome(0), "", 0, None),
    "failure": (failed(3), "exit_code", 3, None),
    "permanent": (Outcome(None, reason=Reason.IMAGE_NOT_FOUND), "image_not_found", None, None),
    "lost": (LOST, "worker_lost", None, None),
    "killed": (Outcome(137, signal=9, reason=Reason.SIGNAL), "signal", 137, StopKind.KILL),
    "cancelled": (Outcome(143, signal=15, reason=Reason.SIGNAL), "signal", 143, StopKind.CANCEL),
    "cancelled politely": (Outcome(0), "", 0, StopKind.CANCEL),
    "too long": (Outcome(143, signal=15, reason=Reason.SIGNAL), "signal", 143, StopKind.TIMEOUT),
    "drained": (Outcome(143, signal=15, reason=Reason.SIGNAL), "signal", 143, StopKind.DRAIN),
}


class JobMachine(RuleBasedStateMachine):
    jobs = Bundle("jobs")

    def __init__(self) -> None:
        super().__init__()
        self.transaction = transaction.atomic()
        self.transaction.__enter__()
        self.known: dict[Any, Expected] = {}
        self.histories_of_the_gone: dict[Any, list[str]] = {}
        self.workers: dict[str, Claimant] = {}
        self.vanished: set[Any] = set()
        self.lost: list[tuple[Claimant, Lease]] = []
        self.closed: dict[str, bool] = dict.fromkeys(QUEUES, False)
        self.limits: dict[str, int | None] = dict.fromkeys(QUEUES)
        self.steps = 0

    def teardown(self) -> None:
        try:
            self._look_closely()
        finally:
            transaction.set_rollback(True)
            self.transaction.__exit__(None, None, None)

    @initialize()
    def two_workers_register(self) -> None:
        for name in WORKERS:
            self.workers[name] = self._register(name)

    def _register(self, name: str) -> Claimant:
        worker = a_worker(name)
        row = {"id": worker.worker_id, "name": name, "hostname": "h", "pid": 1, "concurrency": 1}
        Worker.objects.create(**row)
        return worker

    def _of(self, job: Any) -> Expected | None:
        return self.known.get(job)

    def _held(self, job: Any) -> tuple[Expected, Start, Claimant] | None:
        """Who may write of it: the holder, also one that stands still and is taken for dead."""
        expected = self._of(job)
        start = expected.start if expected else None
        if expected is None or start is None or start.worker is None:
            return None
        return expected, start, start.worker

    # People

    @rule(
        target=jobs,
        queue=some_queue,
        retries=some_number,
        waits=st.booleans(),
        at_once=st.booleans(),
    )
    def submit(self, queue: str, retries: int, waits: bool, at_once: bool) -> Any:
        policy = {"strategy": "fixed", "base_seconds": 10_000 if waits else 0, "jitter": 0}
        job = lifecycle.submit(
            queue_now=at_once,
            queue=queue,
            max_retries=retries,
            retry_policy=policy,
            command=["/bin/true"],
            isolation="auto",
            image="busybox",
        )
        path = ["pending", "queued"] if at_once else ["pending"]
        self.known[job.pk] = Expected(job.pk, queue, retries, waits, path)
        return job.pk

    @rule(job=jobs, priority=st.integers(0, 100))
    def amend(self, job: Any, priority: int) -> None:
        expected = self._of(job)
        if expected is None:
            return
        if expected.status in ("pending", "queued", "retrying", "failed"):
            lifecycle.amend(job, {"priority": priority})
            expected.priority = priority
        else:
            self._refused(NotChangeable, lambda: lifecycle.amend(job, {"priority": priority}))

    @rule(job=jobs, most=st.integers(0, 3))
    def amend_retries(self, job: Any, most: int) -> None:
        """Not below what was used already: such a job would wait for ever."""
        expected = self._of(job)
        if expected is None or expected.status not in ("pending", "queued", "retrying", "failed"):
            return
        if most < expected.retries:
            self._refused(ValidationError, lambda: lifecycle.amend(job, {"max_retries": most}))
        else:
            lifecycle.amend(job, {"max_retries": most})
            expected.max_retries = most

    @rule(job=jobs)
    def enqueue(self, job: Any) -> None:
        expected = self._of(job)
        if expected is None:
            assert lifecycle.enqueue([job]) == 0
        elif expected.status in ("pending", "retrying"):
            assert lifecycle.enqueue([job]) == 1
            expected.go("queued")
            expected.due = True
        else:
            self._refused(InvalidTransition, lambda: lifecycle.enqueue([job]))

    @rule(job=jobs)
    def retry(self, job: Any) -> None:
        expected = self._of(job)
        if expected is None:
            assert lifecycle.retry([job]) == 0
        elif expected.status in ("failed", "retrying"):
            assert lifecycle.retry([job]) == 1
            if expected.status == "failed":
                expected.go("retrying")
            expected.go("queued")
            expected.due, expected.infra_retries = True, 0
        else:
            self._refused(InvalidTransition, lambda: lifecycle.retry([job]))

    @rule(some=st.lists(jobs, max_size=3), kind=some_stop)
    def stop(self, some: list[Any], kind: StopKind) -> None:
        """Kill or cancel, several at once; one that is not there among them."""
        stranger = uuid4()
        came = lifecycle.stop([*some, stranger], kind)
        wanted = {job: self._stopped(self.known[job], kind) for job in {*some} & {*self.known}}
        gone = dict.fromkeys({*some, stranger} - {*self.known}, Stopped.UNKNOWN)
        assert came == {**wanted, **gone}

    def _stopped(self, job: Expected, kind: StopKind) -> Stopped:
        target = "killed" if kind == StopKind.KILL else "cancelled"
        if job.start is not None:
            if job.kill_requested or (kind == StopKind.CANCEL and job.cancel_requested):
                return Stopped.REQUESTED_BEFORE
            job.kill_requested |= kind == StopKind.KILL
            job.cancel_requested |= kind == StopKind.CANCEL
            return Stopped.REQUESTED
        if target not in VALID_TRANSITIONS[JobStatus(job.status)]:
            return Stopped.REFUSED
        job.go(target)
        return Stopped.DONE

    @rule(job=jobs, status=st.sampled_from(list(JobStatus)))
    def move_by_hand(self, job: Any, status: JobStatus) -> None:
        expected = self._of(job)
        if expected is None:
            self._refused(ContainerJob.DoesNotExist, lambda: lifecycle.move(job, status))
        elif status not in VALID_TRANSITIONS[JobStatus(expected.status)]:
            self._refused(InvalidTransition, lambda: lifecycle.move(job, status))
        elif expected.start is not None:
            self._refused(HeldByWorker, lambda: lifecycle.move(job, status))
        else:
            lifecycle.move(job, status)
            expected.go(status)
            expected.attempt += status == JobStatus.RUNNING

    @rule(queue=some_queue, paused=st.booleans(), limit=st.sampled_from([None, 1, 2]))
    def steer(self, queue: str, paused: bool, limit: int | None) -> None:
        lifecycle.steer_queue(queue, paused=paused, max_running=limit)
        self.closed[queue], self.limits[queue] = paused, limit

    @rule(some=st.lists(jobs, max_size=4), keep=st.booleans())
    def prune(self, some: list[Any], keep: bool) -> None:
        gone = {job for job in some if self._is_prunable(job)}
        assert lifecycle.prune(some, keep_history=keep) == gone
        for job in gone:
            expected = self.known.pop(job)
            if keep:
                self.histories_of_the_gone[job] = expected.path
            # of what is gone nobody holds anything, and who did once is told so
            self.lost += [
                (start.worker, start.lease)
                for start in expected.starts.values()
                if start.worker is not None
            ]

    def _is_prunable(self, job: Any) -> bool:
        expected = self._of(job)
        if expected is None or not expected.is_settled:
            return False
        return all(start.cleaned_up for start in expected.starts.values())

    # Workers

    @rule(worker=some_worker, most=st.integers(0, 3))
    def claim(self, worker: str, most: int) -> None:
        claimant = self.workers[worker]
        wanted = self._claimable()[:most]
        leases = lifecycle.claim(claimant, most)
        assert [lease.job_id for lease in leases] == wanted
        for lease in leases:
            expected = self.known[lease.job_id]
            expected.claimed(claimant, lease)
            assert (lease.attempt, lease.epoch) == (expected.attempt, 1)

    def _claimable(self) -> list[Any]:
        """Best first, no more of a limited queue than it has room for."""
        waiting = ContainerJob.objects.filter(status="queued")
        order = waiting.order_by("-priority", "queued_at", "id").values_list("pk", flat=True)
        running = [job.queue for job in self.known.values() if job.status == "running"]
        room = {
            queue: limit - running.count(queue)
            for queue, limit in self.limits.items()
            if limit is not None
        }
        found = []
        for job in map(self.known.__getitem__, order):
            has_room = room.get(job.queue, 1) > 0
            if job.due and has_room and not self.closed[job.queue]:
                found.append(job.pk)
                if job.queue in room:
                    room[job.queue] -= 1
        return found

    @rule(job=jobs, phase=st.sampled_from([Phase.PULLING, Phase.CREATED, Phase.STARTED]))
    def progress(self, job: Any, phase: Phase) -> None:
        if held := self._held(job):
            _, start, worker = held
            step = Progress(**start.lease.key, phase=phase, execution_id="x", unreachable=False)
            assert lifecycle.progress(worker, [step]) == {job}
            start.phase, start.unreachable = str(phase), False

    @rule(job=jobs, data=st.binary(min_size=1, max_size=5))
    def printed(self, job: Any, data: bytes) -> None:
        if held := self._held(job):
            _, start, worker = held
            chunk = LogChunk(**start.lease.key, stream="stdout", offset=start.printed, data=data)
            lifecycle.keep_chunks(worker, [chunk, chunk])
            start.printed += len(data)

    @rule(job=jobs, kind=st.sampled_from(list(StopKind)))
    def signal(self, job: Any, kind: StopKind) -> None:
        if held := self._held(job):
            expected, start, worker = held
            assert lifecycle.signalled(worker, [start.lease], kind) == {job}
            start.phase, start.stop_kind, expected.signalled = "stopping", str(kind), True

    @rule(job=jobs, how=st.sampled_from(list(ENDS)))
    def finish(self, job: Any, how: str) -> None:
        if held := self._held(job):
            expected, start, worker = held
            outcome, reason, exit_code, stopped = ENDS[how]
            end = replace(ending(start.lease, outcome, stopped), stdout_bytes=start.printed)
            assert lifecycle.finish(worker, [end]) == {job}
            if reason == "image_not_found":
                expected.max_retries, kept = -1, expected.max_retries
                expected.ended(reason, exit_code, None)
                expected.max_retries = kept
            else:
                expected.ended(reason, exit_code, stopped and str(stopped))
            self.lost.append((worker, start.lease))

    @rule(job=jobs)
    def release(self, job: Any) -> None:
        if held := self._held(job):
            _, start, worker = held
            assert lifecycle.release(worker, [start.lease]) == {job}
            start.worker = None
            self.lost.append((worker, start.lease))

    @rule(job=jobs)
    def sweep(self, job: Any) -> None:
        expected = self._of(job)
        starts = expected.starts if expected else {}
        keys = [{"job_id": job, "attempt": number, "epoch": 0} for number in starts]
        lifecycle.cleaned_up(keys or [{"job_id": job, "attempt": 1, "epoch": 0}])
        for start in starts.values():
            start.cleaned_up |= not start.is_active

    # Faults

    @rule(worker=some_worker)
    def vanish(self, worker: str) -> None:
        """It crashed, or stands still: others take it for dead, what it holds is still its own."""
        self.vanished.add(self.workers[worker].worker_id)
        self.workers[worker] = self._register(worker)

    @rule(worker=some_worker, by_row=st.booleans())
    def rescue(self, worker: str, by_row: bool) -> None:
        """A worker adopts what the vanished held; `by_row`: their rows were pruned before."""
        claimant = self.workers[worker]
        if by_row:
            Worker.objects.filter(pk__in=self.vanished).delete()
        found = lifecycle.orphans(self.vanished, [PLACE], 100)
        orphans = self._orphans()
        assert {each.job_id for each in found} == orphans.keys()
        adopted = lifecycle.adopt(claimant, found)
        assert {lease.job_id for lease in adopted} == orphans.keys()
        assert lifecycle.adopt(self.workers["w1"], found) == []  # too late: the epoch rose
        for lease in adopted:
            self._adopted(orphans[lease.job_id], claimant, lease)

    def _orphans(self) -> dict[Any, Start]:
        return {
            job.pk: job.start
            for job in self.known.values()
            if job.start is not None
            and (job.start.worker is None or job.start.worker.worker_id in self.vanished)
        }

    def _adopted(self, start: Start, claimant: Claimant, lease: Lease) -> None:
        assert (lease.epoch, lease.attempt) == (start.epoch + 1, start.lease.attempt)
        assert lease.stop_kind == start.stop_kind
        if start.worker is not None:
            self.lost.append((start.worker, start.lease))
        start.worker, start.lease, start.epoch = claimant, lease, lease.epoch
        start.unreachable = False

    @rule(number=st.integers(0, 1000), write=st.sampled_from(sorted(("all", "end", "log"))))
    def stale_write(self, number: int, write: str) -> None:
        """Who lost its epoch, or ended it before, writes nothing and is told so."""
        if not self.lost:
            return
        worker, lease = self.lost[number % len(self.lost)]
        assert lifecycle.progress(worker, [Progress(**lease.key, phase="started")]) == set()
        assert lifecycle.signalled(worker, [lease], StopKind.KILL) == set()
        assert lifecycle.release(worker, [lease]) == set()
        assert lifecycle.finish(worker, [ending(lease, int(write == "end"))]) == set()
        chunk = LogChunk(**lease.key, stream="stdout", offset=10_000, data=b"stale")
        lifecycle.keep_chunks(worker, [chunk], [(lease, "stdout", 0, 10_000)])

    @rule(job=jobs)
    def engine_away(self, job: Any) -> None:
        if held := self._held(job):
            _, start, worker = held
            step = Progress(**start.lease.key, phase=start.phase, unreachable=True)
            assert lifecycle.progress(worker, [step]) == {job}
            start.unreachable = True

    @rule()
    def give_up(self) -> None:
        """A day later: whatever is unreachable is given up as unproven, and its worker fenced."""
        lost = [job for job in self.known.values() if job.start and job.start.unreachable]
        away = JobAttempt.objects.filter(unreachable_since__isnull=False)
        assert lifecycle.give_up_unproven(3600) == 0
        away.exclude(phase=Phase.DONE).update(unreachable_since=timezone.now() - EARLIER)
        assert lifecycle.give_up_unproven(3600) == len(lost)
        for job in lost:
            start = job.start
            assert start is not None
            if start.worker is not None:
                self.lost.append((start.worker, start.lease))
            start.phase, start.reason, start.epoch = "done", "unproven", start.epoch + 1
            job.go("failed", "unproven")

    # Upkeep

    @rule(later=st.booleans())
    def requeue_due(self, later: bool) -> None:
        """`later`: all backoffs are over."""
        waiting = [job for job in self.known.values() if job.status == "retrying"]
        if later:
            rows_ = ContainerJob.objects.filter(status="retrying", scheduled_for__isnull=False)
            rows_.update(scheduled_for=timezone.now() - EARLIER)
            for job in waiting:
                job.due = True
        due = [job for job in waiting if job.due]
        assert lifecycle.requeue_due() == len(due)
        for job in due:
            job.go("queued")

    @rule()
    def expire_waiting(self) -> None:
        """Those that may wait a second have waited a day; the others wait on."""
        queue = [job for job in self.known.values() if job.status == "queued"]
        late = [job for job in queue if job.due and job.queue == "narrow"]
        assert lifecycle.expire_waiting() == 0
        rows_ = ContainerJob.objects.filter(pk__in=[job.pk for job in late])
        rows_.update(
            queue_timeout_seconds=1, queued_at=F("queued_at") - EARLIER, scheduled_for=None
        )
        assert lifecycle.expire_waiting() == len(late)
        for job in late:
            job.go("cancelled", "queue_timeout")

    # What must hold after each step

    @invariant()
    def the_rows_are_what_the_model_says(self) -> None:
        assert rows() == expectation(self.known.values(), self.histories_of_the_gone)

    @invariant()
    def the_requests_are_what_the_model_says(self) -> None:
        wanted = {
            pk: StopKind.KILL if job.kill_requested else StopKind.CANCEL
            for pk, job in self.known.items()
            if job.kill_requested or job.cancel_requested
        }
        assert lifecycle.requests(list(self.known)) == wanted

    @invariant()
    def the_records_agree(self) -> None:
        self.steps += 1
        if self.steps % LOOK_EVERY == 0:
            self._look_closely()

    def _look_closely(self) -> None:
        """Questions that cost more than a step."""
        found = consistency.findings(job_ids=list(self.known))
        assert [str(each) for each in found if each.level == consistency.FINDING] == []
        counted, told = (
            {key: value for key, value in stats.items() if key != "oldest_queued_seconds"}
            for stats in (ContainerJob.objects.stats(), stats_of_rows(ContainerJob.objects.all()))
        )
        assert counted == told

    def _refused(self, error: type[Exception], act: Any) -> None:
        try:
            act()
        except error:
            return
        raise AssertionError(f"{error.__name__} was expected")
