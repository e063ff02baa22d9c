"""The threads of a worker's jobs."""

from __future__ import annotations

import threading
import weakref

import pytest

from container_manager.worker.crew import Crew
from tests.support.workers import wait_until


@pytest.fixture
def crew():
    before = set(threading.enumerate())
    crew = Crew()
    yield crew
    crew.dismiss()
    wait_until(lambda: not set(threading.enumerate()) - before, "its threads to end")


def test_as_many_tasks_go_on_at_once_as_there_are(crew):
    meet = threading.Barrier(20)
    for _ in range(19):
        crew.do(lambda: meet.wait(30), "job")
    meet.wait(30)


def test_whoever_is_done_takes_the_next(crew):
    seen, done = set(), threading.Semaphore(0)

    def task():
        seen.add(threading.get_ident())
        done.release()

    for _ in range(50):
        crew.do(task, "job")
        assert done.acquire(timeout=30)
        wait_until(lambda: crew._idle, "it to wait for the next")
    assert len(seen) == 1


def test_a_task_that_does_not_end_keeps_no_other_waiting(crew):
    stuck, ran = threading.Event(), threading.Event()
    crew.do(lambda: stuck.wait(30), "job")
    crew.do(ran.set, "job")
    assert ran.wait(30)
    stuck.set()


def test_where_no_thread_is_to_be_had_it_says_so_and_begins_nothing(crew, monkeypatch):
    def refuse(_):
        raise RuntimeError("can't start new thread")

    ran = threading.Event()
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError):
            crew.do(ran.set, "job")
    crew.do(lambda: None, "job")
    assert not ran.wait(0.05)


def test_a_thread_bears_the_name_of_its_task_and_keeps_nothing_of_it(crew):
    class Held:
        pass

    names, held = [], Held()
    for name in ("first", "second"):
        crew.do(lambda kept=held: names.append(threading.current_thread().name), name)
        wait_until(lambda: crew._idle, "it to wait for the next")
    gone = weakref.ref(held)
    del held
    assert names == ["first", "second"]
    wait_until(lambda: gone() is None, "the task to be let go of")
