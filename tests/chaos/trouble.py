"""What goes wrong, one thing after the other, as the seed has it."""

from __future__ import annotations

import heapq
import itertools
import random
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from tests.chaos import leaving
from tests.chaos.crew import Blow, Crew, Hand
from tests.chaos.faults import Server

AWAY = (0.2, 2.0)
"""Seconds until somebody comes for a worker that has ended."""
MOST_CRASHES = 3


class Trouble:
    """Injects faults until it is told to stop, then puts everything right again."""

    def __init__(
        self,
        chance: random.Random,
        crew: Crew,
        servers: Sequence[Server],
        every: float,
        first: Iterable[str] = (),
        hits: Callable[[str], bool] = lambda _: True,
    ) -> None:
        """`first`: faults of these servers that come before it is done, whatever the seed says.

        They wait until it `hits` somebody.
        """
        self._chance = chance
        self._crew = crew
        self._every = every
        self._later: list[tuple[float, int, Callable[[], object]]] = []
        self._numbers = itertools.count()
        self._busy: dict[int, threading.Thread] = {}
        self._kinds: dict[str, tuple[float, Callable[[], object]]] = {
            "killed": (4, lambda: self._with_one(self._kill)),
            "all killed": (0.3, self._kill_all),
            "paused long": (2, lambda: self._with_one(self._pause_long)),
            "paused briefly": (2, lambda: self._with_one(self._pause_briefly)),
            "drained": (2, lambda: self._with_one(self._drain)),
            "killed while draining": (1, lambda: self._with_one(self._drain_and_kill)),
            **{
                name: (weight, self._to_server(number, name, act))
                for number, server in enumerate(servers)
                for name, (weight, act) in server.faults.items()
            },
        }
        self.first = list(first)
        """Those that did not come yet."""
        self._hits = hits

    @property
    def faults(self) -> int:
        return sum(self._crew.done.values())

    def go_on_until(self, enough: Callable[[], bool], over: Callable[[], bool]) -> None:
        """Faults, and what follows from them, until it is `enough`.

        Those that must come are waited for until all is `over`.
        """
        next_fault = time.monotonic() + self._every
        while not enough() or (self.first and not over()):
            leaving.if_asked()
            self._do_what_is_due()
            self._force()
            if time.monotonic() >= next_fault:
                self._inject()
                next_fault = time.monotonic() + self._chance.expovariate(1 / self._every)
            self._replace_the_missing()
            time.sleep(0.05)

    def end(self) -> None:
        """Whoever was paused goes on, whoever is missing is replaced."""
        while self._later:
            heapq.heappop(self._later)[2]()
        self.wait()
        self._crew.fill()

    def wait(self) -> None:
        """Until no server has trouble any more."""
        for busy in self._busy.values():
            busy.join()

    def _force(self) -> None:
        if self.first and self._hits(self.first[0]) and self._happens(self.first[0]):
            del self.first[0]

    def _happens(self, name: str) -> bool:
        """Unless its server is busy with another one."""
        before = self._crew.done[name]
        self._kinds[name][1]()
        return self._crew.done[name] > before

    def _inject(self) -> None:
        weights = [weight for weight, _ in self._kinds.values()]
        (kind,) = self._chance.choices(list(self._kinds), weights)
        self._kinds[kind][1]()

    def _in(self, seconds: float, act: Callable[[], object]) -> None:
        heapq.heappush(self._later, (time.monotonic() + seconds, next(self._numbers), act))

    def _do_what_is_due(self) -> None:
        while self._later and self._later[0][0] <= time.monotonic():
            heapq.heappop(self._later)[2]()

    def _replace_the_missing(self) -> None:
        """One after the other: a start costs a second of a core."""
        if self._chance.random() < 0.05 / self._chance.uniform(*AWAY):
            self._crew.fill(most=1)

    # Workers

    def _with_one(self, act: Callable[[Hand], object]) -> None:
        if self._crew.can_take_more:
            act(self._chance.choice(self._crew.at_work))

    def _kill(self, hand: Hand) -> None:
        self._crew.kill(hand)

    def _kill_all(self) -> None:
        if self._crew.can_take_more:
            self._crew.kill_all()

    def _drain(self, hand: Hand) -> None:
        self._crew.drain(hand)

    def _drain_and_kill(self, hand: Hand) -> None:
        self._crew.drain(hand)
        self._in(self._chance.uniform(0, 0.5), lambda: self._kill_if_there(hand))

    def _kill_if_there(self, hand: Hand) -> None:
        if not hand.process.has_ended:
            self._crew.kill(hand)

    def _pause_long(self, hand: Hand) -> None:
        self._pause(hand, self._crew.lease * self._chance.uniform(1.2, 2.5), beyond_lease=True)

    def _pause_briefly(self, hand: Hand) -> None:
        self._pause(hand, self._crew.lease * self._chance.uniform(0.05, 0.4), beyond_lease=False)

    def _pause(self, hand: Hand, seconds: float, *, beyond_lease: bool) -> None:
        blow: Blow = self._crew.pause(hand, beyond_lease=beyond_lease)
        self._in(seconds, lambda: self._crew.go_on(hand, blow))

    # The servers

    def _to_server(
        self, number: int, name: str, act: Callable[[random.Random], Any]
    ) -> Callable[[], None]:
        def harm() -> None:
            if number in self._busy and self._busy[number].is_alive():
                return
            if name == "database crashed" and self._crew.done[name] >= MOST_CRASHES:
                return
            self._crew.done[name] += 1
            chance = random.Random(self._chance.random())
            self._busy[number] = threading.Thread(target=act, args=[chance], name=name)
            self._busy[number].start()

        return harm
