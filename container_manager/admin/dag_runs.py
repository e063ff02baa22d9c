"""Runs of DAGs: the list, the page of one with its graph and its times, cancel and retry."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from urllib.parse import urlencode
from uuid import UUID

from django.contrib import admin, messages
from django.core.paginator import Paginator
from django.db.models import Q, QuerySet
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseBase, HttpResponseRedirect
from django.utils import timezone
from django.utils.html import format_html
from django.utils.safestring import SafeString

from container_manager import states
from container_manager.admin import drawing, job_page
from container_manager.admin.base import actor, nothing_new
from container_manager.admin.filters import WordFilter
from container_manager.admin.flow_pages import (
    LEGEND,
    FlowAdmin,
    boxes_of,
    counted,
    dag_url,
    graph,
    hash_of,
    refuse_strangers,
    run_url,
    state_and_reason,
    task_url,
    title_of_tasks,
    way_to,
)
from container_manager.exceptions import ContainerManagerError
from container_manager.models import DagRun, TaskInstance, access
from container_manager.reports import workflows as reports
from container_manager.reports.workflows import OfName
from container_manager.states import RunType, Words, WorkflowState
from container_manager.templatetags import cm as showing
from container_manager.templatetags.cm_workflows import flow_took, words
from container_manager.workflows import runs
from container_manager.workflows.plan import Plan, plan_of

_W = WorkflowState

TASKS_ON_A_PAGE = 100

NAMES_TOLD = 5
"""Failed tasks that the sentence above a run names."""

GROWS_SECONDS = 10
"""How often the chart of a run is drawn anew while nothing but the time has changed."""


class RunVerb(Words):
    """What a person may do to a run."""

    CANCEL = "cancel", "What waits is skipped, what runs is asked to stop, then the run is failed."
    RETRY = "retry", "Go on from the tasks that failed; what is done is kept."


class RunStateFilter(WordFilter):
    title, parameter_name = "state", "state"

    def words(self) -> list[tuple[str, str]]:
        never = (_W.SKIPPED, _W.UPSTREAM_FAILED)
        return [(state.value, state.label) for state in WorkflowState if state not in never]


class TypeFilter(WordFilter):
    title, parameter_name = "type", "run_type"

    def words(self) -> list[tuple[str, str]]:
        return RunType.choices


@admin.register(DagRun)
class DagRunAdmin(FlowAdmin):
    """A run is never written here: what a person does is a verb of `workflows.runs`."""

    list_display = (
        *("state_and_reason", "run", "of_dag", "stands_for", "run_type", "began", "took"),
    )
    list_filter = (RunStateFilter, TypeFilter)
    sortable_by = ("stands_for",)
    search_fields = ("run_id",)
    search_help_text = "Run id, or the name of the DAG"
    own_pages = {
        "<uuid:pk>/live/": "live",
        "<uuid:pk>/do/<str:verb>/": "do",
        "<uuid:pk>/task/<str:task_id>/": "task",
    }

    # The list

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        seen = super().get_queryset(request)
        return seen.select_related("dag", "dag__created_by").defer("spec", "dag__spec")

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Any], search_term: str
    ) -> tuple[QuerySet[Any], bool]:
        found = Q(run_id__icontains=search_term) | Q(dag__name__icontains=search_term)
        return (queryset.filter(found) if search_term else queryset), False

    def changelist_view(self, request: HttpRequest, extra_context: Any = None) -> Any:
        shown = {
            "title": "Runs",
            "nothing": "No run",
            "what": "A run is made by a schedule, or by the button of its DAG.",
        }
        return super().changelist_view(request, {**shown, **(extra_context or {})})

    @admin.display(description="State")
    def state_and_reason(self, run: DagRun) -> SafeString:
        return state_and_reason(run)

    @admin.display(description="Run")
    def run(self, run: DagRun) -> SafeString:
        return format_html(
            '<a class="cm-name" href="{}"><bdi>{}</bdi></a>',
            *(run_url(run.pk), showing.visible(run.run_id)),
        )

    @admin.display(description="DAG")
    def of_dag(self, run: DagRun) -> SafeString:
        return format_html('<a href="{}">{}</a>', dag_url(run.dag_id), showing.isolated(run.dag))

    @admin.display(description="Stands for", ordering="execution_date")
    def stands_for(self, run: DagRun) -> SafeString:
        return showing.ago(run.execution_date)

    @admin.display(description="Began")
    def began(self, run: DagRun) -> SafeString:
        return showing.ago(run.started_at)

    @admin.display(description="Took")
    def took(self, run: DagRun) -> SafeString:
        return flow_took(run)

    # The page of one

    def page_of(self, request: HttpRequest, run: DagRun) -> HttpResponse:
        return self.page(request, "run.html", showing.visible(run.run_id), **_shown(request, run))

    def live(self, request: HttpRequest, pk: UUID) -> HttpResponse:
        """The same, when anything of it has changed."""
        run = self._run(request, pk)
        if request.GET.get("seen") == _seen(run):
            return nothing_new()
        return self.piece(request, "run_body.html", **_shown(request, run))

    def task(self, request: HttpRequest, pk: UUID, task_id: str) -> HttpResponseBase:
        """To the page of that task; of an array to the list of its tasks."""
        tasks = TaskInstance.objects.filter(dag_run=self._run(request, pk))
        if "\0" in task_id:  # which PostgreSQL does not even look for
            raise Http404
        found = tasks.filter(task_id=task_id).values_list("pk", flat=True).first()
        if found is None and not tasks.filter(name=task_id).exists():
            raise Http404
        return HttpResponseRedirect(
            task_url(found) if found else f"{run_url(pk)}?name={task_id}#cm-tasks"
        )

    def do(self, request: HttpRequest, pk: UUID, verb: str) -> HttpResponseBase:
        """Ask whether to do it; posted, do it."""
        if verb not in RunVerb.values:
            raise Http404
        run = self._run(request, pk)
        refuse_strangers(request, [run.dag])
        if request.method == "POST":
            return self._done(request, run, RunVerb(verb))
        return self.ask(
            request,
            f"{RunVerb(verb).label} this run?",
            meaning=RunVerb(verb).meaning,
            action=run_url(pk, "do", verb),
            button=RunVerb(verb).label + " the run",
            dangerous=verb == RunVerb.CANCEL,
            run=run,
            told=counted(reports.counts_by_state(TaskInstance.objects.filter(dag_run=run))),
            way_back=run_url(pk),
        )

    def _done(self, request: HttpRequest, run: DagRun, verb: RunVerb) -> HttpResponse:
        act = {RunVerb.CANCEL: runs.cancel, RunVerb.RETRY: runs.retry}[verb]
        try:
            act(run.pk, actor=actor(request))
        except ContainerManagerError as error:
            messages.warning(request, f"{verb.label}: {error}.")
        except DagRun.DoesNotExist:
            raise Http404 from None
        else:
            run.refresh_from_db(fields=["state"])
            messages.success(request, f"{verb.label}: done; it is {words(run.state)}.")
            self.note(request, [run], f"{verb.label}.")
        return HttpResponseRedirect(run_url(run.pk))

    def _run(self, request: HttpRequest, pk: UUID) -> DagRun:
        run: DagRun | None = self.get_queryset(request).filter(pk=pk).first()
        if run is None:
            raise Http404
        return run


# What the page of one shows -----------------------------------------------------------------------


def _shown(request: HttpRequest, run: DagRun) -> dict[str, Any]:
    """Everything but what no moment changes."""
    plan = plan_of(run)
    counts = reports.counts_by_state(TaskInstance.objects.filter(dag_run=run))
    return {
        "run": run,
        "why": why(run, counts),
        "buttons": buttons(run, request.user),
        **_drawings(run, plan),
        "legend": LEGEND,
        "history": job_page.history(run),
        "live": run.state not in states.OVER,
        "seen": _seen(run),
        **_tasks(request, run, counts),
    }


def _drawings(run: DagRun, plan: Plan) -> dict[str, Any]:
    """The graph and the chart; of a run of too many names only how many there are."""
    if len(plan.tasks) > drawing.MOST_NAMES:
        return {"too_large": f"{len(plan.tasks):,}"}
    names = reports.by_name(run)
    return {"drawn": graph(plan.graph, boxes_of(run, names)), "chart": _chart(run, names)}


def _seen(run: DagRun) -> str:
    tick = int(timezone.now().timestamp()) // GROWS_SECONDS if run.state in states.RUN_ACTIVE else 0
    return hash_of(reports.mark_of([run]), run.cancel_requested_at, run.dag.is_paused, tick)


def buttons(run: DagRun, user: Any) -> list[dict[str, Any]]:
    """The verbs that this state and this person's rights allow."""
    if not access.may_change(user, run.dag):
        return []
    able = {
        RunVerb.CANCEL: run.state not in states.OVER and run.cancel_requested_at is None,
        RunVerb.RETRY: run.state == _W.FAILED,
    }
    return [
        {
            "verb": verb,
            "asks": verb == RunVerb.CANCEL,
            "url": run_url(run.pk, "do", verb),
        }
        for verb in RunVerb
        if able[verb]
    ]


