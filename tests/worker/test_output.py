"""The cap on output, and what waits to be written: no database here."""

from __future__ import annotations

import contextlib
import threading
from types import SimpleNamespace
from uuid import uuid4

import pytest

from container_manager.executors.base import CHUNK_BYTES, Chunk
from container_manager.worker.output import PENDING_BYTES, WRITE_BYTES, Output, Spare

JOB = uuid4()
LEASE = SimpleNamespace(job_id=JOB, key={"job_id": JOB, "attempt": 1, "epoch": 1})


def output(cap=10**9, ends=None, last=b"", **more):
    return Output(LEASE, cap, ends or {}, last, **more)


class Store:
    """What the database would hold."""

    def __init__(self, out):
        self.out = out
        self.chunks = {}
        self.largest = 0

    def write_all(self):
        for _ in range(self.out.portions):
            self.write()
        with self.out.taking() as (chunks, _):
            assert not chunks

    def write(self):
        with self.out.taking() as (chunks, fallen):
            self.largest = max(self.largest, sum(len(chunk.data) for chunk in chunks))
            for chunk in chunks:
                assert len(chunk.data) <= CHUNK_BYTES
                self.chunks.setdefault((chunk.stream, chunk.offset), chunk.data)
            for _, stream, start, end in fallen:
                for key in [key for key in self.chunks if key[0] == stream]:
                    if start <= key[1] < end:
                        del self.chunks[key]

    def kept(self, stream="stdout"):
        return sorted((at, data) for (name, at), data in self.chunks.items() if name == stream)


def feed(out, data, size=CHUNK_BYTES, stream="stdout", start=0, each=lambda: None):
    for offset in range(0, len(data), size):
        out.add(Chunk(stream, start + offset, data[offset : offset + size]))
        each()


def numbers(count):
    return "".join(f"{number}\n" for number in range(count)).encode()


def test_what_comes_in_goes_out_stream_by_stream():
    out = output()
    store = Store(out)
    out.add(Chunk("stdout", 0, b"ab"))
    out.add(Chunk("stderr", 0, b"xyz"))
    out.add(Chunk("stdout", 2, b"c"))
    store.write()
    assert store.kept() == [(0, b"abc")]
    assert store.kept("stderr") == [(0, b"xyz")]
    assert out.ends() == {"stdout": 3, "stderr": 3}


def test_what_is_written_is_not_written_again():
    out = output()
    out.add(Chunk("stdout", 0, b"ab"))
    Store(out).write()
    again = Store(out)
    again.write()
    assert again.kept() == []


def test_what_could_not_be_written_is_taken_again():
    out = output()
    out.add(Chunk("stdout", 0, b"ab"))
    with pytest.raises(ConnectionError), out.taking():
        raise ConnectionError
    store = Store(out)
    store.write()
    assert store.kept() == [(0, b"ab")]


