"""Moves in the order in which they are told, who has been told what, and what nobody would take.

The history is the outbox: what stands here is copied from it by `sequencing`, after it committed.
"""

from __future__ import annotations

from datetime import datetime
from itertools import takewhile
from typing import Any

from django.conf import settings as django_settings
from django.db import models
from django.utils import timezone

from container_manager import ids
from container_manager.db_guard import SEQUENCER_TABLE
from container_manager.models import access
from container_manager.models.base import database_now


class EventQuerySet(models.QuerySet["Event"]):
    """The questions of those who follow what happens."""

    def after(self, sequence: int) -> EventQuerySet:
        """What came behind this one, in order."""
        return self.filter(sequence__gt=sequence).order_by("sequence")

    def visible_to(self, user: Any) -> EventQuerySet:
        """What this person may see: operators all, others what was theirs when it happened."""
        return self.all() if access.sees_all(user) else self.filter(owner=user)

    def oldest_kept(self) -> int:
        """The sequence of the oldest event that is kept; the newest plus one when none is."""
        oldest = self.order_by("sequence").values_list("sequence", flat=True).first()
        return self.newest() + 1 if oldest is None else oldest

    def newest(self) -> int:
        """The sequence that was given last; 0 when none ever was."""
        given = EventSequencer.objects.using(self.db).values_list("last_sequence", flat=True)
        return given.first() or 0

    def forget(self, since: datetime, up_to: int | None, limit: int) -> int:
        """Delete at most `limit` of the oldest that are older than `since`; returns how many.

        `up_to`: none behind this one.
        """
        oldest = self.order_by("sequence").values_list("sequence", "created_at")[:limit]
        old = [
            sequence
            for sequence, created_at in takewhile(lambda row: row[1] < since, oldest)
            if up_to is None or sequence <= up_to
        ]
        return self.filter(sequence__lte=old[-1]).delete()[0] if old else 0


class Event(models.Model):
    """One row of the history, with its place in the sequence; it outlives its entity."""

    sequence = models.BigIntegerField(primary_key=True, help_text="From 1 on, without gaps.")
    event_id = models.UUIDField(unique=True, help_text="The id of the row of the history.")
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
    owner = models.ForeignKey(
        django_settings.AUTH_USER_MODEL,
        null=True,
        blank=True,
        on_delete=models.DO_NOTHING,
        related_name="+",
        db_constraint=False,  # only the key: an event also outlives whose it was
        db_index=False,
        help_text="Whose job, or whose DAG's run or task, it was.",
    )
    created_at = models.DateTimeField(default=timezone.now, editable=False)

    objects = EventQuerySet.as_manager()

    class Meta:
        db_table = "events"
        ordering = ("sequence",)
        default_permissions = ()

    def __str__(self) -> str:
        return f"{self.sequence}: {self.entity_type} {self.entity_id} is {self.new_state}"


class EventSequencer(models.Model):
    """One row: what has its place by now. Whoever holds it gives places; nobody else does."""

    id = models.PositiveSmallIntegerField(primary_key=True, default=1)
    last_sequence = models.BigIntegerField(default=0, help_text="The place that was given last.")
    snapshot = models.TextField(
        default="", blank=True, help_text="PostgreSQL: the transactions that are dealt with."
    )
    last_order = models.BigIntegerField(
        default=0, help_text="SQLite: the commit_order up to which all is dealt with."
    )
    cluster = models.BigIntegerField(
        null=True, blank=True, help_text="PostgreSQL: the server whose transactions these are."
    )
    told_at = models.DateTimeField(
        default=timezone.now, help_text="When there was last something to give a place to."
    )

    class Meta:
        db_table = SEQUENCER_TABLE
        default_permissions = ()

    def __str__(self) -> str:
        return f"{self.last_sequence} events"


class PublisherState(models.Model):
    """How far one publisher has come, how it is, and which relay serves it."""

    alias = models.CharField(primary_key=True, max_length=64)
    position = models.BigIntegerField(
        default=0, help_text="All events up to this one are delivered, or dead letters."
    )
    delivered_at = models.DateTimeField(null=True, blank=True)
    failing_since = models.DateTimeField(
        null=True, blank=True, help_text="Empty: the latest delivery went well."
    )
    failures = models.PositiveIntegerField(default=0, help_text="In a row.")
    last_error = models.TextField(blank=True)
    next_try_at = models.DateTimeField(null=True, blank=True)
    refused = models.BigIntegerField(
        null=True, blank=True, help_text="The event that the receiver refuses; the next one is it."
    )
    tries = models.PositiveIntegerField(default=0, help_text="How often it was refused.")
    holder = models.UUIDField(null=True, blank=True, help_text="The relay that serves it.")
    epoch = models.BigIntegerField(default=0, help_text="Rises when another relay takes it over.")
    beat = models.BigIntegerField(default=0, help_text="Counts up while its holder lives.")
    created_at = models.DateTimeField(default=timezone.now, editable=False)
    updated_at = models.DateTimeField(default=timezone.now)

    class Meta:
        db_table = "publishers"
        verbose_name = "publisher"
        ordering = ("alias",)

    def __str__(self) -> str:
        return self.alias


class DeadLetterQuerySet(models.QuerySet["DeadLetter"]):
    """What people do about dead letters."""

    def of(self, alias: str) -> DeadLetterQuerySet:
        """Those of one publisher, as they happened."""
        return self.filter(publisher=alias).order_by("sequence")

    def ask_again(self) -> int:
        """Whoever serves their publishers delivers these again, soon; returns how many."""
        now = database_now(self.db)
        return self.update(wanted_at=now, updated_at=now)

    def wanted(self) -> DeadLetterQuerySet:
        """Those that somebody wants to be delivered again."""
        return self.filter(wanted_at__isnull=False)


class DeadLetter(models.Model):
    """An event that a publisher's receiver refused again and again; the others went on."""

    id = models.UUIDField(primary_key=True, default=ids.uuid7, editable=False)
    publisher = models.CharField(max_length=64, help_text="The alias.")
    sequence = models.BigIntegerField()
    event = models.JSONField(help_text="As it was to be told.")
    tries = models.PositiveIntegerField()
    error = models.TextField(help_text="What the receiver said last.")
    wanted_at = models.DateTimeField(
        null=True, blank=True, help_text="Since when somebody wants it to be delivered again."
    )
    created_at = models.DateTimeField(default=timezone.now, editable=False)
    updated_at = models.DateTimeField(default=timezone.now)

    objects = DeadLetterQuerySet.as_manager()

    class Meta:
        db_table = "dead_letters"
        ordering = ("-created_at", "-id")
        constraints = [
            models.UniqueConstraint(
                fields=["publisher", "sequence"], name="one_letter_per_publisher_and_event"
            )
        ]

    def __str__(self) -> str:
        return f"{self.publisher}: {self.sequence}"
