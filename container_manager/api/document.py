"""The OpenAPI document, and a page to try it; both are open, since they hold no data."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

from drf_spectacular.generators import SchemaGenerator
from drf_spectacular.views import SpectacularSwaggerSplitView
from rest_framework.permissions import AllowAny
from rest_framework.renderers import BaseRenderer
from rest_framework.request import Request
from rest_framework.response import Response

from container_manager.api.base import BaseView
from container_manager.api.operations import operation


class DocumentRenderer(BaseRenderer):
    """JSON that was rendered already."""

    media_type = "application/vnd.oai.openapi+json"
    format = "openapi"
    charset = None

    def render(self, data: bytes, media_type: Any = None, renderer_context: Any = None) -> bytes:
        return data


class DocumentView(BaseView):
    """What the API is."""

    authentication_classes = ()
    permission_classes = (AllowAny,)
    renderer_classes = (DocumentRenderer,)
    tag = "documentation"

    @operation(
        "This document",
        answers={200: {"type": "object"}},
        media_type=DocumentRenderer.media_type,
    )
    def get(self, request: Request) -> Response:
        """OpenAPI 3.1, as JSON."""
        return Response(_document())


@cache
def _document() -> bytes:
    made = SchemaGenerator().get_schema(request=None, public=True)  # type: ignore[no-untyped-call]
    return json.dumps(made, default=str, indent=1).encode()


class DocsView(SpectacularSwaggerSplitView, BaseView):  # type: ignore[misc]
    """The page to try it; its script has an address of its own, so that no inline script is."""

    authentication_classes = ()
    permission_classes = (AllowAny,)
    undocumented = True
    url_name = "container_manager_api:schema"
    template_name = "container_manager/api/docs.html"

    def get(self, request: Request, *args: Any, **kwargs: Any) -> Any:
        return super().get(request, *args, **kwargs)  # type: ignore[no-untyped-call]
