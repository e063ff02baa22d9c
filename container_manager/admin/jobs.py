"""Jobs: the list, the page of one, submitting, changing, and the verbs."""

from __future__ import annotations

import hashlib
import json
import secrets
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from typing import Any
from uuid import UUID

from django.contrib import admin, messages
from django.core.exceptions import (
    NON_FIELD_ERRORS,
    PermissionDenied,
    SuspiciousOperation,
    ValidationError,
)
from django.core.paginator import Paginator
from django.db.models import QuerySet
from django.http import (
    Http404,
    HttpRequest,
    HttpResponse,
    HttpResponseBase,
    HttpResponseRedirect,
    QueryDict,
    StreamingHttpResponse,
)
from django.shortcuts import get_object_or_404
from django.urls import URLPattern
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django_htmx.http import reswap, retarget

from container_manager import bulk, lifecycle
from container_manager.admin import dashboard, filters, job_page, logs
from container_manager.admin.base import OperatorAdmin, actor, nothing_new
from container_manager.admin.forms import USUAL, JobForm, as_typed
from container_manager.bulk import Result, Verb
from container_manager.exceptions import NotChangeable, StaleState
from container_manager.models import ContainerJob, access, acting_as
from container_manager.models.job_counts import count_jobs, job_stats
from container_manager.reports import machinery
from container_manager.reports.streaming import streamed
from container_manager.states import Stream
from container_manager.templatetags import cm as showing

AT_ONCE = 1_000
"""Jobs that one action here moves at most; the commands move any number."""

ASKED = (*USUAL, "queue_now", "once")
"""The fields of the form of a new job."""

NOT_LISTED = ("output", "error", "environment", "retry_policy", "transition_info")
"""What the list does not read: it may be long."""


