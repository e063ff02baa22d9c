"""Worker processes and the installation they belong to."""

from __future__ import annotations

import uuid

from django.db import models
from django.utils import timezone

from container_manager import conf, ids


class Worker(models.Model):
    """One worker process: a fresh id at every start, and a beat that counts up while it lives.

    It is dead when its beat stood still for a full lease on the observer's own monotonic clock;
    nobody compares the clocks of two machines.
    """

    id = models.UUIDField(primary_key=True, default=ids.uuid7, editable=False)
    name = models.CharField(max_length=255)
    hostname = models.CharField(max_length=255)
    pid = models.PositiveIntegerField()
    beat = models.BigIntegerField(default=0)
    last_beat_at = models.DateTimeField(default=timezone.now, help_text="For people only.")
    concurrency = models.PositiveIntegerField()
    queues = models.JSONField(default=list, blank=True, help_text="Empty: all.")
    offers = models.JSONField(
        default=dict, blank=True, help_text="Executor alias to engine id and isolations."
    )
    draining = models.BooleanField(default=False)
    version = models.CharField(max_length=50)
    started_at = models.DateTimeField(default=timezone.now)
    created_at = models.DateTimeField(default=timezone.now, editable=False)
    updated_at = models.DateTimeField(auto_now=True)

    class Meta:
        db_table = "workers"
        ordering = ("-started_at",)

    def __str__(self) -> str:
        return self.name


class Installation(models.Model):
    """One row: the name that tells our containers from those of other installations."""

    id = models.PositiveSmallIntegerField(primary_key=True, default=1)
    instance_id = models.UUIDField(default=uuid.uuid4, editable=False)
    created_at = models.DateTimeField(default=timezone.now, editable=False)
    updated_at = models.DateTimeField(auto_now=True)

    class Meta:
        db_table = "container_manager_installation"

    def __str__(self) -> str:
        return str(self.instance_id)

    @classmethod
    def instance(cls) -> str:
        """The instance label's value: from the settings, else made once for this database."""
        row = conf.settings.INSTANCE_ID or cls.objects.get_or_create(pk=1)[0].instance_id
        return str(row)
