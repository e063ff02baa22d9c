"""The output through the API: no byte lost or doubled as text, every byte itself as bytes."""

from __future__ import annotations

import random
import sys
import tracemalloc

import pytest
import requests
from django.db import connection
from django.test import Client

from container_manager.models import JobAttempt, JobLog
from container_manager.reports import log_reader
from container_manager.states import JobStatus, Phase
from tests.factories import JobFactory
from tests.support.api import Api, a_person, an_operator, problem
from tests.support.printing import Printing
from tests.support.spine import at_once
from tests.support.web import live_site, member, operator, workers

__all__ = ["live_site", "member", "operator", "workers"]

EVERY_BYTE = bytes(range(256))
EURO = "€".encode()

pytestmark = pytest.mark.django_db


@pytest.fixture
def prints():
    return Printing()


@pytest.fixture
def api(db):
    return Api(an_operator())


def page(api, job, **query):
    answer = api.get(f"jobs/{job.pk}/logs/", **query)
    assert answer.status_code == 200, answer.content
    return answer.json()


def texts(told):
    return [(entry["stream"], entry["text"]) for entry in told["entries"]]


def read_all(api, job, limit, **query):
    """Every entry of every page, from the first to the one that is complete."""
    told = page(api, job, limit=limit, **query)
    entries = told["entries"]
    while not told["complete"]:
        before = told["cursor"]
        told = page(api, job, limit=limit, cursor=before)
        assert told["cursor"] != before, "every page goes on"
        entries += told["entries"]
    return entries


def text_of(entries, stream):
    return "".join(entry["text"] for entry in entries if entry["stream"] == stream)


# Pages of text


def test_both_streams_are_told_in_the_order_they_were_written(api, prints):
    prints(b"one\n")
    prints(b"two\n")
    prints(b"oops\n", "stderr")
    prints(b"three\n")
    job = prints.end()
    told = page(api, job)
    assert texts(told) == [
        ("stdout", "one\ntwo\n"),
        ("stderr", "oops\n"),
        ("stdout", "three\n"),
    ]
    assert (told["job"], told["attempt"]) == (str(job.pk), 1)
    assert (told["more"], told["complete"], told["replaced"]) == (False, True, False)
    assert told["streams"] == {
        "stdout": {"bytes": 14, "omitted": 0, "next_offset": 14},
        "stderr": {"bytes": 5, "omitted": 0, "next_offset": 5},
    }


def test_one_stream_can_be_read_alone(api, prints):
    prints(b"out")
    prints(b"err", "stderr")
    told = page(api, prints.end(), stream="stderr")
    assert texts(told) == [("stderr", "err")]
    assert list(told["streams"]) == ["stderr"]


def test_a_program_pages_on_by_offset(api, prints):
    prints(b"0123456789" * 3)
    job = prints.end()
    read, offset = "", 0
    for _ in range(4):
        told = page(api, job, stream="stdout", offset=offset, limit=10)
        read += text_of(told["entries"], "stdout")
        offset = told["streams"]["stdout"]["next_offset"]
    assert (read, offset) == ("0123456789" * 3, 30)


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 8, 9, 50, 10_000])
@pytest.mark.parametrize("seed", range(3))
def test_pages_of_any_size_lose_and_double_nothing(api, monkeypatch, limit, seed):
    monkeypatch.setattr(log_reader, "AT_ONCE", 3)
    dice = random.Random(seed)
    prints = Printing()
    whole = {"stdout": b"", "stderr": b""}
    alphabet = [b"a", b"\n", EURO, "𝄞".encode(), b"\xff", b"\xe2\x82", b"\xf0\x9d", b"\0", b"\x1b"]
    for _ in range(25):
        stream = dice.choice(["stdout", "stderr"])
        data = b"".join(dice.choices(alphabet, k=dice.randint(1, 6)))
        cut = dice.randint(0, 2)
        data = data[: len(data) - cut] or b"x"
        prints(data, stream)
        whole[stream] += data
    entries = read_all(api, prints.end(), limit)
    for stream, data in whole.items():
        assert text_of(entries, stream) == data.decode("utf-8", "replace")
        mine = [entry for entry in entries if entry["stream"] == stream]
        ends = [0, *(entry["offset"] + entry["bytes"] for entry in mine)]
        assert ends[:-1] == [entry["offset"] for entry in mine]
        assert ends[-1] == len(data)


