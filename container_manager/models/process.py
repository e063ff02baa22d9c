"""Processes that hold nothing, so that nobody must take anything over: schedulers and relays.

They say that they live for those who look after them; whoever works for them judges otherwise.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from django.db import models
from django.utils import timezone

from container_manager import ids

KEPT_FOR = timedelta(hours=1)
"""So long the row of one that died without a word says when that was."""


class ProcessKind(models.TextChoices):
    """What a process does."""

    SCHEDULER = "scheduler"
    RELAY = "relay"


class ProcessQuerySet(models.QuerySet["Process"]):
    """Who is there no more."""

    def forgettable(self, now: datetime) -> ProcessQuerySet:
        """Dead for so long that nobody needs to know."""
        return self.filter(last_beat_at__lt=now - KEPT_FOR)


class Process(models.Model):
    """One process and its last sign of life; the row goes when it ends in order."""

    id = models.UUIDField(primary_key=True, default=ids.uuid7, editable=False)
    kind = models.CharField(max_length=20, choices=ProcessKind.choices)
    name = models.CharField(max_length=255)
    hostname = models.CharField(max_length=255)
    pid = models.PositiveIntegerField()
    version = models.CharField(max_length=50)
    beat = models.BigIntegerField(default=0)
    last_beat_at = models.DateTimeField(default=timezone.now)
    started_at = models.DateTimeField(default=timezone.now)
    created_at = models.DateTimeField(default=timezone.now, editable=False)
    updated_at = models.DateTimeField(auto_now=True)

    objects = ProcessQuerySet.as_manager()

    class Meta:
        db_table = "processes"
        verbose_name_plural = "processes"
        ordering = ("-started_at", "-id")
        default_permissions = ()

    def __str__(self) -> str:
        return self.name
