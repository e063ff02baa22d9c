"""Workflow: a DAG of 1,000 no-op tasks (100 wide, 10 deep) beside a plain drain of 1,000 such jobs.

Both by the process executor, one worker, on PostgreSQL, in turn: a plain drain, then a run of the
DAG by one scheduler. Each layer waits for all of the layer above it. And in the same process: how
long it takes to validate and to create a run of 10,000 tasks, and what one advance costs in a small
and in a large run. Then, once, the same DAG by Airflow on the same server.

python -m benchmarks.workflow jobs 1000     queues so many plain jobs on DATABASE_URL
python -m benchmarks.workflow dag           makes a run of the DAG there
python -m benchmarks.workflow parts         prints the costs of the parts, as JSON
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import psycopg

from benchmarks import servers
from benchmarks.ours import environment
from benchmarks.peers import airflow
from benchmarks.servers import Server

ROOT = Path(__file__).resolve().parent.parent
WIDTH, DEPTH = 100, 10
TASKS = WIDTH * DEPTH
CONCURRENCY = 16
AIRFLOW_PER_MINUTE = 358
"""LocalExecutor, as measured once on another machine of this kind."""

SPAN = """
SELECT count(*) FILTER (WHERE status = 'completed'),
  extract(epoch FROM max(completed_at) - min(launched_at)) FROM container_jobs
