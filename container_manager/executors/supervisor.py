"""Runs the jobs of the process executor: plain Python, importing nothing of ours.

Started as a script it is the *nursery*: a small process, one per executor, which does nothing but
fork *supervisors*. A supervisor runs one job at a time, as asked over its channel, and goes when
nobody is left to ask; a job that runs by then is brought to its end first, so that it outlives
whoever started it. All that happened to a job stands in its journal, a file in the job's own
directory. The supervisor holds a lock on the journal as long as it is in charge: a journal that
is unlocked, and tells of a launch and of no end, has lost its supervisor.

A supervisor adopts all orphans of its job, also those which left its session, and ends them when
the job's first process has ended. It reads the job's output through pipes, because a script that
opens /dev/stdout anew would truncate a file.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import gc
import json
import os
import resource
import select
import signal
import socket
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

JOURNAL = "journal"
HOME = "home"
STREAMS = ("stdout", "stderr")
MARKER = "CM_EXECUTION"
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

MESSAGE_BYTES = 64 * 1024
COPY_BYTES = 64 * 1024
MIB = 1024 * 1024
SMALLEST_MEMORY_LIMIT_MB = 16
"""The limit is set on the supervisor for the moment of the launch, and it must fit in itself."""
PR_SET_CHILD_SUBREAPER = 36
RESCAN_SECONDS = 0.01
NO_SPACE = (errno.ENOSPC, errno.EDQUOT)

Records = dict[str, Any]


# The journal: one JSON list per line, [what happened, its details]; only ever appended to.


def append(journal: int, what: str, details: Any) -> None:
    """Write one line; the newline before it ends a line that was torn for lack of space."""
    line = f"\n{json.dumps([what, details])}\n".encode()
    while os.write(journal, line) < len(line):
        pass


def read_journal(journal: int) -> Records:
    """What happened, by kind; the first of a kind counts, of stop requests the earliest deadline."""
    records: Records = {}
    for line in os.pread(journal, os.fstat(journal).st_size, 0).splitlines():
        with contextlib.suppress(ValueError):
            what, details = json.loads(line or b"0") or ("", None)
            records[what] = _merged(what, records.get(what), details)
    return records


def _merged(what: str, known: Any, details: Any) -> Any:
    if known is None:
        return details
    return min(known, details) if what == "stop" else known


def lock(journal: int) -> bool:
    """Take charge of the execution; False when somebody else is in charge or it was removed."""
    try:
        fcntl.flock(journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return os.fstat(journal).st_nlink > 0


# The process table.


@dataclass(frozen=True)
class Process:
    """One line of the process table."""

    pid: int
    parent: int
    group: int
    session: int
    start: int
    """Clock ticks from boot to its start: a recycled pid has another one."""
    is_zombie: bool

    @classmethod
    def read(cls, pid: int | str) -> Process | None:
        try:
            with open(f"/proc/{pid}/stat", "rb") as stat:
                fields = stat.read().rpartition(b")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            return None
        numbers = [int(fields[at]) for at in (1, 2, 3, 19)]
        return cls(int(pid), *numbers, is_zombie=fields[0] in (b"Z", b"X"))


def processes() -> list[Process]:
    """All processes that this one can see."""
    pids = [name for name in os.listdir("/proc") if name.isdigit()]
    return [process for process in map(Process.read, pids) if process]


def family(roots: set[int], table: list[Process]) -> list[Process]:
    """The living descendants of `roots`, without the roots themselves."""
    known, found = set(roots), True
    while found:
        found = {p.pid for p in table if p.parent in known} - known
        known |= found
    return [p for p in table if p.pid in known - roots and not p.is_zombie]


def kill_groups(doomed: list[Process], number: int) -> None:
    """Signal whole process groups: nobody slips through by forking at that moment."""
    for group in {process.group for process in doomed}:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(group, number)


def boot_id() -> str:
    with open("/proc/sys/kernel/random/boot_id") as file:
        return file.read().strip()


def pid_namespace() -> int:
    return os.stat("/proc/self/ns/pid").st_ino


def now() -> float:
    """Seconds since boot, sleep included; the same for all processes and never set back."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


# One job.


class LaunchError(Exception):
    """The job's command did not start."""

    def __init__(self, stage: str, number: int, sentence: str) -> None:
        super().__init__(sentence)
        self.record = {"stage": stage, "errno": number, "error": sentence}


class Job:
    """One execution, from taking charge of its journal to the last line in it."""

    def __init__(self, directory: str, journal: int, alarm: Alarm) -> None:
        self.directory = directory
        self.journal = journal
        self.alarm = alarm
        self.spec: Records = {}
        self.outputs: list[Output] = []
        self.main: int | None = None
        self.status: int | None = None
        self.begun = self.ended = 0.0
        self.cpu_seconds = 0.0
        self.peak_memory_bytes = 0
        self.deadline: float | None = None
        self.asked = False
        self.signalled = False
        self.output_error = ""

    def run(self, channel: socket.socket) -> None:
        """Launch it, stay with it to the end, and tell both over the channel."""
        try:
            started = self.launch()
        except LaunchError as error:
            self.give_up(error)
            tell(channel, "failed", error.record)
            return
        tell(channel, "started", started)
        self.watch()
        self.clear_away()
        ended = self.evidence()
        self.record("ended", ended)
        tell(channel, "ended", ended)

    # the launch

    def launch(self) -> Records:
        records = read_journal(self.journal)
        self.spec = records["spec"]
        if "stop" in records:
            raise LaunchError("stopped", errno.ECANCELED, "It was stopped before it started.")
        with launching("prepare"):
            self.prepare()
        with launching("working_dir"):
            os.chdir(os.path.join(self.home, self.spec["working_dir"]))
        try:
            self.main = self.spawn()
        finally:
            os.chdir("/")
            for output in self.outputs:
                output.close_writing_end()
        return self.note_start(self.main)

    @property
    def home(self) -> str:
        return os.path.join(self.directory, HOME)

    def prepare(self) -> None:
        """The line `launching` stands in the journal before anything can run, so never twice."""
        os.mkdir(self.home, 0o700)
        append(self.journal, "launching", charge())
        self.outputs = [Output(self.directory, stream) for stream in STREAMS]

    def spawn(self) -> int:
        words = [os.fsencode(word) for word in self.spec["command"]]
        refusal = LaunchError("exec", errno.ENOENT, f"{words[0]!r} was not found.") 
        for path in self.places_of(words[0]):
            try:
                return self.spawn_limited(path, words)
            except (OSError, ValueError) as error:
                pass
        raise refusal
