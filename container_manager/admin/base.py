"""What the pages of this admin share: who may see them, how they are rendered."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, ClassVar

from django.contrib.admin.models import CHANGE, LogEntry
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse, HttpResponseBase
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django_htmx.http import HttpResponseClientRefresh

from container_manager.admin.compat import ModelAdmin
from container_manager.models import access

View = Callable[..., HttpResponseBase]


class OperatorAdmin(ModelAdmin):
    """Pages for those who may see all jobs; nothing is added, changed or deleted unless said."""

    own_pages: ClassVar[dict[str, str]] = {}
    """Path below the model's own to the name of the method that answers there."""

    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return access.sees_all(request.user)

    def has_module_permission(self, request: HttpRequest) -> bool:
        return access.sees_all(request.user)

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def page(self, request: HttpRequest, template: str, title: str, **more: Any) -> HttpResponse:
        """A whole page in the look of the others."""
        request.current_app = self.admin_site.name
        context = {
            **self.admin_site.each_context(request),
            "opts": self.opts,
            "title": title,
            "operates": access.operates(request.user),
            **more,
        }
        return TemplateResponse(request, f"container_manager/admin/{template}", context)

    def piece(self, request: HttpRequest, template: str, **shown: Any) -> HttpResponse:
        """A part of a page, for htmx."""
        return TemplateResponse(request, f"container_manager/admin/{template}", shown)

    def pages(self) -> list[URLPattern]:
        """The paths of `own_pages`; each is named after its method."""
        return [
            path(where, self._guarded(getattr(self, name)), name=self.url_name(name))
            for where, name in self.own_pages.items()
        ]

    def _guarded(self, view: View) -> View:
        """Only for those who may see; a piece of a page whose session has ended loads the page."""

        def seen(request: HttpRequest, *given: Any, **named: Any) -> HttpResponseBase:
            if not self.has_view_permission(request):
                raise PermissionDenied
            return view(request, *given, **named)

        inside = self.admin_site.admin_view(seen)

        @wraps(view)
        def answer(request: HttpRequest, *given: Any, **named: Any) -> HttpResponseBase:
            if "HX-Request" in request.headers and not self.admin_site.has_permission(request):
                return HttpResponseClientRefresh()
            return inside(request, *given, **named)

        return answer

    def url_name(self, page: str) -> str:
        return f"{self.opts.app_label}_{self.opts.model_name}_{page}"

    def url_of(self, page: str, *arguments: Any) -> str:
        """The address of one of the model's pages."""
        return reverse(f"{self.admin_site.name}:{self.url_name(page)}", args=arguments)

    def note(self, request: HttpRequest, objects: Any, message: str) -> None:
        """Write into the admin's own log that this person did that."""
        if objects:
            LogEntry.objects.log_actions(
                user_id=request.user.pk,  # type: ignore[arg-type]
                queryset=objects,
                action_flag=CHANGE,
                change_message=message,
            )


def may_see(request: HttpRequest) -> bool:
    """For menus: the pages of this app."""
    return access.sees_all(request.user)


def may_see_people(request: HttpRequest) -> bool:
    """For menus: users and groups."""
    return request.user.has_module_perms("auth")


def actor(request: HttpRequest) -> str:
    """Whom the history names."""
    return f"admin:{request.user.get_username()}"


def nothing_new() -> HttpResponse:
    """The page stays as it is."""
    return HttpResponse(status=204)
