"""`standalone` as people meet it: in a terminal, in a log, and killed in every way."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest
import requests
from django.db import connection

from tests.commands.shell import PROJECT, Shell
from tests.support.streams import EventStream
from tests.support.workers import WorkerProcess, database_url, wait_until

pytestmark = pytest.mark.web

MARK = "STANDALONE_OF_TEST"
STARTED = ": started,"
SCHEDULING = "Scheduler: started"
RELAYING = "Relay: started"
OF_THE_LOG = re.compile(r"\d{4}-\d\d-\d\d ")


class Standalone(WorkerProcess):
    """One `manage.py standalone`, and all that it started."""

    def __init__(self, shell: Shell, log: Path, *arguments: str, **environment: str) -> None:
        self.mark = str(uuid.uuid4())
        command = [sys.executable, "manage.py", "standalone", "--port", "0", *arguments]
        super().__init__(command, shell.environment | environment | {MARK: self.mark}, log)

    def ready(self) -> Standalone:
        """When worker, scheduler and relay have started and the web server answers."""
        wait_until(lambda: self.has_ended or self._have_started(), "standalone")
        assert not self.has_ended, self.said
        wait_until(lambda: answers(self.url), "the web server")
        return self

    def _have_started(self) -> bool:
        said = self.said
        return all(words in said for words in (STARTED, SCHEDULING, RELAYING))

    @property
    def url(self) -> str:
        return re.search(r"Admin +(http://\S+)/admin/", self.said)[1]

    @property
    def login(self) -> dict[str, str]:
        """What it printed of a login, empty when it printed none."""
        return dict(re.findall(r"^ +(user|password|token) +(\S+)$", self.said, re.MULTILINE))

    def processes(self, words: str = "") -> set[int]:
        """Everything that it started, itself included, and that lives; by a part of its command."""
        return {pid for pid in marked(self.mark) if words in command_of(pid)}

    def web(self) -> int:
        (pid,) = wait_until(lambda: self.processes("management.web"), "a web server")
        return pid

    def worker(self) -> int:
        (pid,) = wait_until(lambda: self.processes("run_worker"), "a worker")
        return pid

    def scheduler(self) -> int:
        (pid,) = wait_until(lambda: self.processes("run_scheduler"), "a scheduler")
        return pid

    def relay(self) -> int:
        (pid,) = wait_until(lambda: self.processes("relay_events"), "a relay")
        return pid

    def end(self) -> None:
        """Whatever it does, all of it is gone after this."""
        super().end()
        for pid in self.processes():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def marked(mark: str) -> set[int]:
    """Processes whose environment has the mark, whoever their parent and session are."""
    found = set()
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if f"{MARK}={mark}".encode() in (entry / "environ").read_bytes().split(b"\0"):
                found.add(int(entry.name))
    return found


def command_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


def answers(url: str) -> bool:
    try:
        return requests.get(f"{url}/health", timeout=10).status_code == 200
    except requests.ConnectionError:
        return False


@pytest.fixture
def home(shell: Shell, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Shell]:
    """A shell on an empty, migrated database: an SQLite file, or a database of this PostgreSQL."""
    shell.environment["XDG_STATE_HOME"] = str(tmp_path / "state")
    if connection.vendor == "sqlite":
        yield shell
        return
    with new_database(like=request.getfixturevalue("template")) as name:
        shell.environment["DATABASE_URL"] = database_url(name)
        yield shell


@pytest.fixture(scope="session")
def template(migrated: Path) -> Iterator[str]:
    """The name of a PostgreSQL database that has all tables and no rows."""
    with new_database(like="template1") as name:
        answer = Shell(migrated)("migrate", "-v0", DATABASE_URL=database_url(name))
        assert answer.code == 0, answer.err
        yield name


@contextmanager
def new_database(like: str) -> Iterator[str]:
    """A database of its own on the server of this run."""
    name = f"standalone_{uuid.uuid4().hex}"
    with psycopg.connect(database_url("postgres"), autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {name} TEMPLATE {like}")
        try:
            yield name
        finally:
            admin.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def start(home: Shell, tmp_path: Path) -> Iterator[Callable[..., Standalone]]:
    """Starts one, and leaves nothing of it behind."""
    started: list[Standalone] = []

    def start(*arguments: str, **environment: str) -> Standalone:
        log = tmp_path / f"standalone-{len(started)}.log"
        started.append(Standalone(home, log, *arguments, **environment))
        return started[-1]

    try:
        yield start
    finally:
        for each in started:
            each.end()


def sign_in(url: str, name: str, password: str) -> requests.Session:
    """Somebody at the form of the admin."""
    visitor = requests.Session()
    form = visitor.get(f"{url}/admin/login/", timeout=60).text
    token = re.search(r'name="csrfmiddlewaretoken" value="(\w+)"', form)[1]
    fields = {"username": name, "password": password, "csrfmiddlewaretoken": token}
    visitor.post(f"{url}/admin/login/", data=fields, timeout=60)
    return visitor


def test_the_first_minutes_of_a_newcomer(start: Callable[..., Standalone]) -> None:
    site = start().ready()
    login = site.login
    assert login["user"] == "admin"
    visitor = sign_in(site.url, login["user"], login["password"])
    assert visitor.get(f"{site.url}/", timeout=60).url == f"{site.url}/admin/"
    jobs, known = f"{site.url}/api/v1/jobs/", {"Authorization": f"Token {login['token']}"}
    assert requests.get(jobs, timeout=60).status_code == 401
    wanted = {"name": "hello", "command": "echo hello", "executor": "process", "queue_now": True}
    made = requests.post(jobs, json=wanted, headers=known, timeout=60)
    assert made.status_code == 201, made.text
    job = f"{jobs}{made.json()['id']}/"
    wait_until(
        lambda: requests.get(job, headers=known, timeout=60).json()["status"] == "completed",
        "the job to complete",
    )
    assert requests.get(f"{site.url}/api/v1/docs/", timeout=60).status_code == 200
    site.send(signal.SIGINT)
    assert site.ended() == 0
    assert site.said.endswith("Stopped; nothing of it is left.\n")
    assert site.processes() == set()


def test_a_login_is_told_once(start: Callable[..., Standalone]) -> None:
    first = start().ready()
    password = first.login["password"]
    first.terminate()
    assert first.ended() == 0
    second = start().ready()
    assert second.login == {}
    assert "Who can log in: admin." in second.said
    assert "manage.py changepassword admin" in second.said
    assert sign_in(second.url, "admin", password).cookies.get("sessionid")
    assert [line for line in own_lines(first) + own_lines(second) if len(line) > 80] == []


def own_lines(site: Standalone) -> list[str]:
    """What it said itself, without the lines of the log."""
    return [line for line in site.said.splitlines() if not OF_THE_LOG.match(line)]


@pytest.mark.sqlite
def test_a_port_in_use_is_one_line_and_nothing_is_started(home: Shell) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        answer = home("standalone", "--port", str(port))
    assert (answer.code, answer.out) == (1, "")
    assert answer.err == f"standalone: port {port} is in use; choose another with --port\n"
    count = "from django.contrib.auth.models import User; print('users:', User.objects.count())"
    assert "users: 0" in home("shell", "-c", count).out


@pytest.mark.sqlite
@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--port", "abc"], "'abc' is not a port"),
        (["--port", "65536"], "'65536' is not a port"),
        (["--host", "no such host"], "'no such host' is not an address of this machine"),
        (["--concurrency", "0"], "'0' is not a whole number from 1"),
    ],
)
def test_what_cannot_be_meant_is_wrong_usage(home: Shell, arguments: list[str], told: str) -> None:
    answer = home("standalone", *arguments)
    assert answer.code == 2
    assert told in answer.err
    assert len(answer.err.splitlines()) == 1


# How it ends --------------------------------------------------------------------------------------


def running_job(shell: Shell) -> str:
    """The id of a job that runs as local processes of its own and would do so for an hour."""
    submitted = ["submit_job", "--executor", "process", "--", "sleep", "3600"]
    answer = shell(*submitted)
    assert answer.code == 0, answer.err
    job = answer.out.split()[0]
    wait_until(lambda: processes_of(job), "the job to run")
    return job


def test_open_streams_do_not_keep_it(start: Callable[..., Standalone]) -> None:
    site = start().ready()
    known = {"Authorization": f"Token {site.login['token']}"}
    streams = [EventStream(f"{site.url}/api/v1/events/?after=0", known) for _ in range(3)]
    assert all(stream.read_some() for stream in streams)
    site.terminate()
    for stream in streams:
        assert list(stream) == []
    assert site.ended() == 0
    assert "Cancel" not in site.said, "the web server did not have to cut them"


def processes_of(job: str) -> set[int]:
    return {pid for pid in pids() if f"CM_JOB_ID={job}".encode() in environment_of(pid)}


def pids() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").glob("[0-9]*")]


def environment_of(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return []


def nothing_is_left(site: Standalone, job: str) -> bool:
    return not site.processes() and not processes_of(job)


@pytest.mark.parametrize(
    ("send", "number"),
    [
        pytest.param(os.kill, signal.SIGINT, id="it is interrupted"),
        pytest.param(os.kill, signal.SIGTERM, id="it is terminated"),
        pytest.param(os.killpg, signal.SIGTERM, id="its group is terminated"),
        pytest.param(os.killpg, signal.SIGHUP, id="its group is hung up on"),
    ],
)
def test_a_signal_ends_it_in_order(
    home: Shell, start: Callable[..., Standalone], send: Callable[[int, int], None], number: int
) -> None:
    site = start().ready()
    job = running_job(home)
    send(site.pid, number)
    assert site.ended() == 0, site.said
    assert site.said.endswith("Stopped; nothing of it is left.\n")
    assert "Traceback" not in site.said
    assert nothing_is_left(site, job)


@pytest.mark.sqlite
def test_a_stream_that_is_open_does_not_keep_it(start: Callable[..., Standalone]) -> None:
    site = start().ready()
    where = urlsplit(site.url)
    with socket.create_connection((where.hostname, where.port)) as visitor:
        visitor.sendall(b"GET / HTTP/1.1\r\nHost: ")
        site.terminate()
        assert site.ended() == 0


def test_killed_it_takes_its_whole_group_along(
    home: Shell, start: Callable[..., Standalone]
) -> None:
    site = start().ready()
    job = running_job(home)
    children = (site.web(), site.worker(), site.scheduler(), site.relay())
    assert {os.getpgid(pid) for pid in children} == {site.pid}
    site.kill()
    wait_until(lambda: nothing_is_left(site, job), "everything to end")


@pytest.mark.sqlite
def test_killed_as_soon_as_it_starts_it_takes_everything_along(
    start: Callable[..., Standalone],
) -> None:
    site = start()
    wait_until(lambda: len(site.processes()) == 5, "all children")
    site.kill()
    wait_until(lambda: not site.processes(), "everything to end")
    assert "Traceback" not in site.said


@pytest.mark.sqlite
@pytest.mark.parametrize("which", ["web", "worker", "scheduler", "relay"])
def test_a_child_that_dies_is_started_again(start: Callable[..., Standalone], which: str) -> None:
    site = start().ready()
    before: int = getattr(site, which)()
    os.kill(before, signal.SIGKILL)
    wait_until(lambda: getattr(site, which)() != before, f"another {which}")
    assert answers(site.url)
    told = "the web server" if which == "web" else f"the {which}"
    assert f"standalone: {told} ended with exit code -9; another starts in 1 s" in site.said
    wait_until(lambda: site.said.count(STARTED) == (2 if which == "worker" else 1), "the worker")
    for other, words in {"scheduler": SCHEDULING, "relay": RELAYING}.items():
        starts = 2 if which == other else 1
        wait_until(lambda: site.said.count(words) == starts, other)  # noqa: B023
    site.terminate()
    assert site.ended() == 0
    assert site.processes() == set()


# In a terminal ------------------------------------------------------------------------------------


class Terminal:
    """A terminal of 80 columns in which `standalone` is the foreground job."""

    def __init__(self, shell: Shell) -> None:
        self.mark = str(uuid.uuid4())
        self.shown = ""
        self._master, slave = pty.openpty()
        self._process = subprocess.Popen(
            [sys.executable, "manage.py", "standalone", "--port", "0"],
            cwd=PROJECT,
            env=shell.environment | {MARK: self.mark, "COLUMNS": "80"},
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            preexec_fn=_take_the_terminal,
        )
        os.close(slave)

    def wait_for(self, words: str, seconds: float = 60) -> None:
        ends_at = time.monotonic() + seconds
        while words not in self.shown:
            assert time.monotonic() < ends_at, self.shown
            self.read()

    def read(self) -> None:
        if select.select([self._master], [], [], 0.1)[0]:
            with suppress(OSError):
                self.shown += os.read(self._master, 65536).decode()

    def press(self, key: bytes) -> None:
        os.write(self._master, key)

    def code(self, seconds: float = 60) -> int:
        ends_at = time.monotonic() + seconds
        while (code := self._process.poll()) is None:
            assert time.monotonic() < ends_at, self.shown
            self.read()
        self.read()
        return code

    def close(self) -> None:
        os.close(self._master)
        self._process.wait()


def _take_the_terminal() -> None:
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


CTRL_C = b"\x03"


@pytest.fixture
def terminal(home: Shell) -> Iterator[Any]:
    with closing(Terminal(home)) as terminal:
        yield terminal


@pytest.mark.sqlite
def test_ctrl_c_ends_it_quietly(terminal: Terminal) -> None:
    terminal.wait_for(STARTED)
    terminal.press(CTRL_C)
    assert terminal.code() == 0
    assert "Stopped; nothing of it is left." in terminal.shown
    assert "Traceback" not in terminal.shown
    assert marked(terminal.mark) == set()


@pytest.mark.sqlite
def test_ctrl_c_in_the_first_moment_ends_it_as_quietly(terminal: Terminal) -> None:
    wait_until(lambda: len(marked(terminal.mark)) == 5, "all children")
    terminal.press(CTRL_C)
    assert terminal.code() == 0
    assert "Traceback" not in terminal.shown
    assert marked(terminal.mark) == set()


@pytest.mark.sqlite
def test_a_second_ctrl_c_ends_it_at_once(terminal: Terminal) -> None:
    terminal.wait_for(STARTED)
    (worker,) = (pid for pid in marked(terminal.mark) if "run_worker" in command_of(pid))
    os.kill(worker, signal.SIGSTOP)  # it will not end in order
    terminal.press(CTRL_C)
    wait_until(lambda: web_of(terminal) == set(), "the web server to end")
    terminal.press(CTRL_C)
    assert terminal.code() == 130
    assert "stopped at once" in terminal.shown
    assert "Traceback" not in terminal.shown
    assert marked(terminal.mark) == set()


def web_of(terminal: Terminal) -> set[int]:
    return {pid for pid in marked(terminal.mark) if "management.web" in command_of(pid)}


@pytest.mark.sqlite
def test_a_terminal_that_is_closed_ends_it(home: Shell) -> None:
    with closing(Terminal(home)) as terminal:
        terminal.wait_for(STARTED)
        mark = terminal.mark
    wait_until(lambda: not marked(mark), "everything to end")
