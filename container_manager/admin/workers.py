"""Workers, schedulers and relays with their last sign of life, and the executors there are."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.http import HttpRequest, HttpResponse
from django.urls import URLPattern

from container_manager.admin.base import OperatorAdmin
from container_manager.models import Worker
from container_manager.reports import machinery


@admin.register(Worker)
class WorkerAdmin(OperatorAdmin):
    """Only to look at: workers come and go by themselves."""

    own_pages = {"": "changelist", "live/": "live"}

    def get_urls(self) -> list[URLPattern]:
        return self.pages()

    def changelist(self, request: HttpRequest) -> HttpResponse:
        return self.page(request, "workers.html", "Workers, schedulers, executors", **_machinery())

    def live(self, request: HttpRequest) -> HttpResponse:
        """The same, as it stands now."""
        return self.piece(request, "workers_live.html", **_machinery())


def _machinery() -> dict[str, Any]:
    return {
        "workers": machinery.workers(),
        "processes": machinery.processes(),
        "executors": machinery.executors(),
    }