@pytest.mark.parametrize("cap", [1000, 1001, 100_000, 300_000])
@pytest.mark.parametrize("size", [100, 999, CHUNK_BYTES])
@pytest.mark.parametrize("often", [True, False])
def test_beyond_the_cap_head_and_tail_are_kept(cap, size, often):
    """Row 28: whatever the sizes of cap and chunks are."""
    out = output(cap)
    store = Store(out)
    whole = numbers(70_000)
    feed(out, whole, size, each=store.write if often else lambda: None)
    store.write()
    kept = store.kept()
    assert all(whole[at : at + len(data)] == data for at, data in kept)
    head = [data for at, data in kept if at < cap - cap // 2]
    assert sum(map(len, head)) == cap - cap // 2
    tail = [data for at, data in kept if at >= cap - cap // 2]
    assert cap // 2 <= sum(map(len, tail)) <= cap // 2 + 2 * CHUNK_BYTES
    assert whole.endswith(b"".join(tail))
    assert out.is_beyond_cap("stdout")
    assert not out.is_beyond_cap("stderr")


@pytest.mark.parametrize("cap", [488_890, 488_891, 10**6])
def test_up_to_the_cap_nothing_is_left_out(cap):
    out = output(cap)
    store = Store(out)
    whole = numbers(80_000)[:488_890]
    feed(out, whole, 1000, each=store.write)
    assert b"".join(data for _, data in store.kept()) == whole
    assert not out.is_beyond_cap("stdout")


def test_an_adopter_goes_on_where_the_stored_output_ends():
    out = output(ends={"stdout": 100}, last=b"before ")
    assert out.ends() == {"stdout": 100, "stderr": 0}
    out.add(Chunk("stdout", 100, b"after"))
    assert out.ends()["stdout"] == 105
    assert out.last_text == "before after"


def test_the_end_of_stdout_is_text_whatever_its_bytes_are():
    """Row 29: NUL and what is no UTF-8."""
    out = output()
    feed(out, b"x" * 70_000 + b"\0\xff\xc3", 10_000)
    feed(out, b"not this", stream="stderr")
    assert len(out.last_text) == 65536
    assert out.last_text.endswith("x\ufffd\ufffd\ufffd")


@pytest.mark.parametrize(("last", "expected"), [(b"", 65535), (b"x", 65536), (b"xx", 65534)])
def test_the_end_of_stdout_begins_with_a_whole_character(last, expected):
    """Row 29: a character across the edge of what is kept."""
    out = output()
    feed(out, "€".encode() * 30_000 + last)
    assert "\ufffd" not in out.last_text
    assert len(out.last_text.encode()) == expected


def test_who_prints_faster_than_it_is_written_waits():
    """Row 28: back-pressure."""
    out = output()
    store = Store(out)
    done = threading.Event()

    def job():
        feed(out, bytes(3 * PENDING_BYTES))
        done.set()

    thread = threading.Thread(target=job)
    thread.start()
    most = 0
    while not done.is_set():
        with out._changed:
            most = max(most, sum(len(data) for _, data in out._streams["stdout"].pending))
        store.write()
    thread.join()
    store.write()
    assert most <= PENDING_BYTES + CHUNK_BYTES
    assert sum(len(data) for _, data in store.kept()) == 3 * PENDING_BYTES


def test_beyond_the_head_nobody_waits_as_long_as_memory_is_spared():
    """Row 28: what falls out of the tail before it is written never burdens the database."""
    spare = Spare(4 * PENDING_BYTES)
    out = output(4 * PENDING_BYTES, spare=spare)
    store = Store(out)
    whole = numbers(1_200_000)
    feed(out, whole[:PENDING_BYTES])
    store.write_all()
    feed(out, whole[PENDING_BYTES : 2 * PENDING_BYTES], start=PENDING_BYTES)
    store.write_all()
    feed(out, whole[2 * PENDING_BYTES :], start=2 * PENDING_BYTES)
    assert not out.is_full
    assert not spare.has(3 * PENDING_BYTES)
    store.write_all()
    assert spare.has(4 * PENDING_BYTES)
    assert whole.endswith(b"".join(data for at, data in store.kept() if at >= 2 * PENDING_BYTES))
    assert store.largest <= WRITE_BYTES + CHUNK_BYTES


def test_memory_that_is_spared_is_lent_once():
    spare = Spare(PENDING_BYTES)
    greedy, late = (output(8 * PENDING_BYTES, {"stdout": 10**9}, spare=spare) for _ in range(2))
    for out in (greedy, late):
        feed(out, bytes(PENDING_BYTES), start=10**9)
    feed(greedy, bytes(PENDING_BYTES), start=10**9 + PENDING_BYTES)
    assert greedy.is_full
    assert late.is_full
    waiting = threading.Thread(
        target=feed, args=(late, b"more"), kwargs={"start": 10**9 + PENDING_BYTES}
    )
    waiting.start()
    assert late.ends()["stdout"] == 10**9 + PENDING_BYTES
    greedy.close()
    assert spare.has(PENDING_BYTES)
    late.close()
    waiting.join(30)
    assert not waiting.is_alive()


def test_who_waits_is_let_go_when_nobody_writes_any_more():
    out = output()
    thread = threading.Thread(target=feed, args=(out, bytes(3 * PENDING_BYTES)))
    thread.start()
    out.close()
    thread.join(30)
    assert not thread.is_alive()


def test_the_writer_is_woken_before_anybody_has_to_wait():
    woken = []
    out = output(wake=lambda: woken.append(1))
    feed(out, bytes(PENDING_BYTES // 2))
    assert not woken
    feed(out, bytes(CHUNK_BYTES), start=PENDING_BYTES // 2)
    assert woken


def test_what_is_printed_byte_by_byte_is_not_stored_byte_by_byte():
    out = output()
    feed(out, b"0123456789", 1)
    with out.taking() as (chunks, _):
        assert [(chunk.offset, chunk.data) for chunk in chunks] == [(0, b"0123456789")]


def test_what_may_have_been_written_does_not_grow_either_when_less_is_taken_the_next_time():
    out = output()
    feed(out, bytes(WRITE_BYTES // 2))
    with contextlib.suppress(OSError), out.taking():
        raise OSError("the answer was lost")
    feed(out, bytes(WRITE_BYTES // 2 - 10), start=WRITE_BYTES // 2)
    with contextlib.suppress(OSError), out.taking():
        raise OSError("the answer was lost")
    before = [(at, len(data)) for at, data in out._streams["stdout"].pending]
    out._streams["stdout"].pending.appendleft((-WRITE_BYTES, bytearray(WRITE_BYTES)))
    with contextlib.suppress(OSError), out.taking():
        raise OSError("the answer was lost")
    out.add(Chunk("stdout", WRITE_BYTES - 10, b"more"))
    assert [(at, len(data)) for at, data in out._streams["stdout"].pending][1:-1] == before


def test_what_may_have_been_written_does_not_grow():
    """A write whose answer was lost is repeated; a longer piece at its offset would be left out."""
    out = output()
    feed(out, b"01")
    with contextlib.suppress(OSError), out.taking():
        raise OSError("the answer was lost")
    out.add(Chunk("stdout", 2, b"23"))
    with out.taking() as (chunks, _):
        assert [(chunk.offset, chunk.data) for chunk in chunks] == [(0, b"01"), (2, b"23")]
