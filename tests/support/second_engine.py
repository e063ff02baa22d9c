"""A Docker engine beside the machine's own, which tests may stop, kill and pause as they like.

It has its own socket, data, containerd and pid file, in one directory that is gone afterwards with
all that ran there. It knows the image busybox and no network.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from container_manager.executors.base import EngineUnavailable
from container_manager.executors.docker_http import Address, EngineHttp
from tests.support import docker_engine
from tests.support.workers import wait_until

UNSTARTED = "runc init"
RUNC = Path(__file__).with_name("showing_runc.py")


def why_not() -> str:
    """Empty when a second engine may be started here, else what is missing."""
    if missing := [each for each in ("dockerd", "runc") if shutil.which(each) is None]:
        return f"{' and '.join(missing)} not found"
    return "only root can start dockerd" if os.geteuid() else docker_engine.why_not()


class SecondEngine:
    """One dockerd; `live_restore`: what runs goes on while it is away.

    `shown`: paths of the machine that each container sees as well, `:ro` behind those that it must
    not write to.
    """

    def __init__(self, directory: Path, shown: Sequence[str] = ()) -> None:
        self.directory = directory
        self.log = self.directory / "log"
        self.socket = self.directory / "socket"
        self.url = f"unix://{self.socket}"
        self._config = self.directory / "daemon.json"
        self._config.write_text("{}")  # not that of the machine
        self._environment = dict(os.environ)
        if shown:
            self._stand_in_for_runc(shown)
        self._daemon: subprocess.Popen[bytes] | None = None
        self._has_answered = False

    def _stand_in_for_runc(self, shown: Sequence[str]) -> None:
        """Docker lets nobody mount what the job did not ask for; so it is done below it."""
        runc = shutil.which("runc")
        assert runc is not None
        command = shlex.join([sys.executable, "-IS", str(RUNC), runc, *shown, "--"])
        stand_in = self.directory / "bin/runc"
        stand_in.parent.mkdir()
        stand_in.write_text(f'#!/bin/sh\nexec {command} "$@"\n')
        stand_in.chmod(0o755)
        self._environment["PATH"] = f"{stand_in.parent}:{os.environ['PATH']}"

    def start(self, *, live_restore: bool) -> SecondEngine:
        """Start it, or start it again; returns when it answers."""
        with self.log.open("ab") as log:
            self._daemon = subprocess.Popen(
                [*self._command(), *(["--live-restore"] if live_restore else [])],
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        wait_until(lambda: self.answers or self.has_ended, "the second engine")
        assert not self.has_ended, self.log.read_text()[-5000:]
        self._has_answered = True
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

    def running(self) -> list[str]:
        """What runs in containers, whether or not the engine knows of it.

        An engine that dies while it makes a container may leave one that never started: no more
        than an init of runc, which nobody can start any more.
        """
        shims = [pid for pid in self._processes() if _is_shim(pid)]
        return [told for told in map(_told, _children_of(shims)) if told not in ("", UNSTARTED)]

    # The end

    def clean_up(self) -> None:
        """Nothing of it is left: no container, no process, no mount, no file."""
        try:
            if self._has_answered:
                self._remove_containers()
                self.stop()
        finally:
            ours = self._processes()
            for pid in [*_children_of(ours), *ours]:
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


def _is_shim(pid: int) -> bool:
    return b"containerd-shim" in _command_line(Path(f"/proc/{pid}")).partition(b"\0")[0]


def _told(pid: int) -> str:
    words = _command_line(Path(f"/proc/{pid}")).replace(b"\0", b" ")
    return words.decode(errors="replace").strip()


def _command_line(entry: Path) -> bytes:
    with suppress(OSError):
        return (entry / "cmdline").read_bytes()
    return b""


@contextmanager
def a_second_engine(shown: Sequence[str] = ()) -> Iterator[SecondEngine]:
    """Where there is none, see `why_not`, nothing of it is left either."""
    directory = Path(tempfile.mkdtemp(prefix="cm-engine-"))
    try:
        engine = SecondEngine(directory, shown)
    except BaseException:
        shutil.rmtree(directory)
        raise
    try:
        yield engine
    finally:
        engine.clean_up()
