"""How many jobs there are and how long they took: counted by triggers, never by code.

Counters plus changes that are not folded yet are exact at every moment. `job_counts` reads them.
"""

from __future__ import annotations

from typing import Any

from django.db import models

from container_manager.db_guard import CHANGES_TABLE, COUNTS_TABLE, DURATIONS_TABLE


class JobCount(models.Model):
    """So many jobs of a scope (`*`: everybody's, `=7`: of user 7) are alike in these four."""

    pk = models.CompositePrimaryKey("scope", "status", "queue", "executor", "isolation", "part")
    scope = models.TextField()
    status = models.CharField(max_length=20)
    queue = models.CharField(max_length=100)
    executor = models.CharField(max_length=64)
    isolation = models.CharField(max_length=20)
    part = models.BigIntegerField(help_text="Of what is folded at once, each has its own.")
    jobs = models.BigIntegerField()

    class Meta:
        db_table = COUNTS_TABLE
        default_permissions = ()

    def __str__(self) -> str:
        return f"{self.scope} {self.status} {self.queue}: {self.jobs}"


class JobDuration(models.Model):
    """So many completed jobs of a scope took from `from_ms` to less than `from_ms + width`."""

    pk = models.CompositePrimaryKey("scope", "width", "from_ms", "part")
    scope = models.TextField()
    width = models.IntegerField(help_text="1,000,000, 10,000, 100 or 1 millisecond.")
    from_ms = models.BigIntegerField()
    part = models.BigIntegerField()
    jobs = models.BigIntegerField()
    total_ms = models.BigIntegerField()

    class Meta:
        db_table = DURATIONS_TABLE
        default_permissions = ()

    def __str__(self) -> str:
        return f"{self.scope} {self.from_ms}+{self.width}: {self.jobs}"


class RunningNumber(models.BigAutoField):  # type: ignore[type-arg]
    """Without SQLite's AUTOINCREMENT, which writes a second row each time; it begins again at 1."""

    def db_type_suffix(self, connection: Any) -> str | None:
        return None if connection.vendor == "sqlite" else super().db_type_suffix(connection)


class JobChange(models.Model):
    """So many more, or fewer, jobs look like this; not yet among the counters."""

    id = RunningNumber(primary_key=True)
    owner = models.TextField(blank=True, help_text="`=` and the user's key; empty: nobody.")
    status = models.CharField(max_length=20)
    queue = models.CharField(max_length=100)
    executor = models.CharField(max_length=64)
    isolation = models.CharField(max_length=20)
    duration_ms = models.BigIntegerField(null=True, help_text="Of completed jobs.")
    jobs = models.BigIntegerField()

    class Meta:
        db_table = CHANGES_TABLE
        default_permissions = ()

    def __str__(self) -> str:
        return f"{self.owner} {self.status} {self.queue}: {self.jobs:+d}"
