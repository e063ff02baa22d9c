"""Following a log over the real web server, as it is printed by real jobs."""

from __future__ import annotations

import asyncio
import base64
import os
import random
import re
import select
import socket
import time
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import requests
from django.db import connection
from django.test import AsyncClient, Client

from container_manager import lifecycle
from container_manager.models import JobLog
from container_manager.states import JobStatus, StopKind
from tests.factories import JobFactory
from tests.support.api import Api, an_operator, problem
from tests.support.printing import Printing
from tests.support.running import queue_job, stderr, stdout
from tests.support.spine import at_once
from tests.support.streams import EventStream, output
from tests.support.web import live_site, make_person, member, operator, some_site, workers
from tests.support.workers import settled, wait_for, wait_until

__all__ = ["live_site", "member", "operator", "workers"]

pytestmark = pytest.mark.django_db(transaction=True)

EVERY_BYTE = bytes(range(256))


def address(site, job, **query):
    words = "&".join(f"{name}={value}" for name, value in {"follow": 1, **query}.items())
    return f"{site.url}/api/v1/jobs/{job.pk}/logs/?{words}"


@pytest.fixture
def follow(live_site, operator):
    """follow(job, stream="stdout") is a stream of an operator's."""

    def open_one(job, last=None, **query):
        return EventStream(address(live_site, job, **query), operator.headers, last)

    return open_one


@pytest.fixture
def prints():
    return Printing()


# What is told -------------------------------------------------------------------------------------


@pytest.mark.web
def test_what_is_printed_comes_while_the_job_runs_and_the_stream_ends_with_it(follow, prints):
    prints(b"before\n")
    with follow(prints.job) as stream:
        assert stream.headers["Content-Type"] == "text/event-stream"
        assert stream.headers["Cache-Control"] == "no-store"
        assert stream.headers["X-Accel-Buffering"] == "no"
        told = [stream.next()]
        prints(b"during\n")
        told.append(stream.next())
        prints(b"oops\n", "stderr")
        told.append(stream.next())
        prints(b"last\n")
        prints.end(JobStatus.COMPLETED)
        told += stream
    assert output(told) == b"before\nduring\nlast\n"
    assert output(told, "stderr") == b"oops\n"
    assert told[0].data == {
        "attempt": 1,
        "stream": "stdout",
        "offset": 0,
        "bytes": 7,
        "omitted_before": 0,
        "text": "before\n",
    }
    assert told[0].id == "1-stdout-7-stderr-0"
    assert told[-1].event == "end"
    assert told[-1].data == {"attempt": 1, "status": "completed", "reason": "", "exit_code": None}


@pytest.mark.web
def test_what_is_not_utf_8_comes_as_bytes(follow, prints):
    prints(EVERY_BYTE)
    prints("€\0\x1b[31m\u2028".encode(), "stderr")
    prints.end()
    with follow(prints.job) as stream:
        told = list(stream)
    assert output(told) == EVERY_BYTE
    assert output(told, "stderr") == "€\0\x1b[31m\u2028".encode()
    assert ["base64" in each.data for each in told[:2]] == [True, False]


@pytest.mark.web
def test_what_the_cap_left_out_is_told(follow, prints):
    prints(b"head")
    with follow(prints.job) as stream:
        told = [stream.next()]
        prints(b"tail", skip=1000)
        prints.end()
        told += stream
    assert [(each.data["offset"], each.data["omitted_before"]) for each in told[:2]] == [
        (0, 0),
        (1004, 1000),
    ]


@pytest.mark.web
def test_a_finished_job_tells_all_and_ends(follow, prints):
    whole = random.Random(1).randbytes(700_000)
    for at in range(0, len(whole), 60_000):
        prints(whole[at : at + 60_000])
    prints.end(JobStatus.FAILED)
    with follow(prints.job) as stream:
        told = list(stream)
    assert output(told) == whole
    assert max(len(each.content) for each in told[:-1]) <= 64 * 1024
    assert told[-1].data["status"] == "failed"


