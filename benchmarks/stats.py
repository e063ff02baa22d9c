"""Stats: the statistics of all jobs from the counters beside the same from the rows, in SQL time.

python -m benchmarks.stats fill 100000     migrates DATABASE_URL and fills it
python -m benchmarks.stats measure         prints the seconds of both as JSON
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import servers
from benchmarks.ours import environment

ROOT = Path(__file__).resolve().parent.parent
ROWS, COUNTERS = "GROUP BY and aggregates over the rows", "container-manager"
REPEATS = 5
"""Of each, in turn, in one process; the median counts."""


def run(rounds: int, jobs: int, _concurrency: int) -> dict[str, Any]:
    """So many jobs and ten times as many, A B A B …"""
    sizes = [jobs, 10 * jobs]
    with servers.postgres() as server:
        for size in sizes:
            server.command(f"CREATE DATABASE stats_{size}")
            _in_process(server.url(f"stats_{size}"), "fill", str(size))
        done: dict[str, list[dict[str, float]]] = {str(size): [] for size in sizes}
        for number in range(1, rounds + 1):
            for size in sizes:
                took = json.loads(_in_process(server.url(f"stats_{size}"), "measure"))
                done[str(size)].append(took)
                said = ", ".join(f"{name}: {took[name] * 1000:,.2f} ms" for name in took)
                print(f"round {number}: {size:,} jobs: {said}", flush=True)
        return {
            "workload": "stats",
            "jobs": jobs,
            "rounds": rounds,
            "machine": servers.machine(server),
            "baseline": ROWS,
            "seconds": done,
        }


def _in_process(database_url: str, *arguments: str) -> str:
    command = [sys.executable, "-m", "benchmarks.stats", *arguments]
    done = subprocess.run(
        command, env=environment(database_url), cwd=ROOT, check=True, stdout=subprocess.PIPE
    )
    return done.stdout.decode()


def markdown(results: dict[str, Any]) -> str:
    """Medians over the rounds; ratios are taken inside each round."""
    machine, sizes = results["machine"], list(results["seconds"])
    lines = [
        f"{results['rounds']} interleaved rounds, {machine['cores']} cores,"
        f" Python {machine['python']}, Django {machine['django']},"
        f" PostgreSQL {machine['postgresql']['server_version']}.",
        "",
        "| jobs | rows, ms | counters, ms | ratio, median | lowest to highest |",
        "|---:|---:|---:|---:|---:|",
    ]
    for size in sizes:
        rows, counters = _series(results, size, ROWS), _series(results, size, COUNTERS)
        ratios = [slow / fast for slow, fast in zip(rows, counters, strict=True)]
        lines.append(
            f"| {int(size):,} | {median(rows) * 1000:,.1f} | {median(counters) * 1000:,.2f}"
            f" | {median(ratios):,.0f} | {min(ratios):,.0f} to {max(ratios):,.0f} |"
        )
    growth = {
        name: [
            most / few
            for few, most in zip(*(_series(results, size, name) for size in sizes), strict=True)
        ]
        for name in (ROWS, COUNTERS)
    }
    lines += ["", f"Ten times the jobs take {_grown(growth[COUNTERS])} from the counters and"]
    lines[-1] += f" {_grown(growth[ROWS])} from the rows."
    return "\n".join(lines)


def _series(results: dict[str, Any], size: str, name: str) -> list[float]:
    return [each[name] for each in results["seconds"][size]]


def _grown(ratios: list[float]) -> str:
    return f"{median(ratios):.2f} times as long ({min(ratios):.2f} to {max(ratios):.2f})"


# In a process with Django -------------------------------------------------------------------------


def _with_django() -> None:
    os.environ["DJANGO_SETTINGS_MODULE"] = "config.settings"
    import django

    django.setup()


def measure() -> dict[str, float]:
    """Seconds of SQL that each takes; what they say is the same."""
    from container_manager.models import ContainerJob
    from container_manager.models.job_counts import job_stats
    from container_manager.models.job_stats import stats_of_rows

    asked: dict[str, Callable[[], dict[str, Any]]] = {
        ROWS: lambda: stats_of_rows(ContainerJob.objects.all()),
        COUNTERS: job_stats,
    }
    said = [ask() | {"oldest_queued_seconds": 0} for ask in asked.values()]
    if said[0] != said[1]:
        raise SystemExit("the counters differ from the rows: nothing was measured")
    took: dict[str, list[float]] = {name: [] for name in asked}
    for _ in range(REPEATS):
        for name, ask in asked.items():
            took[name].append(_sql_seconds(ask))
    return {name: median(series) for name, series in took.items()}


def _sql_seconds(ask: Callable[[], Any]) -> float:
    from django.db import connection

    seconds = 0.0

    def timed(execute: Any, *arguments: Any) -> Any:
        nonlocal seconds
        began = time.perf_counter()
        try:
            return execute(*arguments)
        finally:
            seconds += time.perf_counter() - began

    with connection.execute_wrapper(timed):
        ask()
    return seconds


def fill(jobs: int) -> None:
    """Migrate and insert so many jobs of 20 owners, 8 queues and durations from ms to hours."""
    from django.contrib.auth import get_user_model
    from django.core.management import call_command
    from django.db import connection

    call_command("migrate", verbosity=0)
    users = get_user_model().objects
    owners = [users.create(username=f"user {number}").pk for number in range(20)]
    with connection.cursor() as cursor:
        for start in range(0, jobs, BATCH):
            cursor.execute(_INSERT, [owners, start + 1, min(start + BATCH, jobs)])
        cursor.execute("VACUUM ANALYZE")


BATCH = 50_000

_INSERT = """
INSERT INTO container_jobs (id, version, transition_info, created_at, updated_at, name,
  created_by_id, labels, managed_by, image, command, working_dir, environment, pull_policy,
  isolation, executor, network, start_timeout_seconds, stop_grace_seconds, queue, priority,
  queued_at, max_retries, retry_count, infra_retry_count, retry_policy, status, attempt, reason,
  launched_at, completed_at, duration_ms, exit_code, output, error, oom_killed)
SELECT gen_random_uuid(), 1, '{"actor": "bench", "version": 1}', at, at, 'job ' || n,
  (%s::int[])[1 + n %% 20], '{}', '', 'busybox:latest', '["/bin/true"]', '', '{}', 'missing',
  'auto', (ARRAY['', 'docker', 'process'])[1 + n %% 3], 'none', 600, 10, 'queue ' || n %% 8, 50,
  at, 3, 0, 0, '{}', status, (status <> 'queued')::int, '',
  CASE WHEN status <> 'queued' THEN at END, CASE WHEN status <> 'queued' THEN at END,
  CASE WHEN status <> 'queued' THEN exp(random_normal(9, 2))::bigint END,
  CASE status WHEN 'completed' THEN 0 WHEN 'failed' THEN 1 END, '', '', false
FROM (
  SELECT n, now() - (n * interval '1 second') AS at,
    CASE WHEN n %% 100 = 0 THEN 'queued' WHEN n %% 10 = 1 THEN 'failed' ELSE 'completed' END
      AS status
  FROM generate_series(%s, %s) AS n
) AS made
"""

if __name__ == "__main__":
    _with_django()
    if sys.argv[1] == "fill":
        fill(int(sys.argv[2]))
    else:
        print(json.dumps(measure()))
