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
import termios
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
SPACE_SECONDS = 0.2
NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
NOT_THERE = (errno.ENOENT, errno.ENOTDIR)

Records = dict[str, Any]


# The journal: one JSON list per line, [what happened, its details]; only ever appended to.


def append(journal: int, what: str, details: Any) -> None:
    """Write one line; the newline before it ends a line that was torn for lack of space."""
    line = f"\n{json.dumps([what, details])}\n".encode()
    while os.write(journal, line) < len(line):
        pass


def read_journal(journal: int) -> Records:
    """What happened, by kind: the first line of a kind, of stop requests the earliest deadline."""
    records: Records = {}
    for line in os.pread(journal, os.fstat(journal).st_size, 0).split(b"\n"):
        with contextlib.suppress(ValueError):
            what, details = json.loads(line)
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
        parent, group, session, start = (int(fields[at]) for at in (1, 2, 3, 19))
        return cls(int(pid), parent, group, session, start, fields[0] in (b"Z", b"X"))


def start_of(pid: int) -> int:
    """The start of a process that is certainly in the table: ourselves, or a child not reaped."""
    process = Process.read(pid)
    if process is None:
        raise ProcessLookupError(errno.ESRCH, f"process {pid} is gone")
    return process.start


def processes() -> list[Process]:
    """All processes that this one can see."""
    pids = [name for name in os.listdir("/proc") if name.isdigit()]
    return [process for process in map(Process.read, pids) if process]


def family(roots: set[int], table: list[Process]) -> list[Process]:
    """The living descendants of `roots`, without the roots themselves."""
    known, more = set(roots), roots
    while more:
        more = {p.pid for p in table if p.parent in known} - known
        known |= more
    return [p for p in table if p.pid in known - roots and not p.is_zombie]


def kill_groups(doomed: list[Process], number: int) -> None:
    """Signal whole process groups: nobody slips through by forking at that moment."""
    for group in {process.group for process in doomed} - {0, 1}:
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


# The supervisor and its job.


class LaunchError(Exception):
    """The job's command did not start."""

    def __init__(self, stage: str, cause: OSError | ValueError) -> None:
        super().__init__(str(cause))
        self.record = {"stage": stage, "errno": errno.EINVAL, "error": str(cause)}
        if isinstance(cause, OSError):
            place = f"{cause.filename}: " if cause.filename else ""
            self.record |= {"errno": cause.errno, "error": f"{place}{cause.strerror}"}


@contextlib.contextmanager
def launching(stage: str) -> Iterator[None]:
    """A failure in here is a launch error of that stage."""
    try:
        yield
    except (OSError, ValueError) as error:
        raise LaunchError(stage, error) from error


class Output:
    """One output stream: a pipe that the job writes to, and the file where it is kept."""

    def __init__(self, directory: str, stream: str) -> None:
        self.path = os.path.join(directory, stream)
        self.reading, self.writing = os.pipe()
        os.set_blocking(self.reading, False)
        self.file: int | None = None

    def read(self) -> bytes:
        """What is there now, b"" at the end; BlockingIOError when there is nothing yet."""
        return os.read(self.reading, COPY_BYTES)

    def waiting(self) -> int:
        """How many bytes are in the pipe now."""
        return int.from_bytes(fcntl.ioctl(self.reading, termios.FIONREAD, bytes(4)), sys.byteorder)

    def keep(self, data: bytes) -> None:
        if self.file is None:
            self.file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(self.file, rest) :]

    def sync(self) -> None:
        if self.file is not None:
            os.fdatasync(self.file)

    def close(self) -> None:
        os.close(self.reading)
        if self.file is not None:
            os.close(self.file)


class Alarm:
    """Makes an ended child and a stop request something that poll() can wait for."""

    def __init__(self) -> None:
        self.bell, ringer = os.pipe()
        os.set_blocking(self.bell, False)
        os.set_blocking(ringer, False)
        signal.set_wakeup_fd(ringer, warn_on_full_buffer=False)
        for number in (signal.SIGCHLD, signal.SIGUSR1):
            signal.signal(number, lambda *_: None)

    def heard(self) -> bytes:
        """The numbers of the signals since the last call."""
        try:
            return os.read(self.bell, 4096)
        except BlockingIOError:
            return b""


