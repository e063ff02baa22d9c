"""Settings of the test suite: the project's own, with a database that the run chooses."""

from __future__ import annotations

import os
import tempfile

os.environ.setdefault("DEBUG", "on")
os.environ.setdefault("DATABASE_POOL", "off")
os.environ.setdefault("CONTAINER_MANAGER_PROCESS_EXECUTOR", "on")

from config.settings import *  # noqa: F403
from config.settings import DATABASES, INSTALLED_APPS, LOGGING

INSTALLED_APPS = [*INSTALLED_APPS, "tests.trials"]
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
LOGGING = {**LOGGING, "loggers": {}}

if "sqlite" in DATABASES["default"]["ENGINE"]:
    # A file, because worker processes open it, too; and one for each process of a parallel run.
    name = f"container-manager-test-{os.getpid()}.sqlite3"
    DATABASES["default"]["TEST"] = {"NAME": os.path.join(tempfile.gettempdir(), name)}