@pytest.mark.web
def test_a_queued_job_tells_nothing_until_it_starts(follow):
    job = JobFactory(status="queued")
    with follow(job) as stream:
        job.mark_as_running()
        prints = Printing(job)
        prints(b"hello")
        prints.end()
        told = list(stream)
    assert [each.event for each in told] == ["attempt", "log", "end"]
    assert told[0].data == {"attempt": 1}


@pytest.mark.web
def test_a_job_that_is_cancelled_while_it_waits_ends_the_stream(follow):
    job = JobFactory(status="queued")
    with follow(job) as stream:
        lifecycle.stop([job.pk], StopKind.CANCEL)
        (told,) = stream
    assert told.event == "end"
    assert (told.data["status"], told.data["attempt"]) == ("cancelled", 0)


@pytest.mark.web
def test_a_job_that_is_deleted_ends_the_stream_and_is_not_there_afterwards(
    follow, prints, live_site, operator
):
    with follow(prints.job) as stream:
        prints(b"text")
        told = [stream.next()]
        job = prints.end()
        job.delete()
        told += stream
        deleted = told[-1].data["status"] == "deleted"
        assert deleted or told[-1].data["status"] == "completed"  # it was seen to end before
    again = requests.get(address(live_site, prints.job), headers=operator.headers, timeout=60)
    assert again.status_code == 404


@pytest.mark.web
def test_one_stream_and_one_attempt_can_be_followed_alone(follow, prints):
    prints(b"out")
    prints(b"err", "stderr")
    prints.end(JobStatus.FAILED)
    prints.job.transition_to(JobStatus.RETRYING)
    with follow(prints.job, attempt=1, stream="stderr") as stream:
        told = list(stream)
    assert [each.event for each in told] == ["log", "end"]
    assert told[0].id == "1-stderr-3"
    with follow(prints.job, last="1-stderr-1", attempt=1) as stream:
        assert stream.next().content == b"rr"


@pytest.mark.web
def test_a_stream_may_begin_with_the_last_lines(follow, prints):
    prints(b"one\ntwo\nthree\n")
    prints.end()
    with follow(prints.job, tail=2) as stream:
        assert stream.next().content == b"two\nthree\n"
    with follow(prints.job, offset=4, cursor="1-stdout-1-stderr-0") as stream:
        assert stream.next().content == b"two\nthree\n"


@pytest.mark.web
def test_who_comes_back_goes_on_behind_what_he_has(follow, prints):
    prints(b"0123456789")
    job = prints.end()
    with follow(job, last="1-stdout-4-stderr-0", cursor="1-stdout-0-stderr-0") as stream:
        assert stream.next().content == b"456789"
    with follow(job, last="1-stdout-10-stderr-0") as stream:
        assert [each.event for each in stream] == ["end"]


@pytest.mark.web
def test_head_is_answered_without_a_stream(live_site, operator, prints):
    found = requests.head(address(live_site, prints.job), headers=operator.headers, timeout=60)
    assert found.status_code == 200
    assert found.headers["Content-Type"] == "text/event-stream"
    assert found.content == b""


# By real workers ----------------------------------------------------------------------------------

PRINTING = r"""
for i in 1 2 3 4 5 6 7 8; do echo "line $i"; printf '\377€' >&2; sleep 0.1; done
"""


@pytest.mark.web
@pytest.mark.processes
def test_a_real_job_is_followed_from_the_queue_to_its_end(workers, follow):
    job = queue_job("process", PRINTING)
    with follow(job) as stream:
        workers.start()
        told = list(stream)
    assert output(told) == stdout(job) == b"".join(b"line %d\n" % n for n in range(1, 9))
    assert output(told, "stderr") == stderr(job) == "\udcff€".encode(errors="surrogateescape") * 8
    assert sum(each.event == "log" for each in told) > 4, "not all at once, at its end"
    assert told[-1].data == {"attempt": 1, "status": "completed", "reason": "", "exit_code": 0}