def test_a_character_that_two_chunks_share_is_one_character(api, prints):
    """Row 29: a character across two chunks."""
    prints(b"1 " + EURO[:1])
    prints(b"meanwhile", "stderr")
    prints(EURO[1:] + b"!")
    told = page(api, prints.end())
    assert text_of(told["entries"], "stdout") == "1 €!"
    assert not told["replaced"]


def test_a_character_that_has_not_come_yet_is_waited_for_while_the_job_runs(api, prints):
    prints(b"1 " + EURO[:2])
    told = page(api, prints.job)
    assert text_of(told["entries"], "stdout") == "1 "
    assert not told["complete"]
    prints(EURO[2:])
    later = page(api, prints.job, cursor=told["cursor"])
    assert text_of(later["entries"], "stdout") == "€"


def test_what_is_not_utf8_is_replaced_and_that_is_said(api, prints):
    """Row 29: the text view."""
    prints(b"good\n")
    prints(b"bad \xff\n", "stderr")
    prints(EURO[:2])
    told = page(api, prints.end())
    assert texts(told) == [("stdout", "good\n"), ("stderr", "bad �\n"), ("stdout", "�")]
    assert [entry["replaced"] for entry in told["entries"]] == [False, True, True]
    assert told["replaced"]


def test_a_real_replacement_character_is_no_replacement(api, prints):
    prints("�".encode())
    assert not page(api, prints.end())["replaced"]


def test_a_running_job_is_read_as_it_goes_on(api, prints):
    told = page(api, prints.job)
    assert (told["entries"], told["more"], told["complete"]) == ([], False, False)
    prints(b"one\n")
    told = page(api, prints.job, cursor=told["cursor"])
    assert texts(told) == [("stdout", "one\n")]
    prints(b"two\n", "stderr")
    job = prints.end()
    told = page(api, job, cursor=told["cursor"])
    assert texts(told) == [("stderr", "two\n")]
    assert told["complete"]
    told = page(api, job, cursor=told["cursor"])
    assert (told["entries"], told["complete"]) == ([], True)


def test_what_the_cap_left_out_is_told_where_it_was(api, prints):
    prints(b"head" + EURO[:1])
    prints(b"tail", skip=90)
    told = page(api, prints.end())
    assert [(entry["text"], entry["omitted_before"]) for entry in told["entries"]] == [
        ("head�", 0),
        ("tail", 90),
    ]
    assert told["entries"][1]["offset"] == 95
    assert told["streams"]["stdout"] == {"bytes": 99, "omitted": 90, "next_offset": 99}


def test_a_page_may_end_before_what_was_left_out(api, prints):
    prints(b"12345678")
    prints(b"tail", skip=90)
    job = prints.end()
    first = page(api, job, limit=8)
    assert (texts(first), first["more"]) == ([("stdout", "12345678")], True)
    second = page(api, job, cursor=first["cursor"])
    assert [entry["omitted_before"] for entry in second["entries"]] == [90]


def test_totals_of_a_running_job_are_those_so_far(api, prints):
    prints(b"head")
    prints(b"tail", skip=6)
    assert page(api, prints.job)["streams"]["stdout"] == {
        "bytes": 14,
        "omitted": 6,
        "next_offset": 14,
    }


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (0, []),
        (1, [("stdout", "four")]),
        (2, [("stderr", "three\n"), ("stdout", "four")]),
        (3, [("stdout", "two\n"), ("stderr", "three\n"), ("stdout", "four")]),
        (99, [("stdout", "one\ntwo\n"), ("stderr", "three\n"), ("stdout", "four")]),
    ],
)
def test_the_tail_is_the_last_lines(api, prints, lines, expected):
    prints(b"one\ntwo\n")
    prints(b"three\n", "stderr")
    prints(b"four")
    told = page(api, prints.end(), tail=lines)
    assert texts(told) == expected
    assert told["complete"]


def test_after_a_tail_one_reads_on(api, prints):
    prints(b"one\ntwo\n")
    told = page(api, prints.job, tail=1)
    assert texts(told) == [("stdout", "two\n")]
    prints(b"three\n")
    assert texts(page(api, prints.job, cursor=told["cursor"])) == [("stdout", "three\n")]


