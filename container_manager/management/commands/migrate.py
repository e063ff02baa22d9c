"""Django's migrate, which a guard that differs does not stop: it is what repairs it."""

from __future__ import annotations

from typing import Any

from django.core.management.commands.migrate import Command as Migrate

from container_manager import checks


class Command(Migrate):
    def check(self, *args: Any, **kwargs: Any) -> None:
        with checks.guard_left_to_migrate():
            super().check(*args, **kwargs)
