"""Following a log: from memory or from the database, cut anywhere, no byte is lost or doubled."""

from __future__ import annotations

import random
from types import SimpleNamespace

import pytest

from container_manager.models import JobAttempt, JobLog
from container_manager.models.followed import standings
from container_manager.reports import log_following, lookout
from container_manager.reports.log_following import Began, Ended, Follower, Printed, Window
from container_manager.reports.log_pages import Place
from container_manager.reports.lookout import Lookout, Watched
from container_manager.states import JobStatus, Phase
from tests.factories import JobFactory
from tests.support.printing import Printing

pytestmark = pytest.mark.django_db

BOTH = ("stdout", "stderr")


def place(attempt=1, **read_to):
    return Place(attempt, {stream: read_to.get(stream, 0) for stream in BOTH})


class Looking:
    """A lookout whose looks the test decides on, and one job that it looks at."""

    def __init__(self, job):
        self.lookout = Lookout()
        self.watched = {job.pk: Watched(job.pk)}
        self.job_id = job.pk

    def __call__(self):
        self.lookout._look(self.watched)
        return self.seen

    @property
    def seen(self):
        return self.watched[self.job_id].seen


def read_on(follower, seen, *, only_memory=False):
    """All that there is for this reader now, and whether the database was asked."""
    told, asked = [], False
    while not follower.over:
        new = follower.at_hand(seen)
        if new is None:
            assert not only_memory
            asked = True
            new = follower.read(seen)
        if not new:
            break
        told += new
    return told, asked


def content(told, stream="stdout", attempt=1):
    found = b""
    for each in told:
        if isinstance(each, Printed) and each.chunk.stream == stream:
            if each.place.attempt != attempt:
                continue
            assert each.chunk.offset - each.omitted_before == len(found)
            assert each.place.read_to[stream] == each.chunk.end
            found += each.chunk.data
    return found


@pytest.fixture
def prints():
    return Printing()


# What one reader is told


def test_what_is_there_already_is_read_from_the_database(prints):
    prints(b"one\n")
    prints(b"two\n", "stderr")
    look = Looking(prints.job)
    follower = Follower(prints.job.pk, place())
    assert follower.at_hand(look()) is None
    told, asked = read_on(follower, look.seen)
    assert asked
    assert [(each.chunk.stream, each.chunk.data) for each in told] == [
        ("stdout", b"one\n"),
        ("stderr", b"two\n"),
    ]
    assert not follower.over


def test_what_comes_later_is_at_hand_for_everybody(prints, django_assert_num_queries):
    prints(b"before")
    look = Looking(prints.job)
    readers = [Follower(prints.job.pk, place()) for _ in range(3)]
    for reader in readers:
        read_on(reader, look())
    prints(b"after")
    prints(b"oops", "stderr")
    with django_assert_num_queries(2):
        seen = look()
    with django_assert_num_queries(0):
        for reader in readers:
            told, _ = read_on(reader, seen, only_memory=True)
            assert [each.chunk.data for each in told] == [b"after", b"oops"]
            assert reader.place == place(stdout=11, stderr=4)


def test_nothing_new_is_one_question_and_no_news(prints, django_assert_num_queries):
    prints(b"text")
    look = Looking(prints.job)
    assert look.lookout._look(look.watched) is True
    with django_assert_num_queries(1):
        assert look.lookout._look(look.watched) is False


def test_many_jobs_are_one_question(django_assert_num_queries):
    jobs = [Printing() for _ in range(20)]
    look = Looking(jobs[0].job)
    look.watched = {each.job.pk: Watched(each.job.pk) for each in jobs}
    look()
    for each in jobs:
        each(b"text")
    with django_assert_num_queries(2):
        look()
    for each in jobs:
        window = look.watched[each.job.pk].seen.window
        assert [chunk.data for chunk in window.chunks] == [b"text"]


def test_the_end_comes_behind_the_last_byte(prints):
    look = Looking(prints.job)
    follower = Follower(prints.job.pk, place())
    prints(b"last words")
    prints.end(JobStatus.COMPLETED)
    told, _ = read_on(follower, look())
    assert content(told) == b"last words"
    assert told[-1] == Ended(place(stdout=10), "completed")
    assert follower.over


def test_the_end_is_not_told_by_what_was_seen_before_the_last_byte(prints):
    """The job ended between the look and the reading: the reader learns of it by the next look."""
    look = Looking(prints.job)
    follower = Follower(prints.job.pk, place())
    seen = look()
    prints(b"last words")
    prints.end()
    told, _ = read_on(follower, seen)
    assert not follower.over
    told += read_on(follower, look())[0]
    assert content(told) == b"last words"
    assert follower.over


