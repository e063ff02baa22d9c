"""The project's settings, with the addresses of both contestants."""

from __future__ import annotations

from config.settings import *  # noqa: F403

ROOT_URLCONF = "benchmarks.peers.plain_drf"
