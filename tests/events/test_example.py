"""The documented subscriber, as a real process beside a real server."""

from __future__ import annotations

import runpy
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from container_manager.events.base import Standing
from container_manager.events.redis import RedisPublisher
from tests.support.some_events import events
from tests.support.workers import ROOT, WorkerProcess, wait_until

pytestmark = pytest.mark.processes


@pytest.fixture
def following(server, tmp_path: Path):
    @contextmanager
    def follow() -> Iterator[WorkerProcess]:
        command = [sys.executable, "examples/follow_events.py", server.url, tmp_path / "position"]
        process = WorkerProcess(list(map(str, command)), {}, tmp_path / "log")
        try:
            yield process
        finally:
            process.kill()

    return follow


def said(process: WorkerProcess) -> list[int]:
    return [int(line.split()[0]) for line in process.said.splitlines() if line[0].isdigit()]


def test_the_example_hears_everything_and_goes_on_after_kill_9(server, following):
    publisher = RedisPublisher(server.url)
    publisher.begin(Standing(0, 1, 0, "us"))
    publisher.publish(events(1, 250))
    with following() as example:
        wait_until(lambda: len(said(example)) == 250)
        publisher.publish(events(251, 300))
        wait_until(lambda: len(said(example)) == 300)
        heard = said(example)
    publisher.publish(events(301, 400))
    with following() as example:
        wait_until(lambda: said(example) and said(example)[-1] == 400)
        heard += said(example)
    assert sorted(set(heard)) == list(range(1, 401))
    assert heard[:300] == list(range(1, 301))


def test_the_example_says_what_is_gone_and_waits_for_a_server_that_is_away(server, following):
    publisher = RedisPublisher(server.url)
    publisher.begin(Standing(7, 1, 7, "us"))
    publisher.publish(events(8, 9))
    with following() as example:
        wait_until(lambda: said(example) == [8, 9])
        assert "events 1 to 7 are gone" in example.said
        server.kill()
        wait_until(lambda: "waiting for Redis" in example.said)
        server.start()
        publisher = RedisPublisher(server.url)
        publisher.begin(Standing(9, 8, 10, "us"))
        publisher.publish(events(8, 10))
        wait_until(lambda: said(example) == [8, 9, 10])


def test_a_position_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    """A kill in the middle of it must not leave an empty file: nobody could go on from there."""
    keep = runpy.run_path(str(ROOT / "examples/follow_events.py"))["keep"]
    place = tmp_path / "position"
    keep(place, 7)

    def killed(_self, _target):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            keep(place, 8)
    assert place.read_text() == "7"
    keep(place, 9)
    assert place.read_text() == "9"


def test_the_example_needs_nothing_of_ours():
    code = "import sys, runpy; runpy.run_path('examples/follow_events.py'); print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    assert not {name for name in loaded if name.startswith(("django", "container_manager"))}
