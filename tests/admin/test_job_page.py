"""The page of one job: where it stands, its past, its log."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
from django.db import connection
from django.test import Client

from container_manager import lifecycle
from container_manager.admin import logs
from container_manager.models import ContainerJob, JobAttempt, JobLog
from container_manager.states import JobStatus, Phase, Reason
from tests.admin.conftest import HOSTILE, page_of, url
from tests.factories import AttemptFactory
from tests.support.spine import at_once

Job = Callable[..., ContainerJob]


def shown(client: Client, job: Any, query: str = "") -> str:
    answer = client.get(page_of(job) + query)
    assert answer.status_code == 200
    return answer.content.decode()


def printed(job: ContainerJob, stream: str, *pieces: bytes, attempt: int = 1) -> None:
    offset = 0
    for data in pieces:
        JobLog.objects.create(job=job, attempt=attempt, stream=stream, offset=offset, data=data)
        offset += len(data)


def text_of_log(page: str) -> str:
    found = re.search(r'id="cm-log-text"[^>]*>(.*?)</pre>', page, re.S)
    assert found
    return re.sub(r"<[^>]*>", "", found[1])


@pytest.mark.parametrize("status", JobStatus)
def test_every_state_has_a_page_with_its_history_and_why(
    operator: Client, job: Job, status: str
) -> None:
    answer = operator.get(page_of(job(status=status)))
    assert answer.status_code == 200
    assert answer.context["explanation"].sentence
    assert [each["row"].new_state for each in answer.context["history"]] == [status]
    assert f'class="cm-state cm-{status}"' in answer.content.decode()


def test_the_timeline_tells_who_did_what_and_when(operator: Client, job: Job) -> None:
    one = job()
    lifecycle.enqueue([one.pk], actor="api:somebody")
    lifecycle.stop([one.pk], lifecycle.StopKind.KILL, actor="admin:olga")
    page = shown(operator, one)
    moves = [page.index(f'class="cm-{status}"') for status in ("killed", "queued", "pending")]
    assert moves == sorted(moves)
    assert "api:somebody" in page
    assert "admin:olga" in page


def test_a_running_job_asks_for_news_and_a_settled_one_does_not(operator: Client, job: Job) -> None:
    assert url("live", (one := job(status=JobStatus.RUNNING)).pk) in shown(operator, one)
    settled = job(status=JobStatus.COMPLETED)
    page = shown(operator, settled)
    assert url("live", settled.pk) not in page
    assert url("log", settled.pk) + "?" not in page


def test_news_come_only_when_there_are_some(operator: Client, job: Job) -> None:
    one = job(status=JobStatus.RUNNING)
    seen = operator.get(page_of(one)).context["seen"]
    assert operator.get(url("live", one.pk), {"seen": seen}).status_code == 204
    lifecycle.stop([one.pk], lifecycle.StopKind.KILL, actor="admin:x")
    news = operator.get(url("live", one.pk), {"seen": seen})
    assert news.status_code == 200
    assert 'class="cm-state cm-killed"' in news.content.decode()
    assert "hx-get" not in news.content.decode()


def test_a_job_being_stopped_says_so(operator: Client) -> None:
    attempt = AttemptFactory()
    lifecycle.stop([attempt.job_id], lifecycle.StopKind.KILL, actor="admin:x")
    page = shown(operator, attempt.job)
    assert "cm-stopping" in page
    assert "admin:x asked for a kill" in page


def test_limits_are_shown_as_asked_applied_and_used(operator: Client, job: Job) -> None:
    one = job(status=JobStatus.RUNNING, memory_limit_mb=64, cpu_limit=0.5)
    AttemptFactory(
        job=one, resolved={"memory_limit_mb": 128.0}, peak_memory_bytes=3 << 20, cpu_seconds=1.5
    )
    rows = {row["label"]: row for row in operator.get(page_of(one)).context["resources"]}
    memory = {"label": "Memory", "asked": "64 MiB", "applied": "128 MiB", "used": "3.0 MiB"}
    assert rows["Memory"] == memory
    assert (rows["CPU"]["asked"], rows["CPU"]["used"]) == ("0.5 cores", "1.50 s")


def test_the_values_of_the_environment_are_never_shown(operator: Client, job: Job) -> None:
    one = job(environment={"PASSWORD": "geheim-4711"})
    for address in (page_of(one), url("edit", one.pk), url("add") + f"?like={one.pk}"):
        page = operator.get(address).content.decode()
        assert "PASSWORD" in page
        assert "geheim-4711" not in page


def test_an_unknown_job_is_told(operator: Client, db: None) -> None:
    assert operator.get(url("change", "00000000-0000-7000-8000-000000000000")).status_code == 302
    assert operator.get(url("change", "..%2f..")).status_code == 302
    for page in ("live", "log", "edit"):
        assert operator.get(url(page, "00000000-0000-7000-8000-000000000000")).status_code == 404


# The log ------------------------------------------------------------------------------------------


def test_the_log_tells_both_streams_apart(operator: Client, job: Job) -> None:
    one = job(status=JobStatus.FAILED)
    printed(one, "stdout", b"computing\n")
    printed(one, "stderr", b"division by zero\n")
    page = shown(operator, one)
    assert '<span class="cm-stdout">computing\n</span>' in page
    assert '<span class="cm-stderr">division by zero\n</span>' in page


def ask(client: Client, job: ContainerJob, **query: Any) -> Any:
    return client.get(url("log", job.pk), query)


def test_a_log_grows_from_where_the_page_has_got_to(operator: Client) -> None:
    one = AttemptFactory().job
    printed(one, "stdout", b"first\n")
    assert text_of_log(shown(operator, one)) == "first\n"
    assert ask(operator, one, attempt=1, stdout=6).status_code == 204
    JobLog.objects.create(job=one, attempt=1, stream="stdout", offset=6, data=b"second\n")
    more = ask(operator, one, attempt=1, stdout=6).content.decode()
    assert "second" in more
    assert "first" not in more
    assert "stdout=13" in more


def test_a_position_may_lie_within_a_chunk(operator: Client) -> None:
    one = AttemptFactory().job
    printed(one, "stdout", b"0123456789")
    assert (
        '<span class="cm-stdout">456789</span>'
        in ask(operator, one, attempt=1, stdout=4).content.decode()
    )


def test_a_character_split_between_two_looks_is_shown_once_and_whole(operator: Client) -> None:
    one = AttemptFactory().job
    printed(one, "stdout", b"gr\xc3")
    page = shown(operator, one)
    assert text_of_log(page) == "gr"
    got_to = re.search(r"stdout=(\d+)", page)
    assert got_to
    JobLog.objects.create(job=one, attempt=1, stream="stdout", offset=3, data=b"\xbcn")
    more = ask(operator, one, attempt=1, stdout=got_to[1]).content.decode()
    assert '<span class="cm-stdout">ün</span>' in more


def test_what_is_no_utf8_is_replaced(operator: Client, job: Job) -> None:
    one = job(status=JobStatus.COMPLETED)
    printed(one, "stdout", b"a\xffb", b"\xc3")
    assert text_of_log(shown(operator, one)) == "a\ufffdb\ufffd"


def test_the_end_of_a_log_is_the_end_of_the_asking(operator: Client, job: Job) -> None:
    one = job(status=JobStatus.COMPLETED)
    printed(one, "stdout", b"all\n")
    last = ask(operator, one, attempt=1, stdout=4, follows=1)
    assert last.status_code == 200
    assert "hx-get" not in last.content.decode()


def test_the_page_goes_on_to_the_next_attempt(operator: Client, job: Job) -> None:
    one = job(status=JobStatus.RUNNING, attempt=2)
    printed(one, "stdout", b"second try\n", attempt=2)
    whole = ask(operator, one, attempt=1, stdout=4, follows=1)
    assert (whole["HX-Retarget"], whole["HX-Reswap"]) == ("#cm-log", "outerHTML")
    assert text_of_log(whole.content.decode()) == "second try\n"


def test_the_log_of_a_past_attempt_can_be_read(operator: Client, job: Job) -> None:
    one = job(status=JobStatus.RUNNING, attempt=2)
    AttemptFactory(job=one, attempt=1, phase=Phase.DONE, exit_code=3, reason=Reason.EXIT_CODE)
    printed(one, "stdout", b"first try\n")
    page = shown(operator, one, "?attempt=1")
    assert text_of_log(page) == "first try\n"
    assert "End of the log." in page
    for number in ("3", "0"):
        assert operator.get(page_of(one) + f"?attempt={number}").status_code == 404


def test_a_long_log_begins_near_its_end_and_says_so(operator: Client, job: Job) -> None:
    one = job(status=JobStatus.COMPLETED)
    chunk = b"x" * 65_535 + b"\n"
    printed(one, "stdout", *[chunk] * 10, b"the last line\n")
    page = shown(operator, one)
    assert "the last line" in page
    assert len(text_of_log(page)) <= logs.TAIL + 65_536
    assert "earlier output are not shown here" in page


def test_a_long_log_that_was_cut_tells_one_story(operator: Client, job: Job) -> None:
    one = job(status=JobStatus.COMPLETED)
    AttemptFactory(job=one, phase=Phase.DONE, stdout_bytes=10 << 20, stdout_omitted=8 << 20)
    JobLog.objects.create(job=one, attempt=1, stream="stdout", offset=0, data=b"head\n")
    for number in range(4):
        offset = (10 << 20) - (4 - number) * 65_536
        JobLog.objects.create(
            job=one, attempt=1, stream="stdout", offset=offset, data=b"x" * 65_535 + b"\n"
        )
    page = shown(operator, one)
    assert "10.0 MiB were printed, more than may be kept: 8.0 MiB of them were not kept." in page
    assert "the raw downloads have the 2.0 MiB that were kept" in page
    assert "not shown here" not in page


def test_a_silent_job_ends_as_it_is_shown_afterwards(operator: Client, job: Job) -> None:
    one = job(status=JobStatus.COMPLETED)
    AttemptFactory(job=one, phase=Phase.DONE)
    for page in (ask(operator, one, attempt=1, follows=1).content.decode(), shown(operator, one)):
        assert "It printed nothing." in page
        assert "End of the log." not in page


@pytest.mark.parametrize(
    ("text", "readable"),
    [
        (b"a\x1b[1;31mred\x1b[0mb\n", "aredb\n"),
        (b"one\r\ntwo\rthree\n", "one\ntwo\nthree\n"),
        (b"a\x1b]8;;http://x\x1b\\link\x1b]0;title\x07b\n", "alinkb\n"),
        (b"a\xc2\x9b31mred\x1b(B\x1b[mb\n", "aredb\n"),
        (b"\x1b7a\x1b8\x1bcb\n", "ab\n"),
        ("gr\u00fcn \U0001f40b\n".encode(), "gr\u00fcn \U0001f40b\n"),
    ],
)
def test_what_belongs_together_is_understood_wherever_it_is_split(
    operator: Client, text: bytes, readable: str
) -> None:
    for at in range(1, len(text)):
        one = AttemptFactory().job
        printed(one, "stdout", text[:at])
        first = logs.read(one.pk, 1, {"stdout": 0}, ended=False)
        JobLog.objects.create(job=one, attempt=1, stream="stdout", offset=at, data=text[at:])
        then = logs.read(one.pk, 1, first.position, ended=True)
        assert "".join(bit.text for bit in [*first.bits, *then.bits]) == readable, at
        at_once = logs.read(one.pk, 1, {"stdout": 0}, ended=True)
        assert "".join(bit.text for bit in at_once.bits) == readable, at


def test_what_never_ends_is_shown_in_the_end(operator: Client) -> None:
    one = AttemptFactory().job
    printed(one, "stdout", b"\x1b]" + b"x" * 10_000)
    assert len(text_of_log(shown(operator, one))) > 10_000


def test_a_log_that_grew_much_comes_in_pieces(operator: Client) -> None:
    one = AttemptFactory().job
    chunk = b"x" * 65_535 + b"\n"
    printed(one, "stdout", *[chunk] * 6)
    position, pieces = 0, 0
    while position < 6 * 65_536:
        more = ask(operator, one, attempt=1, stdout=position).content.decode()
        found = re.search(r"stdout=(\d+)", more)
        assert found
        assert int(found[1]) > position
        position, pieces = int(found[1]), pieces + 1
    assert pieces == 2


def test_bytes_that_were_not_kept_are_told(operator: Client, job: Job) -> None:
    one = job(status=JobStatus.COMPLETED)
    printed(one, "stdout", b"head\n")
    JobLog.objects.create(job=one, attempt=1, stream="stdout", offset=5_000, data=b"tail\n")
    assert "4.9 KiB of stdout were not kept" in shown(operator, one)


@pytest.mark.parametrize(
    "query",
    [
        {"stdout": "-1"},
        {"stdout": "abc"},
        {"attempt": "9" * 30},
        {"stderr": "\N{ARABIC-INDIC DIGIT ONE}"},
    ],
)
def test_a_position_that_is_no_number_is_refused(
    operator: Client, job: Job, query: dict[str, str]
) -> None:
    assert ask(operator, job(), **query).status_code == 400


def test_the_raw_log_is_every_byte_and_only_ever_a_download(operator: Client, job: Job) -> None:
    one = job(status=JobStatus.COMPLETED)
    every_byte = bytes(range(256)) + b"<script>alert(1)</script>"
    printed(one, "stdout", every_byte[:100], every_byte[100:])
    answer = operator.get(url("raw_log", one.pk, "stdout"))
    assert b"".join(answer.streaming_content) == every_byte
    assert answer["Content-Type"] == "application/octet-stream"
    assert answer["Content-Disposition"].startswith("attachment; ")
    assert answer["X-Content-Type-Options"] == "nosniff"
    assert operator.get(url("raw_log", one.pk, "nonsense")).status_code == 404


@pytest.mark.django_db(transaction=True)
def test_who_reads_a_raw_log_slowly_keeps_no_database_connection(
    operator: Client, job: Job
) -> None:
    one = job(status=JobStatus.COMPLETED)
    printed(one, "stdout", *[b"x" * 64 * 1024] * 40)

    def read() -> list[bool]:
        answer = operator.get(url("raw_log", one.pk, "stdout"))
        return [connection.connection is None for _piece in answer]

    assert at_once(read) == [[True] * 40]


def test_what_steers_a_terminal_is_left_out_or_made_visible(operator: Client, job: Job) -> None:
    one = job(status=JobStatus.COMPLETED)
    printed(
        one,
        "stdout",
        b"\x1b[31mred\x1b[0m \x1b]8;;http://evil\x1b\\link\x1b]8;;\x1b\\ \x07\x00 10%\r20%\r\n\x1b",
    )
    assert text_of_log(shown(operator, one)) == "red link ␇␀ 10%\n20%\n␛"


def test_hostile_text_is_shown_as_text_everywhere(operator: Client, job: Job) -> None:
    one = job(
        name=HOSTILE,
        status=JobStatus.FAILED,
        labels={"x": HOSTILE},
        environment={"A": HOSTILE},
        command=["sh", "-c", HOSTILE],
        working_dir="/" + HOSTILE,
        error=HOSTILE,
    )
    ContainerJob.objects.filter(pk=one.pk).update(image=HOSTILE, queue=HOSTILE[:100])
    JobAttempt.objects.create(
        job=one,
        attempt=1,
        phase=Phase.DONE,
        worker_name=HOSTILE,
        error=HOSTILE,
        executor=HOSTILE[:60],
    )
    printed(one, "stdout", HOSTILE.encode())
    addresses = [page_of(one), url("live", one.pk), url("edit", one.pk)]
    addresses += [f"{url('add')}?like={one.pk}", f"{url('do', 'kill')}?ids={one.pk}"]
    for address in addresses:
        page = operator.get(address).content.decode()
        assert "&lt;script&gt;alert(1)" in page
        assert "<script>alert" not in page
        assert "<img src=x" not in page


def test_control_characters_of_a_name_are_made_visible(operator: Client, job: Job) -> None:
    assert "a␛[31mb" in shown(operator, job(name="a\x1b[31mb"))


def test_a_job_of_many_moves_and_attempts_costs_no_more_queries(
    operator: Client, job: Job, django_assert_max_num_queries: Any
) -> None:
    one = job(status=JobStatus.COMPLETED, attempt=20)
    for number in range(1, 21):
        AttemptFactory(job=one, attempt=number, phase=Phase.DONE)
    with django_assert_max_num_queries(20):
        shown(operator, one)
