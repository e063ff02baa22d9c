"""The ASGI entry point of the project."""

from __future__ import annotations

import os

from django.core.asgi import get_asgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")

from config.bodies import SmallBodies
from container_manager.sse import Streams

application = SmallBodies(Streams(get_asgi_application()))