def test_of_several_places_to_begin_the_latest_counts(api, prints):
    prints(b"one\ntwo\nthree\n")
    prints(b"a\nb\n", "stderr")
    job = prints.end()
    cursor = page(api, job, limit=8)["cursor"]
    assert text_of(page(api, job, cursor=cursor, tail=99)["entries"], "stdout") == "three\n"
    assert texts(page(api, job, cursor=cursor, tail=1)) == [("stderr", "b\n")]
    assert texts(page(api, job, cursor=cursor, stream="stderr")) == [("stderr", "a\nb\n")]
    assert texts(page(api, job, offset=2)) == [("stdout", "e\ntwo\nthree\n"), ("stderr", "b\n")]
    assert texts(page(api, job, offset=2, tail=2)) == [("stderr", "b\n")]
    assert page(api, job, cursor="1")["entries"] == page(api, job)["entries"]


def test_each_attempt_has_its_own_output(api):
    job = JobFactory(status=JobStatus.RUNNING, attempt=2)
    for number in (1, 2):
        phase = Phase.DONE if number == 1 else Phase.STARTED
        JobAttempt.objects.create(job=job, attempt=number, phase=phase)
        text = f"attempt {number}".encode()
        JobLog.objects.create(job=job, attempt=number, stream="stdout", offset=0, data=text)
    assert texts(page(api, job)) == [("stdout", "attempt 2")]
    first = page(api, job, attempt=1)
    assert texts(first) == [("stdout", "attempt 1")]
    assert first["complete"], "it has ended, though the job runs again"
    for number in (0, -1, 10**20, "x"):
        told = problem(api.get(f"jobs/{job.pk}/logs/", attempt=number), 400, "invalid")
        assert list(told["errors"]) == ["attempt"]
    for address in ("logs/", "logs/raw/"):
        told = problem(api.get(f"jobs/{job.pk}/{address}", attempt=3), 404, "not_found")
        assert told["detail"] == "The job has no attempt 3; there are 1 to 2."
    of_first = {"cursor": first["cursor"], "attempt": 2}
    problem(api.get(f"jobs/{job.pk}/logs/", **of_first), 404, "not_found")


def test_a_cursor_from_before_the_start_reads_the_first_attempt(api):
    job = JobFactory(status=JobStatus.QUEUED)
    waiting = page(api, job)
    assert (waiting["attempt"], waiting["entries"], waiting["complete"]) == (0, [], False)
    job.transition_to(JobStatus.RUNNING)
    Printing(job)(b"one")
    told = page(api, job, cursor=waiting["cursor"])
    assert (told["attempt"], texts(told)) == (1, [("stdout", "one")])


def test_a_job_that_never_started_and_never_will_is_complete(api):
    job = JobFactory(status=JobStatus.CANCELLED, launched_at=None, attempt=0)
    assert page(api, job)["complete"]
    problem(api.get(f"jobs/{job.pk}/logs/", attempt=1), 404, "not_found")


def test_beyond_the_end_there_is_nothing(api, prints):
    prints(b"one")
    told = page(api, prints.end(), stream="stdout", offset=10**12)
    assert (told["entries"], told["more"], told["complete"]) == ([], False, True)


@pytest.mark.parametrize(
    "query",
    [
        {"limit": 0},
        {"limit": -1},
        {"limit": 10**9},
        {"limit": "1e3"},
        {"limit": ""},
        {"offset": -1, "stream": "stdout"},
        {"offset": 10**30, "stream": "stdout"},
        {"offset": "x", "stream": "stdout"},
        {"stream": "stdin"},
        {"stream": ["stdout", "stderr"]},
        {"tail": -1},
        {"tail": 10**9},
        {"cursor": "x"},
        {"cursor": "%00"},
        {"cursor": "\0"},
        {"cursor": "Ä"},
        {"cursor": "a" * 300},
        {"cursor": "1-stdin-5"},
        {"cursor": "1-stderr-5-stdout-5"},
        {"cursor": f"1-stdout-{10**20}"},
        {"cursor": "-1-stdout-5"},
        {"follow": 2},
        {"page": 1},
    ],
)
def test_parameters_that_cannot_be_are_refused(api, prints, query):
    problem(api.get(f"jobs/{prints.job.pk}/logs/", **query), 400, "invalid")


