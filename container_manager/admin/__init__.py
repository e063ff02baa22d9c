"""What operators run the place from: thin pages over `lifecycle`, `bulk` and `reports`."""

from django.contrib import admin

from container_manager.admin import dashboard, jobs, people, queues, workers

__all__ = ["jobs", "people", "queues", "workers"]

dashboard.install(admin.site)