@admin.register(ContainerJob)
class JobAdmin(OperatorAdmin):
    """A job is never written here: what a person does is a verb of `lifecycle`."""

    list_display = (
        *("state_and_reason", "job", "where", "queue_and_priority", "attempts"),
        *("created", "took", "owner"),
    )
    list_display_links = None
    list_filter = filters.FILTERS
    list_per_page = 50
    list_max_show_all = 200
    list_select_related = ("created_by",)
    sortable_by = ("created",)
    search_fields = ("name",)
    search_help_text = "Name, image, id or label=value"
    show_full_result_count = False
    show_facets = admin.ShowFacets.NEVER  # each would be a count of the table
    change_list_template = "container_manager/admin/job_list.html"
    actions = ("queue_jobs", "retry_jobs", "cancel_jobs", "kill_jobs", "abandon_jobs")
    own_pages = {
        "counts/": "counts",
        "dashboard/": "dashboard",
        "do/<str:verb>/": "do",
        "<uuid:pk>/live/": "live",
        "<uuid:pk>/log/": "log",
        "<uuid:pk>/log/<str:stream>/": "raw_log",
        "<uuid:pk>/edit/": "edit",
    }

    # Rights

    def has_add_permission(self, request: HttpRequest) -> bool:
        return access.operates(request.user)

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return access.operates(request.user)

    def get_urls(self) -> list[URLPattern]:
        return self.pages() + super().get_urls()

    def lookup_allowed(self, lookup: str, value: str, request: HttpRequest | None = None) -> bool:
        """Nothing but the filters: an address must not probe other columns."""
        return lookup in {each.parameter_name for each in filters.FILTERS}

    # The list

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        return super().get_queryset(request).defer(*NOT_LISTED)

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Any], search_term: str
    ) -> tuple[QuerySet[Any], bool]:
        found = filters.search(queryset, search_term) if search_term else queryset
        return found, False

    def get_paginator(
        self, request: HttpRequest, queryset: Any, per_page: int, *given: Any, **named: Any
    ) -> Paginator[Any]:
        return filters.JobPaginator(
            queryset, per_page, *given, known=lambda: filters.kept_count(request), **named
        )

    def get_changelist_instance(self, request: HttpRequest) -> Any:
        """With the number of all jobs, which is kept and costs no count of the table."""
        listed: Any = super().get_changelist_instance(request)
        listed.show_full_result_count = True
        listed.full_result_count = count_jobs()
        return listed

    def changelist_view(self, request: HttpRequest, extra_context: Any = None) -> Any:
        if request.method == "POST" and not access.operates(request.user):
            raise PermissionDenied
        may = access.operates(request.user)
        shown = {
            "title": "Jobs",
            "operates": may,
            "strip": dashboard.strip(job_stats()["by_status"]),
        }
        return super().changelist_view(request, {**shown, **(extra_context or {})})

    def counts(self, request: HttpRequest) -> HttpResponse:
        """How many jobs stand in each state just now."""
        shown = dashboard.strip(job_stats()["by_status"])
        return self.piece(request, "strip.html", strip=shown)

    def dashboard(self, request: HttpRequest) -> HttpResponse:
        """The dashboard of the first page, as it stands now."""
        return self.piece(request, "dashboard.html", shown=True, **dashboard.now(request.user))

    @admin.display(description="State")
    def state_and_reason(self, job: ContainerJob) -> SafeString:
        asked = job.kill_requested_at or job.cancel_requested_at
        why = "being stopped" if asked and not job.is_settled else showing.result(job)
        return (
            format_html('{}<div class="cm-reason">{}</div>', showing.state(job.status), why)
            if why
            else showing.state(job.status)
        )

    @admin.display(description="Job")
    def job(self, job: ContainerJob) -> SafeString:
        return format_html(
            '<a class="cm-name" href="{}"><bdi>{}</bdi></a><br>{}',
            self.url_of("change", job.pk),
            showing.title(job),
            showing.copyable(job.pk),
        )

    @admin.display(description="Runs")
    def where(self, job: ContainerJob) -> SafeString:
        command = showing.as_in_a_shell(job.command)[:300]
        return format_html(
            '<bdi class="cm-image">{}</bdi><div class="cm-command" title="{}">{}</div>',
            showing.visible(job.image or job.executor or job.isolation),
            command,
            command,
        )

    @admin.display(description="Queue")
    def queue_and_priority(self, job: ContainerJob) -> SafeString:
        if job.priority == USUAL["priority"]:
            return showing.isolated(job.queue)
        return format_html(
            '{} <span class="cm-quiet" title="Priority">·&nbsp;{}</span>',
            showing.isolated(job.queue),
            job.priority,
        )

    @admin.display(description="Tries")
    def attempts(self, job: ContainerJob) -> SafeString | str:
        return str(job.attempt) if job.attempt else showing.NOTHING

    @admin.display(description="Created", ordering="created_at")
    def created(self, job: ContainerJob) -> SafeString:
        return showing.ago(job.created_at)

    @admin.display(description="Took")
    def took(self, job: ContainerJob) -> SafeString:
        return showing.took(job)

    @admin.display(description="Owner")
    def owner(self, job: ContainerJob) -> SafeString:
        return showing.isolated(job.created_by) if job.created_by else showing.NOTHING

    # The page of one job

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: Any = None
    ) -> HttpResponse:
        """Where it stands; nothing is changed from here."""
        if not self.has_view_permission(request) or request.method not in ("GET", "HEAD"):
            raise PermissionDenied
        job: Any = self.get_object(request, object_id)
        if job is None:
            return self._get_obj_does_not_exist_redirect(request, self.opts, object_id)  # type: ignore[attr-defined, no-any-return]
        number = _number_of_attempt(request, job)
        shown = job_page.head(job, request.user) | job_page.log(job, number)
        return self.page(request, "job.html", showing.title(job), **shown)

    def live(self, request: HttpRequest, pk: UUID) -> HttpResponse:
        """What has changed of it since the page was made."""
        shown = job_page.head(_job(pk), request.user)
        if shown["live"] and request.GET.get("seen") == shown["seen"]:
            return nothing_new()
        return self.piece(request, "job_live.html", **shown)

    def log(self, request: HttpRequest, pk: UUID) -> HttpResponseBase:
        """What it printed since; another attempt's log once that has begun."""
        job, attempt = _job(pk), _whole_number(request, "attempt")
        follows = "follows" in request.GET
        if follows and job.attempt != attempt:
            shown = job_page.log(job, None)
            whole = self.piece(request, "log.html", **shown)
            return retarget(reswap(whole, "outerHTML"), "#cm-log")
        position = {str(stream): _whole_number(request, stream) for stream in Stream}
        shown = job_page.more_log(job, attempt, position, follows=follows)
        if shown["polls"] and not shown["piece"].bits and not shown["piece"].more:
            return nothing_new()
        return self.piece(request, "log_more.html", **shown)

    def raw_log(self, request: HttpRequest, pk: UUID, stream: str) -> HttpResponseBase:
        """Every kept byte of one stream."""
        if stream not in Stream.values:
            raise Http404
        job = _job(pk)
        number = _number_of_attempt(request, job) or job.attempt
        pieces = streamed(request, logs.raw(job.pk, number, stream))
        response = StreamingHttpResponse(pieces, content_type="application/octet-stream")
        response["Content-Disposition"] = f'attachment; filename="{job.pk}-{number}-{stream}.log"'
        return response

    # Submitting and changing

    def add_view(
        self, request: HttpRequest, form_url: str = "", extra_context: Any = None
    ) -> HttpResponse:
        """A new job, empty or like another one."""
        if not self.has_add_permission(request):
            raise PermissionDenied
        like = _like(request)
        form = JobForm(request.POST or None, initial=_beginning(like, request.user), only=ASKED)
        pk = self._submitted(request, form, like) if form.is_valid() else None
        if pk is not None:
            return HttpResponseRedirect(self.url_of("change", pk))
        return self._form(request, form, "Submit a job", like=like, verb="Submit")

    def _submitted(
        self, request: HttpRequest, form: JobForm, like: ContainerJob | None
    ) -> str | None:
        """The id of the new job; a form that is sent twice makes one job."""
        scope, form_hash = f"user:{request.user.pk} admin submit", _hash_of(request)
        act = lambda: self._submit(request, form, like)  # noqa: E731
        try:
            made, first = lifecycle.once(scope, form_hash, form_hash, act)
        except ValidationError as error:
            form.refuse(error)
            return None
        if first:
            messages.success(request, f"Submitted; it is {made['status']}.")
        else:
            messages.info(request, "This form was sent before; this is the job that it made.")
        return str(made["id"])

    def _submit(
        self, request: HttpRequest, form: JobForm, like: ContainerJob | None
    ) -> dict[str, str]:
        with acting_as(actor(request)):
            job = lifecycle.submit(
                **form.wanted(like),
                created_by=request.user,
                queue_now=form.cleaned_data["queue_now"],
            )
        self.note(request, [job], "Submitted.")
        return {"id": str(job.pk), "status": job.status}

    def edit(self, request: HttpRequest, pk: UUID) -> HttpResponseBase:
        """Change what its state still allows."""
        job = _job(pk)
        if not access.may_change(request.user, job):
            raise PermissionDenied
        changeable = lifecycle.changeable(job.status)
        form = JobForm(request.POST or None, initial=as_typed(job), only=(*changeable, "revision"))
        if form.is_valid() and self._amended(request, form, job):
            return HttpResponseRedirect(self.url_of("change", pk))
        title = f"Change {showing.title(job)}"
        about = {"fixed": not changeable.issuperset(USUAL), "stale": _is_stale(form)}
        return self._form(request, form, title, job=job, verb="Save", **about)

    def _amended(self, request: HttpRequest, form: JobForm, job: ContainerJob) -> bool:
        try:
            wanted = form.wanted(job)
            changes = {name: value for name, value in wanted.items() if value != getattr(job, name)}
            lifecycle.amend(job.pk, changes, revision=form.cleaned_data["revision"] or None)
        except ValidationError as error:
            form.refuse(error)
        except (StaleState, NotChangeable):
            message = "It has changed meanwhile; nothing was saved."
            form.add_error(None, ValidationError(message, code="stale"))
        except ContainerJob.DoesNotExist:
            raise Http404 from None
        else:
            said = f"Changed: {', '.join(sorted(changes))}." if changes else "Nothing was changed."
            messages.success(request, said)
            self.note(request, [job] if changes else [], said)
            return True
        return False

    def _form(self, request: HttpRequest, form: JobForm, title: str, **more: Any) -> HttpResponse:
        return self.page(request, "job_form.html", title, form=form, **more)

    # Verbs

    @admin.action(description="Queue", permissions=["change"])
    def queue_jobs(self, request: HttpRequest, queryset: QuerySet[Any]) -> HttpResponse:
        return self._ask_about(request, Verb.QUEUE, queryset)

    @admin.action(description="Retry", permissions=["change"])
    def retry_jobs(self, request: HttpRequest, queryset: QuerySet[Any]) -> HttpResponse:
        return self._ask_about(request, Verb.RETRY, queryset)

    @admin.action(description="Cancel", permissions=["change"])
    def cancel_jobs(self, request: HttpRequest, queryset: QuerySet[Any]) -> HttpResponse:
        return self._ask_about(request, Verb.CANCEL, queryset)

    @admin.action(description="Kill", permissions=["change"])
    def kill_jobs(self, request: HttpRequest, queryset: QuerySet[Any]) -> HttpResponse:
        return self._ask_about(request, Verb.KILL, queryset)

    @admin.action(description="Abandon", permissions=["change"])
    def abandon_jobs(self, request: HttpRequest, queryset: QuerySet[Any]) -> HttpResponse:
        return self._ask_about(request, Verb.ABANDON, queryset)

    def _ask_about(self, request: HttpRequest, verb: Verb, chosen: QuerySet[Any]) -> HttpResponse:
        pks = list(chosen.order_by("pk").values_list("pk", flat=True)[: AT_ONCE + 1])
        came_from = {"listed": request.GET.urlencode()}
        if len(pks) > AT_ONCE:
            return self._too_many(request, came_from)
        return self._ask(request, verb, pks, came_from)

    def do(self, request: HttpRequest, verb: str) -> HttpResponseBase:
        """Ask whether to do it; posted, do it and show what came of each job."""
        if verb not in Verb.values:
            raise Http404
        handle = self._act if request.method == "POST" else self._ask
        given = request.POST if request.method == "POST" else request.GET
        pks = _ids(given)
        if len(pks) > AT_ONCE:
            return self._too_many(request, given)
        self._refuse_strangers(request, pks)
        return handle(request, Verb(verb), pks, given)

    def _refuse_strangers(self, request: HttpRequest, pks: Sequence[UUID]) -> None:
        if not access.operates(request.user):
            jobs = ContainerJob.objects.filter(pk__in=pks).only("created_by")
            if not pks or not all(access.may_change(request.user, job) for job in jobs):
                raise PermissionDenied

    def _way_back(self, given: Mapping[str, str], pks: Sequence[UUID] = ()) -> str:
        """To the page of the one job, or to the list as it was filtered."""
        if given.get("back") == "job" and len(pks) == 1:
            return self.url_of("change", pks[0])
        query = QueryDict(given.get("listed", "")).urlencode()
        return self.url_of("changelist") + (f"?{query}" if query else "")

    def _too_many(self, request: HttpRequest, given: Mapping[str, str]) -> HttpResponse:
        message = (
            f"More than {AT_ONCE:,} jobs at once: narrow the selection, or use the commands"
            " (manage.py kill_jobs …), which take any number."
        )
        messages.error(request, message)
        return HttpResponseRedirect(self._way_back(given))

    def _ask(
        self, request: HttpRequest, verb: Verb, pks: Sequence[UUID], given: Mapping[str, str]
    ) -> HttpResponse:
        jobs = list(ContainerJob.objects.filter(pk__in=pks).defer(*NOT_LISTED))
        possible = job_page.able(jobs, verb)
        able = [job for job in jobs if job.pk in possible]
        return self.page(
            request,
            "confirm.html",
            _question(verb, len(able)),
            verb=verb,
            dangerous=verb in job_page.DANGEROUS,
            able=able,
            ids=",".join(str(job.pk) for job in able),
            others=[job for job in jobs if job.pk not in possible],
            back=given.get("back", ""),
            listed=given.get("listed", ""),
            way_back=self._way_back(given, pks),
        )

    def _act(
        self, request: HttpRequest, verb: Verb, pks: Sequence[UUID], given: Mapping[str, str]
    ) -> HttpResponse:
        results = list(bulk.act(verb, pks, actor=actor(request), user=request.user))
        self._note_results(request, verb, results)
        if len(results) == 1 and given.get("back") == "job":
            return self._back(request, verb, results[0])
        jobs = ContainerJob.objects.defer(*NOT_LISTED).in_bulk(pks)
        rows = [{"result": each, "job": jobs.get(each.job_id)} for each in results]
        bad = sum(not each.good for each in results)
        counts = Counter(str(each.word).replace("_", " ") for each in results)
        title = f"{verb.label}: {', '.join(f'{count} {word}' for word, count in counts.items())}"
        about = {"rows": rows, "bad": bad, "way_back": self._way_back(given)}
        return self.page(request, "results.html", title, verb=verb, **about)

    def _back(self, request: HttpRequest, verb: Verb, result: Result) -> HttpResponse:
        """To the page of the one job that was meant."""
        level = messages.SUCCESS if result.good else messages.WARNING
        words = str(result.word).replace("_", " ")
        messages.add_message(request, level, f"{verb.label}: {words} ({result.detail}).")
        return HttpResponseRedirect(self.url_of("change", result.job_id))

    def _note_results(self, request: HttpRequest, verb: Verb, results: Sequence[Result]) -> None:
        jobs = ContainerJob.objects.only("name").in_bulk([each.job_id for each in results])
        by_word: Callable[[Result], str] = lambda each: str(each.word)  # noqa: E731
        for word, same in groupby(sorted((r for r in results if r.good), key=by_word), by_word):
            done = [jobs[each.job_id] for each in same if each.job_id in jobs]
            self.note(request, done, f"{verb.label}: {word.replace('_', ' ')}.")


