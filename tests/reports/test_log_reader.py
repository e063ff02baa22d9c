"""Reading output in batches: few queries when chunks are small, few bytes when they are large."""

from __future__ import annotations

from typing import Any

import pytest

from container_manager.models import JobLog
from container_manager.reports import log_reader
from container_manager.reports.log_reader import LogReader
from container_manager.reports.raw_log import RawLog
from tests.factories import JobFactory

pytestmark = pytest.mark.django_db

KIB = 1024


def printed(*sizes: int, gap: int = 0) -> Any:
    """A job with chunks of these sizes; the cap left out `gap` bytes before the second one."""
    job, offset, rows = JobFactory(status="completed"), 0, []
    for number, size in enumerate(sizes):
        offset += gap if number == 1 else 0
        data = bytes([65 + number % 26]) * size
        rows.append(JobLog(job=job, attempt=1, stream="stdout", offset=offset, data=data))
        offset += size
    JobLog.objects.bulk_create(rows)
    return job


def text(job: Any) -> bytes:
    return b"".join(data for _, _, data in LogReader(job.pk, 1, ["stdout"]).unread())


def raw(job: Any) -> bytes:
    log = RawLog(job.pk, 1, "stdout")
    return b"".join(log.read(0, log.size))


def expected(*sizes: int) -> bytes:
    return b"".join(bytes([65 + number % 26]) * size for number, size in enumerate(sizes))


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[list[JobLog]]:
    """Those that were in memory together."""
    seen: list[list[JobLog]] = []
    in_batches = log_reader._in_batches

    def watched(read: Any) -> Any:
        def noted(last: Any, number: int) -> list[JobLog]:
            found: list[JobLog] = read(last, number)
            seen.append(found)
            return found

        return in_batches(noted)

    monkeypatch.setattr(log_reader, "_in_batches", watched)
    return seen


@pytest.mark.parametrize("read", [text, raw])
def test_many_small_chunks_cost_few_queries(
    read: Any, django_assert_max_num_queries: Any, batches: list[list[JobLog]]
) -> None:
    sizes = [11] * 6000
    job = printed(*sizes)
    with django_assert_max_num_queries(20):
        assert read(job) == expected(*sizes)
    assert max(map(len, batches)) <= log_reader.MOST_AT_ONCE


def test_the_tail_of_many_small_chunks_costs_few_queries(
    django_assert_max_num_queries: Any,
) -> None:
    job = printed(*[11] * 6000)
    reader = LogReader(job.pk, 1, ["stdout"])
    with django_assert_max_num_queries(20):
        reader.seek_last_lines(5)
    assert reader.read_to == {"stdout": 0}


@pytest.mark.parametrize(
    "sizes",
    [
        [64 * KIB] * 50,
        [11] * 500 + [64 * KIB] * 50,
        [64 * KIB, 1] * 40,
        [1] * 17 + [64 * KIB] * 20 + [8 * KIB] * 300,
    ],
)
@pytest.mark.parametrize("gap", [0, 5 * 1024 * KIB])
def test_no_batch_is_more_than_a_mebibyte(
    sizes: list[int], gap: int, batches: list[list[JobLog]]
) -> None:
    job = printed(*sizes, gap=gap)
    assert text(job) == expected(*sizes)
    LogReader(job.pk, 1, ["stdout"]).seek_last_lines(5)
    assert max(sum(len(chunk.data) for chunk in batch) for batch in batches) <= 1024 * KIB
    read = [chunk.offset for batch in batches for chunk in batch]
    assert len(read) == 2 * len(sizes), "each once forwards, once backwards"
