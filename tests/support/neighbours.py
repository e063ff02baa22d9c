"""Innocent jobs beside an abusive one on the same worker: neither they nor the worker notice."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from container_manager.models import ContainerJob, Worker
from tests.support.running import attempt_of, queue_job, stdout
from tests.support.spine import contradictions, path_of
from tests.support.workers import WorkerProcess, Workers, settled, wait_until

MIB = 1024 * 1024
PATIENCE = 180.0

_GOES_ON = "for n in 1 2 3 4 5; do echo line $n; sleep 0.3; done"
_LINES = b"".join(b"line %d\n" % number for number in range(1, 6))
_COMES_LATER = "echo later"


class Neighbourhood:
    """One worker, and jobs on it that do nothing wrong."""

    def __init__(self, workers: Workers, kind: str, *, concurrency: int, **settings: Any) -> None:
        self.kind = kind
        self.workers = workers
        self.innocents = [queue_job(kind, _GOES_ON), queue_job(kind, _GOES_ON)]
        self.worker = workers.start("--concurrency", str(concurrency), **settings)

    @property
    def beats(self) -> int:
        """How often the worker has beaten; fails when it is not the one process any more."""
        row = Worker.objects.get()
        assert row.pid == self.worker.pid
        return row.beat

    def notice_nothing(self) -> None:
        """Also who comes after the abuse is served, by the same process, once."""
        later = queue_job(self.kind, _COMES_LATER)
        for job in [*self.innocents, later]:
            printed = b"later\n" if job == later else _LINES
            job = settled(job, PATIENCE)
            assert (job.status, job.reason, stdout(job)) == ("completed", "", printed)
            assert (job.attempt, path_of(job)) == (1, ["queued", "running", "completed"])
        before = self.beats
        wait_until(lambda: self.beats > before, "the next beat")
        assert not self.worker.has_ended
        assert "Traceback" not in self.worker.said
        wait_until(lambda: not self.workers.left_behind(), "the remains to be removed", PATIENCE)
        assert contradictions() == []


@contextmanager
def beside_innocents(
    workers: Workers, kind: str, *, concurrency: int = 6, **settings: Any
) -> Iterator[Neighbourhood]:
    """A worker with innocent jobs; in the end they completed, and it is alive and beating."""
    if kind == "docker":
        workers.use_docker()
    around = Neighbourhood(workers, kind, concurrency=concurrency, **settings)
    yield around
    around.notice_nothing()


def told(job: ContainerJob) -> tuple[str, str, int | None]:
    """The end of a job, once there is one: state, reason, exit code; attempt and history agree."""
    job = settled(job, PATIENCE)
    attempt = attempt_of(job, job.attempt)
    assert (attempt.phase, attempt.exit_code) == ("done", job.exit_code)
    assert path_of(job)[-1] == job.status
    return job.status, job.reason, job.exit_code


def memory(worker: WorkerProcess) -> tuple[int, int]:
    """Bytes that the worker has in memory now, and the most that it ever had."""
    lines = Path(f"/proc/{worker.pid}/status").read_text().splitlines()
    sizes = dict(line.split(":", 1) for line in lines)
    now, most = (int(sizes[name].split()[0]) * 1024 for name in ("VmRSS", "VmHWM"))
    return now, most
