from __future__ import annotations

import io
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.core.management import call_command
from django.utils import timezone

from container_manager.management.commands import job_logs
from container_manager.models import ContainerJob, JobAttempt, JobLog
from container_manager.reports import log_reader
from tests.commands.shell import Script, run
from tests.commands.test_list_jobs import Terminal

pytestmark = pytest.mark.django_db
Make = Callable[..., ContainerJob]

EVERY_BYTE = bytes(range(256))


class Printing:
    """A job that prints, chunk by chunk."""

    def __init__(self, job: ContainerJob, attempt: int = 1) -> None:
        self.job, self.attempt = job, attempt
        self.ends = {"stdout": 0, "stderr": 0}

    def __call__(self, data: bytes, stream: str = "stdout", skip: int = 0, **fields: Any) -> None:
        offset = self.ends[stream] + skip
        self.ends[stream] = offset + len(data)
        JobLog.objects.create(
            job=self.job,
            attempt=self.attempt,
            stream=stream,
            offset=offset,
            data=data,
            **fields,
        )


def printed(*arguments: Any) -> bytes:
    """What the command writes to a pipe."""
    pipe = io.TextIOWrapper(io.BytesIO())
    call_command("job_logs", *map(str, arguments), stdout=pipe)
    return pipe.buffer.getvalue()


def shown(*arguments: Any) -> str:
    """What the command writes to a terminal."""
    screen = Terminal()
    call_command("job_logs", *map(str, arguments), stdout=screen, stderr=io.StringIO())
    return screen.getvalue()


@pytest.fixture
def prints(job: Make) -> Printing:
    return Printing(job(status="completed"))


def test_a_pipe_gets_every_byte_as_it_was_written(prints: Printing) -> None:
    for _ in range(3):
        prints(EVERY_BYTE)
    assert printed(prints.job.pk) == EVERY_BYTE * 3
    assert printed(prints.job.pk, "--raw") == EVERY_BYTE * 3


def test_both_streams_come_in_the_order_they_were_written(prints: Printing) -> None:
    prints(b"one ")
    prints(b"two ", "stderr")
    prints(b"three")
    assert printed(prints.job.pk) == b"one two three"
    assert printed(prints.job.pk, "--stream", "stdout") == b"one three"
    assert printed(prints.job.pk, "--stream", "stderr") == b"two "


def test_a_clock_that_stepped_back_hides_no_byte(prints: Printing) -> None:
    prints(b"one ", created_at=timezone.now())
    prints(b"two ", created_at=timezone.now() - timedelta(hours=1))
    prints(b"err ", "stderr", created_at=timezone.now() - timedelta(hours=2))
    assert printed(prints.job.pk) == b"err one two "


@pytest.mark.parametrize("most", [2, 3, 1000])
def test_more_chunks_than_are_read_at_once(
    most: int, prints: Printing, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_reader, "AT_ONCE", 2)
    monkeypatch.setattr(log_reader, "MOST_AT_ONCE", most)
    for number in range(7):
        prints(b"%d\n" % number, ("stdout", "stderr")[number % 2])
    assert printed(prints.job.pk) == b"0\n1\n2\n3\n4\n5\n6\n"
    assert printed(prints.job.pk, "--tail", 5) == b"2\n3\n4\n5\n6\n"


def test_a_terminal_shows_control_characters_and_broken_text(prints: Printing) -> None:
    prints(b"\x1b[2Jred\x07\tok\r\nbad \xff end \xe2\x82")
    prints(b"\xac\xe2\x82")
    assert shown(prints.job.pk) == "\\x1b[2Jred\\x07\tok\nbad \ufffd end \u20ac\ufffd\n"


@pytest.mark.parametrize(
    ("count", "lines"),
    [(0, b""), (1, b"three"), (2, b"two\nthree"), (3, b"one\ntwo\nthree"), (9, None)],
)
def test_the_tail_is_the_last_lines(count: int, lines: bytes | None, prints: Printing) -> None:
    for piece in (b"one\nt", b"wo\nth", b"ree"):
        prints(piece)
    expected = b"one\ntwo\nthree" if lines is None else lines
    assert printed(prints.job.pk, "--tail", count) == expected


def test_what_the_cap_left_out_is_told(prints: Printing) -> None:
    prints(b"head\n")
    prints(b"tail\n", skip=90)
    JobAttempt.objects.create(
        job=prints.job, attempt=1, phase="done", stdout_bytes=100, stdout_omitted=90
    )
    assert "head\n[... 90 bytes of stdout left out ...]\ntail\n" in shown(prints.job.pk)
    answer = run("job_logs", prints.job.pk)
    assert answer.err == "job_logs: 90 of 100 bytes of stdout were left out by the cap\n"
    assert printed(prints.job.pk) == b"head\ntail\n"


def test_an_earlier_attempt_can_be_read(job: Make) -> None:
    made = job(status="completed", attempt=2)
    Printing(made, 1)(b"first")
    Printing(made, 2)(b"second")
    assert printed(made.pk) == b"second"
    assert printed(made.pk, "--attempt", 1) == b"first"
    answer = run("job_logs", made.pk, "--attempt", 3)
    assert (answer.code, answer.err) == (
        2,
        "--attempt: the job has no attempt 3; there are 1 to 2\n",
    )


@pytest.mark.parametrize("option", ["--stream=both,", "--tail=-1", "--attempt=0", "--tail=x"])
def test_options_that_make_no_sense_are_refused(option: str, prints: Printing) -> None:
    assert run("job_logs", prints.job.pk, option).code == 2


def test_a_job_that_was_never_started_has_printed_nothing(job: Make) -> None:
    answer = run("job_logs", job(status="queued").pk)
    assert (answer.code, answer.out) == (0, "")
    assert "it has not been started yet" in answer.err


def test_following_goes_on_over_a_retry_until_the_job_is_settled(
    job: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = job(status="queued")

    def move(*states: str) -> None:
        for state in states:
            ContainerJob.objects.get(pk=made.pk).transition_to(state)

    def print_and_move(attempt: int, data: bytes, *states: str) -> Callable[[], None]:
        def step() -> None:
            Printing(made, attempt)(data)
            move(*states)

        return step

    steps = [
        lambda: move("running"),
        print_and_move(1, b"first\n"),
        lambda: move("failed", "retrying", "queued", "running"),
        print_and_move(2, b"second\n"),
        lambda: move("completed"),
    ]
    monkeypatch.setattr(job_logs, "time", Script(steps))
    assert printed(made.pk, "--follow") == b"first\nsecond\n"


def test_following_begins_behind_the_tail(
    prints: Printing, monkeypatch: pytest.MonkeyPatch
) -> None:
    ContainerJob.objects.all().delete()
    running = Printing(ContainerJob.objects.create(image="x", command=["a"], status="queued"))
    ContainerJob.objects.get().transition_to("running")
    running(b"old\nlast\n")
    steps = [
        lambda: running(b"new\n"),
        lambda: ContainerJob.objects.get().transition_to("completed"),
    ]
    monkeypatch.setattr(job_logs, "time", Script(steps))
    assert printed(running.job.pk, "--follow", "--tail", 1) == b"last\nnew\n"


def test_following_a_job_that_is_deleted_fails(job: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    made = job(status="queued")
    monkeypatch.setattr(job_logs, "time", Script([ContainerJob.objects.all().delete]))
    answer = run("job_logs", made.pk, "--follow")
    assert (answer.code, answer.err) == (1, "the job was deleted\n")
