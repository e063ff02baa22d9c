"""Runs jobs as processes of this machine, each under a supervisor that outlives the worker.

Every execution has a directory of its own below `state_dir`, and in it a journal from which any
process of this user, at any later time, reads what happened: see `supervisor.py`. There is no
other state: creating is a rename, being in charge is a lock, and an end is a line in the journal.

Enforced: `memory_limit_mb`, as RLIMIT_DATA of each of the job's processes (its own memory, not
what is mapped or shared), from 16 MB up; a job that wants more sees its allocation fail.
Not enforced: `cpu_limit`, and `pids_limit`, because RLIMIT_NPROC counts all processes of a user
and does not bind root. There is no isolation from this user's other processes and files.

A job sees the variables it names, besides PATH, HOME, TMPDIR (a private directory, also its
working directory when it names none) and CM_EXECUTION, by which its processes are known.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import platform
import re
import secrets
import select
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from container_manager.executors import supervisor
from container_manager.executors.base import (
    CHUNK_BYTES,
    Barred,
    Capabilities,
    Chunk,
    EngineUnavailable,
    Execution,
    Executor,
    ExecutorError,
    JobSpec,
    LaunchFailed,
    Outcome,
    StartCancelled,
)
from container_manager.executors.supervisor import NO_SPACE, Process, Records
from container_manager.states import Isolation, Reason, Stream

INITIAL_PID_NAMESPACE = 4026531836
GIB = 1024**3

START_SECONDS = 30
"""A supervisor that does not answer for so long is out of order."""
OVERDUE_SECONDS = 5
"""A supervisor that has not ended its job so long after the deadline is ended itself."""
FIRST_PAUSE, LONGEST_PAUSE = 0.005, 0.1
TURN_BYTES = 16 * CHUNK_BYTES
"""So much of one stream is told before it is the other one's turn."""
FORGOTTEN_SECONDS = 3600
LOG = ".supervisors.log"
"""What supervisors say when something is wrong with themselves."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_NOT_FOUND = {errno.ENOENT, errno.ENOTDIR}
_NOT_EXECUTABLE = {errno.EACCES, errno.EPERM, errno.ENOEXEC, errno.ELIBBAD, errno.EISDIR}
_SHELL_CODES = {Reason.COMMAND_NOT_FOUND: 127, Reason.NOT_EXECUTABLE: 126}


class ProcessExecutor(Executor):
    """Jobs as local processes.

    `state_dir`: where executions are kept, private to this user; all workers of a machine that
    shall find each other's jobs share it. `max_output_bytes`: a job that writes more, both streams
    together, is ended with `output_limit`; None for no limit. `durable`: output and evidence
    survive a power failure, too, at the price of an fsync for each; without it an end that was not
    collected before is found lost. `idle_supervisors`: how many are kept for the next jobs.
    """

    def __init__(
        self,
        state_dir: str | Path | None = None,
        *,
        max_output_bytes: int | None = 10 * GIB,
        durable: bool = False,
        idle_supervisors: int = 32,
    ) -> None:
        self._state_dir = Path(state_dir) if state_dir else _default_state_dir()
        self._request = {"durable": durable, "max_output_bytes": max_output_bytes}
        self._nursery = _Nursery(self._state_dir / LOG, idle_supervisors)
        self._runs: dict[str, _Run] = {}
        weakref.finalize(self, self._nursery.close)

    def close(self) -> None:
        """End what serves this executor alone; jobs that run go on, under their supervisors."""
        for name in list(self._runs):
            self._forget(name)
        self._nursery.close()

    # What it is

    def engine_id(self) -> str:
        """This host, this boot, this process table, this state directory."""
        with _answering():
            place = os.stat(self._root)
            return (
                f"host:{_machine_id()}:{supervisor.pid_namespace()}:{supervisor.boot_id()}"
                f":{place.st_dev:x}-{place.st_ino:x}"
            )

    def proves_gone(self, engine_id: str) -> bool:
        """True for an earlier boot of this machine, when both see all of its processes."""
        ours, theirs = self.engine_id().split(":"), engine_id.split(":")
        return (
            ours[:3] == theirs[:3]
            and ours[2] == str(INITIAL_PID_NAMESPACE)
            and len(theirs) > 3
            and ours[3] != theirs[3]
        )

    def capabilities(self) -> Capabilities:
        return Capabilities(
            isolations=(Isolation.PROCESS.value,),
            outlives_worker=False,
            limits=("memory_limit_mb",),
            engine=f"processes of {platform.system()} {platform.release()}",
        )

    # Made, started, found

    def create_or_adopt(
        self, spec: JobSpec, *, timeout: float, cancelled: threading.Event
    ) -> Execution:
        if cancelled.is_set():
            raise StartCancelled(f"{spec.name} is not wanted any more")
        with _answering(), _disk_full_is_a_failed_launch():
            details = _spec_record(spec)
            while not self._place(spec.name, "spec", details):
                if records := self._observe(spec.name):
                    return _adopted(spec, records)
        return Execution(name=spec.name, execution_id="")

    def start(self, execution: Execution) -> Execution:
        name = execution.name
        with _answering(), _disk_full_is_a_failed_launch():
            deadline = time.monotonic() + START_SECONDS
            while time.monotonic() < deadline:
                if run := self._ask_for(name):
                    return _execution(name, run.records)
                records = self._observe(name)
                if records is None:
                    raise LaunchFailed(Reason.LAUNCH_ERROR, f"{name} does not exist")
                if records.keys() & {"started", "ended", "barred"}:
                    return _started_before(name, records)
                time.sleep(FIRST_PAUSE)
        raise EngineUnavailable(f"no supervisor could be had for {name}")

    def find(self, name: str, instance: str) -> Execution | None:
        with _answering():
            records = self._observe(name)
        if records is None or records.get("spec", {}).get("instance") != instance:
            return None
        return _execution(name, records, adopted=True)

    def list_names(self, instance: str) -> list[str]:
        with _answering():
            _sweep(self._root)
            return [name for name in self._names() if self._instance_of(name) == instance]

    # Followed to its end

    def attach(self, execution: Execution, offsets: Mapping[str, int]) -> Iterator[Chunk]:
        directory = self._directory(execution.name)
        tails = [_Tail(directory, stream, offsets.get(stream, 0)) for stream in Stream]
        pauses = _pauses()
        try:
            with _answering():
                while True:
                    records = self._follow(execution.name)
                    for tail in tails:
                        yield from tail.turn()
                    if any(tail.has_more for tail in tails):
                        continue
                    if records is None or "ended" in records:
                        return
                    if any(tail.has_moved() for tail in tails):
                        pauses = _pauses()
                    self._pause(execution.name, next(pauses))
        finally:
            for tail in tails:
                tail.close()

    def collect(self, execution: Execution) -> Outcome:
        name = execution.name
        with _answering():
            for pause in _pauses():
                records = self._follow(name)
                if records is None:
                    return self._vanished(name)
                if "ended" in records:
                    return _outcome(records)
                self._pause(name, pause)
        raise AssertionError("there is always another pause")

    # Stopped and removed

    def stop(self, execution: Execution, *, grace: float) -> bool:
        name, deadline = execution.name, supervisor.now() + grace
        with _answering():
            if not self._request_stop(name, deadline):
                return False
            for pause in _pauses():
                records = self._observe(name)
                if records is None:
                    return self._end_remains(name, {})
                if "ended" in records:
                    return bool(records["ended"].get("signalled"))
                if "launching" not in records:
                    return False
                self._press(records)
                self._pause(name, pause)
        raise AssertionError("there is always another pause")

    def remove(self, execution: Execution) -> None:
        name = execution.name
        with _answering():
            records = self._follow(name)
            if records and "ended" not in records:
                records = self._observe(name)
            if records is None or records.keys() & {"ended", "barred"}:
                _delete(self._directory(name))
                self._forget(name)
            else:
                self._remove_unstarted(name)

    def discard(self, execution: Execution) -> bool:
        with _answering():
            try:
                self._remove_unstarted(execution.name)
            except EngineUnavailable:
                raise
            except ExecutorError:
                return False
        return True

    def applied_limits(self, spec: JobSpec) -> dict[str, float]:
        limit = spec.memory_limit_mb
        return {} if limit is None else {"memory_limit_mb": limit}

    def bar(self, spec: JobSpec) -> bool:
        with _answering():
            while not self._place(spec.name, "barred", {"instance": spec.instance}):
                if records := self._observe(spec.name):
                    return "barred" in records
        return True

    # The state directory

    @cached_property
    def _root(self) -> str:
        """The state directory, there and private."""
        self._state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        root = os.path.realpath(self._state_dir)
        found = os.stat(root)
        if found.st_uid != os.geteuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise EngineUnavailable(f"{root} is not private to this user")
        _sweep(root)
        return root

    def _directory(self, name: str) -> str:
        if not _NAME.fullmatch(name):
            raise ExecutorError(f"{name!r} is not the name of an execution")
        return os.path.join(self._root, name)

    def _names(self) -> list[str]:
        return [name for name in os.listdir(self._root) if _NAME.fullmatch(name)]

    def _place(self, name: str, what: str, details: Records) -> bool:
        """Make the directory with its first line, at once; False when the name is taken."""
        directory = self._directory(name)
        fresh = os.path.join(self._root, f".new-{secrets.token_hex(8)}")
        os.mkdir(fresh, 0o700)
        try:
            _write_journal(fresh, what, details)
            os.rename(fresh, directory)
        except OSError as error:
            _delete(fresh)
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                return False
            raise
        return True

    @contextlib.contextmanager
    def _journal(self, name: str) -> Iterator[int | None]:
        path = os.path.join(self._directory(name), supervisor.JOURNAL)
        try:
            journal = os.open(path, os.O_RDWR | os.O_APPEND)
        except FileNotFoundError:
            yield None
            return
        try:
            yield journal
        finally:
            os.close(journal)

    def _instance_of(self, name: str) -> str | None:
        with self._journal(name) as journal:
            records = {} if journal is None else supervisor.read_journal(journal)
        first = records.get("spec") or records.get("barred") or {}
        instance: str | None = first.get("instance")
        return instance

    def _observe(self, name: str) -> Records | None:
        """What happened so far; an execution that lost its supervisor is settled first."""
        with self._journal(name) as journal:
            if journal is None:
                return None
            records = supervisor.read_journal(journal)
            if _is_open(records) and supervisor.lock(journal):
                return self._settle(name, journal)
            return records

    def _follow(self, name: str) -> Records | None:
        """The same, as our own supervisor tells it, which saves reading; or from the journal."""
        run = self._runs.get(name)
        if run and run.channel and run.channel.wait(0):
            self._listen(name, run)
        return run.records if run and not run.is_lost else self._observe(name)

    # Supervisors

    def _ask_for(self, name: str) -> _Run | None:
        """Have it launched; None when it was not us who did it."""
        channel = self._nursery.take()
        what, details = channel.ask({"directory": self._directory(name), **self._request})
        if what == "started":
            run = self._runs[name] = _Run(channel, {"launching": {}, "started": details})
            return run
        self._nursery.take_back(channel, alive=what != "gone")
        if what == "failed":
            raise _refusal(details)
        return None

    def _pause(self, name: str, seconds: float) -> None:
        """Until the time is over, or our own supervisor tells of the end."""
        run = self._runs.get(name)
        if run is None or run.channel is None:
            time.sleep(seconds)
        elif run.channel.wait(seconds):
            self._listen(name, run)

    def _listen(self, name: str, run: _Run) -> None:
        """The supervisor tells of the end, or is gone; one thread hears it, for all."""
        with run.lock:
            channel, run.channel = run.channel, None
            if channel is None:
                return
            what, details = channel.hear()
            if what == "ended":
                run.records = {**run.records, "ended": details}
            else:
                run.is_lost = True
                self._runs.pop(name, None)
        self._nursery.take_back(channel, alive=not run.is_lost)

    def _forget(self, name: str) -> None:
        """A supervisor that is still at it goes when it is done."""
        run = self._runs.pop(name, None)
        if run:
            with run.lock:
                channel, run.channel = run.channel, None
            if channel:
                channel.close()

    def _request_stop(self, name: str, deadline: float) -> bool:
        """Write the request down; False when there is nothing to be stopped."""
        with self._journal(name) as journal:
            if journal is None:
                return self._end_remains(name, {})
            if "ended" not in supervisor.read_journal(journal):
                supervisor.append(journal, "stop", deadline)
                _ring(supervisor.read_journal(journal), signal.SIGUSR1)
        return True

    def _press(self, records: Records) -> None:
        """End a supervisor that does not do its duty; its job is then settled without it."""
        if supervisor.now() > records["stop"] + OVERDUE_SECONDS:
            _ring(records, signal.SIGKILL)

    # Executions whose supervisor is gone

    def _settle(self, name: str, journal: int) -> Records:
        """In charge ourselves now: end what is left and write down that the evidence is lost."""
        records = supervisor.read_journal(journal)
        if _is_open(records):
            killed = self._end_remains(name, records)
            lost = {"lost": True, "at": time.time(), "signalled": killed and "stop" in records}
            supervisor.append(journal, "ended", lost)
        return supervisor.read_journal(journal)

    def _end_remains(self, name: str, records: Records) -> bool:
        """Kill whatever is left of an execution; True when there was something."""
        charge = records.get("launching")
        if charge and charge["boot"] != supervisor.boot_id():
            return False
        if charge and charge["namespace"] != supervisor.pid_namespace():
            raise EngineUnavailable(f"{name} runs in another process table")
        killed, deadline = False, time.monotonic() + OVERDUE_SECONDS
        while remains := self._remains(name, records):
            if time.monotonic() > deadline:
                raise EngineUnavailable(f"{len(remains)} processes of {name} cannot be killed")
            supervisor.kill_groups(remains, signal.SIGKILL)
            killed = True
            time.sleep(supervisor.RESCAN_SECONDS)
        return killed

    def _remains(self, name: str, records: Records) -> list[Process]:
        """Living processes that carry our marker or belong to its session, and their children."""
        table = [process for process in supervisor.processes() if not process.is_zombie]
        session = _session(records.get("started"), table)
        marker = f"{supervisor.MARKER}={self._directory(name)}".encode()
        ours = [p for p in table if p.session == session or _carries(p.pid, marker)]
        return ours + supervisor.family({process.pid for process in ours}, table)

    def _vanished(self, name: str) -> Outcome:
        self._end_remains(name, {})
        return Outcome(
            exit_code=None,
            reason=Reason.WORKER_LOST,
            error="Its directory was removed, and with it the evidence.",
        )

    def _remove_unstarted(self, name: str) -> None:
        """Under the lock, so that nobody starts it meanwhile."""
        with self._journal(name) as journal:
            if journal is None:
                return
            if not supervisor.lock(journal) or _is_open(supervisor.read_journal(journal)):
                raise ExecutorError(f"{name} is still running")
            _delete(self._directory(name))


class _Channel:
    """The way to one supervisor of ours."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._number = connection.fileno()

    def ask(self, request: Records) -> tuple[str, Any]:
        """Its answer, or `gone`."""
        with contextlib.suppress(OSError):
            self._socket.send(json.dumps(request).encode())
        if not self.wait(START_SECONDS):
            raise EngineUnavailable("a supervisor does not answer")
        return self.hear()

    def wait(self, seconds: float) -> bool:
        """True as soon as there is something to hear; for many threads at once."""
        poll = select.poll()
        poll.register(self._number, select.POLLIN)
        return bool(poll.poll(seconds * 1000))

    def hear(self) -> tuple[str, Any]:
        """Its message, or `gone`."""
        message = b""
        with contextlib.suppress(OSError):
            message = self._socket.recv(supervisor.MESSAGE_BYTES, socket.MSG_DONTWAIT)
        what, details = json.loads(message) if message else ("gone", None)
        return what, details

    def close(self) -> None:
        self._socket.close()


