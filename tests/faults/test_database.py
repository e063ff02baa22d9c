"""Row 13: migrations while workers run, and the line on which the faults of a database are made."""

from __future__ import annotations

import socket
import struct
import sys
import textwrap
import threading
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import psycopg
import pytest
from django.db import connection

from container_manager import db_guard, guarding, schema
from container_manager.models.base import guarded_tables
from tests.support.fault_proxy import FaultProxy, answer, hang, holds, lose_reply, reset
from tests.support.running import queue_job
from tests.support.spine import contradictions, path_of
from tests.support.workers import (
    ROOT,
    WorkerProcess,
    Workers,
    database_url,
    settled,
    wait_for,
    wait_until,
)

MODULE = "container_manager.migrations"
OURS = sorted(path.stem for path in Path(str(import_module(MODULE).__file__)).parent.glob("0*.py"))

SAME = "from importlib import import_module\nMigration = import_module('{module}').Migration\n"
LATER = textwrap.dedent(
    """
    import time
    from django.db import migrations, models

    class Migration(migrations.Migration):
        dependencies = [("container_manager", "{previous}")]
        operations = [
            migrations.AddField("containerjob", "colour", models.TextField(null=True)),
            migrations.RunPython(lambda *_: time.sleep(1), lambda *_: None),
        ]
    """
)
SETTINGS = "from config.settings import *\nMIGRATION_MODULES = {'container_manager': 'later'}\n"


class LaterRelease:
    """The same code with one migration more, for processes of its own."""

    def __init__(self, directory: Path, workers: Workers) -> None:
        self._workers = workers
        self.directory = directory
        package = directory / "later"
        package.mkdir()
        (package / "__init__.py").touch()
        for name in OURS:
            (package / f"{name}.py").write_text(SAME.format(module=f"{MODULE}.{name}"))
        self.migration = f"{len(OURS) + 1:04d}_later"
        (package / f"{self.migration}.py").write_text(LATER.format(previous=OURS[-1]))
        (directory / "later_settings.py").write_text(SETTINGS)

    @property
    def environment(self) -> dict[str, str]:
        return {
            **self._workers.environment(),
            "PYTHONPATH": f"{self.directory}:{ROOT}",
            "DJANGO_SETTINGS_MODULE": "later_settings",
        }

    def manage(self, name: str, *arguments: str) -> WorkerProcess:
        command = [sys.executable, "-W", "ignore", "manage.py", *arguments]
        return WorkerProcess(command, self.environment, self.directory / f"{name}.log")

    def back(self) -> None:
        back = self.manage("migrate-back", "migrate", "container_manager", OURS[-1])
        assert back.ended() == 0, back.said


@pytest.fixture
def later(tmp_path: Path, workers: Workers) -> Iterator[LaterRelease]:
    release = LaterRelease(tmp_path, workers)
    yield release
    connection.close()
    release.back()
    guarding.after_migrate(using="default")


@pytest.mark.processes
@pytest.mark.django_db(transaction=True)
def test_two_migrations_at_once_while_a_worker_runs_lose_no_job(
    workers: Workers, later: LaterRelease
) -> None:
    """Row 13: one waits for the other; the old worker leaves, the old code is refused.

    On PostgreSQL somebody's long transaction is in the way of the migration for a while.
    """
    old = workers.start("--concurrency", "2").wait_until_started()
    gate = later.directory / "gate"
    script = f"while [ ! -e {gate} ]; do sleep 0.1; done"
    jobs = [queue_job("process", script, max_retries=0) for _ in range(2)]
    for job in jobs:
        wait_for(job, "running")
    with psycopg_session() as reader:
        both = [later.manage(f"migrate-{number}", "migrate", "-v1") for number in (1, 2)]
        if reader is not None:
            wait_until(lambda: any("A table is in use" in each.said for each in both), "it to wait")
    assert [each.ended() for each in both] == [0, 0], [each.said for each in both]
    assert sum(f"Applying container_manager.{later.migration}" in each.said for each in both) >= 1
    assert old.ended() == 1
    assert f"the database was migrated ({later.migration}); ending" in old.said
    refused = workers.start()
    assert refused.ended() == 1
    assert f"the database has {later.migration}, which this older code" in refused.said
    assert refused.said.count("\n") == 1
    gate.touch()
    jobs.append(queue_job("process", "true"))
    new = later.manage("new-worker", "run_worker", "--name", "new", "--until-idle")
    workers.started.append(new)
    assert new.ended() == 0, new.said
    assert {settled(job).status for job in jobs} == {"completed"}
    assert path_of(jobs[2]) == ["queued", "running", "completed"]
    guarding.after_migrate(using="default")  # of the tables that only this suite has, too
    assert contradictions() == []
    assert workers.left_behind() == []


class psycopg_session:  # noqa: N801 - reads as a function
    """A transaction that reads jobs and stays open; none on SQLite, where readers block nobody."""

    def __enter__(self) -> psycopg.Connection | None:
        if connection.vendor != "postgresql":
            return None
        self._made = psycopg.connect(database_url())
        self._made.execute("SELECT count(*) FROM container_jobs")
        return self._made

    def __exit__(self, *_: object) -> None:
        if connection.vendor == "postgresql":
            self._made.close()


