"""The real web server for the tests of this directory."""

from __future__ import annotations

from tests.support.web import live_site, operator, workers

__all__ = ["live_site", "operator", "workers"]
