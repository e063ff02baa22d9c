"""One storm, on the database that Django has, and what its listeners saw."""

from __future__ import annotations

import random
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from uuid import UUID

from django.core.management import call_command
from django.db import connection

from container_manager.events.base import TransitionEvent
from container_manager.events.feed import subscribe
from container_manager.events.redis import RedisPublisher
from container_manager.models import Event, PublisherState, StateHistory
from container_manager.models.sequencing import take_all
from container_manager.outbox import FeedSource
from tests.storm.comers import Comer
from tests.support.feeds import own_feed
from tests.support.redis_server import RedisServer, redis_server
from tests.support.workers import WorkerProcess, Workers, some_workers, wait_until

LEASE_SECONDS = 2
LONGEST_SECONDS = 3_600.0
SETTLE_SECONDS = 240.0


@dataclass
class Report:
    """What came of it."""

    moves: int
    seconds: float
    faults: Counter[str]
    seen: dict[str, int]
    """Events that each listener saw, again ones included."""
    comings: dict[str, int]
    contradictions: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        faults = ", ".join(f"{count} x {name}" for name, count in sorted(self.faults.items()))
        listeners = "; ".join(
            f"{name} saw {seen:,} and came {self.comings[name]} times"
            for name, seen in self.seen.items()
        )
        return f"{self.moves:,} moves in {self.seconds:.0f} s; {faults}; {listeners}"


def run(moves: int, processes: int, seed: int, fault_every: float, directory: Path) -> Report:
    """Raises AssertionError when it does not come to an end."""
    call_command("migrate", verbosity=0, interactive=False)
    chance, began = random.Random(seed), time.monotonic()
    with redis_server(directory / "redis") as server, some_workers(directory) as workers:
        storm = Storm(server, workers, chance)
        with own_feed(), storm.listeners() as comers:
            wait_until(PublisherState.objects.count, "the relay")
            storm.rage(storm.movers(moves, processes, seed), fault_every)
            storm.calm(comers)
    seen = {name: comer.seen for name, comer in comers.items()}
    return Report(
        moves=StateHistory.objects.count(),
        seconds=time.monotonic() - began,
        faults=storm.faults,
        seen={name: len(events) for name, events in seen.items()},
        comings={name: comer.comings for name, comer in comers.items()},
        contradictions=[
            *(line for name, events in seen.items() for line in contradictions(name, events)),
            *storm.wrong,
        ],
    )


