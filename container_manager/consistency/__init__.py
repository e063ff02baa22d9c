"""Do the records agree, with each other and with the engines?

`findings` asks the database, `engine_findings` the engines that answer here. Both only read, and
may be asked while workers are busy.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from uuid import UUID

from container_manager.consistency import liveness, records, workflows
from container_manager.consistency.asking import (
    CODES,
    FINDING,
    NOTE,
    Finding,
    Records,
    questions,
    questions_of_all,
)
from container_manager.consistency.engine_side import engine_findings

__all__ = [
    "CODES",
    "FINDING",
    "NOTE",
    "Finding",
    "engine_findings",
    "findings",
    "liveness",
    "questions",
    "questions_of_all",
    "records",
    "workflows",
]


def findings(using: str = "default", job_ids: Sequence[UUID] | None = None) -> Iterator[Finding]:
    """Every contradiction among the records of these jobs (all: guard and counters as well)."""
    rows = Records(using, job_ids)
    if job_ids is None:
        for ask in questions_of_all:
            yield from ask(rows)
    for ask in questions:
        yield from ask(rows)
