"""What a job of the sweep does, what is asked of it, and how it must end, whoever crashes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from container_manager.states import JobStatus, StopKind
from tests.support.docker_engine import IMAGE

NOTE = """
if [ -n "$MARKS" ]; then
  while read -r _ pid; do kill -0 "$pid" 2>/dev/null && echo "$pid" >> "$MARKS/overlaps"; done \
    < "$MARKS/starts"
  echo "$CM_ATTEMPT $$" >> "$MARKS/starts"
fi
"""
"""A local job notes each of its starts, and who of its predecessors still lives."""

SPEAK = 'for i in 1 2 3 4; do echo "out $i"; echo "err $i" >&2; sleep 0.1; done'
STDOUT = b"out 1\nout 2\nout 3\nout 4\n"
STDERR = b"err 1\nerr 2\nerr 3\nerr 4\n"

NO_BACKOFF = {"strategy": "fixed", "base_seconds": 0, "jitter": 0}


@dataclass(frozen=True)
class Life:
    """One kind of job."""

    script: str
    ends_as: JobStatus
    exit_code: int | None
    runs: int = 1
    """Attempts that end by themselves."""
    stop: StopKind | None = None
    """Asked of it as soon as it runs, or as soon as its worker has crashed."""
    wanted: dict[str, Any] = field(default_factory=dict)

    def fields(self, executor: str, marks: str) -> dict[str, Any]:
        """What is submitted."""
        return {
            "executor": executor,
            "isolation": {"process": "process", "docker": "container"}[executor],
            "image": IMAGE,
            "command": ["/bin/sh", "-c", NOTE + self.script],
            "environment": {"MARKS": marks if executor == "process" else ""},
            "retry_policy": NO_BACKOFF,
            "max_retries": 0,
            "stop_grace_seconds": 1,
            **self.wanted,
        }


_STUBBORN = "trap '' TERM; echo 'out 1'; exec sleep 300"

LIVES = {
    "done": Life(SPEAK, JobStatus.COMPLETED, 0),
    "long": Life(SPEAK.replace("0.1", "1.5"), JobStatus.COMPLETED, 0),
    "retried": Life(f"{SPEAK}; exit 3", JobStatus.FAILED, 3, runs=2, wanted={"max_retries": 1}),
    "killed": Life(_STUBBORN, JobStatus.KILLED, 137, runs=0, stop=StopKind.KILL),
    "cancelled": Life(_STUBBORN, JobStatus.CANCELLED, 137, runs=0, stop=StopKind.CANCEL),
    "pulled": Life(SPEAK, JobStatus.COMPLETED, 0, wanted={"pull_policy": "always"}),
}
