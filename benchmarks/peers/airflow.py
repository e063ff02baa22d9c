"""Apache Airflow's LocalExecutor, on the same PostgreSQL server as ours: a DAG in layers.

python -m benchmarks.peers.airflow --width 100 --depth 10     prints what it took, as JSON

Scheduler, DAG processor and API server are started for the measure and end with it. What is set:
no example DAGs; PARALLELISM processes, and no other limit below the number of tasks; the scheduler
looks at as many tasks at once as may run (max_tis_per_query=0) and rests 0.1 s when idle, not 1 s;
the DAG processor reads the file once; log level WARNING; the API server has API_WORKERS processes
and serves the execution API alone. All else is as Airflow comes. A task is a BashOperator that runs
/bin/true and keeps no XCom; airflow_dag.py says what is done to make it start faster.

AIRFLOW_VENV=path uses an environment that has Airflow already.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

import psycopg

from benchmarks import servers
from benchmarks.servers import Server

ROOT = Path(__file__).resolve().parent.parent.parent
HOME = ROOT / "var/airflow"
PINNED = ("apache-airflow==3.3.2", "psycopg2-binary==2.9.13", "asyncpg==0.32.0")
DAG = Path(__file__).with_name("airflow_dag.py")
VERSION = "from importlib.metadata import version; print(version('apache-airflow'))"

PARALLELISM = 32
"""The best of 8, 16 and 32 for it on two cores: fewer looks of the scheduler at wide layers."""
API_WORKERS = 2
"""Better than 1."""
INSTALL_SECONDS = 900
START_SECONDS = 120
SECONDS_A_TASK = 3
"""Most that a run may take, beside its start."""
END_SECONDS = 20

READY = "SELECT count(*) FROM serialized_dag"
SPAN = """
SELECT count(*) FILTER (WHERE state = 'success'),
  count(*) FILTER (WHERE state IN ('failed', 'upstream_failed')),
  extract(epoch FROM max(end_date) - min(start_date)) FROM task_instance
"""

Environment = dict[str, str]


class NotMeasuredError(Exception):
    """Why there is no number."""


def install() -> Path:
    """The peer's own interpreter."""
    if given := os.environ.get("AIRFLOW_VENV"):
        return Path(given) / "bin/python"
    python, stamp = HOME / "bin/python", HOME / ".installed"
    if not (stamp.exists() and stamp.read_text() == str(PINNED)):
        pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        _run([sys.executable, "-m", "venv", "--clear", HOME], INSTALL_SECONDS)
        _run([*pip, *PINNED], INSTALL_SECONDS)
        stamp.write_text(str(PINNED))
    return python


def measured(server: Server, width: int, depth: int) -> dict[str, Any]:
    """One run of the DAG in a fresh database: from the first start of a task to the last end."""
    python = install()
    version = _run([python, "-c", VERSION], START_SECONDS)
    server.command("CREATE DATABASE airflow")
    home = tempfile.TemporaryDirectory(prefix="cm-airflow-", ignore_cleanup_errors=True)
    with home as made:
        given = _environment(server, Path(made), width, depth)
        shutil.copy(DAG, Path(made, "dags"))
        seconds = _seconds(server, [str(python), "-m", "airflow"], given, width * depth)
    return {
        "tasks": width * depth,
        "seconds": seconds,
        "tasks_per_minute": width * depth / seconds * 60,
        "version": version.strip(),
    }


def _seconds(server: Server, airflow: list[str], given: Environment, tasks: int) -> float:
    _run([*airflow, "db", "migrate"], START_SECONDS, given)
    connected = psycopg.connect(server.dsn("airflow"), autocommit=True)
    with connected as connection, _processes(airflow, given) as alive:

        def row(query: str) -> tuple[Any, ...]:
            alive()
            return connection.execute(query.encode()).fetchone() or ()

        port = given["AIRFLOW__API__PORT"]
        _wait_until(lambda: row(READY)[0] and _answers(port), START_SECONDS, "its start")
        _run([*airflow, "dags", "trigger", "layers"], START_SECONDS, given)
        patience = START_SECONDS + tasks * SECONDS_A_TASK
        _wait_until(lambda: sum(row(SPAN)[:2]) == tasks, patience, "the run")
        done, failed, seconds = row(SPAN)
    if failed:
        raise NotMeasuredError(f"{done} of {tasks} tasks succeeded")
    return float(seconds)