def test_output_is_seen_by_those_who_see_the_job(prints):
    prints(b"secret")
    for address in ("logs/", "logs/raw/"):
        foreign = Api(a_person()).get(f"jobs/{prints.job.pk}/{address}")
        unknown = Api(a_person()).get(f"jobs/00000000-0000-0000-0000-000000000000/{address}")
        problem(foreign, 404, "not_found")
        assert foreign.content == unknown.content
        problem(Api().get(f"jobs/{prints.job.pk}/{address}"), 401, "not_authenticated")
        problem(Api(an_operator()).get(f"jobs/nonsense/{address}"), 404, "not_found")
    owner = a_person()
    mine = Printing(created_by=owner)
    mine(b"mine")
    assert texts(page(Api(owner), mine.job)) == [("stdout", "mine")]
    assert raw(Api(owner), mine.job).content == b"mine"


def test_a_page_costs_a_few_queries_however_much_was_printed(
    api, prints, django_assert_max_num_queries
):
    for number in range(200):
        prints(b"%d\n" % number, ("stdout", "stderr")[number % 2])
    job = prints.end()
    api.get("auth/me/")
    with django_assert_max_num_queries(13):
        page(api, job, limit=100)


# Bytes


class Raw:
    """A download that has been read to its end."""

    def __init__(self, answer):
        self.status = answer.status_code
        self.headers = answer.headers
        self.content = b"".join(answer) if answer.streaming else answer.content


def raw(api, job, headers=None, **query):
    return Raw(api.get(f"jobs/{job.pk}/logs/raw/", headers=headers, **query))


def test_every_byte_comes_as_it_was_written(api, prints):
    """Row 29: the raw log."""
    for _ in range(3):
        prints(EVERY_BYTE)
        prints(b"err \xff", "stderr")
    job = prints.end()
    found = raw(api, job)
    assert (found.status, found.content) == (200, EVERY_BYTE * 3)
    assert raw(api, job, stream="stderr").content == b"err \xff" * 3


def test_a_download_says_what_it_is_and_can_do_no_harm_in_a_browser(api, prints):
    prints(b"<script>")
    job = prints.end()
    headers = raw(api, job).headers
    assert headers["Content-Type"] == "application/octet-stream"
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Content-Disposition"] == f'attachment; filename="cm-{job.pk}-1.stdout.log"'
    assert headers["Content-Length"] == "8"
    assert headers["Accept-Ranges"] == "bytes"
    assert headers["X-Omitted-Bytes"] == "0"


def test_the_bytes_left_out_are_told_and_the_rest_is_one_piece(api, prints):
    prints(b"head")
    prints(b"tail", skip=90)
    prints.end()
    found = raw(api, prints.job)
    assert found.content == b"headtail"
    assert found.headers["X-Omitted-Bytes"] == "90"
    assert raw(api, prints.job, {"Range": "bytes=3-4"}).content == b"dt"


def test_a_job_that_printed_nothing_gives_nothing(api):
    found = raw(api, JobFactory(status=JobStatus.QUEUED))
    assert (found.status, found.content) == (200, b"")


@pytest.mark.parametrize(
    ("asked", "first", "last"),
    [
        ("bytes=0-0", 0, 0),
        ("bytes=0-", 0, 1279),
        ("bytes=100-355", 100, 355),
        ("bytes=255-256", 255, 256),
        ("bytes=1279-", 1279, 1279),
        ("bytes=1000-99999999999999999999", 1000, 1279),
        ("bytes=-1", 1279, 1279),
        ("bytes=-300", 980, 1279),
        ("bytes=-99999", 0, 1279),
    ],
)
def test_a_range_is_that_part(api, prints, monkeypatch, asked, first, last):
    monkeypatch.setattr(log_reader, "AT_ONCE", 2)
    for _ in range(5):
        prints(EVERY_BYTE)
    found = raw(api, prints.end(), {"Range": asked})
    assert found.status == 206
    assert found.content == (EVERY_BYTE * 5)[first : last + 1]
    assert found.headers["Content-Range"] == f"bytes {first}-{last}/1280"
    assert found.headers["Content-Length"] == str(last + 1 - first)


@pytest.mark.parametrize(
    "asked",
    [
        "bytes=10-",
        "bytes=10-20",
        "bytes=-0",
        "bytes=5-2",
        "bytes=-",
        "bytes=",
        "bytes=a-b",
        "bytes=--5",
        "bytes=0-1,3-4",
        "bytes=0x0-1",
        "bytes=٣-",
        f"bytes={'9' * 5000}-",
    ],
)
def test_a_range_that_is_not_there_is_416(api, prints, asked):
    prints(b"0123456789")
    answer = api.get(f"jobs/{prints.end().pk}/logs/raw/", headers={"Range": asked})
    problem(answer, 416, "range_not_satisfiable")
    assert answer.headers["Content-Range"] == "bytes */10"


