"""DAGs: the list, the page of one, writing one, and what people do with them."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied, SuspiciousOperation, ValidationError
from django.db.models import Q, QuerySet
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseBase, HttpResponseRedirect
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString

from container_manager import lifecycle
from container_manager.admin import dag_page
from container_manager.admin.base import actor, nothing_new
from container_manager.admin.dag_forms import (
    AS_PROCESSES,
    EXAMPLE,
    IN_CONTAINERS,
    BackfillForm,
    DagForm,
    TriggerForm,
    as_typed,
    as_yaml,
)
from container_manager.admin.filters import WordFilter
from container_manager.admin.flow_pages import (
    FlowAdmin,
    dag_url,
    hash_of,
    in_words,
    on_the_wall,
    posted_only,
    refuse_strangers,
    run_url,
    sent,
    title_of_run,
)
from container_manager.exceptions import ContainerManagerError, KeyReused, StaleState
from container_manager.models import Dag, DagRun, TaskInstance, access
from container_manager.models.expressions import HasLabel
from container_manager.reports import machinery
from container_manager.reports import workflows as reports
from container_manager.states import Words
from container_manager.templatetags import cm as showing
from container_manager.templatetags.cm_workflows import square
from container_manager.workflows import dags
from container_manager.workflows.masking import masked

RUNS_IN_LIST = 12

AT_ONCE = 200
"""DAGs that one action here changes at most."""

MOST_TAGS = 200
"""Tags that the filter offers."""

SLOTS_SHOWN = 100


class DagVerb(Words):
    """What may be done to many DAGs at once."""

    PAUSE = "pause", "No run begins until it is unpaused; those under way go on."
    UNPAUSE = "unpause", "Runs begin again; of the slots that passed, those that missed_runs says."
    TRIGGER = "trigger", "One run of each now, with the parameters that its document says."


DONE = {DagVerb.PAUSE: "paused", DagVerb.UNPAUSE: "unpaused", DagVerb.TRIGGER: "triggered"}


@dataclass(frozen=True)
class Result:
    """What came of one DAG."""

    dag: Dag
    good: bool
    detail: str
    url: str


# Filters ------------------------------------------------------------------------------------------


class PausedFilter(WordFilter):
    title, parameter_name = "schedule", "paused"

    def words(self) -> list[tuple[str, str]]:
        return [("no", "Active"), ("yes", "Paused")]

    def narrow(self, jobs: QuerySet[Any], word: str) -> QuerySet[Any]:
        return jobs.filter(is_paused=word == "yes")


class TagFilter(WordFilter):
    title = parameter_name = "tag"

    def words(self) -> list[tuple[str, str]]:
        tags = Dag.objects.exclude(tags={}).order_by().values_list("tags", flat=True)
        known = {f"{name}={value}" for each in tags[:1_000] for name, value in each.items()}
        return [(tag, showing.visible(tag)) for tag in sorted(known)[:MOST_TAGS]]

    def _refuse_unknown(self) -> None:
        """A tag that no DAG has any more is no mistake."""

    def narrow(self, jobs: QuerySet[Any], word: str) -> QuerySet[Any]:
        name, _, value = word.partition("=")
        return jobs.filter(HasLabel(name, value, column="tags"))


class DagOwnerFilter(WordFilter):
    title, parameter_name = "owner", "owner"

    def words(self) -> list[tuple[str, str]]:
        return [("me", "Only mine")]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        return queryset.filter(created_by=request.user) if self.value() else queryset


@admin.register(Dag)
class DagAdmin(FlowAdmin):
    """A DAG is never written here: what a person does is a verb of `workflows.dags`."""

    list_display = (*("dag", "when", "next_run", "switch", "latest_runs", "tags_of", "owner"),)
    list_filter = (PausedFilter, TagFilter, DagOwnerFilter)
    sortable_by = ("dag", "next_run")
    search_fields = ("name",)
    search_help_text = "Name, description or tag=value"
    change_list_template = "container_manager/admin/dag_list.html"
    actions = ("pause_dags", "unpause_dags", "trigger_dags")
    own_pages = {
        "do/<str:verb>/": "do",
        "<uuid:pk>/live/": "live",
        "<uuid:pk>/document/": "document",
        "<uuid:pk>/edit/": "edit",
        "<uuid:pk>/trigger/": "trigger",
        "<uuid:pk>/backfill/": "backfill",
    }

    # Rights

    def has_add_permission(self, request: HttpRequest) -> bool:
        return access.operates(request.user)

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Whether there is anything here that this person may change."""
        if not self.has_view_permission(request):
            return False
        if obj is not None:
            return access.may_change(request.user, obj)
        own = Dag.objects.filter(created_by=request.user.pk)
        return access.operates(request.user) or own.exists()

    # The list

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        return super().get_queryset(request).select_related("created_by").defer("spec")

    def get_ordering(self, request: HttpRequest) -> tuple[str, ...]:
        return ("name",)

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Any], search_term: str
    ) -> tuple[QuerySet[Any], bool]:
        if not search_term:
            return queryset, False
        found = Q(name__icontains=search_term) | Q(description__icontains=search_term)
        name, is_tag, value = search_term.partition("=")
        if is_tag:
            found |= Q(HasLabel(name.strip(), value.strip(), column="tags"))
        return queryset.filter(found), False

    def get_changelist_instance(self, request: HttpRequest) -> Any:
        """With the latest runs of what it lists, read together."""
        listed: Any = super().get_changelist_instance(request)
        listed.full_result_count = Dag.objects.visible_to(request.user).count()
        runs = reports.latest_runs([dag.pk for dag in listed.result_list], RUNS_IN_LIST)
        for dag in listed.result_list:
            dag.latest = runs.get(dag.pk, [])
            dag.changeable = access.may_change(request.user, dag)
        return listed

    def changelist_view(self, request: HttpRequest, extra_context: Any = None) -> Any:
        shown = {"title": "DAGs", "operates": access.operates(request.user), "example": _example()}
        return super().changelist_view(request, {**shown, **(extra_context or {})})

    @admin.display(description="DAG", ordering="name")
    def dag(self, dag: Dag) -> SafeString:
        link = format_html(
            '<a class="cm-name" href="{}"><bdi>{}</bdi></a>',
            *(dag_url(dag.pk), showing.visible(dag.name)),
        )
        about = showing.visible(dag.description.partition("\n")[0][:120])
        return format_html('{}<div class="cm-about">{}</div>', link, about) if about else link

    @admin.display(description="Schedule")
    def when(self, dag: Dag) -> SafeString:
        if not dag.schedule:
            return format_html('<span class="cm-quiet">{}</span>', "by hand")
        zone = "" if dag.timezone == "UTC" else f" ({dag.timezone})"
        return format_html(
            '<code class="cm-cron">{}</code><div class="cm-about">{}{}</div>',
            *(showing.visible(dag.schedule), in_words(dag.schedule), zone),
        )

    @admin.display(description="Next run", ordering="next_slot_at")
    def next_run(self, dag: Dag) -> SafeString:
        if dag.is_paused or dag.next_slot_at is None:
            return showing.NOTHING
        if not dag_page.is_overdue(dag):
            return showing.ago(dag.next_slot_at)
        return format_html(
            '{}<div class="cm-about cm-bad">{}</div>',
            *(showing.ago(dag.next_slot_at), "overdue: does a scheduler run?"),
        )

    @admin.display(description="Active")
    def switch(self, dag: Any) -> SafeString:
        """Whether its runs begin; a switch for who may change that."""
        word, verb = ("paused", DagVerb.UNPAUSE) if dag.is_paused else ("on", DagVerb.PAUSE)
        if not dag.changeable:
            return _paused_or_active(dag)
        return format_html(
            '<button class="cm-switch" role="switch" aria-checked="{}" name="ids" value="{}"'
            ' formaction="{}?back=list" title="{}: {}" aria-label="{}: {}">{}</button>',
            "false" if dag.is_paused else "true",
            dag.pk,
            self.url_of("do", verb),
            *(verb.label, verb.meaning, verb.label, showing.visible(dag.name), word),
        )

    @admin.display(description="Latest runs")
    def latest_runs(self, dag: Any) -> SafeString:
        if not dag.latest:
            return showing.NOTHING
        squares = format_html_join("", "{}", ([_square_of(run)] for run in dag.latest))
        return format_html('<span class="cm-squares">{}</span>', squares)

    @admin.display(description="Tags")
    def tags_of(self, dag: Dag) -> SafeString:
        if not dag.tags:
            return showing.NOTHING
        tags = ((showing.visible(f"{name}={value}"),) for name, value in dag.tags.items())
        inside = format_html_join(" ", '<bdi class="cm-label">{}</bdi>', tags)
        return format_html('<span class="cm-labels">{}</span>', inside)

    @admin.display(description="Owner")
    def owner(self, dag: Dag) -> SafeString:
        return showing.isolated(dag.created_by) if dag.created_by else showing.NOTHING

    # The page of one DAG

    def page_of(self, request: HttpRequest, dag: Dag) -> HttpResponse:
        shown = dag_page.head(dag, request.user) | dag_page.made_of(dag)
        return self.page(request, "dag.html", showing.visible(dag.name), **shown)

    def document(self, request: HttpRequest, pk: UUID) -> HttpResponse:
        """What it is made of, as YAML."""
        text = as_yaml(masked(self._dag(request, pk).spec))
        return HttpResponse(text, content_type="text/plain; charset=utf-8")

    def live(self, request: HttpRequest, pk: UUID) -> HttpResponse:
        """What has changed of it since the page was made."""
        dag = self._dag(request, pk)
        if request.GET.get("seen") == dag_page.seen(dag):
            return nothing_new()
        return self.piece(request, "dag_head.html", **dag_page.head(dag, request.user))

    def _dag(self, request: HttpRequest, pk: UUID) -> Dag:
        dag: Dag | None = self.get_queryset(request).filter(pk=pk).first()
        if dag is None:
            raise Http404
        return dag

    def _own(self, request: HttpRequest, pk: UUID) -> Dag:
        """The DAG, for who may change it."""
        dag = self._dag(request, pk)
        refuse_strangers(request, [dag])
        return dag

    # Writing

    def add_view(
        self, request: HttpRequest, form_url: str = "", extra_context: Any = None
    ) -> HttpResponse:
        """A new DAG; the form begins with an example."""
        if not self.has_add_permission(request):
            raise PermissionDenied
        form = DagForm(sent(request), initial={"document": _example()})
        dag = self._created(request, form) if form.is_valid() else None
        if dag is not None:
            return HttpResponseRedirect(dag_url(dag.pk))
        return self._form(request, form, "Add a DAG", verb="Create")

    def _created(self, request: HttpRequest, form: DagForm) -> Dag | None:
        spec = form.spec()
        if spec is None:
            return None
        try:
            dag = dags.create(spec, owner=request.user)
        except ValidationError as error:
            form.refuse(error)
            return None
        messages.success(request, f"{dag.name} was created.")
        self.note(request, [dag], "Created.")
        return dag

    def edit(self, request: HttpRequest, pk: UUID) -> HttpResponseBase:
        """Another document; runs under way keep theirs."""
        dag = self._own(request, pk)
        form = DagForm(sent(request), initial=as_typed(dag), dag=dag)
        if form.is_valid() and self._replaced(request, form, dag):
            return HttpResponseRedirect(dag_url(pk))
        title = f"Edit {showing.visible(dag.name)}"
        return self._form(request, form, title, dag=dag, verb="Save")

    def _replaced(self, request: HttpRequest, form: DagForm, dag: Dag) -> bool:
        spec = form.spec()
        if spec is None:
            return False
        try:
            dags.replace(dag.pk, spec, revision=form.cleaned_data["revision"] or None)
        except ValidationError as error:
            form.refuse(error)
            return False
        except StaleState:
            message = "It has changed meanwhile; nothing was saved."
            form.add_error(None, ValidationError(message, code="stale"))
            return False
        except Dag.DoesNotExist:
            raise Http404 from None
        messages.success(request, "Saved. Runs under way keep the document that they began with.")
        self.note(request, [dag], "Changed its document.")
        return True

    def _form(self, request: HttpRequest, form: DagForm, title: str, **more: Any) -> HttpResponse:
        return self.page(request, "dag_form.html", title, form=form, **more)

    # Running

    def trigger(self, request: HttpRequest, pk: UUID) -> HttpResponseBase:
        """A run by hand."""
        dag = self._own(request, pk)
        form = TriggerForm(sent(request), dag=dag)
        if form.is_valid() and (run := self._triggered(request, form, dag)):
            return HttpResponseRedirect(run_url(run))
        title = f"Trigger {showing.visible(dag.name)}"
        return self.page(request, "dag_trigger.html", title, form=form, dag=dag)

    def _triggered(self, request: HttpRequest, form: TriggerForm, dag: Dag) -> str | None:
        """The id of its run; a form that is sent twice makes one."""
        said = form.cleaned_data

        def act() -> str:
            run = dags.trigger(
                dag.pk,
                params=form.params(),
                execution_date=said["execution_date"],
                actor=actor(request),
            )
            return str(run.pk)

        once = said["once"] or secrets.token_hex(16)
        try:
            run, first = lifecycle.once(
                f"user:{request.user.pk} admin trigger {dag.pk}",
                once,
                hash_of(sorted(form.params().items()), said["execution_date"]),
                act,
            )
        except ValidationError as error:
            form.refuse(error)
        except KeyReused:
            form.refuse(ValidationError("This form was sent before, with other values."))
        except ContainerManagerError as error:
            form.refuse(ValidationError(f"{error}."))
        else:
            if first:
                messages.success(request, "Triggered.")
                self.note(request, [dag], "Triggered.")
            return str(run)
        return None

    def backfill(self, request: HttpRequest, pk: UUID) -> HttpResponseBase:
        """Runs for slots that passed: first which they are, then, confirmed, the runs."""
        dag = self._own(request, pk)
        form = BackfillForm(sent(request))
        slots: list[dags.Slot] | None = None
        sure = request.method == "POST" and "sure" in request.POST
        if form.is_valid():
            slots = self._filled(request, form, dag, sure=sure)
        if slots is not None and sure:
            return HttpResponseRedirect(dag_url(pk))
        shown = _slots_shown(dag, slots) if slots is not None else {}
        title = f"Backfill {showing.visible(dag.name)}"
        return self.page(request, "dag_backfill.html", title, form=form, dag=dag, **shown)

    def _filled(
        self, request: HttpRequest, form: BackfillForm, dag: Dag, *, sure: bool
    ) -> list[dags.Slot] | None:
        said = form.cleaned_data
        try:
            slots = dags.backfill(
                dag.pk, said["first"], said["last"], actor=actor(request), dry_run=not sure
            )
        except ValidationError as error:
            form.refuse(error)
            return None
        except ContainerManagerError as error:
            form.refuse(ValidationError(f"{error}."))
            return None
        if sure:
            made = sum(slot.created for slot in slots)
            messages.success(request, f"{_runs(made)} made; a scheduler starts them.")
            self.note(request, [dag] if made else [], f"Backfilled: {_runs(made)}.")
        return slots

    # Deleting

    def delete_view(
        self, request: HttpRequest, object_id: str, extra_context: Any = None
    ) -> HttpResponse:
        """Asks; confirmed, deletes it with all that it has made."""
        if not self.has_view_permission(request):
            raise PermissionDenied
        try:
            dag = self._own(request, UUID(object_id))
        except ValueError:
            raise Http404 from None
        if request.method == "POST":
            return self._deleted(request, dag)
        runs = DagRun.objects.filter(dag=dag).count()
        tasks = TaskInstance.objects.filter(dag_run__dag=dag).count()
        return self.ask(
            request,
            f"Delete {showing.visible(dag.name)}?",
            meaning=f"With it go {_runs(runs)} and {tasks:,} tasks, their jobs, logs and history.",
            action=dag_url(dag.pk, "delete"),
            button="Delete",
            dangerous=True,
            dag=dag,
            fields={"revision": dag.revision},
            way_back=dag_url(dag.pk),
        )

    def _deleted(self, request: HttpRequest, dag: Dag) -> HttpResponse:
        try:
            dags.delete(dag.pk, revision=request.POST.get("revision") or None)
        except StaleState:
            messages.error(request, "It has changed meanwhile; nothing was deleted.")
        except ContainerManagerError as error:
            messages.error(request, f"Not deleted: {error}.")
        except Dag.DoesNotExist:
            raise Http404 from None
        else:
            messages.success(request, f"{dag.name} was deleted.")
            self.note(request, [dag], "Deleted with its runs.")
            return HttpResponseRedirect(self.url_of("changelist"))
        return HttpResponseRedirect(dag_url(dag.pk))

    # Many at once

    @admin.action(description="Pause", permissions=["change"])
    def pause_dags(self, request: HttpRequest, queryset: QuerySet[Any]) -> HttpResponse:
        return self._ask_about(request, DagVerb.PAUSE, queryset)

    @admin.action(description="Unpause", permissions=["change"])
    def unpause_dags(self, request: HttpRequest, queryset: QuerySet[Any]) -> HttpResponse:
        return self._ask_about(request, DagVerb.UNPAUSE, queryset)

    @admin.action(description="Trigger", permissions=["change"])
    def trigger_dags(self, request: HttpRequest, queryset: QuerySet[Any]) -> HttpResponse:
        return self._ask_about(request, DagVerb.TRIGGER, queryset)

    def _ask_about(
        self, request: HttpRequest, verb: DagVerb, chosen: QuerySet[Any]
    ) -> HttpResponse:
        found = list(chosen.order_by("name")[: AT_ONCE + 1])
        if len(found) > AT_ONCE:
            messages.error(request, f"More than {AT_ONCE} DAGs at once: narrow the selection.")
            return HttpResponseRedirect(self.url_of("changelist"))
        refuse_strangers(request, found)
        able = [dag for dag in found if _possible(dag, verb)]
        title = f"{verb.label} {_dags(len(able))}?"
        return self.ask(
            request,
            title if able else f"None of these can be {DONE[verb]} now",
            meaning=verb.meaning,
            action=self.url_of("do", verb),
            button=f"{verb.label} {_dags(len(able))}" if able else "",
            able=able,
            others=[dag for dag in found if not _possible(dag, verb)],
            fields={"ids": ",".join(str(dag.pk) for dag in able)},
            way_back=self.url_of("changelist"),
        )

    def do(self, request: HttpRequest, verb: str) -> HttpResponseBase:
        """Do it to each of these, and show what came of each."""
        if verb not in DagVerb.values:
            raise Http404
        posted_only(request)
        pks = _ids(request)
        found = list(self.get_queryset(request).filter(pk__in=pks).order_by("name"))
        if not 0 < len(pks) <= AT_ONCE or len(found) != len(pks):
            raise Http404
        refuse_strangers(request, found)
        results = [_result(dag, DagVerb(verb), actor(request)) for dag in found]
        self.note(request, [each.dag for each in results if each.good], f"{DagVerb(verb).label}.")
        back = {"dag": dag_url(pks[0]), "list": self.url_of("changelist")}.get(
            request.GET.get("back", "")
        )
        if len(results) == 1 and back:
            told = messages.SUCCESS if results[0].good else messages.WARNING
            messages.add_message(request, told, f"{results[0].dag.name}: {results[0].detail}.")
            return HttpResponseRedirect(back)
        bad = sum(not each.good for each in results)
        title = f"{DagVerb(verb).label}: {_dags(len(results) - bad)} {DONE[DagVerb(verb)]}"
        return self.page(request, "dag_results.html", title, results=results, bad=bad)


