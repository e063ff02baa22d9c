"""The output of jobs, byte for byte."""

from __future__ import annotations

from typing import Any

from django.db import models
from django.db.models.functions import Length
from django.utils import timezone

from container_manager import ids
from container_manager.states import Stream


class JobLogQuerySet(models.QuerySet["JobLog"]):
    """Reading what a job printed."""

    def of(self, job: Any, attempt: int | None = None, stream: str | None = None) -> JobLogQuerySet:
        """The chunks of one attempt (default: the latest), in the order they were written."""
        chunks = self.filter(job=job, attempt=attempt or job.attempt)
        if stream:
            return chunks.filter(stream=stream).order_by("offset")
        return chunks.order_by("created_at", "id")

    def content(self, job: Any, stream: str, attempt: int | None = None) -> bytes:
        """The kept bytes of one stream."""
        chunks = self.of(job, attempt, stream).values_list("data", flat=True)
        return b"".join(bytes(data) for data in chunks)

    def ends(self, job_id: Any, attempt: int) -> dict[str, int]:
        """For each stream the offset behind its last kept byte: where to go on."""
        rows = (
            self.filter(job_id=job_id, attempt=attempt)
            .values_list("stream")
            .annotate(end=models.Max(models.F("offset") + Length("data")))
        )
        return dict(rows)


class JobLog(models.Model):
    """At most 64 KiB of one output stream of one attempt."""

    id = models.UUIDField(primary_key=True, default=ids.uuid7, editable=False)
    job = models.ForeignKey(
        "container_manager.ContainerJob",
        on_delete=models.CASCADE,
        related_name="logs",
        db_index=False,  # the unique constraint below begins with it
    )
    attempt = models.PositiveIntegerField()
    stream = models.CharField(max_length=10, choices=Stream.choices)
    offset = models.BigIntegerField(help_text="Bytes of this stream before this chunk.")
    data = models.BinaryField()
    created_at = models.DateTimeField(default=timezone.now, editable=False)

    objects = JobLogQuerySet.as_manager()

    class Meta:
        db_table = "job_logs"
        ordering = ("created_at", "id")
        constraints = [
            models.UniqueConstraint(
                fields=["job", "attempt", "stream", "offset"], name="one_chunk_per_offset"
            )
        ]

    def __str__(self) -> str:
        return f"{self.stream}[{self.offset}]"
