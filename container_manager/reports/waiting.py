"""Why a queued job still waits.

What keeps it is asked in the order in which it would have to be put right. The claim
(`models/claims.py`) is the judge, and a test holds the answers against real claims.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from django.db.models import Count, Q

from container_manager.models import ContainerJob, JobAttempt, Queue
from container_manager.models.base import database_now
from container_manager.models.lanes import COUNTED, LANES_COUNTED, Lane, ahead_of, lanes_about
from container_manager.reports.explanation import Code, Explanation, as_text, at, jobs, slots, span
from container_manager.reports.fleet import Seen, lanes_served, seen_workers
from container_manager.states import Phase

USING = "default"
FEW = 5
"""So many ids are named at most."""


def queued(job: ContainerJob, owner: Any = None) -> Explanation:
    """Everything that keeps it waiting; when nothing does, its place in the line.

    Told to `owner`, who may see no other's jobs, queues or workers (None: to one who sees all).
    """
    if (never := _never_taken(job)) is not None:
        return never
    queue = Queue.objects.filter(name=job.queue).first() or Queue(name=job.queue)
    workers = seen_workers()
    able = _able(job, workers)
    kept_by = [
        found
        for found in (
            _scheduled(job),
            _paused(queue),
            _full(queue, owner),
            None if able else _no_worker(job, workers, owner),
        )
        if found is not None
    ]
    if kept_by:
        return _together(job, kept_by)
    return _in_line(job, queue, _line(job, queue, able, workers), _Holders(able, owner))


def _together(job: ContainerJob, found: list[Explanation]) -> Explanation:
    """The first one's word; all their sentences."""
    own, more = lanes_about(USING, job.queue, others=0)
    details: dict[str, Any] = {
        "position": ahead_of(USING, job, own).get(job.queue, 0) + 1,
        "ahead_is_at_least": more,
    }
    for each in found:
        details |= each.details
    if len(found) > 1:
        details["also"] = [str(each.code) for each in found[1:]]
    return Explanation(found[0].code, " ".join(each.sentence for each in found), details)


def _never_taken(job: ContainerJob) -> Explanation | None:
    if job.retry_count > job.max_retries:
        sentence = (
            f"It was retried {job.retry_count} times and may be {job.max_retries} times: no worker"
            " takes it. Raise max_retries, or cancel it."
        )
        return Explanation(
            Code.RETRIES_USED_UP,
            sentence,
            {"retry_count": job.retry_count, "max_retries": job.max_retries},
        )
    ahead_of_it = ~Q(phase=Phase.DONE) | Q(attempt__gt=job.attempt)
    if not JobAttempt.objects.filter(ahead_of_it, job=job).exists():
        return None
    sentence = (
        "Its row contradicts its attempts (one is still held, or has a higher number), so that no"
        " worker takes it: see manage.py check_jobs."
    )
    return Explanation(Code.BARRED, sentence, {"attempt": job.attempt})


def _scheduled(job: ContainerJob) -> Explanation | None:
    now = database_now(USING)
    if job.scheduled_for is None or job.scheduled_for <= now:
        return None
    left = (job.scheduled_for - now).total_seconds()
    return Explanation(
        Code.SCHEDULED,
        f"It is scheduled for {at(job.scheduled_for)}, in {span(left)}.",
        {"scheduled_for": as_text(job.scheduled_for), "seconds_left": round(left, 1)},
    )


def _paused(queue: Queue) -> Explanation | None:
    if not queue.paused:
        return None
    return Explanation(
        Code.QUEUE_PAUSED,
        f"Its queue {queue.name} is paused; somebody must resume it.",
        {"queue": queue.name},
    )


def _full(queue: Queue, owner: Any) -> Explanation | None:
    if queue.max_running is None:
        return None
    running = _running_in(queue)
    if running < queue.max_running:
        return None
    return Explanation(
        Code.QUEUE_FULL,
        f"Its queue {queue.name} is full: {jobs(running)} of it run and {queue.max_running} may.",
        _of_limit(queue, running, owner),
    )


def _running_in(queue: Queue) -> int:
    return ContainerJob.objects.running().filter(queue=queue.name).count()


