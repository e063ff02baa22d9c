"""Print what a job printed."""

from __future__ import annotations

import time
from typing import Any

from django.core.management.base import CommandParser

from container_manager.management.base import JobCommand, failed, wrong_usage
from container_manager.management.selection import find_job
from container_manager.management.tables import Decoder
from container_manager.models import ContainerJob, JobAttempt
from container_manager.reports.log_reader import LogReader
from container_manager.states import Stream

LOOK_SECONDS = 0.1


class Command(JobCommand):
    help = (
        "Print what a job printed, also while it runs. In a pipe or with --raw every byte is as "
        "the job wrote it; on a terminal control characters are shown instead of obeyed."
    )
    only_reads = True

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("id", metavar="ID", help="the job")
        parser.add_argument("--attempt", type=int, metavar="N", help="not the latest, but this one")
        parser.add_argument("--stream", default="both", metavar="stdout|stderr|both")
        parser.add_argument(
            "--follow", "-f", action="store_true", help="go on until the job has ended"
        )
        parser.add_argument("--tail", type=int, metavar="N", help="only the last N lines")
        parser.add_argument("--raw", action="store_true", help="the bytes, also on a terminal")

    def handle(self, **options: Any) -> None:
        self.streams = _streams(options["stream"])
        self.bytes_out = self._bytes_out(options["raw"])
        job = find_job(options["id"])
        number = _attempt(job, options["attempt"])
        reader = self._begin(job, number, options["tail"])
        if options["follow"]:
            reader = self._follow(job, reader, only=options["attempt"])
        self._drain(reader)
        self._end(reader)
        if not job.attempt:
            self.note(f"the job is {job.status}; it has not been started yet")

    def _begin(self, job: ContainerJob, number: int, tail: int | None) -> LogReader:
        self.decoder = Decoder()
        self.at_line_start = True
        reader = LogReader(job.pk, number, self.streams)
        if tail is not None:
            if tail < 0:
                raise wrong_usage("--tail: must be a number of lines, 0 or more")
            reader.seek_last_lines(tail)
        return reader

    def _follow(self, job: ContainerJob, reader: LogReader, only: int | None) -> LogReader:
        """Until the job is settled; a retry's output follows that of the attempt before."""
        while not _is_over(job, only):
            self._drain(reader)
            self._flush()
            time.sleep(LOOK_SECONDS)
            try:
                job.refresh_from_db(fields=["status", "attempt", "version"])
            except ContainerJob.DoesNotExist:
                raise failed("the job was deleted") from None
            if only is None and job.attempt > max(1, reader.attempt):
                self._drain(reader)
                self._end(reader)
                self.note(f"attempt {job.attempt}:")
                reader = self._begin(job, job.attempt, None)
        return reader

    def _drain(self, reader: LogReader) -> None:
        for stream, missing, data in reader.unread():
            self._put(stream, missing, data)

    def _put(self, stream: str, missing: int, data: bytes) -> None:
        if self.bytes_out is not None:
            self.bytes_out.write(data)
            return
        text = self.decoder.text(stream, data)
        if missing:
            start = "" if self.at_line_start else "\n"
            self.write(f"{start}[... {missing:,} bytes of {stream} left out ...]\n")
        self.write(text)
        self.at_line_start = text.endswith("\n") if text else self.at_line_start

    def _end(self, reader: LogReader) -> None:
        """Finish the last line on a terminal, and say what the cap left out."""
        if self.bytes_out is None:
            self.write(self.decoder.rest() + ("" if self.at_line_start else "\n"))
        self._flush()
        attempt = JobAttempt.objects.filter(job=reader.job_id, attempt=reader.attempt).first()
        for stream in self.streams:
            left_out = getattr(attempt, f"{stream}_omitted", 0)
            if left_out:
                emitted = getattr(attempt, f"{stream}_bytes")
                self.note(f"{left_out:,} of {emitted:,} bytes of {stream} were left out by the cap")

    def _bytes_out(self, raw: bool) -> Any:
        if raw or not self.out.isatty():
            return getattr(self.out, "buffer", None)
        return None


def _streams(given: str) -> list[str]:
    if given == "both":
        return [str(stream) for stream in Stream]
    if given not in Stream.values:
        raise wrong_usage(f"--stream: {given!r} is not stdout, stderr or both")
    return [given]


def _attempt(job: ContainerJob, given: int | None) -> int:
    if given is None:
        return job.attempt or 1
    if not 1 <= given <= job.attempt:
        there = "it was never started" if not job.attempt else f"there are 1 to {job.attempt}"
        raise wrong_usage(f"--attempt: the job has no attempt {given}; {there}")
    return given


def _is_over(job: ContainerJob, only: int | None) -> bool:
    if only is not None:
        held = JobAttempt.objects.active().filter(job=job, attempt=only)
        return not held.exists()
    return job.is_settled
