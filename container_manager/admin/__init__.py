"""What operators run the place from: thin pages over `lifecycle`, `bulk` and `reports`."""

from django.contrib import admin

from container_manager.admin import (
    dag_runs,
    dags,
    dashboard,
    jobs,
    people,
    publishers,
    queues,
    task_instances,
    workers,
)

__all__ = [
    "dag_runs",
    "dags",
    "jobs",
    "people",
    "publishers",
    "queues",
    "task_instances",
    "workers",
]

dashboard.install(admin.site)
