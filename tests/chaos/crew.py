"""The workers, always as many as wanted, and the book of what was done to whom and when."""

from __future__ import annotations

import random
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from tests.support.workers import WorkerProcess, Workers

Chance = random.Random


@dataclass
class Blow:
    """Something that may well keep a worker from beating, by the wall clock."""

    what: str
    began: float
    ended: float = float("inf")


@dataclass
class Hand:
    """One worker process, from its start to its end."""

    name: str
    process: WorkerProcess
    may_end: bool = False
    is_paused: bool = False
    _has_started: bool = False

    @property
    def has_started(self) -> bool:
        self._has_started = self._has_started or ": started," in self.process.said
        return self._has_started

    @property
    def is_at_work(self) -> bool:
        busy = not (self.may_end or self.is_paused or self.process.has_ended)
        return busy and self.has_started


class Crew:
    """Replaces whoever has ended; faults come from outside, through the methods of this class."""

    def __init__(
        self, workers: Workers, size: int, concurrency: int, lease: float, reap_every: float
    ) -> None:
        """`reap_every`: seconds, 0 for what workers do by themselves."""
        self._workers = workers
        self._size = size
        hasty = ["-m", "tests.chaos.hasty_worker", str(reap_every)]
        script = hasty if reap_every else ["manage.py", "run_worker"]
        self._command = [sys.executable, "-W", "ignore", *script, "--concurrency", str(concurrency)]
        self._environment = workers.environment(LEASE_SECONDS=lease, MAX_INFRA_RETRIES=1000)
        self.lease = lease
        self.hands: list[Hand] = []
        self.blows: dict[str, list[Blow]] = {}
        self.done: Counter[str] = Counter()
        self.surprises: list[str] = []
        """Workers that ended otherwise than they should."""

    @property
    def at_work(self) -> list[Hand]:
        return [hand for hand in self.hands if hand.is_at_work]

    @property
    def can_take_more(self) -> bool:
        """At least half of them work: where a start takes long, jobs must get on all the same."""
        return 2 * len(self.at_work) >= self._size

    def fill(self, most: int | None = None) -> None:
        """As many as are missing, or `most` of them, are started."""
        self._bury()
        missing = self._size - len(self.hands)
        for _ in range(missing if most is None else min(most, missing)):
            self._start(len(self._workers.started) + 1)

    def _start(self, number: int) -> None:
        log = self._workers.directory / f"worker-{number}.log"
        process = WorkerProcess([*self._command, "--name", f"w{number}"], self._environment, log)
        self._workers.started.append(process)
        self.hands.append(Hand(f"w{number}", process))
        self.blows[f"w{number}"] = []

    def _bury(self) -> None:
        for hand in [hand for hand in self.hands if hand.process.has_ended]:
            self.hands.remove(hand)
            code = hand.process.ended()
            if code == 1 and not hand.has_started:
                self.done["worker found no database"] += 1
            elif not hand.may_end or code > 0:
                self.surprises.append(f"worker {hand.name} ended by itself with exit code {code}")

    def _note(self, hand: Hand, what: str) -> Blow:
        blow = Blow(what, time.time())
        self.blows[hand.name].append(blow)
        self.done[what] += 1
        return blow

    # What may happen to them

    def kill(self, hand: Hand) -> None:
        hand.may_end = True
        self._note(hand, "worker killed")
        hand.process.kill()

    def kill_all(self) -> None:
        for hand in self.hands:
            if not hand.process.has_ended:
                self.kill(hand)

    def drain(self, hand: Hand) -> None:
        hand.may_end = True
        self._note(hand, "worker drained")
        hand.process.terminate()

    def pause(self, hand: Hand, *, beyond_lease: bool) -> Blow:
        hand.is_paused = True
        blow = self._note(hand, "worker paused long" if beyond_lease else "worker paused briefly")
        hand.process.pause()
        return blow

    def go_on(self, hand: Hand, blow: Blow) -> None:
        hand.is_paused = False
        blow.ended = time.time()
        if not hand.process.has_ended:
            hand.process.go_on()

    def excuse(self, name: str, at: float) -> bool:
        """May somebody have taken this worker for dead at that time?"""
        return any(
            blow.began <= at <= blow.ended + self.lease
            for blow in self.blows[name]
            if blow.what != "worker paused briefly"
        )

    # The end

    def send_home(self) -> None:
        """All drain; each must end with exit code 0."""
        for hand in self.hands:
            hand.may_end = True
            hand.process.terminate()
        for hand in self.hands:
            hand.process.ended()
        self._bury()

    def logs(self) -> list[tuple[str, Path]]:
        return [(f"w{number}", each.log) for number, each in enumerate(self._workers.started, 1)]