def why(run: DagRun, counts: dict[str, int]) -> str:
    """Where it stands in a sentence."""
    total = sum(counts.values())
    if run.state == _W.QUEUED:
        return _why_queued(run)
    if run.state == _W.SUCCESS:
        return f"All {_of_tasks(total)} ended well: {counted(counts)}."
    if run.state == _W.FAILED:
        return _why_failed(run, counts)
    if run.cancel_requested_at:
        return f"Being cancelled, asked by {run.cancel_requested_by}: {counted(counts)}."
    done = sum(counts.get(state, 0) for state in states.OVER)
    return f"{done:,} of {_of_tasks(total)} ended: {counted(counts)}."


def _why_queued(run: DagRun) -> str:
    if run.dag.is_paused:
        return "Its DAG is paused: the run begins when that is unpaused."
    active = DagRun.objects.active().filter(dag=run.dag).count()
    if active >= run.dag.max_active_runs:
        return (
            f"{active} runs of its DAG are under way, as many as may be: it waits for one to end."
        )
    return "Waits for a scheduler to start it. When none runs: manage.py run_scheduler."


def _why_failed(run: DagRun, counts: dict[str, int]) -> str:
    if run.reason == runs.CANCELLED:
        return f"Cancelled by {run.cancel_requested_by}: {counted(counts)}."
    failed = reports.failed_names(run, NAMES_TOLD + 1)
    told = ", ".join(showing.visible(name) for name in failed[:NAMES_TOLD])
    more = " and others" if len(failed) > NAMES_TOLD else ""
    unrun = counts.get(_W.UPSTREAM_FAILED, 0)
    after = f" {_of_tasks(unrun)} behind it never ran." if unrun else ""
    share = f"{counts.get(_W.FAILED, 0):,} of {_of_tasks(sum(counts.values()))}"
    return f"{share} failed: {told}{more}.{after}"


