"""What happened to jobs, runs and tasks: written by the database's triggers, never by code."""

from __future__ import annotations

from typing import Any

from django.db import models

from container_manager import ids
from container_manager.db_guard import HISTORY_TABLE
from container_manager.models.base import GuardedModel


class StateHistoryQuerySet(models.QuerySet["StateHistory"]):
    """The questions people ask of the history."""

    def of(self, entity: GuardedModel) -> StateHistoryQuerySet:
        """The whole life of one entity, oldest first."""
        rows = self.filter(entity_type=entity.entity_type, entity_id=entity.pk)
        return rows.order_by("version")

    def get_history(
        self, entity_type: str, entity_id: Any, limit: int | None = None
    ) -> list[StateHistory]:
        """The latest `limit` moves of one entity, newest first."""
        rows = self.filter(entity_type=entity_type, entity_id=entity_id).order_by("-version")
        return list(rows[:limit])


class StateHistory(models.Model):
    """One move of one entity. Append-only: the database refuses changes and forgeries."""

    id = models.UUIDField(primary_key=True, default=ids.uuid7, editable=False)
    entity_type = models.CharField(max_length=20)
    entity_id = models.UUIDField()
    old_state = models.CharField(max_length=20, null=True, blank=True)
    new_state = models.CharField(max_length=20)
    version = models.PositiveIntegerField()
    attempt = models.PositiveIntegerField(null=True, blank=True)
    actor = models.CharField(max_length=200)
    reason = models.CharField(max_length=64, blank=True)
    metadata = models.JSONField(default=dict, blank=True)
    changed_at = models.DateTimeField()
    commit_order = models.BigIntegerField(
        help_text="The transaction that wrote it: PostgreSQL's id of it, a counter on SQLite."
    )

    objects = StateHistoryQuerySet.as_manager()

    class Meta:
        db_table = HISTORY_TABLE
        verbose_name_plural = "state history"
        ordering = ("-changed_at", "-version")
        constraints = [
            models.UniqueConstraint(
                fields=["entity_type", "entity_id", "version"], name="one_history_row_per_version"
            )
        ]
        indexes = [models.Index(fields=["commit_order"], name="state_history_commit_order")]

    def __str__(self) -> str:
        return f"{self.entity_type} {self.entity_id}: {self.old_state} -> {self.new_state}"
