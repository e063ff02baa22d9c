"""What the first page shows: how much there is, how fast it goes, what fails, who works."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from django.contrib.admin import AdminSite
from django.http import HttpRequest
from django.template.response import TemplateResponse
from django.urls import reverse
from django.utils import timezone

from container_manager.admin.base import may_see
from container_manager.admin.compat import UNFOLD
from container_manager.models.job_counts import job_stats
from container_manager.reports import activity, machinery, publishers, workflows
from container_manager.reports.activity import BY_HAND, Slot
from container_manager.states import JobStatus, Reason
from container_manager.templatetags import cm as showing

WIDTH, HEIGHT = 600, 120
GAP = 6


def install(site: AdminSite) -> None:
    """Put the dashboard on the first page of the admin, whichever site class a project has."""
    plain = site.index

    def index(
        request: HttpRequest, extra_context: dict[str, Any] | None = None
    ) -> TemplateResponse:
        about = {"title": "Dashboard", "shown": True, "menu_beside": UNFOLD}
        shown = about | now(request.user) if may_see(request) else {}
        return plain(request, shown | (extra_context or {}))

    site.index = index  # type: ignore[method-assign]
    site.index_template = "container_manager/admin/index.html"


def now(user: Any) -> dict[str, Any]:
    """Everything that the dashboard shows."""
    stats = job_stats()
    slots = activity.throughput()
    workers = machinery.workers()
    return {
        "troubled": [each for each in publishers.publishers() if each.alarms],
        "stats": stats
        | {name: _length(stats[f"{name}_duration_ms"]) for name in ("avg", "p50", "p95")},
        "strip": strip(stats["by_status"]),
        "queues": machinery.queues(),
        "chart": chart(slots),
        "ended": sum(slot.completed + slot.failed + slot.other for slot in slots),
        "failures": failures(),
        "flows": workflows.overview(user),
        "workers": workers,
        "alive": sum(worker.alive for worker in workers),
        "running": sum(worker.running for worker in workers if worker.alive),
        "slots": sum(worker.concurrency for worker in workers if worker.alive),
    }


def _length(milliseconds: float) -> str:
    """Nothing was measured where no job has completed."""
    return showing.span(milliseconds / 1000) if milliseconds else "\N{EN DASH}"


def jobs_url(**filters: str) -> str:
    """The job list with these filters."""
    query = f"?{urlencode(filters)}" if filters else ""
    return reverse("admin:container_manager_containerjob_changelist") + query


def strip(by_status: dict[str, int]) -> list[dict[str, Any]]:
    """Each state with its count and the way to its jobs."""
    return [
        {
            "status": str(status),
            "label": status.label,
            "meaning": status.meaning,
            "count": by_status[status],
            "url": jobs_url(status=status),
        }
        for status in JobStatus
    ]


def failures() -> list[dict[str, Any]]:
    """Why jobs failed lately, the most frequent first; `share` is of the most frequent."""
    counts = activity.failures_by_reason()
    most = max(counts.values(), default=0)
    return [
        {
            "reason": word,
            "meaning": Reason(word).meaning if word in Reason.values else "Moved by hand.",
            "count": count,
            "share": round(100 * count / most),
            "url": jobs_url(status=JobStatus.FAILED, reason=word or BY_HAND),
        }
        for word, count in counts.items()
    ]


# The chart ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bar:
    """One part of a stack: what ended in one way within one stretch of time."""

    kind: str
    x: float
    y: float
    width: float
    height: float
    title: str


def chart(slots: Iterable[Slot]) -> dict[str, Any]:
    """Stacked bars of the ends of jobs, in the units of the drawing."""
    slots = list(slots)
    most = max((slot.completed + slot.failed + slot.other for slot in slots), default=0)
    step = WIDTH / max(1, len(slots))
    return {
        "width": WIDTH,
        "height": HEIGHT,
        "most": most,
        "bars": [
            bar
            for number, slot in enumerate(slots)
            for bar in _stack(slot, number * step + GAP / 2, step - GAP, HEIGHT / max(1, most))
        ],
        "first": timezone.localtime(slots[0].start) if slots else None,
        "last": timezone.localtime(slots[-1].start) if slots else None,
    }


def _stack(slot: Slot, x: float, width: float, scale: float) -> Iterable[Bar]:
    y = float(HEIGHT)
    title = (
        f"from {timezone.localtime(slot.start):%H:%M}: {slot.completed} completed,"
        f" {slot.failed} failed, {slot.other} cancelled or killed"
    )
    for kind, count in (
        ("completed", slot.completed),
        ("failed", slot.failed),
        ("other", slot.other),
    ):
        height = count * scale
        y -= height
        if count:
            yield Bar(kind, round(x, 1), round(y, 1), round(width, 1), round(height, 1), title)
