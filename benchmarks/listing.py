"""List: requests per second of the list of jobs beside a plain DRF viewset on the same rows.

python -m benchmarks.listing fill 1000000     migrates DATABASE_URL, fills it, prints a token
"""

from __future__ import annotations

import http.client
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import servers
from benchmarks.ours import environment

ROOT = Path(__file__).resolve().parent.parent
OURS, PLAIN = "/api/v1/jobs/", "/plain/jobs/"
CONTESTANTS = {"plain DRF LimitOffset": PLAIN, "container-manager": OURS}
BASELINE = "plain DRF LimitOffset"
SECONDS = 3.0
"""How long one contestant is asked for one page in one round."""


def pages(jobs: int) -> dict[str, str]:
    """The pages that are asked for, by what they are called in the table."""
    deep = min(10_000, jobs // 50 - 1)
    return {
        "first page": "limit=50",
        "page 1,000": f"limit=50&offset={50 * min(1_000, deep)}",
        f"page {deep:,}": f"limit=50&offset={50 * deep}",
        "status=failed": "limit=50&status=failed",
    }


def run(rounds: int, jobs: int, _concurrency: int) -> dict[str, Any]:
    """All rounds, A B A B …, one request after the other over one connection."""
    with servers.postgres() as server:
        server.command("CREATE DATABASE listing")
        url = server.url("listing")
        token = _fill_from_outside(url, jobs)
        with _site(url) as port:
            done = _measure(rounds, pages(jobs), port, token)
        return {
            "workload": "list",
            "jobs": jobs,
            "rounds": rounds,
            "machine": servers.machine(server),
            "baseline": BASELINE,
            "pages": done,
        }


def _measure(
    rounds: int, wanted: dict[str, str], port: int, token: str
) -> dict[str, dict[str, list[float]]]:
    done = {page: {name: [] for name in CONTESTANTS} for page in wanted}
    for number in range(1, rounds + 1):
        for page, query in wanted.items():
            for name, path in CONTESTANTS.items():
                speed = _requests_per_second(port, f"{path}?{query}", token)
                done[page][name].append(speed)
                print(f"round {number}: {page}: {name}: {speed:,.1f} requests/s", flush=True)
    return done


def _requests_per_second(port: int, path: str, token: str) -> float:
    connection = http.client.HTTPConnection("127.0.0.1", port)
    _get(connection, path, token)
    count, began = 0, time.monotonic()
    while (passed := time.monotonic() - began) < SECONDS:
        _get(connection, path, token)
        count += 1
    connection.close()
    return count / passed


def _get(connection: http.client.HTTPConnection, path: str, token: str) -> None:
    connection.request("GET", path, headers={"Authorization": f"Token {token}"})
    answer = connection.getresponse()
    body = answer.read()
    if answer.status != 200 or b'"results":[{' not in body:
        raise SystemExit(f"{path}: {answer.status} {body[:300]!r}: nothing was measured")


@contextmanager
def _site(database_url: str) -> Iterator[int]:
    """Both contestants in one uvicorn process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "uvicorn", "--port", str(port), "--log-level", "warning"]
    process = subprocess.Popen(
        [*command, "benchmarks.peers.plain_site:application"],
        env=environment(database_url) | {"SECURE": "off"},
        cwd=ROOT,
    )
    try:
        _wait_for(port)
        yield port
    finally:
        process.terminate()
        process.wait()


def _wait_for(port: int) -> None:
    for _ in range(300):
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.1)
        else:
            return
    raise SystemExit("the site did not start")


def markdown(results: dict[str, Any]) -> str:
    """Medians over the rounds; ratios are taken inside each round, against the baseline."""
    machine = results["machine"]
    lines = [
        f"{results['jobs']:,} jobs, {results['rounds']} interleaved rounds,"
        f" {machine['cores']} cores, Python {machine['python']}, Django {machine['django']},"
        f" PostgreSQL {machine['postgresql']['server_version']}.",
        "",
        "| page | plain DRF, requests/s | ours, requests/s | ratio, median | lowest to highest |",
        "|---|---:|---:|---:|---:|",
    ]
    for page, speeds in results["pages"].items():
        plain, ours = speeds[BASELINE], speeds["container-manager"]
        ratios = [mine / theirs for mine, theirs in zip(ours, plain, strict=True)]
        lines.append(
            f"| {page} | {median(plain):,.1f} | {median(ours):,.1f} | {median(ratios):.1f}"
            f" | {min(ratios):.1f} to {max(ratios):.1f} |"
        )
    return "\n".join(lines)


# Filling ------------------------------------------------------------------------------------------


def _fill_from_outside(database_url: str, jobs: int) -> str:
    command = [sys.executable, "-m", "benchmarks.listing", "fill", str(jobs)]
    made = subprocess.run(
        command, env=environment(database_url), cwd=ROOT, check=True, stdout=subprocess.PIPE
    )
    return made.stdout.decode().strip().splitlines()[-1]


def fill(jobs: int) -> None:
    """Migrate, make so many jobs of many ages and states, and print the token of an operator."""
    os.environ["DJANGO_SETTINGS_MODULE"] = "config.settings"
    import django

    django.setup()
    from django.contrib.auth import get_user_model
    from django.core.management import call_command
    from django.db import connection
    from knox.models import AuthToken

    call_command("migrate", verbosity=0)
    operator = get_user_model().objects.create_superuser("operator")
    with connection.cursor() as cursor:
        for start in range(0, jobs, BATCH):
            cursor.execute(_INSERT, [operator.pk, start + 1, min(start + BATCH, jobs)])
        cursor.execute("VACUUM ANALYZE")
    print(AuthToken.objects.create(operator)[1])


BATCH = 50_000

# One in ten failed, one in a hundred waits, the rest completed; a second between two jobs.
_INSERT = """
INSERT INTO container_jobs (id, version, transition_info, created_at, updated_at, name,
  created_by_id, labels, managed_by, image, command, working_dir, environment, pull_policy,
  isolation, executor,
  network, start_timeout_seconds, stop_grace_seconds, queue, priority, queued_at,
  max_retries,
  retry_count, infra_retry_count, retry_policy, status, attempt, reason, launched_at,
  completed_at,
  duration_ms, exit_code, output, error, oom_killed)
SELECT gen_random_uuid(), 1, '{"actor": "bench", "version": 1}', at, at, 'job ' || n, %s,
  '{"team": "data"}', '', 'busybox:latest', '["/bin/sh", "-c", "echo hello"]', '',
  '{"LEVEL": "info"}', 'missing', 'auto', '', 'none', 600, 10, 'default', 50, at, 3,
  0, 0, '{}', status, (status <> 'queued')::int,
  CASE status WHEN 'failed' THEN 'exit_code' ELSE '' END,
  CASE WHEN status <> 'queued' THEN at END, CASE WHEN status <> 'queued' THEN at END,
  CASE WHEN status <> 'queued' THEN n %% 5000 END,
  CASE status WHEN 'completed' THEN 0 WHEN 'failed' THEN 1 END, '', '', false
FROM (
  SELECT n, now() - (n * interval '1 second') AS at,
    CASE WHEN n %% 100 = 0 THEN 'queued' WHEN n %% 10 = 1 THEN 'failed' ELSE 'completed' END
      AS status
  FROM generate_series(%s, %s) AS n
) AS made
"""

if __name__ == "__main__":
    fill(int(sys.argv[2]))
