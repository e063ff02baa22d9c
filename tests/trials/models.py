from __future__ import annotations

from django.db import models

from container_manager.models.base import GuardedModel, GuardedQuerySet
from container_manager.states import WORKFLOW, WorkflowState


class Trial(GuardedModel):
    """A row with the workflow's states."""

    machine = WORKFLOW
    state_field = "state"
    entity_type = "trial"

    state = models.CharField(max_length=20, default=WorkflowState.QUEUED)

    objects = GuardedQuerySet.as_manager()

    class Meta:
        db_table = "trials"

    def __str__(self) -> str:
        return str(self.pk)
