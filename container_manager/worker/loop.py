"""The worker process: claims jobs, runs them, records what they did, looks after the dead."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Collection, Sequence
from dataclasses import replace
from functools import partial
from uuid import UUID

from django.db import connection, connections
from django.db.models import Q

from container_manager import __version__, conf, ids, lifecycle, schema
from container_manager.duties import Duty, Every, Turns
from container_manager.engines import Engines
from container_manager.executors.base import CHUNK_BYTES
from container_manager.faults import reached
from container_manager.listener import Listener
from container_manager.models import ContainerJob, Installation, JobAttempt, JobLog, Queue, Worker
from container_manager.models.base import database_now
from container_manager.models.job import WAKE_CHANNEL
from container_manager.models.leases import Claimant, Lease
from container_manager.states import JobStatus, StopKind, Stream
from container_manager.worker.crew import Crew
from container_manager.worker.heartbeat import Heartbeat
from container_manager.worker.output import OUTPUT_BYTES, Output
from container_manager.worker.reaper import Reaper
from container_manager.worker.recorder import Recorder
from container_manager.worker.rescuer import Rescuer
from container_manager.worker.runner import Run, run_inline
from container_manager.worker.sweeper import Sweeper
from container_manager.worker.upkeep import (
    ExpireWaiting,
    ForgetEvents,
    ForgetKeys,
    GiveUpUnproven,
    RequeueRetries,
)

logger = logging.getLogger("container_manager")

SCHEMA_SECONDS = 5.0
LONGEST_TICK = 0.5
REMOVED_SECONDS = 0.2
"""How often it is written which attempts left nothing behind: nobody waits for that."""


def _this_process(name: str, concurrency: int, queues: Sequence[str]) -> Worker:
    """The row that tells others of this worker."""
    hostname = socket.gethostname()
    return Worker(
        id=ids.uuid7(),
        name=name or f"{hostname}-{os.getpid()}",
        hostname=hostname,
        pid=os.getpid(),
        concurrency=concurrency,
        queues=list(queues),
        version=__version__,
    )


class WorkerLoop:
    """One worker from registration to its orderly end.

    >>> WorkerLoop(concurrency=4, until_idle=True).run()  # doctest: +SKIP
    0
    """

    def __init__(
        self,
        *,
        queues: Sequence[str] = (),
        concurrency: int | None = None,
        executors: Collection[str] = (),
        until_idle: bool = False,
        name: str = "",
    ) -> None:
        settings = conf.settings
        self._settings = settings
        self._until_idle = until_idle
        self._concurrency = concurrency or settings.CONCURRENCY
        self._queues = tuple(queues)
        self._engines = Engines(executors)
        self._worker = _this_process(name, self._concurrency, queues)
        self._claimant = Claimant(self._worker.id, self._worker.name, (), self._queues)
        self._woken = threading.Event()
        self._look = threading.Event()
        self._draining = False
        self._idle = False
        self._outdated = False
        self._recorder = Recorder(self._claimant, self._woken.set, settings.LOG_FLUSH_SECONDS)
        self._crew = Crew()
        self._sweeper = Sweeper()
        self._heartbeat = Heartbeat(self._worker, settings.LEASE_SECONDS / 3)
        self._listener = Listener(WAKE_CHANNEL, self._wake_to_look)
        self._rescuer = Rescuer(self._worker.id, settings.LEASE_SECONDS)
        self._runs: dict[UUID, Run | None] = {}
        """What is under way by job; None for what runs inside this process."""
        self._instance = ""
        self._schema: frozenset[str] = frozenset()
        self._found_nothing = False
        sqlite = connection.vendor == "sqlite"
        self._poll = Every(settings.SQLITE_POLL_SECONDS if sqlite else settings.POLL_SECONDS)
        self._ask = Every(settings.REQUEST_POLL_SECONDS)
        self._rescue = Every(settings.LEASE_SECONDS / 3)
        self._turns = Turns(f"Worker {self._worker.name}")
        self._upkeep = [
            Duty("requeueing retries", RequeueRetries(), settings.UPKEEP_SECONDS),
            Duty("expiring waits", ExpireWaiting(), settings.UPKEEP_SECONDS),
            Duty("giving up what is unproven", GiveUpUnproven(), settings.UPKEEP_SECONDS),
            Duty("forgetting keys", ForgetKeys(), ForgetKeys.EVERY_SECONDS),
            Duty("forgetting events", ForgetEvents(), ForgetEvents.EVERY_SECONDS),
        ]
        self._duties: list[Duty] = []

    # From outside

    @property
    def name(self) -> str:
        """What history and lists call this worker."""
        return self._worker.name

    def drain(self) -> None:
        """Claim nothing more, leave what can go on without this worker, end in order.

        Only a flag, which the next tick sees: a signal handler runs in the middle of the main
        thread, and that may hold the lock of any Event.
        """
        self._draining = True

    def _wake_to_look(self) -> None:
        self._look.set()
        self._woken.set()

    # The life of the process

    def run(self) -> int:
        """Work until drained or, with `until_idle`, until there is nothing left. Exit code."""
        self._begin()
        try:
            while not self._draining and not self._idle:
                self._woken.wait(self._seconds_to_wait())
                self._woken.clear()
                reached("U4")
                self._turns.take(self._duties)
                if not self._heartbeat.is_alive:
                    logger.error("Worker %s: its heartbeat ended; stopping", self._worker.name)
                    return 1
        finally:
            self._leave()
        return 1 if self._outdated else 0

    def _begin(self) -> None:
        self._engines.start()
        self._instance = Installation.instance()
        self._schema = schema.applied("default")
        self._duties = self._all_duties()
        self._worker.offers = self._engines.described()
        self._worker.started_at = self._worker.last_beat_at = database_now("default")
        self._worker.save(force_insert=True)
        self._heartbeat.start()
        self._listener.start()
        logger.info(
            "Worker %s: started, %s at once, queues %s, executors %s",
            self._worker.name,
            self._concurrency,
            ", ".join(self._queues) or "all",
            ", ".join(self._worker.offers) or "none that answers",
        )

    def _seconds_to_wait(self) -> float:
        now = time.monotonic()
        waits = [LONGEST_TICK, self._rescue.left(now)]
        if self._free > 0:
            waits.append(self._poll.left(now))
        if self._runs:
            waits += [self._ask.left(now), self._recorder.seconds_to_wait(now)]
            waits += [run.deadline - now for run in self._runs.values() if run and run.deadline]
        return max(0.0, min(waits))

    def _all_duties(self) -> list[Duty]:
        """In the order in which they are done; the last of them looks at what is left to do."""
        reaper = Reaper(self._engines, self._instance, self._sweeper)
        return [
            Duty("recording", self._record),
            Duty("recording what was removed", self._sweeper.record, REMOVED_SECONDS),
            Duty("answering requests", self._answer_requests),
            Duty("enforcing deadlines", self._enforce_deadlines),
            Duty("renewing offers", self._renew_offers, self._settings.UPKEEP_SECONDS),
            Duty("dropping what is lost", self._let_go_of_lost, self._settings.LEASE_SECONDS / 3),
            Duty("adopting orphans", self._adopt_orphans),
            *self._upkeep,
            Duty("looking for remains", reaper.look, Reaper.EVERY_SECONDS),
            Duty("removing remains", reaper.reap),
            Duty("comparing the schema", self._compare_schema, SCHEMA_SECONDS),
            Duty("claiming", self._claim),
            Duty("looking for an end", self._look_for_an_end),
        ]

    # Recording

    def _record(self) -> None:
        for ending, was_ours in self._recorder.flush():
            run = self._runs.get(ending.job_id)
            if run is not None and run.lease.key != ending.key:
                continue
            self._runs.pop(ending.job_id, None)
            if run is not None and was_ours:
                self._sweeper.sweep(run.lease, run.engine, run.execution)
        self._drop_lost()

    def _drop_lost(self) -> None:
        lost = [run for run in self._runs.values() if run is not None and run.is_lost]
        given_up = [run.lease for run in lost if run.gave_up]
        if given_up:
            lifecycle.release(self._claimant, given_up)
        for run in lost:
            del self._runs[run.lease.job_id]

    # Claiming

    @property
    def _free(self) -> int:
        return self._concurrency - len(self._runs)

    def _claim(self) -> None:
        if not self._should_look(time.monotonic()) or self._free <= 0 or self._heartbeat.is_late:
            return  # what is claimed by one that others take for dead is theirs at once
        asked = min(self._free, self._settings.CLAIM_BATCH)
        leases = lifecycle.claim(self._claimant, asked)
        self._found_nothing = len(leases) < asked
        if leases:
            self._start(leases)
            self._woken.set()

    def _should_look(self, now: float) -> bool:
        """After a full catch at once; else when woken, or when it is time to poll."""
        woken = self._look.is_set()
        if woken:
            self._look.clear()
        return self._poll.is_due(now) or woken or not self._found_nothing

    def _start(self, leases: Sequence[Lease]) -> None:
        inline: dict[str, list[Lease]] = {}
        for lease in leases:
            if self._engines[lease.executor].capabilities.in_process:
                inline.setdefault(lease.executor, []).append(lease)
            else:
                self._start_run(lease)
        for alias, batch in inline.items():
            self._crew.do(partial(self._run_inline, alias, batch), alias)
            self._runs |= dict.fromkeys(lease.job_id for lease in batch)

    def _run_inline(self, alias: str, batch: Sequence[Lease]) -> None:
        """On a thread that others use later: what the jobs opened there is closed."""
        run_inline(batch, self._engines[alias].executor, self._instance, self._recorder)
        connections.close_all()

    def _start_run(self, lease: Lease) -> None:
        if before := self._runs.get(lease.job_id):
            before.let_go()
        engine = self._engines[lease.executor]
        output = self._output_of(lease)
        run = Run(lease, engine, self._instance, self._recorder, output)
        self._crew.do(run.run, lease.name)  # where no thread is to be had it is an orphan of ours
        self._runs[lease.job_id] = run

    def _output_of(self, lease: Lease) -> Output:
        cap = self._settings.LOG_CAP_BYTES
        output = partial(Output, lease, cap, wake=self._woken.set, news=self._recorder.output_came)
        if not lease.adopted:
            return output({})
        ends = JobLog.objects.ends(lease.job_id, lease.attempt)
        last = JobLog.objects.filter(
            job_id=lease.job_id,
            attempt=lease.attempt,
            stream=Stream.STDOUT,
            offset__gt=ends.get(Stream.STDOUT, 0) - OUTPUT_BYTES - CHUNK_BYTES,
        )
        pieces = last.order_by("offset").values_list("data", flat=True)
        tail = b"".join(map(bytes, pieces))[-OUTPUT_BYTES:]
        return output(ends, tail)

    # Stopping jobs

    def _answer_requests(self) -> None:
        if not self._runs or not (self._ask.is_due(time.monotonic()) or self._look.is_set()):
            return
        asked = lifecycle.requests([job_id for job_id, run in self._runs.items() if run])
        for kind in (StopKind.KILL, StopKind.CANCEL):
            self._stop([job_id for job_id, wanted in asked.items() if wanted == kind], kind)

    def _enforce_deadlines(self) -> None:
        now = time.monotonic()
        late = {
            job_id: run
            for job_id, run in self._runs.items()
            if run is not None and run.deadline is not None and run.deadline <= now
        }
        self._stop(late, StopKind.TIMEOUT)
        for run in late.values():
            run.deadline = None

    def _stop(self, job_ids: Collection[UUID], kind: StopKind) -> None:
        """Commit that they are about to be signalled, then signal those that are still ours."""
        runs = [run for job_id in job_ids if (run := self._runs.get(job_id)) and run.may_ask(kind)]
        if not runs:
            return
        self._recorder.write_steps()  # what was told before
        mine = lifecycle.signalled(self._claimant, [run.lease for run in runs], kind)
        for run in runs:
            if run.lease.job_id in mine:
                run.stop(kind)
            else:
                run.let_go()

    # Offers and orphans

    def _let_go_of_lost(self) -> None:
        """What was abandoned or adopted meanwhile; a silent job might not tell us for days."""
        held = JobAttempt.objects.held_by(self._worker.pk)
        ours = set(held.values_list("job_id", "attempt", "lease_epoch"))
        for run in self._runs.values():
            if run is not None and tuple(run.lease.key.values()) not in ours:
                run.let_go()

    def _renew_offers(self) -> None:
        gone = [*self._rescuer.known_dead, self._worker.pk]
        others = Worker.objects.exclude(pk__in=gone).values_list("offers", flat=True)
        offers = self._engines.offers(others)
        self._claimant = replace(self._claimant, offers=offers)
        described = self._engines.described()
        if described != self._worker.offers:
            self._worker.offers = described
            Worker.objects.filter(pk=self._worker.pk).update(offers=described)
        self._heartbeat.register_again()

    def _adopt_orphans(self) -> None:
        if not self._rescue.is_due(time.monotonic()):
            return
        most = max(self._concurrency, 1)
        adopted = self._rescuer.rescue(self._claimant, self._engines, most, list(self._runs))
        for lease in adopted:
            self._start_run(lease)
        for lease in adopted:
            if lease.stop_kind:
                self._stop([lease.job_id], StopKind(lease.stop_kind))

    # The end

    def _compare_schema(self) -> None:
        """Another release has changed the tables: what runs is left to workers of that release."""
        found = schema.applied("default")
        if found != self._schema:
            self._outdated = True
            self.drain()
            logger.error(
                "Worker %s: the database was migrated (%s); ending, start the code that fits it",
                self._worker.name,
                ", ".join(sorted(found ^ self._schema)),
            )

    def _look_for_an_end(self) -> None:
        self._idle = self._is_idle()

    def _is_idle(self) -> bool:
        if not self._until_idle or self._runs or not self._found_nothing:
            return False
        if not (self._recorder.is_empty and self._sweeper.is_idle):
            return False
        return not self._something_waits()

    def _something_waits(self) -> bool:
        """Would something here run by itself, now or after a backoff?"""
        jobs = ContainerJob.objects.all()
        if self._queues:
            jobs = jobs.filter(queue__in=self._queues)
        closed = Queue.objects.filter(Q(paused=True) | Q(max_running=0))
        jobs = jobs.exclude(queue__in=closed.values("name"))
        if jobs.filter(status=JobStatus.RETRYING).exists():
            return True
        served = {(offer.executor, offer.isolation) for offer in self._claimant.offers}
        lanes = jobs.ready().order_by().values_list("executor", "isolation").distinct()
        return any(lane in served for lane in lanes)

    def _leave(self) -> None:
        """Stop what cannot outlive this worker, let go of the rest, write what is left."""
        ends_at = time.monotonic() + self._settings.DRAIN_SECONDS
        self._recorder.hurry()
        self._turns.insist("announcing the drain", self._announce_drain)
        draining = [
            Duty("recording", self._record),
            Duty("answering requests", self._answer_requests),
            Duty("letting go", self._drain_tick),
        ]
        while self._runs and time.monotonic() < ends_at:
            self._woken.wait(0.05)
            self._woken.clear()
            self._turns.take(draining)
        while not self._sweeper.is_idle and time.monotonic() < ends_at:
            time.sleep(0.01)
        self._turns.insist("recording what was removed", self._sweeper.record)
        self._crew.dismiss()
        self._listener.stop()
        self._heartbeat.stop()
        self._turns.insist("unregistering", self._unregister)
        self._engines.stop()
        connection.close()
        logger.info("Worker %s: ended", self._worker.name)

    def _announce_drain(self) -> None:
        Worker.objects.filter(pk=self._worker.pk).update(draining=True)

    def _drain_tick(self) -> None:
        ours = {job_id: run for job_id, run in self._runs.items() if run is not None}
        bound = [
            job_id
            for job_id, run in ours.items()
            if not self._engines[run.lease.executor].capabilities.outlives_worker
        ]
        self._stop(bound, StopKind.DRAIN)
        self._hand_over(
            [run for job_id, run in ours.items() if job_id not in bound and run.has_started]
        )

    def _hand_over(self, runs: Sequence[Run]) -> None:
        """They go on without us: from now on another worker may adopt them."""
        for run in runs:
            run.let_go()
        if runs:
            lifecycle.release(self._claimant, [run.lease for run in runs])
        for run in runs:
            self._runs.pop(run.lease.job_id, None)

    def _unregister(self) -> None:
        """Without its row everything it held is an orphan at once."""
        Worker.objects.filter(pk=self._worker.pk).delete()
