"""What really ran, as the engine or the jobs themselves tell it, not the records."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from container_manager.executors.base import LABEL_ATTEMPT, LABEL_BARRED, LABEL_INSTANCE


@dataclass
class Evidence:
    """How often each attempt was started, and what ran beside each other."""

    starts: Counter[int] = field(default_factory=Counter)
    containers: Counter[int] = field(default_factory=Counter)
    """Created, started or not, those that only bar a name left out."""
    overlaps: list[str] = field(default_factory=list)


def of_processes(marks: Path) -> Evidence:
    """From the lines that each start of the job left behind."""
    lines = (marks / "starts").read_text().splitlines()
    overlaps = marks / "overlaps"
    return Evidence(
        starts=Counter(int(line.split()[0]) for line in lines),
        overlaps=overlaps.read_text().splitlines() if overlaps.exists() else [],
    )


def of_containers(events: Path, instance: str) -> Evidence:
    """From the events of the engine, in their order."""
    evidence = Evidence()
    alive: set[int] = set()
    for what, attempt, labels in _told(events, instance):
        if what == "create" and LABEL_BARRED not in labels:
            evidence.containers[attempt] += 1
        elif what == "start":
            evidence.starts[attempt] += 1
            evidence.overlaps += [f"attempt {other}" for other in alive]
            alive.add(attempt)
        elif what == "die":
            alive.discard(attempt)
    return evidence


def is_all_destroyed(events: Path, instance: str) -> bool:
    """Has the engine told the end of each container that it told the beginning of?"""
    told = Counter(what for what, _, _ in _told(events, instance))
    return told["create"] == told["destroy"]


def _told(events: Path, instance: str) -> Iterator[tuple[str, int, dict[str, Any]]]:
    for line in events.read_bytes().split(b"\n")[:-1]:
        event = json.loads(line)
        labels = event["Actor"]["Attributes"]
        if labels.get(LABEL_INSTANCE) == instance:
            yield event["Action"], int(labels.get(LABEL_ATTEMPT, 0)), labels
