"""Answers that were given to requests with an Idempotency-Key."""

from __future__ import annotations

from datetime import datetime, timedelta

from django.db import models
from django.utils import timezone

from container_manager import ids


class IdempotencyKeyQuerySet(models.QuerySet["IdempotencyKey"]):
    """Who was first with a key."""

    def take(
        self, scope: str, key: str, body_hash: str, now: datetime, keep_for: timedelta
    ) -> tuple[IdempotencyKey, bool]:
        """The row of this key, and whether this call made it.

        Inside a transaction: whoever comes second waits until the first one has committed.
        """
        self.filter(scope=scope, key=key, expires_at__lte=now).delete()
        mine = ids.uuid7()
        # An update of nothing where there is a row: it locks it, so that nobody deletes it now.
        self.bulk_create(
            [
                IdempotencyKey(
                    id=mine, scope=scope, key=key, body_hash=body_hash, expires_at=now + keep_for
                )
            ],
            update_conflicts=True,
            unique_fields=["scope", "key"],
            update_fields=["updated_at"],
        )
        kept = self.get(scope=scope, key=key)
        return kept, kept.pk == mine


class IdempotencyKey(models.Model):
    """One request that must not act twice, and the answer that it got."""

    id = models.UUIDField(primary_key=True, default=ids.uuid7, editable=False)
    scope = models.CharField(max_length=255, help_text="Who asked for what: user and call.")
    key = models.CharField(max_length=255, help_text="As the client sent it.")
    body_hash = models.CharField(max_length=64, help_text="SHA-256 of the request's body.")
    answer = models.JSONField(default=dict, help_text="The body of the first answer.")
    expires_at = models.DateTimeField()
    created_at = models.DateTimeField(default=timezone.now, editable=False)
    updated_at = models.DateTimeField(auto_now=True)

    objects = IdempotencyKeyQuerySet.as_manager()

    class Meta:
        db_table = "idempotency_keys"
        constraints = [
            models.UniqueConstraint(fields=["scope", "key"], name="one_answer_per_key"),
        ]
        indexes = [models.Index(fields=["expires_at"], name="idempotency_expires_at")]

    def __str__(self) -> str:
        return f"{self.scope} {self.key}"