@dataclass
class Request:
    """What a supervisor is asked to run, and how."""

    directory: str
    durable: bool
    max_output_bytes: int | None


class Job:
    """One execution, from taking charge of its journal to the last line in it."""

    def __init__(self, request: Request, journal: int, spec: Records, boss: Supervisor) -> None:
        self.request = request
        self.journal = journal
        self.boss = boss
        self.home = os.path.join(request.directory, HOME)
        self.spec = spec
        self.outputs: dict[int, Output] = {}
        self.poller = select.poll()
        self.main = 0
        self.status: int | None = None
        self.started: Records = {}
        self.ended_clock = 0.0
        self.cpu_seconds = 0.0
        self.peak_memory_bytes = 0
        self.output_bytes = 0
        self.output_error: str | None = None
        self.is_over_limit = False
        self.deadline: float | None = None
        self.asked = self.killed = False

    def run(self) -> None:
        """Launch it, stay with it to the end, and tell of both."""
        try:
            self.launch()
        except LaunchError as error:
            self.note_failure(error)
            self.boss.tell("failed", error.record)
        else:
            self.boss.tell("started", self.started)
            self.watch()
            self.clear_away()
            self.drain()
            self.boss.tell("ended", self.note_end())
        finally:
            self.close_outputs()

    # From the journal's first line to a running command

    def launch(self) -> None:
        try:
            self.prepare()
            self.enter_working_dir()
            self.main = self.spawn()
        finally:
            os.chdir("/")
            self.close_writing_ends()
        self.note_start()

    def prepare(self) -> None:
        """From the line `launching` on, nobody may launch it again, whatever becomes of us.

        Who asks for a stop later than that finds the line, and signals us.
        """
        with launching("prepare"):
            os.makedirs(self.home, 0o700, exist_ok=True)
            append(self.journal, "launching", self.boss.charge)
            if "stop" in read_journal(self.journal):
                raise OSError(errno.ECANCELED, "it was stopped before it started")
            self.open_outputs()

    def open_outputs(self) -> None:
        self.poller.register(self.boss.alarm.bell, select.POLLIN)
        for stream in STREAMS:
            output = Output(self.request.directory, stream)
            self.outputs[output.reading] = output
            self.poller.register(output.reading, select.POLLIN)

    def close_writing_ends(self) -> None:
        for output in self.outputs.values():
            os.close(output.writing)

    def close_outputs(self) -> None:
        for output in self.outputs.values():
            output.close()

    def enter_working_dir(self) -> None:
        with launching("working_dir"):
            os.chdir(os.path.join(self.home, self.spec["working_dir"]))

    def spawn(self) -> int:
        """Start the command as execvp(3) finds it: the first that can be executed."""
        environment, name = self.environment(), (self.spec["command"] or [""])[0]
        refusal: OSError | ValueError = OSError(errno.ENOENT, "no such command", name)
        for path in candidates(name, environment["PATH"]):
            try:
                return self.spawn_limited(path, environment)
            except (OSError, ValueError) as error:
                refusal = error
                if not isinstance(error, PermissionError):
                    break
        raise LaunchError("exec", refusal)

    def spawn_limited(self, path: str, environment: dict[str, str]) -> int:
        """A soft limit of our own is inherited; it becomes the job's hard limit once it runs."""
        megabytes = self.spec["memory_limit_mb"]
        if megabytes is None:
            return self.spawn_path(path, environment)
        limit = max(megabytes, SMALLEST_MEMORY_LIMIT_MB) * MIB
        soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))
        try:
            pid = self.spawn_path(path, environment)
        finally:
            resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))
        with contextlib.suppress(PermissionError):
            resource.prlimit(pid, resource.RLIMIT_DATA, (limit, limit))
        return pid

    def spawn_path(self, path: str, environment: dict[str, str]) -> int:
        """A fork of this interpreter would cost more than all the rest, posix_spawn does not."""
        out, err = self.outputs.values()
        return os.posix_spawn(
            path,
            self.spec["command"],
            environment,
            file_actions=[
                (os.POSIX_SPAWN_DUP2, out.writing, 1),
                (os.POSIX_SPAWN_DUP2, err.writing, 2),
            ],
            setsid=True,
            setsigmask=(),
            setsigdef=signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP},
        )

    def environment(self) -> dict[str, str]:
        return {
            "PATH": DEFAULT_PATH,
            "HOME": self.home,
            "TMPDIR": self.home,
            **self.spec["environment"],
            MARKER: self.request.directory,
        }

    def note_start(self) -> None:
        start = start_of(self.main)
        self.started = {
            "id": f"{self.boss.charge['boot']}:{self.main}:{start}",
            "pid": self.main,
            "start": start,
            "at": time.time(),
            "clock": now(),
        }
        self.note("started", self.started)

    def note_failure(self, error: LaunchError) -> None:
        """No space for the note is no harm: the launch can be tried again, or is found lost."""
        with contextlib.suppress(OSError):
            append(self.journal, "ended", {"launch_error": error.record})

    def note(self, what: str, details: Records) -> None:
        """The job is there whether or not there is space to say so: wait for space."""
        while True:
            try:
                return append(self.journal, what, details)
            except OSError as error:
                if error.errno not in NO_SPACE:
                    raise
                time.sleep(SPACE_SECONDS)

    # While it runs

    def watch(self) -> None:
        """Stay until the main process has ended: keep its output, pass on requests to stop."""
        while self.status is None:
            self.obey()
            self.wait(self.patience())

    def wait(self, seconds: float | None) -> None:
        """Until something happens, and deal with it."""
        for number, _ in self.poller.poll(None if seconds is None else seconds * 1000):
            if number == self.boss.alarm.bell:
                self.answer(self.boss.alarm.heard())
            else:
                self.copy(self.outputs[number])

    def answer(self, signals: bytes) -> None:
        if signal.SIGUSR1 in signals:
            self.read_requests()
        self.reap()

    def patience(self) -> float | None:
        if self.output_error is not None:
            return RESCAN_SECONDS
        if self.deadline is None:
            return None
        return max(self.deadline - now(), RESCAN_SECONDS)

    def reap(self) -> bool:
        """Take in whoever has ended; True while somebody of the job is left."""
        while True:
            try:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                return False
            if not pid:
                return True
            self.cpu_seconds += usage.ru_utime + usage.ru_stime
            self.peak_memory_bytes = max(self.peak_memory_bytes, usage.ru_maxrss * 1024)
            if pid == self.main:
                self.status, self.ended_clock = status, now()

    def copy(self, output: Output) -> int:
        """Keep one buffer of output; how many bytes it was, 0 when there is no more."""
        try:
            data = output.read()
        except BlockingIOError:
            return 0
        if data:
            self.keep(output, data)
        else:
            with contextlib.suppress(KeyError):
                self.poller.unregister(output.reading)
        return len(data)

    def keep(self, output: Output, data: bytes) -> None:
        if self.output_error is not None:
            return
        self.output_bytes += len(data)
        try:
            self.refuse_too_much()
            output.keep(data)
        except OSError as error:
            self.output_error = error.strerror
            self.kill()

    def refuse_too_much(self) -> None:
        limit = self.request.max_output_bytes
        self.is_over_limit = limit is not None and self.output_bytes > limit
        if self.is_over_limit:
            raise OSError(errno.EFBIG, f"it wrote more than {limit} bytes")

    # Stopping it

    def read_requests(self) -> None:
        self.deadline = read_journal(self.journal).get("stop", self.deadline)

    def obey(self) -> None:
        """Ask once, kill when the time is over; nobody is asked who ended by himself."""
        if self.deadline is None or not self.lives():
            return
        if now() >= self.deadline:
            self.killed = self.signal_main(signal.SIGKILL)
            self.kill()
        elif not self.asked:
            self.asked = self.signal_main(signal.SIGTERM)
            self.ask_the_rest()

    def signal_main(self, number: int) -> bool:
        """True when it was alive: nothing comes between the look and the signal."""
        if alive := self.lives():
            os.killpg(self.main, number)
        return alive

    def lives(self) -> bool:
        """Neither reaped nor a zombie; until it is reaped nobody else can have its pid."""
        ended = os.WEXITED | os.WNOHANG | os.WNOWAIT
        return self.status is None and os.waitid(os.P_PID, self.main, ended) is None

    def ask_the_rest(self) -> None:
        """Other groups of its session; those that sleep in a stop wake up to hear it."""
        session = [process for process in self.family() if process.session == self.main]
        kill_groups([process for process in session if process.group != self.main], signal.SIGTERM)
        kill_groups(session, signal.SIGCONT)

    def kill(self) -> None:
        kill_groups(self.family(), signal.SIGKILL)

    def family(self) -> list[Process]:
        return family({os.getpid()}, processes())

    # After it ended

    def clear_away(self) -> None:
        """Nobody of the job is left: all orphans are ours, however they tried to get away."""
        while self.reap():
            self.kill()
            self.wait(RESCAN_SECONDS)

    def drain(self) -> None:
        """What is in the pipes by now; a stranger may hold them open, and even go on writing."""
        for output in self.outputs.values():
            left = output.waiting()
            while left > 0 and (size := self.copy(output)):
                left -= size
            if self.request.durable:
                self.sync(output)

    def sync(self, output: Output) -> None:
        try:
            output.sync()
        except OSError as error:
            self.output_error = error.strerror

    def note_end(self) -> Records:
        code = os.waitstatus_to_exitcode(self.status or 0)
        ended = {
            "exit_code": code if code >= 0 else 128 - code,
            "signal": -code if code < 0 else None,
            "seconds": self.ended_clock - self.started["clock"],
            "signalled": self.asked or (self.killed and code == -signal.SIGKILL),
            "output_error": self.output_error,
            "is_over_limit": self.is_over_limit,
            "cpu_seconds": self.cpu_seconds,
            "peak_memory_bytes": self.peak_memory_bytes,
        }
        self.note("ended", ended)
        if self.request.durable:
            os.fsync(self.journal)
        return ended


