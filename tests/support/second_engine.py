"""A Docker engine beside the machine's own, which tests may stop, kill and pause as they like.

It has its own socket, data, containerd and pid file, in one directory that is gone afterwards with
all that ran there. It knows the image busybox and no network.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from container_manager.executors.base import EngineUnavailable
from container_manager.executors.docker_http import Address, EngineHttp
from tests.support import docker_engine
from tests.support.workers import wait_until


class SecondEngine:
    """One dockerd; `live_restore`: what runs goes on while it is away."""

    def __init__(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="cm-engine-"))
        self.log = self.directory / "log"
        self.socket = self.directory / "socket"
        self.url = f"unix://{self.socket}"
        self._config = self.directory / "daemon.json"
        self._config.write_text("{}")  # not that of the machine
        self._daemon: subprocess.Popen[bytes] | None = None

    def start(self, *, live_restore: bool) -> SecondEngine:
        """Start it, or start it again; returns when it answers."""
        with self.log.open("ab") as log:
            self._daemon = subprocess.Popen(
                [*self._command(), *(["--live-restore"] if live_restore else [])],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        wait_until(lambda: self.answers or self.has_ended, "the second engine")
        assert not self.has_ended, self.log.read_text()[-5000:]
        self._ensure_image()
        return self

    def _command(self) -> list[str]:
        at = self.directory
        places = [f"--data-root={at}/data", f"--exec-root={at}/exec", f"--pidfile={at}/pid"]
        network = ["--bridge=none", "--iptables=false", "--ip-forward=false"]
        manner = ["--storage-driver=overlay2", "--shutdown-timeout=3"]
        config = [f"--config-file={self._config}", f"--host={self.url}"]
        return ["dockerd", *config, *places, *network, *manner]

    @property
    def answers(self) -> bool:
        with suppress(EngineUnavailable), self.http(timeout=1) as http:
            return http.call("GET", "/_ping").ok
        return False

    @property
    def has_ended(self) -> bool:
        return self._daemon is None or self._daemon.poll() is not None

    # What goes wrong

    def stop(self) -> None:
        """SIGTERM: it ends in order, and without live-restore it ends its containers first."""
        self._send(signal.SIGTERM)
        self._wait()

    def kill(self) -> None:
        self._send(signal.SIGKILL)
        self._wait()

    def crash(self) -> None:
        """As when its machine crashes: daemon, containerd, shims and containers at once."""
        self._send(signal.SIGSTOP)  # so that it sees nothing of it
        shims = self._processes()
        for pid in [*_children_of(shims), *shims]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._wait()

    def pause(self) -> None:
        """SIGSTOP: whoever connects is accepted and never answered."""
        self._send(signal.SIGSTOP)

    def go_on(self) -> None:
        self._send(signal.SIGCONT)

    def _send(self, number: int) -> None:
        assert self._daemon is not None
        self._daemon.send_signal(number)

    def _wait(self) -> None:
        """Its containerd ends with it; a new daemon that still saw it would wait for it in vain."""
        assert self._daemon is not None
        self._daemon.wait(60)
        config = f"{self.directory}/exec/containerd/containerd.toml"
        wait_until(lambda: not _processes_with(config), "its containerd to end")
        (self.directory / "exec/containerd/containerd.pid").unlink(missing_ok=True)

    # Looking at it

    @contextmanager
    def http(self, timeout: float = 30) -> Iterator[EngineHttp]:
        http = EngineHttp(Address.parse(self.url), timeout=timeout, pool_size=2)
        try:
            yield http
        finally:
            http.close()

    def containers(self) -> list[dict[str, Any]]:
        with self.http() as http:
            listed: list[dict[str, Any]] = http.call("GET", "/containers/json", {"all": "1"}).json()
        return listed

    def _ensure_image(self) -> None:
        with self.http() as http, docker_engine.engine() as first:
            if http.call("GET", f"/images/{docker_engine.IMAGE}/json").ok:
                return
            image = first.call("GET", f"/images/{docker_engine.IMAGE}/get").body
            headers = {"Content-Type": "application/x-tar"}
            loaded = http.call("POST", "/images/load", {"quiet": "1"}, image, headers)
            assert loaded.ok, loaded.message

    # The end

    def clean_up(self) -> None:
        """Nothing of it is left: no container, no process, no mount, no file."""
        try:
            self._remove_containers()
            self.stop()
        finally:
            for pid in self._processes():
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            wait_until(lambda: not self._processes(), "the second engine's processes to end")
            if self._daemon is not None:
                self._daemon.wait(60)
            for mount in self._mounts():
                subprocess.run(["umount", "--lazy", mount], check=False)
            shutil.rmtree(self.directory)

    def _remove_containers(self) -> None:
        if self.has_ended:
            self.start(live_restore=True)
        self.go_on()
        wait_until(lambda: self.answers, "the second engine")
        with self.http() as http:
            for container in self.containers():
                http.call("DELETE", f"/containers/{container['Id']}", {"force": "1", "v": "1"})

    def _processes(self) -> list[int]:
        """Whatever has this directory in its command line: dockerd, its containerd, its shims."""
        return _processes_with(str(self.directory))

    def _mounts(self) -> list[str]:
        """The innermost first."""
        lines = Path("/proc/mounts").read_text().splitlines()
        mounts = [line.split()[1] for line in lines]
        ours = [each for each in mounts if each.startswith(f"{self.directory}/")]
        return sorted(ours, key=len, reverse=True)


def _children_of(pids: list[int]) -> list[int]:
    found: list[int] = []
    for children in (each for pid in pids for each in Path(f"/proc/{pid}/task").glob("*/children")):
        with suppress(OSError):
            found += map(int, children.read_text().split())
    return found


def _processes_with(words: str) -> list[int]:
    return [
        int(entry.name)
        for entry in Path("/proc").iterdir()
        if entry.name.isdigit() and words.encode() in _command_line(entry)
    ]


def _command_line(entry: Path) -> bytes:
    with suppress(OSError):
        return (entry / "cmdline").read_bytes()
    return b""


@contextmanager
def a_second_engine() -> Iterator[SecondEngine]:
    engine = SecondEngine()
    try:
        yield engine
    finally:
        engine.clean_up()
