"""Rows 27, 28 and 29: very short jobs, very much output, and bytes of every kind.

Output of 1 GiB and a line of 350 MB: `make bench WORKLOAD=memory`.
"""

from __future__ import annotations

import pytest

from container_manager import lifecycle
from container_manager.models import JobLog
from container_manager.states import StopKind
from tests.support.api import Api, an_operator
from tests.support.neighbours import MIB, PATIENCE, beside_innocents, memory, told
from tests.support.running import KINDS, attempt_of, queue_job, stderr, stdout
from tests.support.workers import wait_until

pytestmark = [
    pytest.mark.processes,
    pytest.mark.django_db(transaction=True),
    pytest.mark.parametrize("kind", KINDS),
]

SHORT_JOBS = {"process": 100, "docker": 12}
MOST_GROWTH = 64 * MIB

CAP = 12 * MIB
LINE = 10_000_000
FLOOD = 32 * MIB
PERIOD = b"0123456789abcde\n"
EMPTY_LINES = 1_000_000


def pieces_of(job):
    chunks = JobLog.objects.filter(job=job, stream="stdout").order_by("offset")
    return [(offset, bytes(data)) for offset, data in chunks.values_list("offset", "data")]


def test_nothing_of_very_short_jobs_is_lost(workers, kind):
    """Row 27: many have ended before anybody could listen; no last line has a newline."""
    jobs = {n: queue_job(kind, f"printf {n}; printf e{n} >&2") for n in range(SHORT_JOBS[kind])}
    with beside_innocents(workers, kind):
        for number, job in jobs.items():
            assert told(job) == ("completed", "", 0)
            assert (stdout(job), stderr(job)) == (b"%d" % number, b"e%d" % number)


def test_much_output_is_kept_whole_or_counted_and_the_worker_does_not_grow(workers, kind):
    """Row 28: a line of megabytes, a million empty lines, and more than the cap, all at once."""
    with beside_innocents(workers, kind, LOG_CAP_BYTES=CAP) as around:
        before, _ = memory(around.worker.wait_until_started())
        line = queue_job(kind, f"head -c {LINE} /dev/zero | tr '\\0' x")
        empty = queue_job(kind, f"yes '' | head -n {EMPTY_LINES}")
        flood = queue_job(kind, f"yes 0123456789abcde | head -c {FLOOD}; printf end >&2")

        assert told(line) == told(empty) == told(flood) == ("completed", "", 0)
        assert stdout(line) == b"x" * LINE
        assert stdout(empty) == b"\n" * EMPTY_LINES
        assert stderr(flood) == b"end"
        _, most = memory(around.worker)
        assert most - before <= MOST_GROWTH

        pieces = pieces_of(flood)
        whole = PERIOD * (FLOOD // len(PERIOD))
        assert all(data == whole[offset : offset + len(data)] for offset, data in pieces)
        head = sum(len(data) for offset, data in pieces if offset < CAP // 2)
        tail = [(offset, data) for offset, data in pieces if offset >= CAP // 2]
        assert head == CAP // 2
        assert sum(len(data) for _, data in tail) == FLOOD - tail[0][0] >= CAP // 2
        attempt = attempt_of(flood)
        stored = sum(len(data) for _, data in pieces)
        assert (attempt.stdout_bytes, attempt.stdout_omitted) == (FLOOD, FLOOD - stored)


def test_who_prints_without_end_can_be_stopped(workers, kind):
    """Row 28: a container waits for its reader; a local job is ended at a size, and not retried."""
    workers.executors["process"]["options"]["max_output_bytes"] = 128 * MIB
    with beside_innocents(workers, kind, LOG_CAP_BYTES=MIB):
        job = queue_job(kind, "exec yes 0123456789abcde")
        if kind == "docker":
            wait_until(lambda: len(pieces_of(job)) > 8, "the tail", PATIENCE)
            lifecycle.stop([job.pk], StopKind.KILL)
        expected = {
            "docker": ("killed", "killed", 137),
            "process": ("failed", "output_limit", 137),
        }
        assert told(job) == expected[kind]
        attempt = attempt_of(job)
        pieces = pieces_of(job)
        assert attempt.stdout_bytes == pieces[-1][0] + len(pieces[-1][1]) > MIB
        stored = sum(len(data) for _, data in pieces)
        assert stored + attempt.stdout_omitted == attempt.stdout_bytes


def test_bytes_of_every_kind_are_stored_and_shown_truly(workers, kind):
    """Row 29: NUL, invalid UTF-8, escapes, progress bars, a character across two chunks."""
    every = bytes(range(256))
    screen = b"\033[31mred\033[0m\033]0;title\007 10 of 20\r 20 of 20\r\n\303"
    edge = 65535
    script = (
        f"printf '{octal(every)}'; printf '{octal(screen)}';"
        f" head -c {edge} /dev/zero | tr '\\0' a >&2; printf '{octal('€ end'.encode())}' >&2"
    )
    with beside_innocents(workers, kind):
        job = queue_job(kind, script)
        assert told(job) == ("completed", "", 0)

    whole = {"stdout": every + screen, "stderr": b"a" * edge + "€ end".encode()}
    api = Api(an_operator())
    for stream, data in whole.items():
        raw = api.get(f"jobs/{job.pk}/logs/raw/", stream=stream)
        assert b"".join(raw) == data
        text, replaced = read(api, job, stream)
        assert text == data.decode("utf-8", "replace")
        assert replaced == (stream == "stdout")
    job.refresh_from_db()
    assert "\0" not in job.output
    assert "\033[31mred" in job.output


def octal(data):
    return "".join(f"\\{byte:03o}" for byte in data)


def read(api, job, stream):
    """The whole text of one stream, page by page, and whether anything in it was replaced."""
    text, replaced, query = "", False, {}
    while True:
        told = api.get(f"jobs/{job.pk}/logs/", stream=stream, **query).json()
        text += "".join(entry["text"] for entry in told["entries"])
        replaced |= told["replaced"]
        if told["complete"]:
            return text, replaced
        query = {"cursor": told["cursor"]}