def candidates(name: str, path: str) -> list[str]:
    """Where the command may be: itself when it is a path, else the files of that name on PATH."""
    if "/" in name:
        return [name]
    places = [os.path.join(place, name) for place in path.split(":")]
    return [place for place in places if name and os.path.exists(place)]


def charge() -> Records:
    """Who is in charge, told so that others can reach it and never take another for it."""
    pid = os.getpid()
    return {
        "pid": pid,
        "start": start_of(pid),
        "boot": boot_id(),
        "namespace": pid_namespace(),
    }


class Supervisor:
    """Runs what it is asked for, one job at a time, until nobody is left to ask."""

    def __init__(self, channel: socket.socket) -> None:
        adopt_orphans()
        self.channel = channel
        self.alarm = Alarm()
        self.charge = charge()

    def serve(self) -> None:
        while request := self.channel.recv(MESSAGE_BYTES):
            self.take(Request(**json.loads(request)))

    def take(self, request: Request) -> None:
        """Run it if it is there, not launched yet, and in nobody else's charge."""
        try:
            path = os.path.join(request.directory, JOURNAL)
            journal = os.open(path, os.O_RDWR | os.O_APPEND)
        except FileNotFoundError:
            return self.tell("refused", None)
        try:
            self.run(request, journal)
        finally:
            os.close(journal)

    def run(self, request: Request, journal: int) -> None:
        records = read_journal(journal) if lock(journal) else {}
        if "spec" in records and records.keys() <= {"spec", "stop"}:
            Job(request, journal, records["spec"], self).run()
        else:
            self.tell("refused", None)

    def tell(self, what: str, details: Any) -> None:
        """Whoever asked may be gone; the journal tells the same."""
        with contextlib.suppress(OSError):
            self.channel.send(json.dumps([what, details]).encode())


def adopt_orphans() -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "cannot become the reaper of the job's orphans")


def nurse(control: socket.socket) -> socket.socket | None:
    """Fork a supervisor for each channel that is handed in; in a supervisor, return it."""
    while True:
        _, channels, _, _ = socket.recv_fds(control, 1, 1)
        if not channels:
            return None
        with contextlib.suppress(BlockingIOError), socket.socket(fileno=channels[0]) as channel:
            if os.fork() == 0:
                return channel.dup()


def main() -> None:
    control = socket.socket(fileno=int(sys.argv[1]))
    control.set_inheritable(False)
    os.chdir("/")
    os.umask(0o022)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGCHLD):
        signal.signal(number, signal.SIG_IGN)
    gc.freeze()
    channel = nurse(control)
    control.close()
    if channel:
        Supervisor(channel).serve()


if __name__ == "__main__":
    main()