class Storm:
    """A Redis, relays, movers, and what is done to them."""

    def __init__(self, server: RedisServer, workers: Workers, chance: random.Random) -> None:
        self._server = server
        self._workers = workers
        self._chance = chance
        path = "container_manager.events.redis.RedisPublisher"
        options = {"url": server.url, "timeout": 0.5}
        self._publishers = {"redis": {"class": path, "options": options}}
        self._relays = [self._relay()]
        self.faults: Counter[str] = Counter()
        self.wrong: list[str] = []

    def _relay(self) -> WorkerProcess:
        return self._workers.start_relay(PUBLISHERS=self._publishers, LEASE_SECONDS=LEASE_SECONDS)

    def movers(self, moves: int, processes: int, seed: int) -> list[WorkerProcess]:
        command = [sys.executable, "-W", "ignore", "-m", "tests.storm.mover"]
        return [
            WorkerProcess(
                [*command, str(moves // processes), str(seed * 1_000 + number)],
                self._workers.environment(),
                self._workers.directory / f"mover-{number}.log",
            )
            for number in range(processes)
        ]

    @contextmanager
    def listeners(self) -> Iterator[dict[str, Comer]]:
        """Each goes away and comes back; what the stream no longer has it reads elsewhere."""
        reader = RedisPublisher(self._server.url, timeout=0.5)
        comers = {
            "redis": Comer(
                lambda heard, after, missed: reader.subscribe(heard, after, resync=missed),
                random.Random(self._chance.random()),
                FeedSource(),
            ),
            "python": Comer(
                lambda heard, after, _missed: subscribe(heard, after=after),
                random.Random(self._chance.random()),
                FeedSource(),
            ),
        }
        for comer in comers.values():
            comer.start()
        try:
            yield comers
        finally:
            for comer in comers.values():
                comer.end()

    # What is done to them

    def rage(self, movers: list[WorkerProcess], fault_every: float) -> None:
        """Until the last mover has made its moves."""
        faults: list[Callable[[], None]] = [
            *(self.redis_is_killed, self.redis_is_stopped, self.redis_sleeps, self.redis_is_full),
            *(self.redis_is_emptied, self.relay_is_killed, self.relay_is_killed),
            *(self.relay_sleeps, self.another_relay),
        ]
        ends_at = time.monotonic() + LONGEST_SECONDS
        try:
            while not all(mover.has_ended for mover in movers) and time.monotonic() < ends_at:
                fault = self._chance.choice(faults)
                self.faults[fault.__name__.replace("_", " ")] += 1
                fault()
                time.sleep(self._chance.uniform(0, 2 * fault_every))
        finally:
            for mover in movers:
                mover.end()
        for mover in movers:
            if mover.ended() != 0:
                self.wrong.append(f"a mover failed: {mover.said[-500:]}")

    def calm(self, comers: dict[str, Comer]) -> None:
        """All is well again; until every listener is where the sequence is."""
        self.another_relay()
        wait_until(lambda: self._server.answers(), "Redis")
        wait_until(lambda: not take_all() and self._is_told(), "the relay", SETTLE_SECONDS)
        newest = Event.objects.newest()
        for name, comer in comers.items():
            wait_until(lambda: comer.position >= newest, name, SETTLE_SECONDS)  # noqa: B023
        connection.close()

    def _is_told(self) -> bool:
        return PublisherState.objects.filter(position=Event.objects.newest()).exists()

    def redis_is_killed(self) -> None:
        self._server.kill()
        self._breathe()
        self._server.start()

    def redis_is_stopped(self) -> None:
        self._server.stop()
        self._breathe()
        self._server.start()

    def redis_is_emptied(self) -> None:
        self._server.restart_empty()

    def redis_sleeps(self) -> None:
        self._server.pause()
        self._breathe()
        self._server.go_on()

    def redis_is_full(self) -> None:
        self._server.be_full()
        self._breathe()
        self._server.have_room()

    def relay_is_killed(self) -> None:
        self._relays.pop(0).kill()
        self._relays.append(self._relay())

    def relay_sleeps(self) -> None:
        """Longer than its lease: another one takes over."""
        relay = self._chance.choice(self._relays)
        relay.pause()
        self.another_relay()
        time.sleep(self._chance.uniform(0.5, 1.5) * LEASE_SECONDS)
        relay.go_on()

    def another_relay(self) -> None:
        self._relays.append(self._relay())
        while len(self._relays) > 2:
            self._relays.pop(0).terminate()

    def _breathe(self) -> None:
        time.sleep(self._chance.uniform(0.1, 1.5))


# What must be true --------------------------------------------------------------------------------


def contradictions(name: str, seen: list[TransitionEvent]) -> Iterator[str]:
    """What this listener missed, or saw out of order, beside the history."""
    heard = {event.id for event in seen}
    missed = [row for row in StateHistory.objects.order_by("commit_order") if row.pk not in heard]
    yield from (f"{name}: never saw {row}, version {row.version}" for row in missed)
    known = set(StateHistory.objects.values_list("pk", flat=True))
    yield from (f"{name}: saw {event}, which never was" for event in seen if event.id not in known)
    lives: dict[UUID, list[int]] = defaultdict(list)
    for event in seen:
        if event.version not in lives[event.entity_id]:
            lives[event.entity_id].append(event.version)
    for entity, versions in lives.items():
        if versions != list(range(1, len(versions) + 1)):
            yield f"{name}: saw {entity} as {versions}"
