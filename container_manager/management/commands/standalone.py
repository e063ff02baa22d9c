"""Everything in one place: a migrated database, web server, worker, scheduler and relay."""

from __future__ import annotations

import os
import shlex
import signal
import socket
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any

from django.conf import settings
from django.core.management import call_command
from django.core.management.base import CommandParser
from django.db import connections

from container_manager import __version__
from container_manager.management.base import JobCommand
from container_manager.management.children import Child, Kept
from container_manager.management.commands.run_worker import positive
from container_manager.management.first_login import Login, make_first_login, who_can_log_in
from container_manager.management.listening import is_local, listen, port, url_of
from container_manager.management.tables import visible

LOOK_SECONDS = 0.2
STOP_SECONDS = 40
NAMES_SHOWN = 3


class Command(JobCommand):
    help = (
        "Migrate the database, then run the web server (admin and REST API), a worker, a "
        "scheduler and a relay of events; each is started again if it dies. For a database "
        "without users a login is made and printed, once. Ctrl-C or SIGTERM stops all in order, a "
        "second one at once."
    )
    quiet = False

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--host", default="127.0.0.1", help="address to listen on (127.0.0.1)")
        parser.add_argument("--port", type=port, default=8000, help="0: any that is free (8000)")
        parser.add_argument("--queues", metavar="A,B", help="the worker's queues (all)")
        parser.add_argument("--concurrency", metavar="N", type=positive, help="jobs at once")

    def handle(self, **options: Any) -> None:
        stopping = _stop_on_signals()
        with listen(options["host"], options["port"]) as listener:
            call_command("migrate", interactive=False, verbosity=0, stdout=self.out)
            _collect_static_files()
            self._introduce(listener)
            connections.close_all()
            kept = [
                Kept("the web server", lambda: _web(listener)),
                Kept("the worker", lambda: Child("run_worker", *_worker_options(options))),
                Kept("the scheduler", lambda: Child("run_scheduler")),
                Kept("the relay", lambda: Child("relay_events")),
            ]
            self._keep_running(kept, stopping)
        self.say("Stopped; nothing of it is left.")

    # What a person reads

    def _introduce(self, listener: socket.socket) -> None:
        url = url_of(listener)
        self.say(f"Container Manager {__version__}")
        self.say()
        self.say(f"  Admin  {url}/admin/")
        self.say(f"  API    {url}/api/v1/docs/")
        self.say()
        if login := make_first_login():
            self._tell_once(login)
        else:
            self._tell_who_can_log_in()
        self.say()
        self._warn(listener)
        self.say("Web server, worker, scheduler and relay run. Ctrl-C stops all.")
        self._flush()

    def _tell_once(self, login: Login) -> None:
        self.say("  A login was made for this database. It is shown now and never again:")
        self.say()
        self.say(f"  user      {login.name}")
        self.say(f"  password  {login.password}")
        self.say(f"  token     {login.token}")
        self.say()
        ends = login.token_ends_at
        until = f" until {ends:%Y-%m-%d %H:%M} UTC" if ends else ""
        self.say(f"  The token is for the API{until}: Authorization: Token ...")
        self.say("  POST /api/v1/auth/login/ gives another one.")

    def _tell_who_can_log_in(self) -> None:
        names = who_can_log_in()
        if not names:
            self.say("  Nobody can log in to the admin yet. To change that:")
            self.say(f"  {_typed('createsuperuser')}")
            return
        shown = visible(", ".join(names[:NAMES_SHOWN]))
        others = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
        self.say(f"  Who can log in: {shown}{others}. A new password:")
        self.say(f"  {visible(_typed('changepassword', names[0]))}")

    def _warn(self, listener: socket.socket) -> None:
        if settings.SECURE_SSL_REDIRECT:
            self.note("it answers by HTTPS only: put a proxy before it, or set SECURE=off")
        if settings.DEBUG and not is_local(listener):
            self.note("DEBUG is on, and other machines can reach it: only in a network you trust")

    # What runs

    def _keep_running(self, kept: Sequence[Kept], stopping: threading.Event) -> None:
        try:
            while not stopping.wait(LOOK_SECONDS):
                for each in kept:
                    self.note(each.look(time.monotonic()))
            for each in kept:
                each.stop(STOP_SECONDS)
        except KeyboardInterrupt:
            for each in kept:
                each.kill()
            raise

    def on_interrupt(self) -> str:
        return "stopped at once; jobs that still run are the next worker's"


def _web(listener: socket.socket) -> Child:
    descriptor = listener.fileno()
    module = "container_manager.management.web"
    return Child("--fd", str(descriptor), module=module, inherits=[descriptor])


def _worker_options(options: dict[str, Any]) -> list[str]:
    given = [("--queues", options["queues"]), ("--concurrency", options["concurrency"])]
    return [word for name, value in given if value for word in (name, str(value))]


def _collect_static_files() -> None:
    """In production pages name the files that were collected, so these must be of this version."""
    if not settings.DEBUG:
        call_command("collectstatic", interactive=False, verbosity=0)


def _stop_on_signals() -> threading.Event:
    stopping = threading.Event()

    def stop(_number: int, _frame: object) -> None:
        if stopping.is_set():
            raise KeyboardInterrupt
        stopping.set()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # else we were told to outlive it
        signal.signal(signal.SIGHUP, stop)
    return stopping


def _typed(*words: str) -> str:
    """A command of ours as it is typed here."""
    python = min(sys.executable, os.path.relpath(sys.executable), key=len)
    line = shlex.join([python, sys.argv[0], *words])
    return f"DEBUG=on {line}" if settings.DEBUG else line