def test_a_character_is_not_told_in_halves_but_at_the_end(prints):
    look = Looking(prints.job)
    follower = Follower(prints.job.pk, place())
    prints("€".encode()[:2])
    assert read_on(follower, look())[0] == []
    prints("€".encode()[2:] + b"\xe2")
    told, _ = read_on(follower, look())
    assert [each.chunk.data for each in told] == ["€".encode()]
    prints.end()
    told, _ = read_on(follower, look())
    assert [each.chunk.data for each in told if isinstance(each, Printed)] == [b"\xe2"]


def test_nor_is_it_where_one_piece_ends_and_the_next_begins(prints, monkeypatch):
    monkeypatch.setattr(log_following, "AT_ONCE", 10)
    text = "€" * 20
    prints(text.encode())
    job = prints.end()
    told, _ = read_on(Follower(job.pk, place()), Looking(job)())
    assert "".join(each.chunk.data.decode() for each in told[:-1]) == text


def test_what_the_cap_left_out_is_told_in_bytes(prints):
    prints(b"head")
    prints(b"tail", skip=1000)
    look = Looking(prints.job)
    told, _ = read_on(Follower(prints.job.pk, place()), look())
    assert [(each.chunk.offset, each.omitted_before) for each in told] == [(0, 0), (1004, 1000)]
    live = Follower(prints.job.pk, place(stdout=1008))
    prints(b"more", skip=50)
    told, asked = read_on(live, look())
    assert [(each.chunk.offset, each.omitted_before) for each in told] == [(1058, 50)]
    assert not asked


def test_one_stream_alone_is_told_alone(prints):
    prints(b"out")
    prints(b"err", "stderr")
    look = Looking(prints.job)
    follower = Follower(prints.job.pk, Place(1, {"stderr": 0}))
    told, _ = read_on(follower, look())
    prints(b"out")
    prints(b"err", "stderr")
    told += read_on(follower, look(), only_memory=True)[0]
    assert content(told, "stderr") == b"errerr"
    assert {each.chunk.stream for each in told} == {"stderr"}


def test_a_job_that_waits_tells_nothing_until_it_starts():
    job = JobFactory(status="queued")
    look = Looking(job)
    follower = Follower(job.pk, place(0))
    assert read_on(follower, look(), only_memory=True) == ([], False)
    job.mark_as_running()
    prints = Printing(job)
    prints(b"hello")
    told, _ = read_on(follower, look())
    assert told[0] == Began(place(1))
    assert content(told) == b"hello"


def test_a_job_that_never_starts_ends():
    job = JobFactory(status="queued")
    look = Looking(job)
    follower = Follower(job.pk, place(0))
    look()
    job.transition_to(JobStatus.CANCELLED)
    told, _ = read_on(follower, look())
    assert told == [Ended(place(0), "cancelled", job.reason, None)]


def retried(prints):
    """The first attempt fails, the second begins."""
    prints.end(JobStatus.FAILED)
    prints.job.transition_to(JobStatus.RETRYING)
    prints.job.transition_to(JobStatus.QUEUED)
    prints.job.mark_as_running()
    return Printing(prints.job)


def test_a_reader_goes_on_with_the_retries(prints):
    look = Looking(prints.job)
    follower = Follower(prints.job.pk, place())
    prints(b"first")
    told, _ = read_on(follower, look())
    again = retried(prints)
    again(b"second")
    told += read_on(follower, look())[0]
    again.end()
    told += read_on(follower, look())[0]
    assert content(told) == b"first"
    assert content(told, attempt=2) == b"second"
    assert [type(each) for each in told] == [Printed, Began, Printed, Ended]


def test_while_a_retry_waits_the_reader_waits(prints):
    look = Looking(prints.job)
    follower = Follower(prints.job.pk, place())
    prints.end(JobStatus.FAILED)
    prints.job.transition_to(JobStatus.RETRYING)
    assert read_on(follower, look()) == ([], False)
    assert not follower.over


def test_one_attempt_alone_ends_with_that_attempt(prints):
    prints(b"first")
    again = retried(prints)
    JobAttempt.objects.filter(attempt=1).update(reason="exit_code", exit_code=3)
    look = Looking(prints.job)
    told, _ = read_on(Follower(prints.job.pk, place(), only=True), look())
    assert content(told) == b"first"
    assert told[-1] == Ended(place(stdout=5), "running", "exit_code", 3)
    of_latest = Follower(prints.job.pk, place(2), only=True)
    assert read_on(of_latest, look())[0] == []
    again.end()
    assert read_on(of_latest, look())[0] == [Ended(place(2), "completed")]


def test_a_deleted_job_ends(prints):
    look = Looking(prints.job)
    follower = Follower(prints.job.pk, place())
    prints(b"text")
    read_on(follower, look())
    job = prints.end()
    JobLog.objects.all().delete()
    job.delete()
    assert read_on(follower, look())[0] == [Ended(place(stdout=4))]


# What is at hand


