"""Runs one worker process and watches its memory from outside."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

SAMPLE_SECONDS = 0.02


@dataclass(frozen=True)
class Drained:
    """What one round of one contestant came to."""

    jobs: int
    seconds: float
    """From the first claim to the last end, both as the contestant's own database rows tell."""
    process_seconds: float
    """The whole life of the worker process, start-up and shut-down included."""
    rss_at_first_claim: int
    peak_rss: int
    rss_at_last_end: int

    @property
    def per_second(self) -> float:
        return self.jobs / self.seconds


class Watched:
    """A process with samples of its resident memory, by the wall clock."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], cwd: Path) -> None:
        self.samples: list[tuple[float, int]] = []
        began = time.monotonic()
        with subprocess.Popen(
            command, env=dict(environment), cwd=cwd, stdin=subprocess.DEVNULL
        ) as process:
            sampler = threading.Thread(target=self._sample, args=[process], daemon=True)
            sampler.start()
            code = process.wait()
        self.seconds = time.monotonic() - began
        sampler.join()
        if code:
            raise SystemExit(f"{' '.join(command)}: exit code {code}")

    def _sample(self, process: subprocess.Popen[bytes]) -> None:
        while process.poll() is None:
            if (size := resident(process.pid)) is not None:
                self.samples.append((time.time(), size))
            time.sleep(SAMPLE_SECONDS)

    def rss_at(self, moment: float) -> int:
        """The latest sample before that moment, or the first one."""
        before = [size for at, size in self.samples if at <= moment]
        return before[-1] if before else self.samples[0][1]

    def peak(self, first: float, last: float) -> int:
        """The largest sample between two moments."""
        return max(
            [self.rss_at(first), *(size for at, size in self.samples if first <= at <= last)]
        )


def resident(pid: int) -> int | None:
    """Bytes of memory that a process has; None when there is none."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return None
    line = next((line for line in status.splitlines() if line.startswith("VmRSS:")), None)
    return int(line.split()[1]) * 1024 if line else None


def drained(worker: Watched, jobs: int, done: int, first: float, last: float) -> Drained:
    """The round's result; a job that was not done makes the round worthless."""
    if done != jobs:
        raise SystemExit(f"{done} of {jobs} jobs were done: nothing was measured")
    return Drained(
        jobs=jobs,
        seconds=last - first,
        process_seconds=worker.seconds,
        rss_at_first_claim=worker.rss_at(first),
        peak_rss=worker.peak(first, last),
        rss_at_last_end=worker.rss_at(last),
    )