def _of_tasks(count: int) -> str:
    return "1 task" if count == 1 else f"{count:,} tasks"


def _chart(run: DagRun, names: Sequence[OfName]) -> dict[str, Any]:
    """The times of its tasks, beside each row what it is of."""
    known = {each.name: each for each in names}
    stretches = [
        drawing.Stretch(each.name, each.queued_at, each.started_at, each.ended_at) for each in names
    ]
    now = timezone.now()
    drawn = drawing.chart(stretches, run.started_at or run.created_at, now)
    return {
        "height": drawn.height,
        "row_height": drawing.ROW_HEIGHT,
        "lines": drawn.lines,
        "bars": [
            {
                "bar": bar,
                "state": known[bar.name].state,
                "title": title_of_tasks(known[bar.name]),
                "url": way_to(run.pk, bar.name),
            }
            for bar in drawn.bars
        ],
    }


def _tasks(request: HttpRequest, run: DagRun, counts: dict[str, int]) -> dict[str, Any]:
    """One page of its tasks, those that failed first; of one name or state where that is asked."""
    name, state = request.GET.get("name", "").replace("\0", ""), request.GET.get("state", "")
    tasks = TaskInstance.objects.filter(dag_run=run).defer("transition_info")
    if name:
        tasks = tasks.filter(name=name)
        counts = reports.counts_by_state(tasks)
    if state in WorkflowState.values:
        tasks = tasks.filter(state=state)
    paginator = Paginator(reports.failed_first(tasks), TASKS_ON_A_PAGE)
    paginator.count = counts.get(state, 0) if state else sum(counts.values())
    page = paginator.get_page(request.GET.get("page"))
    return {
        "tasks": page,
        "name": name,
        "state": state,
        "filters": [
            {"state": str(each), "words": words(each), "count": f"{counts[each]:,}"}
            for each in WorkflowState
            if each in counts
        ],
        "query": _query(name=name, state=state),
        "listed": _query(name=name, state=state, page=str(page.number)),
    }


def _query(**said: str) -> str:
    """A part of an address that keeps what was asked for."""
    return urlencode({name: text for name, text in said.items() if text})
