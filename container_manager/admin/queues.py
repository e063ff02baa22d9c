"""Queues: what waits in each, and an operator's decisions about them."""

from __future__ import annotations

from typing import Any

from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied, ValidationError
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import URLPattern

from container_manager import lifecycle
from container_manager.admin.base import OperatorAdmin
from container_manager.models import Queue, access
from container_manager.reports import machinery

DECISIONS = {
    "pause": ({"paused": True}, "paused: nothing of it starts until it is resumed"),
    "resume": ({"paused": False}, "goes on"),
}


@admin.register(Queue)
class QueueAdmin(OperatorAdmin):
    """Every queue that has a row or jobs; a queue needs no row to be paused."""

    own_pages = {"": "changelist", "steer/": "steer"}

    def get_urls(self) -> list[URLPattern]:
        return self.pages()

    def changelist(self, request: HttpRequest) -> HttpResponse:
        return self.page(request, "queues.html", "Queues", queues=machinery.queues())

    def steer(self, request: HttpRequest) -> HttpResponse:
        """Pause, resume or limit one queue."""
        if request.method != "POST" or not access.operates(request.user):
            raise PermissionDenied
        name = request.POST.get("name", "")
        try:
            decided, said = _decision(request)
            queue = lifecycle.steer_queue(name, **decided)
        except ValidationError as error:
            messages.error(request, f"Queue {name[:100]!r}: {' '.join(error.messages)}")
        else:
            messages.success(request, f"Queue {name} {said}.")
            self.note(request, [queue], f"{said[:1].upper()}{said[1:]}.")
        return HttpResponseRedirect(self.url_of("changelist"))


def _decision(request: HttpRequest) -> tuple[dict[str, Any], str]:
    word = request.POST.get("decision", "")
    if word in DECISIONS:
        return DECISIONS[word]
    if word != "limit":
        raise ValidationError("Say pause, resume or limit.")
    text = request.POST.get("max_running", "").strip()
    if not text:
        return {"max_running": None}, "has no limit"
    if not (text.isascii() and text.isdigit()):
        raise ValidationError("The limit must be a whole number, 1 or more; empty for none.")
    return {"max_running": int(text[:19])}, f"runs at most {text} jobs at once"
