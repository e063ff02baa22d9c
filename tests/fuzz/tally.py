"""What the cases came to, and whether that is enough."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

LEAST_GOOD = 0.40
CLASSES = (2, 3, 4, 5)


@dataclass
class Tally:
    """How many answers of each class every operation gave."""

    classes: dict[str, Counter[int]] = field(default_factory=dict)
    statuses: Counter[int] = field(default_factory=Counter)
    tracebacks: list[str] = field(default_factory=list)
    """What the server wrote to its log."""

    def add(self, lines: Iterable[str]) -> None:
        for line in lines:
            told = json.loads(line)
            of_operation = self.classes.setdefault(told["operation"], Counter())
            of_operation[told["status"] // 100] += 1
            self.statuses[told["status"]] += 1

    def read(self, path: Path) -> None:
        self.add(path.read_text().splitlines() if path.exists() else ())

    @property
    def cases(self) -> int:
        return sum(self.statuses.values())

    @property
    def good(self) -> float:
        """Which part of the cases ended in 2xx."""
        return self._of_class(2) / max(1, self.cases)

    def _of_class(self, number: int) -> int:
        return sum(each[number] for each in self.classes.values())

    def table(self) -> str:
        """At most 80 columns wide."""
        heads = "".join(f"{f'{number}xx':>7}" for number in CLASSES)
        rows = [f"{'operation':<42}{'cases':>8}{heads}"]
        rows += [_row(name, self.classes[name]) for name in sorted(self.classes, key=_by_path)]
        total = Counter({number: self._of_class(number) for number in CLASSES})
        statuses = ", ".join(f"{status}: {n}" for status, n in sorted(self.statuses.items()))
        return "\n".join([*rows, "-" * 78, _row("all", total), statuses])

    def wanting(self, cases: int) -> list[str]:
        """What is not as it must be."""
        unreached = [name for name, each in self.classes.items() if not each[2]]
        checks = {
            f"{self.cases} cases, fewer than {cases}": self.cases < cases,
            f"{self.good:.0%} of the cases ended in 2xx, less than {LEAST_GOOD:.0%}": (
                self.good < LEAST_GOOD
            ),
            f"{self._of_class(5)} server errors": self._of_class(5) > 0,
            f"{len(self.tracebacks)} tracebacks in the server's log": bool(self.tracebacks),
            f"never answered with 2xx: {', '.join(unreached)}": bool(unreached),
        }
        return [told for told, is_so in checks.items() if is_so]


def _by_path(operation: str) -> tuple[str, str]:
    method, path = operation.split(" ", 1)
    return path, method


def _row(name: str, counts: Counter[int]) -> str:
    numbers = "".join(f"{counts[number]:>7}" for number in CLASSES)
    return f"{name.replace('/api/v1', ''):<42}{sum(counts.values()):>8}{numbers}"