def _result(dag: Dag, verb: DagVerb, who: str) -> Result:
    acts: Mapping[str, Callable[[], Any]] = {
        DagVerb.PAUSE: lambda: dags.pause(dag.pk),
        DagVerb.UNPAUSE: lambda: dags.pause(dag.pk, paused=False),
        DagVerb.TRIGGER: lambda: dags.trigger(dag.pk, actor=who),
    }
    try:
        came = acts[verb]()
    except ValidationError as error:
        return Result(dag, False, " ".join(error.messages), dag_url(dag.pk))
    except (ContainerManagerError, Dag.DoesNotExist) as error:
        return Result(dag, False, str(error), dag_url(dag.pk))
    url = run_url(came.pk) if verb == DagVerb.TRIGGER else dag_url(dag.pk)
    return Result(dag, True, DONE[verb], url)


def _possible(dag: Dag, verb: DagVerb) -> bool:
    return dag.is_paused if verb == DagVerb.UNPAUSE else not dag.is_paused


def _ids(request: HttpRequest) -> list[UUID]:
    """The ids of a form, each once, all in one field."""
    texts = ",".join(request.POST.getlist("ids"))
    try:
        return list(dict.fromkeys(UUID(text) for text in texts.split(","))) if texts else []
    except ValueError as error:
        raise SuspiciousOperation("ids: not the ids of DAGs") from error


