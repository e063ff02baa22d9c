"""The project's site with a plain DRF viewset beside our list."""

from __future__ import annotations

import os

os.environ["DJANGO_SETTINGS_MODULE"] = "benchmarks.peers.plain_settings"

from django.core.asgi import get_asgi_application

application = get_asgi_application()
