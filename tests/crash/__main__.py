"""Kill a worker at every point, statement, commit and call of an engine; see that all is mended.

    python -m tests.crash                               everything once, on both databases
    python -m tests.crash --repeat 5 --on postgres --executor docker
    python -m tests.crash --point R4 --point stop:R4    only these
    python -m tests.crash --small                       what `make test` does

Each case has a database of its own, real workers, real executors and a real kill -9. Exit code 1
when a promise was broken.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.crash.table import markdown, verdict
from tests.services import postgres

DATABASES = ("sqlite", "postgres")
EXECUTORS = ("process", "docker")
OURS = "CONTAINER_MANAGER_"


@contextmanager
def database(name: str, directory: Path) -> Iterator[str]:
    """DATABASE_URL of an SQLite file, or of the PostgreSQL that is there, else of a new one."""
    given = os.environ.get("DATABASE_URL", "")
    if name == "sqlite":
        yield f"sqlite:///{directory / 'sweep.sqlite3'}"
    elif given.startswith("postgres"):
        yield given
    else:
        with postgres() as environment:
            yield environment["DATABASE_URL"]


def sweep_on(name: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """The results of one database, from a process whose settings name it."""
    with tempfile.TemporaryDirectory(prefix="cm-sweep-") as path:
        directory = Path(path)
        results = directory / "results.json"
        with database(name, directory) as url:
            environment = {
                **{key: os.environ[key] for key in os.environ if not key.startswith(OURS)},
                "DATABASE_URL": url,
                "DATABASE_POOL": "off",
                "DEBUG": "on",
                "DJANGO_SETTINGS_MODULE": "tests.settings",
            }
            wanted = {**vars(options), "directory": path, "results": str(results)}
            command = [sys.executable, "-W", "ignore", "-m", "tests.crash.sweep"]
            _run([*command, json.dumps(wanted)], environment)
        return [{**result, "database": name} for result in json.loads(results.read_text())]


def _run(command: list[str], environment: dict[str, str]) -> None:
    """After Ctrl-C, too, it ends what it started."""
    process = subprocess.Popen(command, env=environment)
    try:
        code = process.wait()
    except KeyboardInterrupt:
        process.wait()
        raise
    if code:
        raise SystemExit(code)


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.crash",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--repeat", type=int, default=1, help="runs of each case (1)")
    parser.add_argument("--on", action="append", choices=DATABASES, help="only this database")
    parser.add_argument("--executor", action="append", choices=EXECUTORS, help="only this one")
    parser.add_argument("--point", action="append", default=[], help="only this case")
    parser.add_argument("--parallel", type=int, default=12, help="cases at once (12)")
    parser.add_argument("--small", action="store_true", help="each point once and some of the rest")
    parser.add_argument("--table", type=Path, help="write the table as Markdown to this file")
    options = parser.parse_args()
    options.on = options.on or list(DATABASES)
    options.executor = options.executor or list(EXECUTORS)
    return options


def main() -> int:
    options = read_options()
    table_file = vars(options).pop("table")
    results = [result for name in options.on for result in sweep_on(name, options)]
    table = markdown(results)
    print(table)
    if table_file:
        table_file.write_text(table)
    print(verdict(results))
    return int(any(result["violations"] for result in results))


if __name__ == "__main__":
    sys.exit(main())