def test_no_more_is_kept_in_memory_than_may_be(prints, monkeypatch):
    monkeypatch.setattr(log_following, "AT_HAND", 10)
    monkeypatch.setattr(lookout, "AT_HAND", 10)
    look = Looking(prints.job)
    look()
    for text in (b"0123", b"4567", b"89ab"):
        prints(text)
        look()
    window = look.seen.window
    assert [chunk.data for chunk in window.chunks] == [b"4567", b"89ab"]
    assert window.start["stdout"] == 4
    behind, at_the_edge = (Follower(prints.job.pk, place(stdout=at)) for at in (3, 4))
    assert behind.at_hand(look.seen) is None
    assert read_on(behind, look.seen)[0][0].chunk.data == b"3456789ab"
    assert read_on(at_the_edge, look.seen, only_memory=True)[0][0].chunk.data == b"456789ab"
    assert at_the_edge.place == behind.place == place(stdout=12)


def test_a_flood_is_left_to_its_readers(prints, monkeypatch):
    monkeypatch.setattr(lookout, "AT_HAND", 10)
    look = Looking(prints.job)
    look()
    prints(bytes(11))
    assert look().window == Window.at_the_end(look.seen.standing)
    follower = Follower(prints.job.pk, place())
    assert read_on(follower, look.seen)[1]
    assert follower.place == place(stdout=11)


def test_so_many_pieces_that_they_would_fill_the_memory_are_left_to_the_readers(
    prints, monkeypatch
):
    monkeypatch.setattr(lookout, "MOST_CHUNKS", 3)
    look = Looking(prints.job)
    look()
    for _ in range(3):
        prints(b"x")
    assert look().window.chunks == ()
    assert read_on(Follower(prints.job.pk, place()), look.seen)[1]


def test_what_was_written_between_the_two_questions_of_a_look_comes_with_the_next(
    prints, monkeypatch
):
    look = Looking(prints.job)
    look()
    follower = Follower(prints.job.pk, place())
    prints(b"one")
    ask = lookout.chunks_behind

    def later(*given):
        prints(b"two")
        monkeypatch.setattr(lookout, "chunks_behind", ask)
        return ask(*given)

    monkeypatch.setattr(lookout, "chunks_behind", later)
    told = read_on(follower, look(), only_memory=True)[0]
    assert content(told) == b"one"
    told += read_on(follower, look(), only_memory=True)[0]
    assert content(told) == b"onetwo"


def test_standings_are_those_of_the_latest_attempt(prints):
    prints(b"first")
    again = retried(prints)
    again(b"1")
    again(b"2")
    again(b"err", "stderr")
    (standing,) = standings([prints.job.pk]).values()
    assert (standing.status, standing.attempt, standing.phase) == ("running", 2, Phase.STARTED)
    assert standing.ends == {"stdout": 2, "stderr": 3}


# Cut anywhere

PIECES = [b"line\n", "€uro\n".encode(), b"\xff\xfe\x00", "half €".encode()[:-1], b"x" * 30, b"\n"]


@pytest.mark.parametrize("seed", range(12))
def test_whenever_a_reader_is_cut_no_byte_is_lost_or_doubled(seed, monkeypatch):
    """Random pieces, looks, cuts and retries; every reader has the same bytes in the end."""
    chance = random.Random(seed)
    for module in (log_following, lookout):
        monkeypatch.setattr(module, "AT_HAND", chance.choice([8, 50, 1000]))
    monkeypatch.setattr(log_following, "AT_ONCE", chance.choice([7, 64, 1000]))
    prints = Printing()
    job = prints.job
    look = Looking(job)
    printed = {(1, stream): b"" for stream in BOTH}
    readers = [SimpleNamespace(follower=Follower(job.pk, place()), told=[]) for _ in range(3)]
    attempt, seen = 1, look()
    for step in range(40):
        for _ in range(chance.randrange(4)):
            stream, data = chance.choice(BOTH), chance.choice(PIECES)
            prints(data, stream)
            printed[attempt, stream] += data
        if step == 20:
            prints, attempt = retried(prints), 2
            printed |= {(2, stream): b"" for stream in BOTH}
        if chance.random() < 0.5:
            seen = look()
        for reader in readers:
            if chance.random() < 0.6:
                new = reader.follower.at_hand(seen)
                reader.told += reader.follower.read(seen) if new is None else new
            if chance.random() < 0.3:
                _cut(reader, chance)
    prints.end()
    seen = look()
    for reader in readers:
        reader.told += read_on(reader.follower, seen)[0]
        assert isinstance(reader.told[-1], Ended)
        for (number, stream), data in printed.items():
            assert content(reader.told, stream, number) == data


def _cut(reader, chance):
    """What was on its way is lost; the client comes back with the place of what it has."""
    kept = chance.randrange(len(reader.told) + 1)
    if chance.random() < 0.5 and kept < len(reader.told):
        del reader.told[kept:]
    at = reader.told[-1].place if reader.told else place()
    reader.follower = Follower(reader.follower.job_id, at)
