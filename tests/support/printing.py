"""Jobs that printed something, as a worker keeps it."""

from __future__ import annotations

from typing import Any

from container_manager.models import ContainerJob, JobAttempt, JobLog
from container_manager.states import JobStatus, Phase
from tests.factories import JobFactory


class Printing:
    """A job that runs and prints, chunk by chunk, until it ends."""

    def __init__(self, job: ContainerJob | None = None, **fields: Any) -> None:
        self.job = job or JobFactory(status=JobStatus.RUNNING, **fields)
        self.attempt = JobAttempt.objects.create(
            job=self.job, attempt=self.job.attempt, phase=Phase.STARTED
        )
        self.ends = {"stdout": 0, "stderr": 0}
        self.omitted = {"stdout": 0, "stderr": 0}

    def __call__(self, data: bytes, stream: str = "stdout", skip: int = 0, **fields: Any) -> None:
        """Print `data`, after `skip` bytes that the cap left out."""
        offset = self.ends[stream] + skip
        self.ends[stream] = offset + len(data)
        self.omitted[stream] += skip
        JobLog.objects.create(
            job=self.job,
            attempt=self.attempt.attempt,
            stream=stream,
            offset=offset,
            data=data,
            **fields,
        )

    def end(self, status: JobStatus = JobStatus.COMPLETED) -> ContainerJob:
        evidence: dict[str, Any] = {"phase": Phase.DONE}
        for stream, end in self.ends.items():
            evidence |= {f"{stream}_bytes": end, f"{stream}_omitted": self.omitted[stream]}
        JobAttempt.objects.filter(pk=self.attempt.pk).update(**evidence)
        self.job.refresh_from_db()
        self.job.transition_to(status)
        return self.job
