"""Queues need no row; a row pauses a queue or limits it."""

from __future__ import annotations

from django.db import models
from django.utils import timezone

from container_manager import ids
from container_manager.models.validators import InRange, queue_name


class Queue(models.Model):
    """What an operator decided about a queue."""

    id = models.UUIDField(primary_key=True, default=ids.uuid7, editable=False)
    name = models.CharField(max_length=100, unique=True, validators=[queue_name])
    paused = models.BooleanField(default=False)
    max_running = models.PositiveIntegerField(
        null=True,
        blank=True,
        validators=[InRange(1, 1_000_000)],
        help_text="Jobs of this queue that run at once over all workers; empty: no limit.",
    )
    created_at = models.DateTimeField(default=timezone.now, editable=False)
    updated_at = models.DateTimeField(auto_now=True)

    class Meta:
        db_table = "queues"
        ordering = ("name",)

    def __str__(self) -> str:
        return self.name
