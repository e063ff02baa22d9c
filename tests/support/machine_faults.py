"""What the machine does to a process: another clock, a full disk, a disk that answers EIO.

Each needs a tool or a right that not every machine has; `why_not` says what is missing. A test
that needs one is marked with its name, and left out without it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

TOOLS = ("faketime", "strace", "mount")
FAKETIME = "libfaketimeMT.so.1"


@cache
def why_not(tool: str) -> str:
    """Empty when there is this one of TOOLS here, else what is missing."""
    return {"faketime": _no_faketime, "strace": _no_strace, "mount": _no_mount}[tool]()


def _no_faketime() -> str:
    return "" if _library() else "NO LIBFAKETIME: apt-get install libfaketime"


@cache
def _library() -> str:
    found = [*Path("/usr/lib").glob(f"*/faketime/{FAKETIME}"), *Path("/usr/lib").glob(FAKETIME)]
    return str(found[0]) if found else ""


def _no_strace() -> str:
    if not shutil.which("strace"):
        return "NO STRACE: apt-get install strace"
    tried = subprocess.run(["strace", "-o", os.devnull, "true"], capture_output=True, check=False)
    return "" if tried.returncode == 0 else f"STRACE MAY NOT TRACE HERE: {tried.stderr.decode()}"


def _no_mount() -> str:
    if os.geteuid() != 0:
        return "NOT ROOT: a small disk cannot be mounted"
    try:
        with small_disk(1):
            return ""
    except subprocess.CalledProcessError as error:
        return f"NO MOUNT: {error.stderr.decode().strip()}"


# Clocks -------------------------------------------------------------------------------------------


class FakeClock:
    """The wall clock of the processes that get its environment; may be moved while they run.

    The monotonic clock stays what it is, as when an administrator sets the time of a machine.
    """

    def __init__(self, directory: Path, seconds: int = 0) -> None:
        self._file = directory / f"clock-{id(self)}"
        self.move(seconds)

    def move(self, seconds: int) -> None:
        """So many seconds ahead of the true time, or behind."""
        self._file.write_text(f"{seconds:+d}\n")

    @property
    def environment(self) -> dict[str, str]:
        return {
            "LD_PRELOAD": _library(),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "DONT_FAKE_MONOTONIC": "1",
        }


# Disks --------------------------------------------------------------------------------------------


class SmallDisk:
    """A file system of a few megabytes, which can be filled to the last byte and emptied again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._ballast = path / "ballast"
        self._ballast.touch()

    def fill(self) -> None:
        with _until_full(), self._ballast.open("ab", buffering=0) as file:
            while True:
                file.write(bytes(4096))

    def empty(self) -> None:
        os.truncate(self._ballast, 0)


@contextmanager
def _until_full() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if "No space left" not in str(error):
            raise


@contextmanager
def small_disk(megabytes: int) -> Iterator[SmallDisk]:
    path = Path(tempfile.mkdtemp(prefix="cm-disk-"))
    size = ["-t", "tmpfs", "-o", f"size={megabytes}m,mode=0755"]
    subprocess.run(["mount", *size, "none", str(path)], check=True, capture_output=True)
    try:
        yield SmallDisk(path)
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True, capture_output=True)
        path.rmdir()


# System calls that fail ---------------------------------------------------------------------------


def failing(path: Path, calls: str, error: str = "EIO") -> list[str]:
    """The beginning of a command line: these calls on this path fail in the command and below."""
    what = f"inject={calls}:error={error}"
    return ["strace", "-f", "-qq", "-o", os.devnull, "-P", str(path), "-e", what]
