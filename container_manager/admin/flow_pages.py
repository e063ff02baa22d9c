"""What the pages of DAGs, runs and tasks share."""

from __future__ import annotations

import hashlib
import json
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

from django.contrib import admin
from django.core.exceptions import PermissionDenied
from django.core.paginator import Paginator
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.urls import URLPattern, reverse
from django.utils.html import format_html
from django.utils.safestring import SafeString

from container_manager.admin import drawing, filters
from container_manager.admin.base import OperatorAdmin
from container_manager.models import access
from container_manager.reports.workflows import OfName
from container_manager.states import WorkflowState
from container_manager.templatetags import cm as showing
from container_manager.templatetags.cm_workflows import flow_reason, flow_state, words
from container_manager.workflows.cron import BadSchedule, Schedule, zone_of
from container_manager.workflows.graph import Graph

Url = str


class FlowAdmin(OperatorAdmin):
    """Pages of what belongs to a DAG: nobody sees that of a DAG that is not theirs to see."""

    list_display_links = None
    list_per_page = 50
    list_max_show_all = 200
    show_full_result_count = False
    show_facets = admin.ShowFacets.NEVER
    change_list_template = "container_manager/admin/flow_list.html"

    def get_urls(self) -> list[URLPattern]:
        return self.pages() + super().get_urls()

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        return self.model._default_manager.visible_to(request.user)  # type: ignore[no-any-return]

    def lookup_allowed(self, lookup: str, value: str, request: HttpRequest | None = None) -> bool:
        """Nothing but the filters: an address must not probe other columns."""
        return lookup in {each.parameter_name for each in self.list_filter}  # type: ignore[union-attr]

    def get_paginator(
        self, request: HttpRequest, queryset: Any, per_page: int, *given: Any, **named: Any
    ) -> Paginator[Any]:
        return filters.JobPaginator(queryset, per_page, *given, known=lambda: None, **named)

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: Any = None
    ) -> HttpResponse:
        """Where it stands; nothing is changed from here."""
        if not self.has_view_permission(request) or request.method not in ("GET", "HEAD"):
            raise PermissionDenied
        found: Any = self.get_object(request, object_id)
        if found is None:
            return self._get_obj_does_not_exist_redirect(request, self.opts, object_id)  # type: ignore[attr-defined, no-any-return]
        return self.page_of(request, found)

    @abstractmethod
    def page_of(self, request: HttpRequest, found: Any) -> HttpResponse:
        """The page of one."""

    def ask(self, request: HttpRequest, title: str, **shown: Any) -> HttpResponse:
        """A question before something is done."""
        return self.page(request, "flow_confirm.html", title, **shown)


def refuse_strangers(request: HttpRequest, dags: Iterable[Any]) -> None:
    """Only who may change each of these DAGs goes on."""
    if not all(access.may_change(request.user, dag) for dag in dags):
        raise PermissionDenied


def posted_only(request: HttpRequest) -> None:
    if request.method != "POST":
        raise PermissionDenied


def sent(request: HttpRequest) -> Any:
    """What a form was sent with, were it nothing; None where it is only shown."""
    return request.POST if request.method == "POST" else None


def hash_of(*shown: Any) -> str:
    """Changes when what is shown does."""
    return hashlib.sha256(json.dumps(shown, default=str).encode()).hexdigest()[:16]


# Addresses ----------------------------------------------------------------------------------------


def dag_url(dag: Any, page: str = "change") -> Url:
    return reverse(f"admin:container_manager_dag_{page}", args=[dag])


def run_url(run: Any, page: str = "change", *more: Any) -> Url:
    return reverse(f"admin:container_manager_dagrun_{page}", args=[run, *more])


def task_url(task: Any, page: str = "change", *more: Any) -> Url:
    return reverse(f"admin:container_manager_taskinstance_{page}", args=[task, *more])


def way_to(run: Any, name: str) -> Url:
    """To the task of that name, or of an array to the list of its tasks."""
    return run_url(run, "task", name)