def _of_limit(queue: Queue, running: int, owner: Any) -> dict[str, Any]:
    holders = ContainerJob.objects.running().filter(queue=queue.name)
    mine = holders if owner is None else holders.owned_by(owner)
    named = mine.order_by("launched_at", "pk").values_list("pk", flat=True)[:FEW]
    return {
        "queue": queue.name,
        "max_running": queue.max_running,
        "running": running,
        "held_by": [str(pk) for pk in named],
        "held_by_others": 0 if owner is None else holders.exclude(created_by=owner).count(),
    }


# Which workers would take it


def _able(job: ContainerJob, workers: list[Seen]) -> list[Seen]:
    """Living workers that claim from its queue and offer what it asks for."""
    lane = (job.executor, str(job.isolation))
    return [
        worker
        for worker in workers
        if _claims(worker) and worker.serves_queue(job.queue)
        if lane in lanes_served(worker, workers)
    ]


def _claims(worker: Seen) -> bool:
    return worker.alive and not worker.row.draining


def _no_worker(job: ContainerJob, workers: list[Seen], owner: Any) -> Explanation:
    claiming = [worker for worker in workers if _claims(worker)]
    here = [worker for worker in claiming if worker.serves_queue(job.queue)]
    details = {
        "queue": job.queue,
        "executor": job.executor,
        "isolation": str(job.isolation),
        "workers_alive": sum(worker.alive for worker in workers),
        "offered": _offered(here or claiming, workers),
    }
    why = _why_nobody(job, workers, claiming, here, owner)
    return Explanation(Code.NO_WORKER, why, details)


def _why_nobody(
    job: ContainerJob, workers: list[Seen], claiming: list[Seen], here: list[Seen], owner: Any
) -> str:
    if not any(worker.alive for worker in workers):
        return "No worker is alive: start one with manage.py run_worker."
    if not claiming:
        return "All living workers are shutting down and take nothing more."
    if not here:
        served = sorted({name for worker in claiming for name in worker.row.queues})
        others = f"; they serve {', '.join(served)}" if owner is None else ""
        return f"No living worker serves its queue {job.queue}{others}."
    offered = _offered(here, workers)
    there = "; ".join(f"{name or 'any'}: {', '.join(kinds)}" for name, kinds in offered.items())
    silent = sorted(
        {
            alias
            for worker in here
            for alias, engine in worker.row.offers.items()
            if not engine["available"]
        }
    )
    away = f" The engine of {', '.join(silent)} does not answer." if silent else ""
    return f"No living worker offers {_wanted(job)}. Offered: {there or 'nothing'}.{away}"


def _wanted(job: ContainerJob) -> str:
    executor = f"executor {job.executor}" if job.executor else "any executor"
    return f"{executor} with isolation {job.isolation}"


def _offered(some: list[Seen], workers: list[Seen]) -> dict[str, list[str]]:
    """Executor (empty: where the job leaves it open) to isolations."""
    offered: dict[str, set[str]] = {}
    for worker in some:
        for executor, isolation in lanes_served(worker, workers):
            offered.setdefault(executor, set()).add(isolation)
    return {executor: sorted(offered[executor]) for executor in sorted(offered)}


# Its place in the line


@dataclass(frozen=True)
class _Line:
    """Who is taken before it, and how much room there is."""

    ahead_in_queue: int
    ahead: int
    more: bool
    free: int
    slots: int
    queue_room: int | None

    def details(self, job: ContainerJob) -> dict[str, Any]:
        return {
            "queue": job.queue,
            "position": self.ahead_in_queue + 1,
            "ahead": self.ahead,
            "ahead_is_at_least": self.more,
            "slots": self.slots,
            "free_slots": self.free,
        }

    @property
    def before(self) -> str:
        if not self.ahead:
            return (
                "nothing that was looked at is before it" if self.more else "nothing is before it"
            )
        verb = "is" if self.ahead == 1 else "are"
        return f"{'at least ' if self.more else ''}{jobs(self.ahead)} {verb} before it"


