"""Deleting settled jobs with all that belongs to them: what prune_jobs asks for."""

from __future__ import annotations

from collections.abc import Collection
from uuid import UUID

from django.db import models
from django.db.models import Exists, OuterRef

from container_manager.lifecycle import verb
from container_manager.models import ContainerJob, JobAttempt, StateHistory


def prunable(jobs: models.QuerySet[ContainerJob]) -> models.QuerySet[ContainerJob]:
    """Those of `jobs` that nothing happens to any more and that no worker holds."""
    held = JobAttempt.objects.active().filter(job=OuterRef("pk"))
    return jobs.settled().exclude(Exists(held))  # type: ignore[attr-defined, no-any-return]


@verb
def prune(job_ids: Collection[UUID], *, keep_history: bool = False) -> set[UUID]:
    """Delete these jobs, those that are still settled; returns which. Logs and attempts follow."""
    jobs = prunable(ContainerJob.objects.filter(pk__in=job_ids))
    rows = jobs.order_by("pk").select_for_update(of=("self",))
    settled = set(rows.values_list("pk", flat=True))
    ContainerJob.objects.filter(pk__in=settled).delete()
    if not keep_history:
        StateHistory.objects.filter(entity_type="job", entity_id__in=settled).delete()
    return settled
