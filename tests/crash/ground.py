"""Where cases take place: a fresh database for each, and who watches the engine meanwhile."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

from django.core.management import call_command
from django.db import connection, connections

from container_manager.executors.base import LABEL_INSTANCE
from tests.crash.forks import Child
from tests.support import docker_engine
from tests.support.workers import wait_until

MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"


class Ground:
    """A migrated template, of which each case gets a copy."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.events = directory / "events.jsonl"
        self.registry = ""
        self._is_sqlite = connection.vendor == "sqlite"
        self._template = self._name("template")
        if not self._is_sqlite:
            self._do(f"CREATE DATABASE {self._template}")
        self.use(self._template)
        assert Child(self._migrate).ended(120) == 0

    def _name(self, word: str) -> str:
        if self._is_sqlite:
            return str(self.directory / f"{word}.sqlite3")
        return f"cm_sweep_{os.getpid()}_{word}"

    def _migrate(self) -> None:
        call_command("migrate", verbosity=0)
        connections.close_all()

    def use(self, name: str) -> None:
        """From now on this process, and whom it forks, works on that database."""
        connections.close_all()
        connections.settings["default"]["NAME"] = name

    @contextmanager
    def fresh_database(self, word: str) -> Iterator[None]:
        name = self._name(word)
        if self._is_sqlite:
            shutil.copy(self._template, name)
        else:
            self._do(f"CREATE DATABASE {name} TEMPLATE {self._template}")
        self.use(name)
        try:
            yield
        finally:
            self.use(self._template)
            self._drop(name)

    def _drop(self, name: str) -> None:
        if not self._is_sqlite:
            self._do(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
            return
        for end in ("", "-wal", "-shm"):
            Path(name + end).unlink(missing_ok=True)

    def _do(self, statement: str) -> None:
        with connection._nodb_cursor() as cursor:
            cursor.execute(statement)

    def clear(self) -> None:
        self._drop(self._template)

    # Docker

    @contextmanager
    def watching_the_engine(self) -> Iterator[None]:
        """Write down what happens to containers of any installation, and serve an image."""
        address = self.directory / "registry"
        children = [Child(self._write_events), Child(lambda: _serve_images(address))]
        try:
            wait_until(lambda: self.events.exists() and address.exists(), "events and registry")
            self.registry = address.read_text()
            yield
        finally:
            for child in children:
                child.end()

    def _write_events(self) -> None:
        filters = {"type": ["container"], "label": [LABEL_INSTANCE]}
        with docker_engine.engine() as http:
            stream = http.stream("GET", "/events", {"filters": json.dumps(filters)})
            stream.wait_for_head(30)
            with self.events.open("ab", buffering=0) as file:
                while (data := stream.read(3600)) != b"":
                    file.write(data or b"")


def _serve_images(address: Path) -> None:
    """A registry whose every image is the one that the engine has; it takes a moment to say so."""
    with docker_engine.engine() as http:
        image_id = http.call("GET", f"/images/{docker_engine.IMAGE}/json").json()["Id"]
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": {
            "mediaType": "application/vnd.docker.container.image.v1+json",
            "size": 1,
            "digest": image_id,
        },
        "layers": [],
    }
    with docker_engine.registry(lambda handler: _answer(handler, manifest)) as where:
        part = address.with_suffix(".part")
        part.write_text(where)
        part.rename(address)
        signal.pause()


def _answer(handler: BaseHTTPRequestHandler, manifest: dict[str, Any]) -> None:
    time.sleep(0.5)
    body = json.dumps(manifest).encode()
    handler.send_response(200)
    handler.send_header("Content-Type", MANIFEST)
    handler.send_header("Docker-Content-Digest", f"sha256:{hashlib.sha256(body).hexdigest()}")
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    if handler.command != "HEAD":
        handler.wfile.write(body)