def _environment(server: Server, home: Path, width: int, depth: int) -> Environment:
    (home / "dags").mkdir()
    port = _free_port()
    at = f"//postgres@/airflow?host={server.socket}"
    settings = {
        "CORE__DAGS_FOLDER": home / "dags",
        "CORE__LOAD_EXAMPLES": False,
        "CORE__DAGS_ARE_PAUSED_AT_CREATION": False,
        "CORE__EXECUTOR": "LocalExecutor",
        "CORE__PARALLELISM": PARALLELISM,
        "CORE__MAX_ACTIVE_TASKS_PER_DAG": width * depth,
        "CORE__DEFAULT_POOL_TASK_SLOT_COUNT": width * depth,
        "CORE__EXECUTION_API_SERVER_URL": f"http://127.0.0.1:{port}/execution/",
        "API__HOST": "127.0.0.1",
        "API__PORT": port,
        "API__WORKERS": API_WORKERS,
        "DATABASE__SQL_ALCHEMY_CONN": f"postgresql+psycopg2:{at}",
        "DATABASE__SQL_ALCHEMY_CONN_ASYNC": f"postgresql+asyncpg:{at}",
        "SCHEDULER__MAX_TIS_PER_QUERY": 0,
        "SCHEDULER__SCHEDULER_IDLE_SLEEP_TIME": 0.1,
        "DAG_PROCESSOR__PARSING_PROCESSES": 1,
        "DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": 86_400,
        "LOGGING__LOGGING_LEVEL": "WARNING",
        "LOGGING__UVICORN_LOGGING_LEVEL": "WARNING",
        "USAGE_DATA_COLLECTION__ENABLED": False,
    }
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW_")},
        "AIRFLOW_HOME": str(home),
        "LAYERS_WIDTH": str(width),
        "LAYERS_DEPTH": str(depth),
        "NO_PROXY": "127.0.0.1",
        **{f"AIRFLOW__{name}": str(value) for name, value in settings.items()},
    }


@contextmanager
def _processes(airflow: list[str], given: Environment) -> Iterator[Callable[[], None]]:
    """What a run needs; gives what raises when one of them has ended."""
    components = {
        "api-server": ["--apps", "execution"],
        "dag-processor": [],
        "scheduler": ["--skip-serve-logs"],
    }
    with ExitStack() as stack:
        started = {
            name: stack.enter_context(_process([*airflow, name, *options], given, name))
            for name, options in components.items()
        }

        def alive() -> None:
            for name, process in started.items():
                if process.poll() is not None:
                    raise NotMeasuredError(f"its {name} ended: {_tail(given, name)}")

        yield alive


@contextmanager
def _process(
    command: list[str], given: Environment, name: str
) -> Iterator[subprocess.Popen[bytes]]:
    """In a session of its own, which ends with it."""
    with Path(given["AIRFLOW_HOME"], f"{name}.log").open("wb") as log:
        process = subprocess.Popen(
            command,
            env=given,
            cwd=given["AIRFLOW_HOME"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            yield process
        finally:
            _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Gently, then by force: all that is left of its session, in whichever group."""
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(END_SECONDS)
    for pid in _of_session(process.pid):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()


def _of_session(session: int) -> list[int]:
    found = []
    for pid in (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()):
        with suppress(ProcessLookupError, PermissionError):
            if os.getsid(pid) == session:
                found.append(pid)
    return found


def _tail(given: Environment, name: str) -> str:
    return Path(given["AIRFLOW_HOME"], f"{name}.log").read_text(errors="replace")[-2000:]


def _run(command: list[Any], seconds: float, given: Environment | None = None) -> str:
    try:
        done = subprocess.run(
            command, env=given, timeout=seconds, check=True, capture_output=True, text=True
        )
    except (OSError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", "") or ""
        raise NotMeasuredError(f"{error} {str(said)[-2000:]}") from error
    return done.stdout


def _wait_until(condition: Callable[[], bool], seconds: float, what: str) -> None:
    ends_at = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > ends_at:
            raise NotMeasuredError(f"{what} was not over after {seconds:.0f} s")
        time.sleep(0.5)


def _answers(port: str) -> bool:
    asking = HTTPConnection("127.0.0.1", int(port), timeout=5)
    try:
        asking.request("GET", "/execution/health")
        return asking.getresponse().status == 200
    except (OSError, HTTPException):
        return False
    finally:
        asking.close()


def _free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers.airflow")
    parser.add_argument("--width", type=int, default=100)
    parser.add_argument("--depth", type=int, default=10)
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with servers.postgres() as server:
        try:
            print(json.dumps(measured(server, given.width, given.depth)))
        except NotMeasuredError as error:
            sys.exit(f"not measured: {error}")


if __name__ == "__main__":
    main()
