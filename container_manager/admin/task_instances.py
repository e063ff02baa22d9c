"""Tasks of runs: the list, the page of one with its log, retry, skip and cancel."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from django.contrib import admin, messages
from django.db.models import Q, QuerySet
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseBase, HttpResponseRedirect
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django_htmx.http import HttpResponseClientRefresh

from container_manager import states
from container_manager.admin import job_page
from container_manager.admin.base import actor, nothing_new
from container_manager.admin.filters import WordFilter
from container_manager.admin.flow_pages import (
    FlowAdmin,
    hash_of,
    refuse_strangers,
    run_url,
    state_and_reason,
    task_url,
    told_of,
    way_to,
)
from container_manager.exceptions import ContainerManagerError
from container_manager.models import ContainerJob, TaskInstance, access
from container_manager.reports import workflows as reports
from container_manager.reports.explain import explain
from container_manager.states import Words, WorkflowState
from container_manager.templatetags import cm as showing
from container_manager.templatetags.cm_workflows import REASONS, flow_took, words
from container_manager.workflows import runs
from container_manager.workflows.plan import Plan, plan_of

_W = WorkflowState


class TaskVerb(Words):
    """What a person may do to a task."""

    RETRY = "retry", "Run it again, and those behind it that never ran for its failure."
    SKIP = "skip", "It does not run; those behind it see it as skipped. Cannot be undone."
    CANCEL = "cancel", "Its job is asked to stop; the task is failed then, and may be retried."


class TaskStateFilter(WordFilter):
    title, parameter_name = "state", "state"

    def words(self) -> list[tuple[str, str]]:
        return WorkflowState.choices


@admin.register(TaskInstance)
class TaskInstanceAdmin(FlowAdmin):
    """A task is never written here: what a person does is a verb of `workflows.runs`."""

    list_display = (
        *("state_and_reason", "task", "of_run", "tries", "began", "took", "what_went_wrong"),
    )
    list_filter = (TaskStateFilter,)
    sortable_by = ()
    search_fields = ("task_id",)
    search_help_text = "Task, or the name of the DAG"
    own_pages = {"<uuid:pk>/live/": "live", "<uuid:pk>/do/<str:verb>/": "do"}

    # The list

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        seen = super().get_queryset(request)
        related = seen.select_related("dag_run", "dag_run__dag")
        return related.defer("dag_run__spec", "dag_run__dag__spec", "dag_run__params")

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Any], search_term: str
    ) -> tuple[QuerySet[Any], bool]:
        found = Q(task_id__icontains=search_term) | Q(dag_run__dag__name__icontains=search_term)
        return (queryset.filter(found) if search_term else queryset), False

    def changelist_view(self, request: HttpRequest, extra_context: Any = None) -> Any:
        shown = {"title": "Tasks", "nothing": "No task", "what": "Tasks are made with their run."}
        return super().changelist_view(request, {**shown, **(extra_context or {})})

    @admin.display(description="State")
    def state_and_reason(self, task: TaskInstance) -> SafeString:
        return state_and_reason(task)

    @admin.display(description="Task")
    def task(self, task: TaskInstance) -> SafeString:
        return format_html(
            '<a class="cm-name" href="{}"><bdi>{}</bdi></a>',
            *(task_url(task.pk), showing.visible(task.task_id)),
        )

    @admin.display(description="Run")
    def of_run(self, task: TaskInstance) -> SafeString:
        return format_html(
            '<bdi>{}</bdi><div class="cm-about"><a href="{}"><bdi>{}</bdi></a></div>',
            showing.visible(task.dag_run.dag.name),
            run_url(task.dag_run_id),
            showing.exact(task.dag_run.execution_date),
        )

    @admin.display(description="Tries")
    def tries(self, task: TaskInstance) -> SafeString | str:
        return f"{task.try_number} of {task.max_tries}" if task.try_number else showing.NOTHING

    @admin.display(description="Began")
    def began(self, task: TaskInstance) -> SafeString:
        return showing.ago(task.started_at)

    @admin.display(description="Took")
    def took(self, task: TaskInstance) -> SafeString:
        return flow_took(task)

    @admin.display(description="What went wrong")
    def what_went_wrong(self, task: TaskInstance) -> SafeString:
        said = task.error.strip().partition("\n")[0][:120]
        return showing.isolated(said) if said else showing.NOTHING

    # The page of one

    def page_of(self, request: HttpRequest, task: TaskInstance) -> HttpResponse:
        job = job_of(task)
        shown = _head(task, job, request.user)
        if job is not None:
            shown |= job_page.log(job, None)
        return self.page(request, "task.html", showing.visible(task.task_id), **shown)

    def live(self, request: HttpRequest, pk: UUID) -> HttpResponse:
        """What has changed of it; the whole page when it has got another job, with another log."""
        task = self._task(request, pk)
        job = job_of(task)
        if request.GET.get("job") != _mark_of(job):
            return HttpResponseClientRefresh()
        shown = _head(task, job, request.user)
        if request.GET.get("seen") == shown["seen"]:
            return nothing_new()
        return self.piece(request, "task_live.html", **shown)

    def do(self, request: HttpRequest, pk: UUID, verb: str) -> HttpResponseBase:
        """Ask whether to do it; posted, do it."""
        if verb not in TaskVerb.values:
            raise Http404
        task = self._task(request, pk)
        refuse_strangers(request, [task.dag_run.dag])
        if request.method == "POST":
            return self._done(request, task, TaskVerb(verb))
        return self.ask(
            request,
            f"{TaskVerb(verb).label} {showing.visible(task.task_id)}?",
            meaning=TaskVerb(verb).meaning,
            action=task_url(pk, "do", verb),
            button=TaskVerb(verb).label + " the task",
            dangerous=verb != TaskVerb.RETRY,
            run=task.dag_run,
            way_back=task_url(pk),
        )

    def _done(self, request: HttpRequest, task: TaskInstance, verb: TaskVerb) -> HttpResponse:
        try:
            said = _outcome(verb, _ACTS[verb](task.pk, actor=actor(request)))
        except ContainerManagerError as error:
            messages.warning(request, f"{verb.label}: {error}.")
        except TaskInstance.DoesNotExist:
            raise Http404 from None
        else:
            messages.success(request, f"{verb.label}: {said}.")
            self.note(request, [task], f"{verb.label}.")
        return HttpResponseRedirect(task_url(task.pk))

    def _task(self, request: HttpRequest, pk: UUID) -> TaskInstance:
        task: TaskInstance | None = self.get_queryset(request).filter(pk=pk).first()
        if task is None:
            raise Http404
        return task


_ACTS = {
    TaskVerb.RETRY: runs.retry_task,
    TaskVerb.SKIP: runs.skip_task,
    TaskVerb.CANCEL: runs.cancel_task,
}


def _outcome(verb: TaskVerb, task: TaskInstance) -> str:
    if verb == TaskVerb.CANCEL and task.state not in states.OVER:
        return "its job was asked to stop"
    return f"it is {words(task.state)}"


def job_of(task: TaskInstance) -> ContainerJob | None:
    """Its job; None before there is one, and when it was deleted."""
    if task.queued_at is None:
        return None
    jobs = ContainerJob.objects.select_related("created_by")
    return jobs.filter(pk=task.job_id).first()


# What the page of one shows -----------------------------------------------------------------------


def _head(task: TaskInstance, job: ContainerJob | None, user: Any) -> dict[str, Any]:
    """Everything that changes while the task lives, but its log."""
    plan = plan_of(task.dag_run)
    sentence = why(task, job, plan)
    return {
        "task": task,
        "run": task.dag_run,
        "job": job,
        "why": sentence,
        "buttons": buttons(task, user),
        "rule": plan.tasks[task.name].trigger_rule,
        "upstream": _neighbours(task, plan.graph.upstream[task.name]),
        "downstream": _neighbours(task, plan.graph.downstream[task.name]),
        "history": job_page.history(task),
        "live": task.state in states.NOT_OVER or task.dag_run.state not in states.OVER,
        "mark_of_job": _mark_of(job),
        "seen": hash_of(task.version, task.dag_run.version, sentence),
    }


def _mark_of(job: ContainerJob | None) -> str:
    return "" if job is None else job.pk.hex


NEIGHBOURS_SHOWN = 20


def _neighbours(task: TaskInstance, names: tuple[str, ...]) -> list[dict[str, str]]:
    return [
        {"name": name, "url": way_to(task.dag_run_id, name)} for name in names[:NEIGHBOURS_SHOWN]
    ]


def buttons(task: TaskInstance, user: Any) -> list[dict[str, Any]]:
    """The verbs that this state and this person's rights allow."""
    if not access.may_change(user, task.dag_run.dag):
        return []
    able = {
        TaskVerb.RETRY: task.state == _W.FAILED,
        TaskVerb.SKIP: task.state == _W.QUEUED,
        TaskVerb.CANCEL: _may_be_cancelled(task),
    }
    return [
        {"verb": verb, "asks": verb != TaskVerb.RETRY, "url": task_url(task.pk, "do", verb)}
        for verb in TaskVerb
        if able[verb]
    ]


