"""The duties that any worker does now and then, each small and safe to do twice at once."""

from __future__ import annotations

from container_manager import lifecycle
from container_manager.conf import settings
from container_manager.outbox import forget_old


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
    AT_ONCE, MOST = 500, 20_000

    def __call__(self) -> None:
        """In small transactions, as many as it takes: keys may come faster than one of them."""
        for _ in range(self.MOST // self.AT_ONCE):
            if lifecycle.forget_keys(self.AT_ONCE) < self.AT_ONCE:
                break


class ForgetEvents:
    """Deletes events that were kept long enough: where no relay runs somebody must."""

    EVERY_SECONDS = 5.0

    def __call__(self) -> None:
        """A few at a time: jobs wait for it."""
        forget_old(limit=1_000)
