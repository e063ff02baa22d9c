"""procrastinate, on the same PostgreSQL server as ours."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from benchmarks.measure import Drained, Watched, drained
from benchmarks.servers import Server

ROOT = Path(__file__).resolve().parent.parent.parent
HOME = ROOT / ".venv-bench-procrastinate"
PINNED = ("procrastinate==3.10.0", "psycopg[binary,pool]==3.3.9")
SCRIPT = Path(__file__).with_name("procrastinate_worker.py")

SPAN = """
SELECT count(*) FILTER (WHERE type = 'succeeded'),
  extract(epoch FROM min(at) FILTER (WHERE type = 'started')),
  extract(epoch FROM max(at) FILTER (WHERE type = 'succeeded')) FROM procrastinate_events
"""


def install() -> Path:
    """The peer's own interpreter."""
    python, stamp = HOME / "bin/python", HOME / ".installed"
    if not (stamp.exists() and stamp.read_text() == str(PINNED)):
        subprocess.run([sys.executable, "-m", "venv", HOME], check=True)
        pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, *PINNED], check=True)
        stamp.write_text(str(PINNED))
    return python


class Procrastinate:
    """Its asynchronous worker, with a no-op task."""

    name = f"{PINNED[0].replace('==', ' ')}, PostgreSQL"

    def __init__(self, server: Server, jobs: int, concurrency: int) -> None:
        self.server, self.jobs, self.concurrency = server, jobs, concurrency
        self.python = str(install())
        server.command("CREATE DATABASE peer")
        fill = [self.python, str(SCRIPT), "fill", server.dsn("peer"), str(jobs)]
        subprocess.run(fill, check=True)

    def round(self) -> Drained:
        with self.server.copy_of("peer") as database:
            dsn = self.server.dsn(database)
            command = [self.python, str(SCRIPT), "work", dsn, str(self.concurrency)]
            worker = Watched(command, os.environ, ROOT)
            done, first, last = self.server.row(database, SPAN)
        return drained(worker, self.jobs, int(done), first, last)