# In words -----------------------------------------------------------------------------------------


@lru_cache(maxsize=1_000)
def in_words(schedule: str) -> str:
    """What a cron expression says; empty where there is nothing to say."""
    try:
        return Schedule.parse(schedule).explain() if schedule else ""
    except BadSchedule:
        return ""


def state_and_reason(row: Any) -> SafeString:
    """Of a run or a task, in a list."""
    if not row.reason:
        return flow_state(row.state)
    return format_html("{}<div>{}</div>", flow_state(row.state), flow_reason(row.reason))


def counted(counts: Mapping[str, int]) -> str:
    """
    >>> counted({"success": 2, "upstream_failed": 1})
    '2 success, 1 upstream failed'
    """
    said = ((counts.get(state, 0), state) for state in WorkflowState)
    return ", ".join(f"{count:,} {words(state)}" for count, state in said if count)


def told_of(tasks: OfName) -> str:
    """The state of the task, or how many of an array stand where."""
    return counted(tasks.counts) if tasks.is_array else words(tasks.state)


def title_of_run(run: Any) -> str:
    """What a square of a run says when it is pointed at."""
    when = showing.exact(run.execution_date)
    took = f" · took {showing.span(run.duration)}" if run.duration is not None else ""
    return f"{words(run.state)} · {when}{took}"


def title_of_tasks(tasks: OfName) -> str:
    """The same of the tasks of one name."""
    took = ""
    if tasks.started_at and tasks.ended_at:
        took = f" · {showing.span(max(0.0, (tasks.ended_at - tasks.started_at).total_seconds()))}"
    return f"{showing.visible(tasks.name)}: {told_of(tasks)}{took}"


LEGEND = [
    {"state": str(state), "words": words(state), "meaning": state.meaning}
    for state in WorkflowState
]


# The graph ----------------------------------------------------------------------------------------

LONGEST_LABEL = 18
"""Characters of a name that its box has room for."""


@dataclass(frozen=True)
class Box:
    """A node of the drawn graph with what it says."""

    node: drawing.Node
    label: str
    told: str
    state: str
    title: str
    url: Url


def graph(graph: Graph, boxes: Mapping[str, Mapping[str, str]]) -> dict[str, Any]:
    """The drawn graph; `boxes` says of each name: told, state, title, url."""
    drawn = drawing.draw(graph)
    return {
        "width": drawn.width,
        "height": drawn.height,
        "node_width": drawing.NODE_WIDTH,
        "node_height": drawing.NODE_HEIGHT,
        "edges": drawn.edges,
        "boxes": [
            Box(node, showing.visible(shortened(node.name)), **boxes[node.name])
            for node in drawn.nodes
        ],
    }


def shortened(name: str) -> str:
    """
    >>> shortened("a-name-that-is-too-long-for-its-box")
    'a-name-t…-its-box'
    """
    if len(name) <= LONGEST_LABEL:
        return name
    half = (LONGEST_LABEL - 1) // 2
    return f"{name[:half]}\N{HORIZONTAL ELLIPSIS}{name[-half:]}"


def _told(tasks: OfName) -> str:
    """The state of its box; of an array how many of how many stand there."""
    if not tasks.is_array:
        return words(tasks.state)
    return f"{tasks.counts[tasks.state]:,} of {tasks.total:,} {words(tasks.state)}"


def on_the_wall(dag: Any, moment: datetime) -> str:
    """What the clock of the DAG's time zone shows then; in UTC where that zone is gone."""
    try:
        zone: Any = zone_of(dag.timezone)
    except BadSchedule:
        zone = UTC
    return f"{moment.astimezone(zone):%a %Y-%m-%d %H:%M}"


def boxes_of(run: Any, tasks: Sequence[OfName]) -> dict[str, dict[str, str]]:
    """What the boxes of a run's graph say."""
    return {
        each.name: {
            "told": _told(each),
            "state": each.state,
            "title": title_of_tasks(each),
            "url": way_to(run.pk, each.name),
        }
        for each in tasks
    }
