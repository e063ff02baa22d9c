"""Where each address leads."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.templatetags.static import static
from django.urls import URLPattern, URLResolver, include, path, re_path
from django.views.generic import RedirectView

from container_manager.api.base import NothingHere
from container_manager.api.health import HealthView, LiveView, ReadyView
from container_manager.api.metrics import MetricsView


class Favicon(RedirectView):
    """Where browsers look that were not told of an icon, as in a page of plain JSON."""

    def get_redirect_url(self, *args: Any, **kwargs: Any) -> str:
        return static("container_manager/favicon.svg")


# For Django's own look; unfold's is in the settings.
admin.site.site_header = admin.site.site_title = "Container Manager"

urlpatterns: list[URLPattern | URLResolver] = [
    path("", RedirectView.as_view(pattern_name="admin:index")),
    path("favicon.ico", Favicon.as_view()),
    path("admin/", admin.site.urls),
    re_path(r"^health/?$", HealthView.as_view(), name="health"),
    re_path(r"^health/live/?$", LiveView.as_view(), name="live"),
    re_path(r"^health/ready/?$", ReadyView.as_view(), name="ready"),
    re_path(r"^metrics/?$", MetricsView.as_view(), name="metrics"),
    path("api/v1/", include("container_manager.api.urls")),
    re_path(r"^api(?:/v1)?$", NothingHere.as_view()),
]

# Below /api/ they are problem documents, elsewhere Django's own pages.
handler400 = "container_manager.api.errors.bad_request"
handler404 = "container_manager.api.errors.page_not_found"
handler500 = "container_manager.api.errors.server_error"