def _jobs(count: int) -> str:
    return "1 job" if count == 1 else f"{count:,} jobs"


def _question(verb: Verb, able: int) -> str:
    if not able:
        return f"None of these can be {job_page.DONE[verb]} now"
    return f"{verb.label} {_jobs(able)}?"


def _hash_of(request: HttpRequest) -> str:
    """What tells this form from any other that was sent; one without a mark is like no other."""
    said = {name: texts for name, texts in request.POST.lists() if name != "csrfmiddlewaretoken"}
    if not request.POST.get("once"):
        said["once"] = [secrets.token_hex(16)]
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def _is_stale(form: JobForm) -> bool:
    return form.is_bound and form.has_error(NON_FIELD_ERRORS, "stale")


def _job(pk: UUID) -> ContainerJob:
    return get_object_or_404(ContainerJob.objects.select_related("created_by"), pk=pk)  # type: ignore[no-any-return]


def _ids(given: Any) -> list[UUID]:
    """The ids of a form or an address, each once; bad ones are no mistake of a person.

    All in one field: Django reads no form of more than 1,000 fields.
    """
    texts = ",".join(given.getlist("ids"))
    try:
        return list(dict.fromkeys(UUID(text) for text in texts.split(","))) if texts else []
    except ValueError as error:
        raise SuspiciousOperation("ids: not the ids of jobs") from error


