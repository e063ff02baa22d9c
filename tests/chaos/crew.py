"""The workers, always as many as wanted, and the book of what was done to whom and when."""

from __future__ import annotations

import random
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

    @property
    def has_started(self) -> bool:
        return ": started," in self.process.said


class Crew:
    """Replaces whoever has ended; faults come from outside, through the methods of this class."""

    def __init__(self, workers: Workers, size: int, concurrency: int, lease: float) -> None:
        self._workers = workers
        self._size = size
        self._arguments = ("--concurrency", str(concurrency))
        self._settings = {"LEASE_SECONDS": lease, "MAX_INFRA_RETRIES": 1000}
        self.lease = lease
        self.hands: list[Hand] = []
        self.blows: dict[str, list[Blow]] = {}
        self.done: Counter[str] = Counter()
        self.surprises: list[str] = []
        """Workers that ended otherwise than they should."""

    @property
    def at_work(self) -> list[Hand]:
        return [
            hand
            for hand in self.hands
            if not (hand.may_end or hand.is_paused or hand.process.has_ended)
        ]

    def fill(self, most: int | None = None) -> None:
        """As many as are missing, or `most` of them, are started."""
        self._bury()
        missing = self._size - len(self.hands)
        for _ in range(missing if most is None else min(most, missing)):
            name = f"w{len(self._workers.started) + 1}"
            self.blows[name] = []
            process = self._workers.start(*self._arguments, **self._settings)
            self.hands.append(Hand(name, process))

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
