"""The duties that any worker does now and then, each small and safe to do twice at once."""

from __future__ import annotations

import logging
from datetime import timedelta

from django.utils import timezone

from container_manager import lifecycle
from container_manager.conf import settings
from container_manager.executors.base import Execution, Executor, ExecutorError
from container_manager.models import JobAttempt
from container_manager.states import Phase, Reason
from container_manager.worker.engines import Engines

logger = logging.getLogger("container_manager")


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


class SweepRemains:
    """Removes what ended attempts left on this worker's engines, when its own worker could not."""

    AFTER = timedelta(seconds=60)
    BARRED_AFTER = timedelta(hours=1)
    BATCH = 50

    def __init__(self, engines: Engines, instance: str) -> None:
        self._engines = engines
        self._instance = instance

    def __call__(self) -> None:
        for attempt in self._remains():
            engine = self._engines.for_id(attempt.executor, attempt.engine_id)
            if engine is None:
                continue
            try:
                self._sweep(attempt, engine.executor)
            except ExecutorError as error:
                logger.warning("%s: not removed yet: %s", attempt.name, error)

    def _remains(self) -> list[JobAttempt]:
        now = timezone.now()
        left = JobAttempt.objects.filter(
            phase=Phase.DONE,
            cleaned_up=False,
            engine_id__in=self._engines.reachable_ids(),
            updated_at__lt=now - self.AFTER,
        ).exclude(reason=Reason.WORKER_LOST, updated_at__gt=now - self.BARRED_AFTER)
        return list(left.order_by("updated_at")[: self.BATCH])

    def _sweep(self, attempt: JobAttempt, executor: Executor) -> None:
        found = executor.find(attempt.name, self._instance)
        if found is not None:
            executor.stop(found, grace=0)
        executor.remove(found or Execution(attempt.name, attempt.execution_id or attempt.name))
        JobAttempt.objects.filter(pk=attempt.pk).update(cleaned_up=True)