@pytest.mark.django_db(transaction=True)
def test_what_the_database_lacks_is_named_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """Row 13: code that is newer than its database."""
    assert schema.problem("default") == ""
    with connection.cursor() as cursor:
        cursor.execute("UPDATE django_migrations SET app = 'x' WHERE name = %s", [OURS[-1]])
        try:
            told = schema.problem("default")
        finally:
            cursor.execute("UPDATE django_migrations SET app = %s WHERE app = 'x'", [schema.APP])
    assert told == f"the database lacks {OURS[-1]}: run `manage.py migrate`"


@pytest.mark.postgres
@pytest.mark.django_db(transaction=True)
def test_while_the_guard_is_lifted_nobody_else_can_move_a_job() -> None:
    """Row 13: a move that no history row tells of must be impossible, also for a moment."""
    job = queue_job("process", "true")
    move = "UPDATE container_jobs SET status = 'cancelled', version = version + 1"
    db_guard.uninstall(connection, door=guarded_tables())
    try:
        with psycopg.connect(database_url()) as other, pytest.raises(psycopg.Error) as no:
            other.execute(move)
        assert "A migration is at work on this table" in str(no.value)
        with connection.cursor() as cursor:
            cursor.execute("UPDATE container_jobs SET name = 'migrated'")
    finally:
        guarding.after_migrate(using="default")
        db_guard.open_door(connection)
    assert path_of(job) == ["queued"]
    assert contradictions() == []


# The fault proxy itself ---------------------------------------------------------------------------


class Echo:
    """A server that answers each piece with the same piece, and remembers what it heard."""

    def __init__(self) -> None:
        self.heard = b""
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address: tuple[str, int] = self._listener.getsockname()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                made, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=[made], daemon=True).start()

    def _serve(self, made: socket.socket) -> None:
        with made:
            while piece := made.recv(1000):
                self.heard += piece
                made.sendall(piece)

    def close(self) -> None:
        self._listener.close()


@pytest.fixture
def echo() -> Iterator[Echo]:
    echo = Echo()
    yield echo
    echo.close()


@pytest.fixture
def proxy(echo: Echo) -> Iterator[FaultProxy]:
    with FaultProxy(at=("127.0.0.1", 0), to=echo.address) as proxy:
        yield proxy


def dial(proxy: FaultProxy) -> socket.socket:
    assert not isinstance(proxy.address, str)
    return socket.create_connection(proxy.address, timeout=30)


def said(client: socket.socket, words: bytes) -> bytes:
    client.sendall(words)
    return client.recv(1000)


def test_a_line_without_a_fault_hands_on_what_it_is_given(proxy: FaultProxy) -> None:
    with dial(proxy) as client:
        assert said(client, b"one") == b"one"


def test_a_reply_is_lost_after_the_server_heard(proxy: FaultProxy, echo: Echo) -> None:
    proxy.next(holds("two"), lose_reply)
    with dial(proxy) as client:
        assert said(client, b"one") == b"one"
        assert said(client, b"two") == b""
    assert (echo.heard, proxy.hits) == (b"onetwo", 1)
    with dial(proxy) as client:
        assert said(client, b"two") == b"two"


def test_a_reset_is_one_and_the_server_never_hears(proxy: FaultProxy, echo: Echo) -> None:
    proxy.next(holds("one"), reset)
    with dial(proxy) as client, pytest.raises(ConnectionResetError):
        said(client, b"one")
    assert echo.heard == b""


def test_what_hangs_hangs_and_the_next_piece_goes_on(proxy: FaultProxy, echo: Echo) -> None:
    proxy.next(holds("one"), hang)
    with dial(proxy) as client:
        client.sendall(b"one")
        wait_until(lambda: proxy.hits == 1)
        assert said(client, b"two") == b"two"
    assert echo.heard == b"two"


def test_an_answer_is_given_in_the_place_of_the_server(proxy: FaultProxy, echo: Echo) -> None:
    proxy.next(holds("one"), answer(b"no"))
    with dial(proxy) as client:
        assert said(client, b"one") == b"no"
        assert client.recv(10) == b""
    assert echo.heard == b""


def test_a_black_hole_ends_when_it_is_healed(proxy: FaultProxy, echo: Echo) -> None:
    with dial(proxy) as client:
        assert said(client, b"one") == b"one"
        proxy.black_hole()
        client.settimeout(0.2)
        with pytest.raises(TimeoutError):
            said(client, b"two")
        client.settimeout(30)
        proxy.heal()
        assert client.recv(10) == b""
    assert echo.heard == b"one"
    with dial(proxy) as client:
        assert said(client, b"three") == b"three"


def test_a_server_that_refuses_cuts_everybody(proxy: FaultProxy) -> None:
    with dial(proxy) as client:
        assert said(client, b"one") == b"one"
        proxy.refuse()
        assert client.recv(10) == b""
    with dial(proxy) as client:
        assert client.recv(10) == b""
    proxy.heal()
    with dial(proxy) as client:
        assert said(client, b"one") == b"one"


def test_a_unix_socket_is_a_line_like_any_other(echo: Echo, tmp_path: Path) -> None:
    path = str(tmp_path / "line")
    with FaultProxy(at=path, to=echo.address) as proxy, socket.socket(socket.AF_UNIX) as client:
        client.settimeout(30)
        client.connect(path)
        proxy.delay(there=0.05, back=0.05)
        assert said(client, struct.pack("i", 7)) == struct.pack("i", 7)
    assert not Path(path).exists()
