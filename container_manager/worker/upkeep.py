"""The duties that any worker does now and then, each small and safe to do twice at once."""

from __future__ import annotations

from datetime import timedelta
from functools import partial

from django.utils import timezone

from container_manager import lifecycle
from container_manager.conf import settings
from container_manager.engines import Engines
from container_manager.executors.base import Execution, Executor
from container_manager.models import JobAttempt
from container_manager.states import Phase, Reason
from container_manager.worker.sweeper import Sweeper


class RequeueRetries:
    """Puts jobs whose backoff is over back into the queue."""

    def __call__(self) -> None:
        lifecycle.requeue_due()


class ExpireWaiting:
    """Cancels jobs that waited longer than their queue_timeout_seconds."""

    def __call__(self) -> None:
        lifecycle.expire_waiting()


class GiveUpUnproven:
    """Fails jobs whose engine stayed away too long; does nothing unless a limit is set."""

    def __call__(self) -> None:
        if (seconds := settings.LOST_AFTER_SECONDS) is not None:
            lifecycle.give_up_unproven(seconds)


class ForgetKeys:
    """Deletes Idempotency-Keys that have expired."""

    EVERY_SECONDS = 60.0

    def __call__(self) -> None:
        lifecycle.forget_keys()


class SweepRemains:
    """Removes what ended attempts left on this worker's engines, when its own worker could not."""

    AFTER = timedelta(seconds=60)
    BARRED_AFTER = timedelta(hours=1)
    BATCH = 50

    def __init__(self, engines: Engines, instance: str, sweeper: Sweeper) -> None:
        self._engines = engines
        self._instance = instance
        self._sweeper = sweeper

    def __call__(self) -> None:
        for attempt in self._remains():
            engine = self._engines.for_id(attempt.executor, attempt.engine_id)
            if engine is not None:
                key = {"job_id": attempt.job_id, "attempt": attempt.attempt, "epoch": 0}
                removal = partial(self._sweep, attempt, engine.executor)
                self._sweeper.do(attempt.name, key, removal)

    def _remains(self) -> list[JobAttempt]:
        """Those that were left alone longest; looked at once more after `AFTER`."""
        now = timezone.now()
        left = JobAttempt.objects.filter(phase=Phase.DONE, cleaned_up=False)
        places = left.order_by().values_list("executor", "engine_id").distinct()
        ours = [
            engine_id for place in places if self._engines.for_id(*place) for engine_id in place[1:]
        ]
        due = left.filter(engine_id__in=ours, updated_at__lt=now - self.AFTER).exclude(
            reason=Reason.WORKER_LOST, updated_at__gt=now - self.BARRED_AFTER
        )
        found = list(due.order_by("updated_at")[: self.BATCH])
        JobAttempt.objects.filter(pk__in=[each.pk for each in found]).update(updated_at=now)
        return found

    def _sweep(self, attempt: JobAttempt, executor: Executor) -> None:
        found = executor.find(attempt.name, self._instance)
        if found is not None:
            executor.stop(found, grace=0)
        executor.remove(found or Execution(attempt.name, attempt.execution_id or attempt.name))
