"""Publishers: how far each has come, and an operator's decisions about its dead letters."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.core.paginator import Page, Paginator
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import URLPattern, reverse

from container_manager.admin.base import OperatorAdmin
from container_manager.models import DeadLetter, PublisherState, access
from container_manager.reports import publishers
from container_manager.reports.publishers import PublisherReport

ON_A_PAGE = 50
"""Dead letters."""

COLOURS = {
    **dict.fromkeys(("behind", "waiting"), "paused"),
    **dict.fromkeys(("failing", "refused"), "dead"),
    "ok": "open",
}
"""State of a publisher to the colour of its word."""


@admin.register(PublisherState)
class PublisherAdmin(OperatorAdmin):
    """Only to look at, but for dead letters: publishers come from the settings."""

    own_pages = {
        "": "changelist",
        "live/": "live",
        "of/<str:alias>/": "letters",
        "of/<str:alias>/steer/": "steer",
    }

    def get_urls(self) -> list[URLPattern]:
        return self.pages()

    def changelist(self, request: HttpRequest) -> HttpResponse:
        return self.page(request, "publishers.html", "Publishers", **_listed())

    def live(self, request: HttpRequest) -> HttpResponse:
        """The same, as it stands now."""
        return self.piece(request, "publishers_live.html", **_listed())

    def letters(self, request: HttpRequest, alias: str) -> HttpResponse:
        """The events that this one's receiver would not take."""
        publisher = _found(alias)
        page = _page_of(request, alias)
        return self.page(
            request,
            "dead_letters.html",
            f"Publisher {alias}",
            publisher=publisher,
            colour=COLOURS.get(publisher.state, ""),
            letters=page,
            rows=[_row(letter) for letter in page],
        )

    def steer(self, request: HttpRequest, alias: str) -> HttpResponse:
        """Deliver dead letters again, or discard them when asked twice: the chosen ones, or all."""
        if request.method != "POST" or not access.operates(request.user):
            raise PermissionDenied
        publisher = _found(alias)
        word = request.POST.get("decision", "")
        if word not in DECISIONS or (word.startswith("redeliver") and not publisher.path):
            raise PermissionDenied
        letters = _chosen(request, alias, all_of_them=word.endswith("_all"))
        if word.startswith("discard") and letters.exists() and "sure" not in request.POST:
            return self._ask(request, alias, word, letters.count())
        count = letters.ask_again() if word.startswith("redeliver") else letters.delete()[0]
        self._tell(request, alias, count, DECISIONS[word])
        return HttpResponseRedirect(self.url_of("letters", alias))

    def _ask(self, request: HttpRequest, alias: str, word: str, count: int) -> HttpResponse:
        shown = {"alias": alias, "word": word, "letters": request.POST.getlist("letter")}
        title = f"Discard {_counted(count)}?"
        return self.page(request, "dead_letters_discard.html", title, **shown)

    def _tell(self, request: HttpRequest, alias: str, count: int, done: str) -> None:
        if not count:
            messages.error(request, "There was nothing to do: choose dead letters first.")
            return
        told = f"{_counted(count)} {done}."
        messages.success(request, told)
        self.note(request, PublisherState.objects.filter(pk=alias), told)


DECISIONS = {
    **dict.fromkeys(("redeliver", "redeliver_all"), "will be delivered again, soon"),
    **dict.fromkeys(("discard", "discard_all"), "discarded"),
}


def _listed() -> dict[str, Any]:
    return {"publishers": [(each, COLOURS.get(each.state, "")) for each in publishers.publishers()]}


def _found(alias: str) -> PublisherReport:
    found = publishers.publisher(alias)
    if found is None:
        raise Http404
    return found


def _page_of(request: HttpRequest, alias: str) -> Page[DeadLetter]:
    return Paginator(publishers.letters(alias), ON_A_PAGE).get_page(request.GET.get("page"))


@dataclass(frozen=True)
class Row:
    """A dead letter as it is shown."""

    letter: DeadLetter
    event: dict[str, Any]

    @property
    def text(self) -> str:
        return json.dumps(self.event, indent=2, ensure_ascii=False)

    @property
    def kind(self) -> str:
        return str(self.event.get("entity_type", "")).replace("_", " ")

    @property
    def url(self) -> str:
        """The page of the job, run or task; empty where that cannot be told."""
        page = PAGES.get(str(self.event.get("entity_type", "")))
        found = _uuid(str(self.event.get("entity_id", "")))
        if page is None or found is None:
            return ""
        return reverse(f"admin:container_manager_{page}_change", args=[found])


PAGES = {"job": "containerjob", "dag_run": "dagrun", "task_instance": "taskinstance"}


def _row(letter: DeadLetter) -> Row:
    return Row(letter, letter.event if isinstance(letter.event, dict) else {})


def _chosen(request: HttpRequest, alias: str, *, all_of_them: bool) -> Any:
    letters = publishers.letters(alias)
    if all_of_them:
        return letters
    return letters.filter(pk__in=filter(None, map(_uuid, request.POST.getlist("letter"))))


def _uuid(text: str) -> UUID | None:
    try:
        return UUID(text)
    except ValueError:
        return None


def _counted(count: int) -> str:
    return f"{count} dead letter{'' if count == 1 else 's'}"
