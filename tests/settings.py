"""Settings of the test suite: the project's own, with a database that the run chooses."""

from __future__ import annotations

import os

os.environ.setdefault("DEBUG", "on")
os.environ.setdefault("DATABASE_POOL", "off")
os.environ.setdefault("CONTAINER_MANAGER_PROCESS_EXECUTOR", "on")

from config.settings import *  # noqa: E402, F403
from config.settings import DATABASES, INSTALLED_APPS, LOGGING

INSTALLED_APPS = [*INSTALLED_APPS, "tests.trials"]
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
LOGGING = {**LOGGING, "loggers": {}}

if "sqlite" in DATABASES["default"]["ENGINE"]:
    DATABASES["default"]["TEST"] = {"NAME": os.environ.get("TEST_SQLITE", "") or None}
