"""Django's migrate, which a guard that differs does not stop: it is what repairs it.

Two at once are one after the other, and a table that is in use is tried again.
"""

from __future__ import annotations

import time
from typing import Any

from django.core.management.base import CommandError
from django.core.management.commands.migrate import Command as Migrate
from django.db import OperationalError

from container_manager import checks, guarding, schema

TRIES = 5
PAUSE_SECONDS = 2.0
LOCK_NOT_AVAILABLE = "55P03"


class Command(Migrate):
    def check(self, *args: Any, **kwargs: Any) -> None:
        with checks.guard_left_to_migrate():
            super().check(*args, **kwargs)

    def handle(self, *args: Any, **options: Any) -> None:
        if options["plan"] or options["check_unapplied"]:
            super().handle(*args, **options)
            return
        using = options["database"]
        with schema.changed_by_us_alone(using, self.stdout.write):
            try:
                self._patiently(*args, **options)
            finally:
                guarding.give_back(using)

    def _patiently(self, *args: Any, **options: Any) -> None:
        """What was applied before a table could not be had stays; the rest is tried again."""
        for left in reversed(range(TRIES)):
            try:
                super().handle(*args, **options)
                return
            except OperationalError as error:
                if not _is_in_use(error):
                    raise
                if not left:
                    raise CommandError(f"a table stays in use, try later: {error}") from error
            self.stdout.write("A table is in use; trying again.")
            guarding.give_back(options["database"])
            time.sleep(PAUSE_SECONDS)


def _is_in_use(error: OperationalError) -> bool:
    return getattr(error.__cause__, "sqlstate", None) == LOCK_NOT_AVAILABLE