@pytest.mark.web
@pytest.mark.processes
def test_a_reader_goes_on_with_the_retries_of_a_real_job(workers, follow):
    policy = {"strategy": "fixed", "base_seconds": 0.2, "jitter": 0}
    job = queue_job("process", "echo try $CM_ATTEMPT; exit 3", max_retries=2, retry_policy=policy)
    workers.start(UPKEEP_SECONDS=0.1)
    with follow(job) as stream:
        told = list(stream)
    assert [each.data["attempt"] for each in told if each.event == "attempt"] == [1, 2, 3]
    for attempt in (1, 2, 3):
        assert output(told, attempt=attempt) == b"try %d\n" % attempt
    assert told[-1].data["status"] == "failed"
    assert told[-1].data["exit_code"] == 3


@pytest.mark.web
@pytest.mark.processes
def test_however_often_a_stream_is_cut_no_byte_is_lost_or_doubled(workers, follow):
    """At random places: by clients that go, networks that break, in the middle of an event."""
    chance = random.Random()
    script = (
        "import os, random, time\n"
        "chance = random.Random(5)\n"
        "for _ in range(400):\n"
        "    os.write(chance.choice([1, 2]), chance.randbytes(chance.choice([1, 7, 3000])))\n"
        "    time.sleep(chance.choice([0, 0, 0.01]))\n"
    )
    job = queue_job("process", ["python3", "-c", script])
    workers.start()
    told, last = [], None
    while not told or told[-1].event != "end":
        stream = follow(job, last)
        with stream:
            for _, each in zip(range(chance.randrange(1, 12)), stream, strict=False):
                told.append(each)
                last = each.id
            if chance.random() < 0.5:
                stream.cut()
        if chance.random() < 0.3:
            last = _somewhere_within(told, chance, last)
    job = settled(job)
    for name, stored in (("stdout", stdout(job)), ("stderr", stderr(job))):
        assert len(stored) > 50_000
        assert output(told, name) == stored


def _somewhere_within(told, chance, last):
    """As a client that has kept only a part of the last event."""
    latest = told[-1]
    if latest.event != "log":
        return last
    kept = chance.randrange(len(latest.content))
    told.pop()
    before = told[-1].id if told else "1-stdout-0-stderr-0"
    if not kept:
        return before
    stream, offset = latest.data["stream"], latest.data["offset"]
    data = {**latest.data, "bytes": kept, "base64": _base64(latest.content[:kept])}
    data.pop("text", None)
    told.append(type(latest)(latest.id, "log", data))
    places = dict(zip(("stdout", "stderr"), map(int, before.split("-")[2::2]), strict=True))
    places[stream] = offset + kept
    return "1-" + "-".join(f"{name}-{at}" for name, at in places.items())


def _base64(data):
    return base64.b64encode(data).decode()


# Who may, and how many ----------------------------------------------------------------------------


def test_what_cannot_be_resumed_is_refused(prints):
    api = Api(an_operator())
    at = f"jobs/{prints.job.pk}/logs/"
    for last in ("x", "", "1-stdout-x", "-1", "1-stderr-1-stdout-1", "1 ", "2", "9" * 9):
        told = problem(api.get(at, {"Last-Event-ID": last}, follow=1), 400, "invalid")
        assert list(told["errors"]) == ["Last-Event-ID"]
    problem(api.get(at, follow=1, cursor="x"), 400, "invalid")
    problem(api.get(at, follow="yes"), 400, "invalid")
    problem(api.get(at, follow=1, token="x"), 400, "invalid")
    problem(api.get(at, follow=1, attempt=2), 404, "not_found")
    problem(api.get(at, {"Last-Event-ID": "x"}), 400, "invalid")
    assert api.get(at, {"Last-Event-ID": "2"}).status_code == 200, "of no concern without follow"


def test_a_server_that_cannot_stream_says_so(prints):
    told = problem(
        Api(an_operator()).get(f"jobs/{prints.job.pk}/logs/", follow=1), 501, "needs_asgi"
    )
    assert "uvicorn" in told["detail"]


