"""What the machine does to a process: another clock, a full disk, a disk that answers EIO.

Each needs a tool or a right that not every machine has; `why_not` says what is missing.
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

import pytest

FAKETIME = "libfaketimeMT.so.1"


@cache
def why_not(tool: str) -> str:
    """Empty when there is `faketime`, `strace` or `mount` here, else what is missing."""
    return {"faketime": _no_faketime, "strace": _no_strace, "mount": _no_mount}[tool]()


def needs(tool: str) -> pytest.MarkDecorator:
    """Leaves a test out where the tool is missing, and says so; in CI that is an error."""
    why = why_not(tool)
    if why and os.environ.get("REQUIRE_FAULT_TOOLS"):
        raise pytest.UsageError(f"REQUIRE_FAULT_TOOLS is set: {why}")
    return pytest.mark.skipif(bool(why), reason=why)


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

    def fill(self, but: int = 0) -> None:
        """Leave so many bytes."""
        free = os.statvfs(self.path)
        with self._ballast.open("ab") as file, _until_full():
            left = free.f_bavail * free.f_frsize - but
            while left > 0:
                left -= file.write(b"\0" * min(left, 1 << 16))
                file.flush()

    def empty(self) -> None:
        self._ballast.unlink(missing_ok=True)


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
