"""One run from the first worker to the verdict."""

from __future__ import annotations

import argparse
import json
import logging
import math
import random
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from django.core.management import call_command
from django.db import connection

from container_manager.models import ContainerJob, JobAttempt
from tests.chaos import jobs, leaving, oracle
from tests.chaos.containers import Events
from tests.chaos.crew import Crew
from tests.chaos.database import Database
from tests.chaos.engine import ENGINES, Engine
from tests.chaos.faults import NoSuchFault
from tests.chaos.oracle import LEFTOVER_SECONDS, Run
from tests.chaos.people import Stopper, Submitter, how_many_are_open, patiently, some_job_runs
from tests.chaos.trouble import Trouble
from tests.support.workers import Workers, some_workers

PATIENCE = 300.0
"""Seconds that the last jobs get, once everything is well again."""
STILL_OPEN = 0.03
"""The faults end when so many jobs are left."""


def run(given: argparse.Namespace, database: Database, directory: Path) -> dict[str, Any]:
    """Everything, and what came of it."""
    # Each constraint that a submission could not check, because the database went away meanwhile.
    logging.getLogger("django.db.models").setLevel(logging.ERROR)
    notes = directory / "notes"
    jobs.lay_out(notes)
    with ENGINES[given.engine](notes) as engine:
        print(f"chaos: the Docker engine: {engine.told}", flush=True)
        _refuse_what_cannot_come(given.first, {*engine.faults, *database.faults})
        call_command("migrate", verbosity=0)
        with some_workers(directory) as workers:
            return _run(given, database, engine, workers, notes)


def _refuse_what_cannot_come(first: list[str], faults: set[str]) -> None:
    if unknown := [name for name in first if name not in faults]:
        there = ", ".join(sorted(faults))
        raise NoSuchFault(f"{', '.join(unknown)} cannot come here; what can: {there}")


def _run(
    given: argparse.Namespace, database: Database, engine: Engine, workers: Workers, notes: Path
) -> dict[str, Any]:
    began = time.monotonic()
    events = Events(workers.instance)
    share = 0.0 if engine.options is None else given.docker_share
    if engine.options is not None:
        workers.use_docker(**engine.options)
        if not engine.runs_scripts:
            events.start()
    crew = Crew(workers, given.workers, given.concurrency, given.lease, given.reap_every)
    plans = jobs.plans(random.Random(f"jobs {given.seed}"), given.jobs, share)
    submitter = Submitter(
        random.Random(f"submissions {given.seed}"),
        plans,
        notes,
        notes_of_containers=engine.runs_scripts,
    )
    stopper = Stopper(random.Random(f"requests {given.seed}"), submitter)
    chance = random.Random(f"faults {given.seed}")
    servers = (database, engine)
    trouble = Trouble(chance, crew, servers, given.fault_every, given.first, _hits(engine))
    crew.fill()
    submitter.start()
    stopper.start()
    open_jobs = _sampled(lambda: how_many_are_open(given.jobs), given.jobs)
    try:
        trouble.go_on_until(
            lambda: open_jobs() <= STILL_OPEN * given.jobs, lambda: open_jobs() == 0
        )
        trouble.end()
    finally:
        trouble.wait()  # an engine that is cleaned up must not be started meanwhile
    submitter.wait()
    stopper.end()
    quiet_at = time.monotonic()
    _wait(lambda: how_many_are_open(given.jobs) == 0, PATIENCE)
    settled_at = time.monotonic()
    result = Run(
        notes, workers, engine, crew, events, submitter.jobs, submitter.due, stopper.answers
    )
    result.remarks += [f"{name} did not come: it would have hit nobody" for name in trouble.first]
    cleaned_in = _nothing_left(result)
    crew.send_home()
    events.end()
    _nobody_left(result)
    seconds = {
        "submitting": submitter.seconds,
        "under faults": quiet_at - began,
        "until settled": settled_at - quiet_at,
        "until clean": cleaned_in,
    }
    return _results(given, result, share, seconds)


def _hits(engine: Engine) -> Callable[[str], bool]:
    """Would this fault be noticed: does anything run that needs the server?"""

    def hits(name: str) -> bool:
        return bool(engine.running()) if name in engine.faults else patiently(some_job_runs)

    return hits