def test_a_project_that_does_not_wrap_its_application_can_stream_too(prints):
    prints(b"text")
    job = prints.end()
    client, user = AsyncClient(), an_operator()

    async def read():
        await client.aforce_login(user)
        answer = await client.get(f"/api/v1/jobs/{job.pk}/logs/?follow=1")
        assert answer.headers["Content-Type"] == "text/event-stream"
        return b"".join([piece async for piece in answer])

    (body,) = at_once(lambda: asyncio.run(read()))
    assert b'"text":"text"' in body
    assert b"event: end\n" in body


@pytest.mark.web
def test_the_job_of_another_is_not_there(live_site, member, prints):
    for headers in (member.headers, {}):
        found = requests.get(address(live_site, prints.job), headers=headers, timeout=60)
        assert found.status_code == (404 if headers else 401)
    own = JobFactory(status="running", created_by=member.user)
    with EventStream(address(live_site, own), member.headers):
        pass


@pytest.mark.web
def test_a_page_of_another_origin_cannot_use_a_session(live_site, operator, prints):
    cookies = session_of(operator)
    at = address(live_site, prints.job)
    for origin, expected in (
        ("https://evil.example.org", 403),
        ("null", 403),
        (live_site.url.replace("127.0.0.1", "localhost"), 403),
        (live_site.url, 200),
    ):
        headers = {"Origin": origin, **cookies}
        with requests.get(at, headers=headers, stream=True, timeout=60) as found:
            assert found.status_code == expected, origin
    with EventStream(at, {**operator.headers, "Origin": "https://elsewhere.example.org"}):
        pass


def session_of(person):
    client = Client()
    client.force_login(person.user, backend="django.contrib.auth.backends.ModelBackend")
    return {"Cookie": f"sessionid={client.cookies['sessionid'].value}"}


@pytest.mark.web
def test_nobody_has_more_streams_than_one_may_and_who_leaves_makes_room(
    workers, tmp_path, operator, member, prints
):
    with some_site(tmp_path, workers, CONTAINER_MANAGER_STREAMS_PER_USER="3") as site:
        at = address(site, prints.job)
        streams = [EventStream(at, operator.headers) for _ in range(3)]
        refused = requests.get(at, headers=operator.headers, timeout=60)
        told = problem(refused, 429, "too_many_streams")
        assert "3" in told["detail"]
        assert int(refused.headers["Retry-After"]) > 0
        own = JobFactory(status="running", created_by=member.user)
        with EventStream(address(site, own), member.headers):
            pass
        streams.pop().close()
        _until_there_is_room(at, operator).close()
        streams.pop().cut()
        _until_there_is_room(at, operator).close()
        prints.end()
        for stream in streams:
            assert [each.event for each in stream] == ["end"]
        for _ in range(10):
            with _until_there_is_room(at, operator) as stream:
                assert [each.event for each in stream] == ["end"]


def _until_there_is_room(at, person):
    def attempt():
        stream = EventStream(at, person.headers)
        return stream if stream.status == 200 else stream.close()

    return wait_until(attempt, "room for another stream")


@pytest.mark.web
def test_a_client_that_never_reads_is_dropped_and_others_go_on(workers, tmp_path, operator, prints):
    environment = {"CONTAINER_MANAGER_STREAM_SEND_SECONDS": "0.5"}
    block = random.Random(1).randbytes(64 * 1024)
    with some_site(tmp_path, workers, **environment) as site:
        lazy = never_reads(address(site, prints.job), operator)
        with EventStream(address(site, prints.job), operator.headers) as stream:
            told = []
            for _ in range(200):  # more than the buffers of a system hold
                prints(block)
                told.append(stream.next())
            wait_until(lambda: is_cut(lazy), "the other one to be dropped")
            prints.end()
            told += stream
        assert output(told) == block * 200
        lazy.close()
        with EventStream(address(site, prints.job), operator.headers, "1-stdout-5") as again:
            assert output([], "stdout") == b""
            assert (
                sum(len(each.content) for each in again if each.event == "log")
                == 64 * 1024 * 200 - 5
            )


