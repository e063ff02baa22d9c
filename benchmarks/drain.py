"""Drain: jobs per second from the first claim to the last end, one worker, jobs that do nothing."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from benchmarks import ours, servers
from benchmarks.peers.beside_procrastinate import Procrastinate

PEER_CONCURRENCY = 20
"""The best of 1, 5, 10, 20, 50 and 100 for it on two cores."""


def run(rounds: int, jobs: int, concurrency: int) -> dict[str, Any]:
    """All rounds, A B C A B C …; the first contestant is the one the others are compared with."""
    with servers.postgres() as server, ours.sqlite_directory() as directory:
        contestants = [
            Procrastinate(server, jobs, PEER_CONCURRENCY),
            ours.OnPostgreSQL(server, jobs, concurrency),
            ours.OnSQLite(directory, jobs, concurrency),
        ]
        done: dict[str, list[dict[str, Any]]] = {each.name: [] for each in contestants}
        for number in range(1, rounds + 1):
            for each in contestants:
                result = each.round()
                done[each.name].append({**asdict(result), "per_second": result.per_second})
                print(f"round {number}: {each.name}: {result.per_second:,.0f} jobs/s", flush=True)
        return {
            "workload": "drain",
            "jobs": jobs,
            "rounds": rounds,
            "concurrency": {"ours": concurrency, "procrastinate": PEER_CONCURRENCY},
            "machine": servers.machine(server),
            "baseline": contestants[0].name,
            "contestants": done,
        }
