"""What the counters say, held against the rows."""

from __future__ import annotations

import random

from django.contrib.auth import get_user_model
from django.db import connection

from container_manager import db_guard
from container_manager.models import ContainerJob
from container_manager.models.base import guarded_tables
from container_manager.models.job_counts import count_jobs, counts_by_queue, job_stats
from container_manager.models.job_stats import stats_of_rows

NOTHING = """
INSERT INTO job_changes (owner, status, queue, executor, isolation, duration_ms, jobs)
WITH RECURSIVE n (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < %s)
SELECT '', 'completed', 'default', '', 'auto', n + %s, 0 FROM n
"""


def fold() -> None:
    """Write so many changes, of no jobs, that all are folded."""
    with connection.cursor() as cursor:
        cursor.execute(NOTHING, [db_guard.FOLD_EVERY, random.randrange(10**12)])


def miscounts() -> list[str]:
    return db_guard.miscounts(connection, guarded_tables())


def assert_exact() -> None:
    """Every counter, and every number that is read from them."""
    assert miscounts() == []
    everybody = [None, *get_user_model().objects.order_by("pk")]
    for owner in everybody:
        mine = ContainerJob.objects.all() if owner is None else ContainerJob.objects.owned_by(owner)
        told, true = job_stats(owner), stats_of_rows(mine)
        waited, really = told.pop("oldest_queued_seconds"), true.pop("oldest_queued_seconds")
        assert told == true
        assert abs(waited - really) < 5
        assert count_jobs(owner) == true["total"]
        by_queue = counts_by_queue(owner)
        assert {name: sum(counts.values()) for name, counts in by_queue.items()} == true["by_queue"]