def _in_line(job: ContainerJob, queue: Queue, line: _Line, holders: _Holders) -> Explanation:
    if line.queue_room is not None and line.ahead_in_queue >= line.queue_room:
        return _queue_fills_up(job, queue, line, holders.owner)
    if line.ahead >= line.free:
        return _no_free_slot(job, line, holders)
    return Explanation(
        Code.NEXT,
        f"A worker takes it at its next look: {slots(line.free)} free and {line.before}.",
        line.details(job),
    )


def _line(job: ContainerJob, queue: Queue, able: list[Seen], workers: list[Seen]) -> _Line:
    near, left_out = lanes_about(USING, job.queue)
    steered = Queue.objects.filter(name__in={lane[0] for lane in near})
    rows = {row.name: row for row in steered} | {queue.name: queue}
    rivals = _rival_lanes(near, able, workers, rows)
    ahead = ahead_of(USING, job, rivals)
    room = _room(row for name, row in rows.items() if name in {job.queue, *ahead})
    taken = sum(min(count, room.get(name, count)) for name, count in ahead.items())
    return _Line(
        ahead_in_queue=ahead.get(job.queue, 0),
        ahead=taken,
        more=left_out
        or len(rivals) > LANES_COUNTED
        or any(count >= COUNTED for count in ahead.values()),
        free=sum(worker.free for worker in able),
        slots=sum(worker.row.concurrency for worker in able),
        queue_room=room.get(job.queue),
    )


def _room(rows: Iterable[Queue]) -> dict[str, int]:
    """How many more may run, of those queues that have a limit."""
    limits = {row.name: row.max_running for row in rows if row.max_running is not None}
    counts = ContainerJob.objects.running().filter(queue__in=limits).order_by()
    running = dict(counts.values_list("queue").annotate(count=Count("pk"))) if limits else {}
    return {name: max(0, most - running.get(name, 0)) for name, most in limits.items()}


def _rival_lanes(
    near: Iterable[Lane], able: list[Seen], workers: list[Seen], rows: Mapping[str, Queue]
) -> list[Lane]:
    """Of these lanes those from which those workers take."""
    served = [(worker, lanes_served(worker, workers)) for worker in able]
    return [
        lane
        for lane in near
        if not (lane[0] in rows and rows[lane[0]].paused)
        if any(worker.serves_queue(lane[0]) and lane[1:] in kinds for worker, kinds in served)
    ]


def _queue_fills_up(job: ContainerJob, queue: Queue, line: _Line, owner: Any) -> Explanation:
    running = (queue.max_running or 0) - (line.queue_room or 0)
    return Explanation(
        Code.QUEUE_FULL,
        f"Its queue {queue.name} has room for {jobs(line.queue_room or 0)} more, and"
        f" {line.before}: {queue.max_running} may run at once.",
        {**line.details(job), **_of_limit(queue, running, owner)},
    )


def _no_free_slot(job: ContainerJob, line: _Line, holders: _Holders) -> Explanation:
    free = f"{line.free or 'none'} of {line.slots} slots free"
    return Explanation(
        Code.NO_FREE_SLOT,
        f"The workers that would take it{holders.names} have {free}, and {line.before}.",
        {**line.details(job), **holders.details()},
    )


@dataclass(frozen=True)
class _Holders:
    """The workers that would take it and what they run, as `owner` may know it."""

    able: list[Seen]
    owner: Any

    @property
    def names(self) -> str:
        names = ", ".join(worker.row.name for worker in self.able[:FEW])
        return f" ({names})" if self.owner is None else ""

    def details(self) -> dict[str, Any]:
        ids = [worker.row.pk for worker in self.able]
        held = JobAttempt.objects.active().filter(worker_id__in=ids).order_by("created_at")
        if self.owner is None:
            rows = held.values_list("job_id", "worker_name")[:FEW]
            named = [{"job": str(job_id), "worker": worker} for job_id, worker in rows]
            return {"held_by": named, "held_by_others": 0}
        mine = held.filter(job__created_by=self.owner).values_list("job_id", flat=True)[:FEW]
        return {
            "held_by": [{"job": str(job_id)} for job_id in mine],
            "held_by_others": held.exclude(job__created_by=self.owner).count(),
        }