def never_reads(url, person):
    """A connection that asked for a stream and takes nothing of it."""
    parts = urlsplit(url)
    lazy = socket.socket()
    lazy.settimeout(60)
    lazy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    lazy.connect((parts.hostname, parts.port))
    asked = [f"GET {parts.path}?{parts.query} HTTP/1.1", f"Host: {parts.netloc}"]
    asked += [f"{name}: {value}" for name, value in person.headers.items()]
    lazy.sendall("\r\n".join([*asked, "", ""]).encode())
    return lazy


def is_cut(lazy):
    """Has the other side reset it? Nothing is read or written to know."""
    poll = select.poll()
    poll.register(lazy, select.POLLERR)
    return bool(poll.poll(100))


@pytest.mark.web
def test_clients_that_wait_keep_no_thread_and_no_connection(workers, tmp_path, operator):
    """Of logs and of events: a hundred of them cost what one costs."""
    jobs = [Printing().job for _ in range(20)]
    environment = {"CONTAINER_MANAGER_STREAMS_PER_USER": "1000"}
    with some_site(tmp_path, workers, **environment) as site:
        addresses = [address(site, job) for job in jobs] + [f"{site.url}/api/v1/events/?after=0"]
        streams = [EventStream(each, operator.headers) for each in addresses * 5]
        for stream in streams:
            assert stream.read_some()
        wait_until(lambda: threads_of(site.pid) < 20, "threads to end")
        wait_until(lambda: connections_of(site.pid) < 10, "connections to be given back")
        for stream in streams:
            stream.close()


def threads_of(pid):
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"^Threads:\s+(\d+)", status, re.MULTILINE)[1])


def connections_of(pid):
    """To the database: files of SQLite that it has open, or sockets other than its clients'."""
    named = connection.settings_dict["NAME"]
    if connection.vendor == "sqlite":
        opened = [os.readlink(each) for each in Path(f"/proc/{pid}/fd").iterdir() if each.exists()]
        return sum(each == named for each in opened)
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM pg_stat_activity WHERE datname = %s", [named])
        return cursor.fetchone()[0]


@pytest.mark.web
def test_a_stream_ends_with_the_rights_to_it(workers, tmp_path, member):
    job = JobFactory(status="running", created_by=member.user)
    environment = {"CONTAINER_MANAGER_STREAM_RIGHTS_SECONDS": "0.2"}
    with some_site(tmp_path, workers, **environment) as site:
        by_token = EventStream(address(site, job), member.headers)
        by_session = EventStream(address(site, job), session_of(member))
        other = make_person("other")
        headers = {"Authorization": f"Token {other.token}"}
        JobFactory(status="running", created_by=other.user)
        assert requests.get(address(site, job), headers=headers, timeout=60).status_code == 404
        requests.post(f"{site.url}/api/v1/auth/logout/", headers=member.headers, timeout=60)
        assert list(by_token) == []
        member.user.set_unusable_password()
        member.user.save()
        assert list(by_session) == []


@pytest.mark.web
def test_a_server_that_stops_waits_for_no_stream(workers, tmp_path, operator, prints):
    """One that would wait for half a minute, if they did not end by themselves."""
    options = ["--timeout-graceful-shutdown", "30"]
    with some_site(tmp_path, workers, options=options) as site:
        streams = [EventStream(address(site, prints.job), operator.headers) for _ in range(5)]
        lazy = never_reads(address(site, prints.job), operator)
        for _ in range(100):
            prints(bytes(64 * 1024), "stderr")
        wait_until(lambda: JobLog.objects.count() == 100)
        began = time.monotonic()
        site.terminate()
        for stream in streams:
            assert all(each.event == "log" for each in stream)
        site.ended(patience=20)
        assert "Cancel" not in site.said
        lazy.close()
    print(f"stopped in {time.monotonic() - began:.1f} s")


@pytest.mark.web
@pytest.mark.processes
def test_a_job_that_is_killed_ends_its_stream(workers, follow):
    job = queue_job("process", "echo begun; exec sleep 600")
    workers.start()
    with follow(job) as stream:
        assert stream.next("log").content == b"begun\n"
        wait_for(job, "running")
        lifecycle.stop([job.pk], StopKind.KILL)
        told = list(stream)
    assert told[-1].data["status"] == "killed"