"""


def run(rounds: int, _jobs: int, _concurrency: int) -> dict[str, Any]:
    """In each round a plain drain, then the DAG: seconds from the first start to the last end."""
    with servers.postgres() as server, tempfile.TemporaryDirectory(prefix="cm-flow-") as made:
        drains, flows = [], []
        for number in range(1, rounds + 1):
            drains.append(_seconds(server, Path(made), f"drain_{number}", ["jobs", str(TASKS)]))
            flows.append(_seconds(server, Path(made), f"flow_{number}", ["dag"]))
            print(f"round {number}: {drains[-1]:.2f} s, {flows[-1]:.2f} s", flush=True)
        server.command("CREATE DATABASE parts")
        given = _environment(server.url("parts"), Path(made) / "parts")
        parts = json.loads(_manage("parts", given=given).splitlines()[-1])
        return {
            "workload": "workflow",
            "machine": servers.machine(server),
            "drains": drains,
            "flows": flows,
            "parts": parts,
            "airflow": _airflow(server),
        }


def _airflow(server: Server) -> dict[str, Any]:
    """What it took, or why there is no number."""
    try:
        result = airflow.measured(server, WIDTH, DEPTH)
    except (airflow.NotMeasuredError, psycopg.Error, OSError) as error:
        print(f"AIRFLOW WAS NOT MEASURED: {error}", flush=True)
        return {"not_measured": str(error)}
    print(f"Airflow {result['version']}: {result['seconds']:.2f} s", flush=True)
    return result


def _seconds(server: Server, directory: Path, name: str, what: list[str]) -> float:
    server.command(f"CREATE DATABASE {name}")
    given = _environment(server.url(name), directory / name)
    _manage(*what, given=given)
    with psycopg.connect(server.dsn(name), autocommit=True) as connection, _processes(given, what):
        ends_at = time.monotonic() + 300
        while True:
            done, seconds = connection.execute(SPAN).fetchone()  # type: ignore[misc]
            if done == TASKS:
                return float(seconds)
            if time.monotonic() > ends_at:
                raise SystemExit(f"{name}: {done} of {TASKS} after 300 s: nothing was measured")
            time.sleep(0.05)


def _environment(url: str, state_dir: Path) -> dict[str, str]:
    executor = {
        "class": "container_manager.executors.process.ProcessExecutor",
        "options": {"state_dir": str(state_dir)},
    }
    return {
        **environment(url),
        "CONTAINER_MANAGER_EXECUTORS": json.dumps({"process": executor}),
        "CONTAINER_MANAGER_PROCESS_EXECUTOR": "on",
    }


@contextmanager
def _processes(given: dict[str, str], what: list[str]) -> Iterator[None]:
    commands = [["run_worker", "--concurrency", str(CONCURRENCY)]]
    commands += [["run_scheduler"]] if what == ["dag"] else []
    started = [
        subprocess.Popen([sys.executable, "manage.py", *command], env=given, cwd=ROOT)
        for command in commands
    ]
    try:
        yield
    finally:
        for process in started:
            process.terminate()
        for process in started:
            process.wait()


def _manage(*arguments: str, given: dict[str, str]) -> str:
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.workflow", *arguments]
    said = subprocess.run(command, env=given, cwd=ROOT, check=True, stdout=subprocess.PIPE)
    return said.stdout.decode()


def markdown(results: dict[str, Any]) -> str:
    """Ratios are taken inside each round."""
    machine, parts = results["machine"], results["parts"]
    pairs = list(zip(results["drains"], results["flows"], strict=True))
    ratios = [flow / drain for drain, flow in pairs]
    per_minute = [TASKS / flow * 60 for flow in results["flows"]]
    lines = [
        f"{TASKS:,} tasks, {WIDTH} wide and {DEPTH} deep, {len(pairs)} interleaved rounds,"
        f" concurrency {CONCURRENCY}, {machine['cores']} cores, Python {machine['python']},"
        f" Django {machine['django']}, PostgreSQL {machine['postgresql']['server_version']}.",
        "",
        "| | median | lowest to highest | aimed at |",
        "|---|---:|---:|---:|",
        _row("plain drain, s", results["drains"], "", "{:.2f}"),
        _row("the DAG, s", results["flows"], "", "{:.2f}"),
        _row("the DAG / the plain drain", ratios, "≤ 1.5", "{:.2f}"),
        _row(
            f"tasks per minute / Airflow's {AIRFLOW_PER_MINUTE}",
            [each / AIRFLOW_PER_MINUTE for each in per_minute],
            "≥ 50",
            "{:.0f}",
        ),
        *_beside_airflow(per_minute, results.get("airflow", {})),
        _row("validating 10,000 tasks from YAML, s", parts["validate_yaml"], "≤ 1", "{:.2f}"),
        _row("validating 10,000 tasks from JSON, s", parts["validate"], "≤ 1", "{:.2f}"),
        _row("validating a chain of 5,000, s", parts["validate_deep"], "≤ 1", "{:.2f}"),
        _row("creating a run of 10,000 tasks, s", parts["create"], "≤ 5", "{:.2f}"),
        *(
            _row(f"one advance in a run of {size} tasks, queries", queries, "alike", "{:.0f}")
            for size, queries in parts["queries"].items()
        ),
    ]
    return "\n".join(lines)


def _beside_airflow(per_minute: list[float], peer: dict[str, Any]) -> list[str]:
    """One measure of it beside each of ours; older results have none."""
    if "tasks_per_minute" not in peer:
        return ["| tasks per minute / Airflow's here | **NOT MEASURED** | | ≥ 50 |"]
    here, name = peer["tasks_per_minute"], f"Airflow {peer['version']}'s here"
    return [
        _row(f"{name}, tasks per minute, once", [here], "", "{:.0f}"),
        _row(f"tasks per minute / {name}", [each / here for each in per_minute], "≥ 50", "{:.1f}"),
    ]


def _row(what: str, values: list[float], aim: str, form: str) -> str:
    spread = f"{form.format(min(values))} to {form.format(max(values))}"
    return f"| {what} | {form.format(median(values))} | {spread} | {aim} |"


# Inside a database --------------------------------------------------------------------------------


def layered(width: int, depth: int) -> dict[str, Any]:
    """A document: each layer waits for all of the one above it."""
    tasks: dict[str, Any] = {}
    for layer in range(depth):
        above = [f"t{layer - 1}_{n}" for n in range(width)] if layer else []
        for n in range(width):
            tasks[f"t{layer}_{n}"] = {"command": ["/bin/true"], "depends_on": above}
    return {"name": f"layers-{width}-{depth}", "defaults": {"executor": "process"}, "tasks": tasks}


def chain(length: int) -> dict[str, Any]:
    tasks = {
        f"t{n}": {"command": ["/bin/true"], "depends_on": [f"t{n - 1}"] if n else []}
        for n in range(length)
    }
    return {"name": f"chain-{length}", "defaults": {"executor": "process"}, "tasks": tasks}


def different(count: int) -> dict[str, Any]:
    """Tasks of which no two are alike."""
    tasks = {
        f"t{n}": {
            "command": ["/bin/echo", str(n)],
            "environment": {"N": str(n)},
            "depends_on": [f"t{n // 2}"] if n else [],
        }
        for n in range(count)
    }
    return {"name": f"different-{count}", "defaults": {"executor": "process"}, "tasks": tasks}


def queue_jobs(count: int) -> None:
    from container_manager import lifecycle
    from container_manager.models import ContainerJob

    wanted = {"executor": "process", "isolation": "process", "command": ["/bin/true"]}
    lifecycle.submit_all([ContainerJob(**wanted) for _ in range(count)])


def trigger_dag() -> None:
    from container_manager.workflows import dags
    from container_manager.workflows.spec import validate

    dag, _ = dags.take_in(validate(layered(WIDTH, DEPTH)))
    dags.trigger(dag.pk, actor="benchmark")


def parts() -> dict[str, Any]:
    """What the parts cost: seconds, and numbers of queries."""
    import yaml

    from container_manager.workflows.spec import read, validate

    wide, deep = different(10_000), chain(5_000)
    text = yaml.dump(wide, Dumper=yaml.CSafeDumper, default_flow_style=None)
    return {
        "validate_yaml": [_took(lambda: validate(read(text), text)) for _ in range(3)],
        "validate": [_took(lambda: validate(wide)) for _ in range(3)],
        "validate_deep": [_took(lambda: validate(deep)) for _ in range(3)],
        "create": _creating(wide),
        "queries": {size: _queries_of_an_advance(size) for size in (100, 10_000)},
    }


def _took(act: Any) -> float:
    began = time.perf_counter()
    act()
    return time.perf_counter() - began


def _creating(document: dict[str, Any]) -> list[float]:
    from container_manager.workflows import dags
    from container_manager.workflows.spec import validate

    dag, _ = dags.take_in(validate(document))
    return [_took(lambda: dags.trigger(dag.pk, actor="benchmark")) for _ in range(3)]


def _queries_of_an_advance(size: int) -> list[int]:
    """Of a step in which one task has ended and one begins behind it."""
    from django.db import connection
    from django.test.utils import CaptureQueriesContext

    from container_manager.models import ContainerJob, TaskInstance
    from container_manager.workflows import dags, runs
    from container_manager.workflows.spec import validate

    document = {**chain(3), "name": f"queries-{size}"}
    document["tasks"]["many"] = {"command": ["/bin/true"], "array": size - 3, "depends_on": "t2"}
    dag, _ = dags.take_in(validate(document))
    run = dags.trigger(dag.pk, actor="benchmark")
    runs.start_next(dag.pk)
    seen = []
    for name in ("t0", "t1"):
        job = ContainerJob.objects.get(pk=TaskInstance.objects.get_by_task_id(run, name).job_id)
        job.mark_as_running()
        job.mark_as_completed()
        with CaptureQueriesContext(connection) as queries:
            runs.advance(run.pk)
        seen.append(len(queries))
    return seen


def main(what: str, *arguments: str) -> None:
    os.environ["DJANGO_SETTINGS_MODULE"] = "config.settings"
    import django
    from django.core.management import call_command

    django.setup()
    call_command("migrate", verbosity=0)
    if what == "jobs":
        queue_jobs(int(arguments[0]))
    elif what == "dag":
        trigger_dag()
    else:
        print(json.dumps(parts()))


if __name__ == "__main__":
    main(*sys.argv[1:])