def _whole_number(request: HttpRequest, name: str) -> int:
    text = request.GET.get(name, "0")
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        raise SuspiciousOperation(f"{name}: not a number")
    return int(text)


def _number_of_attempt(request: HttpRequest, job: ContainerJob) -> int | None:
    """Which attempt was asked for; None is the latest."""
    if "attempt" not in request.GET:
        return None
    number = _whole_number(request, "attempt")
    if not 1 <= number <= job.attempt:
        raise Http404
    return number


def _like(request: HttpRequest) -> ContainerJob | None:
    """The job that the new one is to be like."""
    if "like" not in request.GET:
        return None
    try:
        return _job(UUID(request.GET["like"]))
    except ValueError:
        raise Http404 from None


def _beginning(like: ContainerJob | None, user: Any) -> dict[str, Any]:
    """What the form shows at first: the other job, or to whom has none yet an example."""
    if like is not None:
        return as_typed(like) | {"scheduled_for": None}
    return {} if count_jobs(user) else _example()


def _example() -> dict[str, Any]:
    steps = 'for step in 1 2 3; do echo "step $step"; sleep 1; done; echo done'
    wanted = {"name": "my first job", "command": ["sh", "-c", steps]}
    executors = machinery.executors()
    ready = {each.alias for each in executors if each.available}
    if (ready or {each.alias for each in executors}) == {"process"}:
        return wanted | {"executor": "process", "isolation": "process"}
    return wanted | {"image": "busybox:latest"}
