"""What is submitted, and what must come of it: both are chosen by the seed."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

from django.utils import timezone

from container_manager.states import StopKind

SCRIPT = Path(__file__).with_name("job.sh")
PLACES = ("starts", "alive", "first", "data")
TOLD = ("twice", "overlaps")
"""What must not be, a line for each."""
LONG = 300
"""Seconds that a job would run which is stopped because it takes too long."""

PLAIN = {f"x{size}": b"x" * size + b"\n" for size in (1, 80, 5_000, 20_000)}
"""What a container can print without a file."""
DATA = {
    **PLAIN,
    "bytes": bytes(range(256)) * 8,
    "no-newline": b"the last line has no end",
    "lines": b"".join(b"line %d\n" % number for number in range(2_000)),
    "one-line": b"0123456789abcdef" * 5_000 + b"\n",
    "big": bytes(range(1, 256)) * 800,
}


@dataclass(frozen=True)
class Plan:
    """One job: what it does, and how it must end if nobody stops it."""

    number: int
    kind: str
    executor: str
    steps: tuple[str, ...]
    codes: tuple[int, ...] = (0,)
    """Exit codes: of its first run that comes to its end, and of all later ones."""
    status: str = "completed"
    reason: str = ""
    stop: StopKind | None = None
    """What somebody asks for at some time."""
    not_before: float = 0.0
    fields: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"chaos {self.number}"

    def wanted(self, notes: Path, *, notes_of_containers: bool) -> dict[str, Any]:
        """As `lifecycle.submit` takes it; can containers write down there what they do?"""
        given = {
            "name": self.name,
            "executor": self.executor,
            "labels": {"kind": self.kind},
            "stop_grace_seconds": 1,
            "max_retries": 0,
            "retry_policy": {"strategy": "fixed", "base_seconds": 0.3, "max_seconds": 1},
            **self.fields,
            **({"scheduled_for": self.due()} if self.not_before else {}),
        }
        if self.executor == "docker":
            command = self._script(notes) if notes_of_containers else self._inline()
            return {**given, "isolation": "container", "image": IMAGE, "command": command}
        return {**given, "isolation": "process", "command": self._script(notes)}

    def due(self) -> Any:
        return timezone.now() + timedelta(seconds=self.not_before)

    def _script(self, notes: Path) -> list[str]:
        codes = ",".join(map(str, self.codes))
        return ["/bin/sh", str(notes / SCRIPT.name), str(notes), codes, *self.steps]

    def _inline(self) -> list[str]:
        steps = [_INLINE[step.partition(":")[0]](step.partition(":")[2]) for step in self.steps]
        lines = ["echo begin $CM_JOB_ID.$CM_ATTEMPT", *steps, f"exit {self.codes[-1]}"]
        return ["sh", "-c", "\n".join(lines)]

    def printed(self, stream: str, attempt: str) -> bytes:
        """All that a run prints which comes to its end."""
        prefix = {"stdout": "o:", "stderr": "e:"}[stream]
        begin = f"begin {attempt}\n".encode() if stream == "stdout" else b""
        return begin + b"".join(DATA[step[2:]] for step in self.steps if step.startswith(prefix))


IMAGE = "busybox:latest"
_INLINE: dict[str, Callable[[str], str]] = {
    "o": lambda name: f"head -c {name[1:]} /dev/zero | tr '\\000' x; echo",
    "e": lambda name: f"(head -c {name[1:]} /dev/zero | tr '\\000' x; echo) >&2",
    "s": lambda seconds: f"sleep {seconds}",
}


def lay_out(notes: Path) -> None:
    """The jobs' script and everything it needs; containers run as another user than processes."""
    for place in (notes, *(notes / each for each in PLACES)):
        place.mkdir()
        place.chmod(0o777)
    for told in TOLD:
        (notes / told).touch()
        (notes / told).chmod(0o666)
    for name, data in DATA.items():
        (notes / "data" / name).write_bytes(data)
    shutil.copy(SCRIPT, notes)


Chance = random.Random


def _some(chance: Chance, most: int, names: list[str]) -> list[str]:
    return [
        f"{chance.choice('ooe')}:{chance.choice(names)}" for _ in range(chance.randint(0, most))
    ]


def _nap(chance: Chance, longest: float) -> str:
    return f"s:{chance.uniform(0.1, longest):.2f}"


def quick(chance: Chance, names: list[str]) -> dict[str, Any]:
    return {"steps": _some(chance, 1, names)}


def prints(chance: Chance, names: list[str]) -> dict[str, Any]:
    return {"steps": _some(chance, 6, names)}


def sleeps(chance: Chance, names: list[str]) -> dict[str, Any]:
    naps = [[_nap(chance, 1.0), *_some(chance, 2, names)] for _ in range(chance.randint(1, 3))]
    return {"steps": [step for nap in naps for step in nap]}


def fails(chance: Chance, names: list[str]) -> dict[str, Any]:
    return {
        "steps": _some(chance, 1, names),
        "codes": (chance.randint(1, 125),),
        "status": "failed",
        "reason": "exit_code",
        "fields": {"max_retries": chance.randint(0, 2)},
    }


def flaky(chance: Chance, names: list[str]) -> dict[str, Any]:
    return {"steps": _some(chance, 1, names), "codes": (9, 0), "fields": {"max_retries": 3}}


def too_long(chance: Chance, names: list[str]) -> dict[str, Any]:
    deaf = ["deaf"] if chance.random() < 0.3 else []
    return {
        "steps": [*deaf, *_some(chance, 1, names), f"s:{LONG}"],
        "status": "failed",
        "reason": "timeout",
        "fields": {"timeout_seconds": 1},
    }


def stopped(chance: Chance, names: list[str]) -> dict[str, Any]:
    return {**sleeps(chance, names), "stop": chance.choice((StopKind.KILL, StopKind.CANCEL))}


def scheduled(chance: Chance, names: list[str]) -> dict[str, Any]:
    return {"steps": _some(chance, 1, names), "not_before": chance.uniform(1, 6)}


KINDS: dict[Callable[[Chance, list[str]], dict[str, Any]], int] = {
    quick: 32,
    prints: 15,
    sleeps: 18,
    fails: 8,
    flaky: 7,
    too_long: 4,
    stopped: 12,
    scheduled: 4,
}
"""Each kind, and how often it occurs in a hundred."""

IN_CONTAINERS = (quick, prints, sleeps, fails, stopped)


def plans(chance: Chance, count: int, docker_share: float) -> list[Plan]:
    return [_plan(chance, number, docker_share) for number in range(1, count + 1)]


def _plan(chance: Chance, number: int, docker_share: float) -> Plan:
    in_container = chance.random() < docker_share
    kinds = [kind for kind in KINDS if not in_container or kind in IN_CONTAINERS]
    (kind,) = chance.choices(kinds, [KINDS[each] for each in kinds])
    names = list(PLAIN) if in_container else list(DATA)
    chosen = kind(chance, names)
    steps = tuple(chosen.pop("steps"))
    executor = "docker" if in_container else "process"
    return Plan(number, kind.__name__, executor, steps, **chosen)