def _dags(count: int) -> str:
    return "1 DAG" if count == 1 else f"{count:,} DAGs"


def _runs(count: int) -> str:
    return "1 run" if count == 1 else f"{count:,} runs"


def _paused_or_active(dag: Dag) -> SafeString:
    word = "paused" if dag.is_paused else "active"
    return format_html(
        '<span class="cm-state cm-{}">{}</span>', "paused" if dag.is_paused else "open", word
    )


def _square_of(run: DagRun) -> SafeString:
    return square(run.state, run_url(run.pk), title_of_run(run))


def _slots_shown(dag: Dag, slots: Sequence[dags.Slot]) -> dict[str, Any]:
    return {
        "slots": [
            {"when": on_the_wall(dag, slot.execution_date), "run": slot.run}
            for slot in slots[:SLOTS_SHOWN]
        ],
        "hidden": max(0, len(slots) - SLOTS_SHOWN),
        "to_make": sum(slot.run is None for slot in slots),
        "there": sum(slot.run is not None for slot in slots),
    }


def _example() -> str:
    """A DAG that runs here, under a name that is free."""
    ready = {each.alias for each in machinery.executors() if each.available}
    aliases = ready or {each.alias for each in machinery.executors()}
    defaults = AS_PROCESSES if aliases == {"process"} else IN_CONTAINERS
    taken = set(Dag.objects.filter(name__startswith="example").values_list("name", flat=True))
    names = ("example", *(f"example-{number}" for number in range(2, len(taken) + 3)))
    name = next(name for name in names if name not in taken)
    return EXAMPLE.format(name=name, defaults=defaults).replace("{{", "{").replace("}}", "}")
