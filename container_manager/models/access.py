"""Who may see and do what: the one place that knows."""

from __future__ import annotations

from typing import Any

OPERATE = "container_manager.operate_containerjob"
"""The permission of an operator: all jobs, queues and workers. Superusers have it."""

VIEW = "container_manager.view_containerjob"


def operates(user: Any) -> bool:
    """May this person see and move every job, and steer queues?"""
    return bool(user.has_perm(OPERATE))


def sees_all(user: Any) -> bool:
    """May this person see every job?"""
    return operates(user) or bool(user.has_perm(VIEW))


def scope(user: Any) -> Any:
    """Whose jobs this person may see, as counts and statistics take it: None means everybody's."""
    return None if sees_all(user) else user


def may_change(user: Any, row: Any) -> bool:
    """May this person change or move this job or DAG?"""
    return row.created_by_id == user.pk or operates(user)