@dataclass
class _Run:
    """A job that a supervisor of ours runs, or ran; forgotten when it is removed."""

    channel: _Channel | None
    """None once the supervisor told of the end, and was handed back."""
    records: Records
    is_lost: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)


class _Nursery:
    """Where supervisors come from: a helper process that forks them, and those without a job."""

    def __init__(self, log: Path, idle_limit: int) -> None:
        self._log = log
        self._idle_limit = idle_limit
        self._idle: list[_Channel] = []
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None

    def take(self) -> _Channel:
        with self._lock:
            return self._idle.pop() if self._idle else self._hatch()

    def take_back(self, channel: _Channel, *, alive: bool) -> None:
        with self._lock:
            if alive and len(self._idle) < self._idle_limit:
                self._idle.append(channel)
            else:
                channel.close()

    def close(self) -> None:
        with self._lock:
            while self._idle:
                self._idle.pop().close()
            self._end()

    def _hatch(self) -> _Channel:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            try:
                self._hand_in(theirs)
            except OSError:
                self._end()
                self._hand_in(theirs)
        return _Channel(ours)

    def _hand_in(self, channel: socket.socket) -> None:
        self._control = self._control or self._begin()
        socket.send_fds(self._control, [b"+"], [channel.fileno()])

    def _begin(self) -> socket.socket:
        """In a session of its own, so that no Ctrl-C reaches it."""
        control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs, self._log.open("ab") as log:
            self._process = subprocess.Popen(  # noqa: S603
                [sys.executable, "-I", "-S", supervisor.__file__, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
                env={},
            )
        return control

    def _end(self) -> None:
        if self._control is not None:
            self._control.close()
        if self._process is not None:
            self._process.wait()
        self._control = self._process = None


class _Tail:
    """One output file, read on from where one was; it appears with its first byte."""

    def __init__(self, directory: str, stream: str, offset: int) -> None:
        self._path = os.path.join(directory, stream)
        self._stream = str(stream)
        self._offset = self._seen = offset
        self._file: int | None = None
        self.has_more = False

    def turn(self) -> Iterator[Chunk]:
        """What was added since, or the beginning of it."""
        ends_at = self._offset + TURN_BYTES
        while (has_room := self._offset < ends_at) and (data := self._read()):
            chunk = Chunk(self._stream, self._offset, data)
            self._offset += len(data)
            yield chunk
        self.has_more = not has_room

    def has_moved(self) -> bool:
        """True when there was something since the last call."""
        moved, self._seen = self._offset != self._seen, self._offset
        return moved

    def close(self) -> None:
        if self._file is not None:
            os.close(self._file)

    def _read(self) -> bytes:
        if self._file is None:
            with contextlib.suppress(FileNotFoundError):
                self._file = os.open(self._path, os.O_RDONLY)
        return b"" if self._file is None else os.pread(self._file, CHUNK_BYTES, self._offset)


# Errors, and the words for them


@contextlib.contextmanager
def _answering() -> Iterator[None]:
    """An error of the operating system says nothing about the job."""
    try:
        yield
    except OSError as error:
        raise EngineUnavailable(str(error)) from error


@contextlib.contextmanager
def _disk_full_is_a_failed_launch() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in NO_SPACE:
            raise
        raise LaunchFailed(Reason.DISK_FULL, str(error)) from error


def _refusal(launch_error: Records) -> LaunchFailed:
    sentence = f"The command did not start: {launch_error['error']}."
    return LaunchFailed(_launch_reason(launch_error), sentence)


def _launch_reason(launch_error: Records) -> Reason:
    number = launch_error["errno"]
    if number in NO_SPACE:
        return Reason.DISK_FULL
    if number == errno.ECANCELED:
        return Reason.CANCELLED
    if launch_error["stage"] == "exec" and number in _NOT_FOUND:
        return Reason.COMMAND_NOT_FOUND
    if launch_error["stage"] == "exec" and number in _NOT_EXECUTABLE:
        return Reason.NOT_EXECUTABLE
    return Reason.LAUNCH_ERROR


# From records to the words of the contract


def _spec_record(spec: JobSpec) -> Records:
    return {**vars(spec), "environment": dict(spec.environment)}


def _is_open(records: Records) -> bool:
    """Launched, and nothing is known of an end."""
    return "launching" in records and "ended" not in records


def _adopted(spec: JobSpec, records: Records) -> Execution:
    if "barred" in records:
        raise Barred(f"{spec.name} was barred")
    if records["spec"]["instance"] != spec.instance:
        raise LaunchFailed(Reason.LAUNCH_ERROR, f"{spec.name} belongs to another instance")
    return _execution(spec.name, records, adopted=True)


def _started_before(name: str, records: Records) -> Execution:
    if "barred" in records:
        raise Barred(f"{name} was barred")
    if launch_error := records.get("ended", {}).get("launch_error"):
        raise _refusal(launch_error)
    return _execution(name, records, adopted=True)


def _execution(name: str, records: Records, *, adopted: bool = False) -> Execution:
    started, ended = records.get("started"), records.get("ended", {})
    return Execution(
        name=name,
        execution_id=started["id"] if started else "",
        running=started is not None and not ended,
        started="launching" in records and "launch_error" not in ended,
        adopted=adopted,
        started_at=_utc(started["at"]) if started else None,
        elapsed_seconds=_elapsed(started, ended) if started else 0.0,
    )


def _elapsed(started: Records, ended: Records) -> float:
    if "at" in ended:
        return max(0.0, float(ended["at"] - started["at"]))
    return float(ended.get("seconds", supervisor.now() - started["clock"]))


def _outcome(records: Records) -> Outcome:
    ended = records["ended"]
    if launch_error := ended.get("launch_error"):
        return _never_started(_refusal(launch_error))
    if ended.get("lost"):
        return _lost(records)
    reason, error = _judgement(ended)
    started_at = records["started"]["at"]
    return Outcome(
        exit_code=ended["exit_code"],
        signal=ended["signal"],
        reason=reason,
        error=error,
        started_at=_utc(started_at),
        ended_at=_utc(started_at + ended["seconds"]),
        peak_memory_bytes=ended["peak_memory_bytes"],
        cpu_seconds=ended["cpu_seconds"],
    )


def _judgement(ended: Records) -> tuple[Reason | None, str]:
    if ended["output_error"]:
        reason = Reason.OUTPUT_LIMIT if ended.get("is_over_limit") else Reason.DISK_FULL
        return reason, f"Its output could not be kept: {ended['output_error']}."
    if ended["signal"]:
        return Reason.SIGNAL, f"The command was ended by {_signal_name(ended['signal'])}."
    if ended["exit_code"]:
        return Reason.EXIT_CODE, f"The command ended with exit code {ended['exit_code']}."
    return None, ""


def _never_started(refusal: LaunchFailed) -> Outcome:
    code = _SHELL_CODES.get(refusal.reason)
    return Outcome(exit_code=code, reason=refusal.reason, error=str(refusal))


def _lost(records: Records) -> Outcome:
    started = records.get("started")
    return Outcome(
        exit_code=None,
        reason=Reason.WORKER_LOST,
        error="Its supervisor was gone before the end; what was left has been killed.",
        started_at=_utc(started["at"]) if started else None,
        ended_at=_utc(max(records["ended"]["at"], started["at"] if started else 0.0)),
    )


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _utc(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


# Processes


def _ring(records: Records, number: int) -> None:
    """Signal the supervisor in charge, if it still is the process that it was."""
    charge = records.get("launching")
    if not charge or charge["boot"] != supervisor.boot_id():
        return
    with contextlib.suppress(ProcessLookupError), _pidfd(charge["pid"]) as pidfd:
        process = Process.read(charge["pid"])
        if process and process.start == charge["start"]:
            signal.pidfd_send_signal(pidfd, number)
            signal.pidfd_send_signal(pidfd, signal.SIGCONT)


@contextlib.contextmanager
def _pidfd(pid: int) -> Iterator[int]:
    descriptor = os.pidfd_open(pid)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _session(started: Records | None, table: list[Process]) -> int | None:
    """The job's session, unless its number belongs to somebody else by now."""
    if started is None:
        return None
    leader = next((process for process in table if process.pid == started["pid"]), None)
    return started["pid"] if leader is None or leader.start == started["start"] else None


def _carries(pid: int, marker: bytes) -> bool:
    try:
        return marker in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return False


# Files


def _default_state_dir() -> Path:
    base = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(base) / "container-manager" / "executions"


def _machine_id() -> str:
    try:
        return Path("/etc/machine-id").read_text().strip() or platform.node()
    except OSError:
        return platform.node()


def _write_journal(directory: str, what: str, details: Records) -> None:
    path = os.path.join(directory, supervisor.JOURNAL)
    journal = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        supervisor.append(journal, what, details)
    finally:
        os.close(journal)


def _sweep(root: str) -> None:
    """What a crash left half made or half removed, so long ago that nobody is at it any more."""
    for entry in list(os.scandir(root)):
        if entry.name.startswith(".new-") and _is_forgotten(entry):
            _delete(entry.path)
        elif _NAME.fullmatch(entry.name) and _is_forgotten(entry):
            with contextlib.suppress(OSError):
                os.rmdir(entry.path)  # only an empty one goes: its journal went last


def _is_forgotten(entry: os.DirEntry[str]) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return time.time() - entry.stat().st_mtime > FORGOTTEN_SECONDS
    return False


def _delete(directory: str) -> None:
    """The journal goes last: cut short at any point, it can be done again."""
    _delete_tree(os.path.join(directory, supervisor.HOME))
    for left in [entry.path for entry in _scan(directory) if entry.name.startswith(".flat-")]:
        _delete_tree(left)
    for file in (*supervisor.STREAMS, supervisor.JOURNAL):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(os.path.join(directory, file))
    with contextlib.suppress(FileNotFoundError):
        os.rmdir(directory)


def _scan(directory: str) -> list[os.DirEntry[str]]:
    with contextlib.suppress(FileNotFoundError):
        return list(os.scandir(directory))
    return []


def _delete_tree(path: str) -> None:
    """Flattens as it goes: a job may have nested its directories deeper than a path can tell.

    It may also have taken from itself the right to write to them, or put a link in their place.
    """
    if os.path.islink(path):
        os.unlink(path)
    todo = [path] if os.path.isdir(path) else []
    while todo:
        directory = todo.pop()
        os.chmod(directory, 0o700)
        for entry in list(os.scandir(directory)):
            if entry.is_dir(follow_symlinks=False):
                todo.append(_flattened(entry.path, beside=path))
            else:
                os.unlink(entry.path)
        os.rmdir(directory)


def _flattened(directory: str, *, beside: str) -> str:
    os.chmod(directory, 0o700)
    flat = os.path.join(os.path.dirname(beside), f".flat-{secrets.token_hex(8)}")
    os.rename(directory, flat)
    return flat


def _pauses() -> Iterator[float]:
    """Short at first, for jobs that end soon."""
    pause = FIRST_PAUSE
    while True:
        yield pause
        pause = min(pause * 1.5, LONGEST_PAUSE)
