"""What the inline executor runs in tests: each run leaves a line outside the database."""

from __future__ import annotations

import os
import time
from collections import Counter
from pathlib import Path

from container_manager.executors.base import JobSpec, Outcome

RUNS = "TEST_RUNS"
"""Environment variable: the file to which each run adds its line."""


def note(spec: JobSpec) -> Outcome:
    """Add a line with the job and its attempt; one write with O_APPEND is never torn."""
    file = os.open(os.environ[RUNS], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(file, f"{spec.job_id} {spec.attempt}\n".encode())
    finally:
        os.close(file)
    time.sleep(float(spec.environment.get("SECONDS", 0)))
    code = int(spec.environment.get("EXIT", 0))
    return Outcome(code) if code == 0 else Outcome(code, error="As it was told.")


def runs(path: Path) -> Counter[tuple[str, int]]:
    """How often each attempt ran."""
    if not path.exists():
        return Counter()
    lines = (line.split() for line in path.read_text().splitlines())
    return Counter((job_id, int(attempt)) for job_id, attempt in lines)
