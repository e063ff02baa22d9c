"""An explanation of where a job stands: its words, and how moments and numbers are told."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from django.utils import timezone

from container_manager.states import Words


class Code(Words):
    """All that there is to say, for programs."""

    NOT_QUEUED = "not_queued", "Nobody has queued it."
    SCHEDULED = "scheduled", "It is not due yet."
    QUEUE_PAUSED = "queue_paused", "Its queue is paused."
    QUEUE_FULL = "queue_full", "As many jobs of its queue run as may run at once."
    NO_WORKER = "no_worker", "No living worker would take it."
    NO_FREE_SLOT = "no_free_slot", "The workers that would take it have no room for it yet."
    NEXT = "next", "A worker takes it at its next look."
    RETRIES_USED_UP = "retries_used_up", "It was retried more often than it may be."
    BARRED = "barred", "Its row contradicts its attempts, so that no worker takes it."
    STARTING = "starting", "A worker has taken it and it has not started yet."
    RUNNING = "running", "It runs."
    STOPPING = "stopping", "It is being stopped."
    UNREACHABLE = "unreachable", "It runs where nobody can reach it."
    UNHELD = "unheld", "It was made running by hand; no worker holds it."
    BACKOFF = "backoff", "It failed and waits for its next attempt."
    SETTLED = "settled", "Nothing more happens to it by itself."


@dataclass(frozen=True)
class Explanation:
    """A word for programs, a sentence for people, and what the sentence is made of."""

    code: Code
    sentence: str
    details: dict[str, Any] = field(default_factory=dict)
    """Only what JSON has."""

    def as_json(self) -> dict[str, Any]:
        return {"code": str(self.code), "sentence": self.sentence, "details": self.details}


def at(moment: datetime | None) -> str:
    """In the project's time zone, whole seconds."""
    if moment is None:
        return "an unknown time"
    local = moment.astimezone(timezone.get_default_timezone())
    return local.strftime("%Y-%m-%d %H:%M:%S %Z")


def as_text(moment: datetime | None) -> str | None:
    """As JSON has it."""
    return moment.isoformat() if moment else None


def jobs(count: int) -> str:
    return "1 job" if count == 1 else f"{count:,} jobs"


def slots(count: int) -> str:
    return "1 slot is" if count == 1 else f"{count:,} slots are"


def span(seconds: float) -> str:
    """
    >>> span(0.25), span(75), span(7500)
    ('0.2 s', '1 min 15 s', '2 h 5 min')
    """
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours // 24} days"