def test_a_range_of_another_unit_is_ignored(api, prints):
    prints(b"0123456789")
    assert raw(api, prints.end(), {"Range": "lines=1-2"}).status == 200


def test_the_etag_changes_with_the_bytes_and_spares_a_second_download(api, prints):
    prints(b"one")
    first = raw(api, prints.job).headers["ETag"]
    known = raw(api, prints.job, {"If-None-Match": first})
    assert (known.status, known.content, known.headers["ETag"]) == (304, b"", first)
    prints(b"two")
    again = raw(api, prints.job, {"If-None-Match": first})
    assert (again.status, again.content) == (200, b"onetwo")
    resumed = {"Range": "bytes=3-", "If-Range": first}
    assert raw(api, prints.job, resumed).content == b"onetwo", "what it began with has changed"
    resumed["If-Range"] = again.headers["ETag"]
    assert raw(api, prints.job, resumed).content == b"two"


def test_head_tells_the_length_alone(api, prints):
    prints(b"0123456789")
    answer = Raw(api.client.head(f"/api/v1/jobs/{prints.end().pk}/logs/raw/"))
    assert (answer.status, answer.content) == (200, b"")
    assert answer.headers["Content-Length"] == "10"


@pytest.mark.parametrize(
    "query", [{"stream": "both"}, {"attempt": 0}, {"attempt": "x"}, {"follow": 1}, {"offset": 1}]
)
def test_parameters_of_a_download_that_cannot_be_are_refused(api, prints, query):
    problem(api.get(f"jobs/{prints.job.pk}/logs/raw/", **query), 400, "invalid")


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
@pytest.mark.parametrize("address", ["logs/", "logs/raw/"])
def test_output_cannot_be_written(api, prints, method, address):
    answer = api.send(method, f"jobs/{prints.job.pk}/{address}", {})
    problem(answer, 405, "method_not_allowed")


MIB = 1024 * 1024


def long_output(mebibytes):
    prints = Printing()
    block = random.Random(1).randbytes(64 * 1024)
    for _ in range(mebibytes * 16):
        prints(block)
    return prints.end(), block * mebibytes * 16


def test_a_long_download_is_never_in_memory_as_a_whole(api):
    job, _ = long_output(24)
    answer = api.get(f"jobs/{job.pk}/logs/raw/")
    tracemalloc.start()
    try:
        read = sum(len(piece) for piece in answer)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert read == 24 * MIB
    assert most < 8 * MIB


@pytest.mark.django_db(transaction=True)
def test_who_reads_slowly_keeps_no_database_connection_meanwhile():
    job, everything = long_output(3)
    client, seen = Client(), []
    client.force_login(an_operator())

    def read():
        pieces = []
        for piece in client.get(f"/api/v1/jobs/{job.pk}/logs/raw/"):
            seen.append(connection.connection is None)
            pieces.append(piece)
        return b"".join(pieces)

    assert at_once(read) == [everything]
    assert set(seen) == {True}


@pytest.mark.django_db(transaction=True)
def test_the_real_web_server_streams_every_byte(live_site, operator):
    prints = Printing()
    prints(EVERY_BYTE)
    small = prints.end()
    job, everything = long_output(20)
    address = f"{live_site.url}/api/v1/jobs"

    def get(path, **headers):
        return requests.get(
            f"{address}/{path}", headers={**operator.headers, **headers}, timeout=60
        )

    assert get(f"{small.pk}/logs/raw/").content == EVERY_BYTE
    before = memory_of(live_site.pid)
    found = get(f"{job.pk}/logs/raw/")
    assert found.content == everything
    assert found.headers["Content-Length"] == str(len(everything))
    assert memory_of(live_site.pid) - before < 16 * MIB
    part = get(f"{job.pk}/logs/raw/", Range="bytes=65530-65545")
    assert (part.status_code, part.content) == (206, everything[65530:65546])
    with requests.get(
        f"{address}/{job.pk}/logs/raw/", headers=operator.headers, stream=True, timeout=60
    ) as given_up:
        next(given_up.iter_content(1024))
    assert get(f"{small.pk}/logs/").json()["streams"]["stdout"]["bytes"] == 256


def memory_of(pid):
    if not sys.platform.startswith("linux"):
        return 0
    with open(f"/proc/{pid}/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))