def _may_be_cancelled(task: TaskInstance) -> bool:
    return task.state in states.NOT_OVER and task.queued_at is not None


def why(task: TaskInstance, job: ContainerJob | None, plan: Plan) -> str:
    """Where it stands in a sentence."""
    if task.state == _W.QUEUED and task.queued_at is None:
        return _waits_for(task, plan)
    if task.state in states.NOT_OVER and job is not None:
        return explain(job).sentence
    if task.state == _W.UPSTREAM_FAILED:
        return f"It never ran: {_told(task, plan, states.WENT_WRONG)}"
    if task.reason in REASONS:
        return REASONS[task.reason]
    return explain(job).sentence if job is not None else WorkflowState(task.state).meaning


def _waits_for(task: TaskInstance, plan: Plan) -> str:
    if task.dag_run.state == _W.QUEUED:
        return "Its run has not begun."
    return f"Waits for {_told(task, plan, states.NOT_OVER)}"


def _told(task: TaskInstance, plan: Plan, wanted: tuple[str, ...]) -> str:
    """Those right before it that are in one of these states."""
    before = plan.graph.upstream[task.name]
    known = reports.of_runs([task.dag_run], before)[task.dag_run_id].values()
    there = [each for each in known if any(each.counts.get(state) for state in wanted)]
    told = (f"{showing.visible(each.name)} ({told_of(each)})" for each in there)
    return ", ".join(list(told)[:NEIGHBOURS_SHOWN]) + "." if there else "the scheduler."
