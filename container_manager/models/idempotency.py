"""Answers that were given to requests with an Idempotency-Key."""

from __future__ import annotations

from django.db import models
from django.utils import timezone

from container_manager import ids


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

    class Meta:
        db_table = "idempotency_keys"
        constraints = [
            models.UniqueConstraint(fields=["scope", "key"], name="one_answer_per_key"),
        ]
        indexes = [models.Index(fields=["expires_at"], name="idempotency_expires_at")]

    def __str__(self) -> str:
        return f"{self.scope} {self.key}"
