"""What dockerd itself wrote down about its containers: evidence that outlives it."""

from __future__ import annotations

import re
from datetime import datetime
from pathlib import Path

HEARD = re.compile(
    r'^time="([^"]+)" level=info msg="ignoring event" container=([0-9a-f]{64})'
    r" .*topic=/tasks/delete ",
    re.MULTILINE,
)
UNCLEAN = re.compile(
    r'^.* msg="(?:failed to clean up after shim disconnected|failed to delete)"'
    r".* -?id[= ]([0-9a-f]{64})",
    re.MULTILINE,
)


class DaemonLog:
    """Read once, when all is over."""

    def __init__(self, file: Path) -> None:
        text = file.read_text(errors="replace")
        self.unclean = set(UNCLEAN.findall(text))
        """Containers whose shim could not be cleaned up: their exit codes are made up."""
        self.heard: dict[str, float] = {}
        """When it first dealt with the end of each container, by the wall clock."""
        for moment, container in HEARD.findall(text):
            self.heard.setdefault(container, datetime.fromisoformat(moment).timestamp())
