"""Django's flush, which the guard would refuse: the guard steps aside for its time."""

from __future__ import annotations

from typing import Any

from django.core.management.commands import flush
from django.db import connections

from container_manager import guarding


class Command(flush.Command):
    """Asks before the guard is lifted, so that nothing is open while a person thinks."""

    def handle(self, **options: Any) -> None:
        if options["interactive"] and not self._is_agreed(options["database"]):
            self.stdout.write("Flush cancelled.")
            return
        with guarding.lifted(options["database"]):
            super().handle(**{**options, "interactive": False})

    def _is_agreed(self, alias: str) -> bool:
        name = connections[alias].settings_dict["NAME"]
        question = f"Delete every row of every table of {name!r}? This cannot be undone. [yes/no] "
        return input(question) == "yes"