def _sampled(ask: Callable[[], int], first: int, seconds: float = 1.0) -> Callable[[], int]:
    """The latest answer, asked for once a second; the database may be away."""
    state = {"at": time.monotonic(), "value": first}

    def value() -> int:
        if time.monotonic() - state["at"] >= seconds:
            state["value"] = patiently(ask)
            state["at"] = time.monotonic()
        return int(state["value"])

    return value


def _wait(condition: Callable[[], Any], patience: float) -> bool:
    ends_at = time.monotonic() + patience
    while not (met := patiently(condition)) and time.monotonic() < ends_at:
        leaving.if_asked()
        time.sleep(0.2)
    return bool(met)


def _nothing_left(run: Run) -> float:
    began = time.monotonic()
    if not _wait(lambda: not oracle.leftovers(run), LEFTOVER_SECONDS):
        run.remarks += [f"left after a minute: {name}" for name in oracle.leftovers(run)]
    return time.monotonic() - began


def _nobody_left(run: Run) -> None:
    """The supervisors go when nobody is left to ask."""
    state_dir = run.workers.state_dir
    if not _wait(lambda: not oracle.stray_processes(state_dir), 10):
        run.remarks += oracle.stray_processes(state_dir)


def _results(
    given: argparse.Namespace, run: Run, share: float, seconds: dict[str, float]
) -> dict[str, Any]:
    statuses = Counter(ContainerJob.objects.order_by().values_list("status", flat=True))
    adoptions = sum(epoch - 1 for epoch in JobAttempt.objects.values_list("lease_epoch", flat=True))
    waits = oracle.seconds_to_adoption(run)
    lost = JobAttempt.objects.filter(reason="worker_lost").count()
    return {
        "seed": given.seed,
        "on": connection.vendor,
        "jobs": given.jobs,
        "workers": given.workers,
        "lease_seconds": given.lease,
        "docker_share": share,
        "engine": run.engine.told,
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
        "statuses": dict(sorted(statuses.items())),
        "attempts": JobAttempt.objects.count(),
        "adoptions": adoptions,
        "seconds_to_adoption": {
            f"p{share}": round(waits[math.ceil(len(waits) * share / 100) - 1], 1)
            for share in (50, 99, 100)
            if waits
        },
        "attempts_lost_before_their_start": lost,
        "containers": oracle.containers(run),
        "output_may_be_missing": oracle.unfollowed(run),
        "exit_codes_made_up": oracle.made_up(run),
        "lost_with_the_engine": oracle.lost(run),
        "worker_processes": len(run.workers.started),
        "faults": dict(sorted(run.crew.done.items())),
        "requests": dict(
            sorted(Counter(str(a.came) for each in run.answers.values() for a in each).items())
        ),
        "violations": oracle.judge(run),
    }


def table(results: dict[str, Any]) -> str:
    """For people."""
    violations = results["violations"]
    rows = [
        ("jobs", f"{results['jobs']:,} on {results['on']}, seed {results['seed']}"),
        ("ended as", _told(results["statuses"])),
        ("attempts", f"{results['attempts']:,}, {results['containers']:,} containers"),
        ("engine", results["engine"]),
        ("output may be missing", f"{results['output_may_be_missing']:,}"),
        ("exit codes made up", f"{results['exit_codes_made_up']:,}"),
        ("lost with the engine", f"{results['lost_with_the_engine']:,}"),
        ("adoptions", f"{results['adoptions']:,}"),
        ("adopted after a kill, s", _told(results["seconds_to_adoption"])),
        ("lost before their start", f"{results['attempts_lost_before_their_start']:,}"),
        ("worker processes", f"{results['worker_processes']:,}"),
        ("faults", _told(results["faults"])),
        ("requests", _told(results["requests"])),
        ("seconds", _told(results["seconds"])),
        *((name, str(len(found) or "yes")) for name, found in violations.items()),
    ]
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {told}" for name, told in rows)


def _told(counts: dict[str, Any]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items())


def write(results: dict[str, Any], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=2) + "\n")
