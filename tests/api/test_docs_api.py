"""The commands of docs/api.md, run against the server as the page has them."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from django.contrib.auth.hashers import PBKDF2PasswordHasher

from tests.support.api_docs import METHODS, document
from tests.support.publisher_rows import LOG, letter, publisher_row
from tests.support.web import Person, Site, make_person, some_site, workers
from tests.support.workers import ROOT, Workers

__all__ = ["workers"]

pytestmark = [
    pytest.mark.web,
    pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl here"),
]

PAGE = (ROOT / "docs/api.md").read_text()
NAME = "admin"
PASSWORD = "what make run printed"
SERVER = "http://127.0.0.1:8000"
PATIENCE = 180

# What curl got is kept: its last headers and body, and the status of every answer.
CURL = """
curl() {
    command curl --silent --show-error --dump-header answer.headers --output answer.body \\
        --write-out '%{http_code}\\n' "$@" >> answer.codes || return
    [ ! -e answer.body ] || cat answer.body
    [[ " $* " != *" -D headers "* ]] || cp answer.headers headers
}
"""


@dataclass(frozen=True)
class Shown:
    """A command of the page, and the answer that the page shows for it."""

    command: str
    answer: str

    @property
    def status(self) -> int:
        return int(self.answer.split()[1])

    @property
    def headers(self) -> set[str]:
        head = self.answer.partition("\n\n")[0]
        return {line.partition(":")[0].lower() for line in head.splitlines()[1:]}

    @property
    def members(self) -> set[str]:
        return set(re.findall(r'"(\w+)":', self.answer.partition("\n\n")[2]))


def shown() -> list[Shown]:
    """The blocks of the page in its order; the first one only prepares the shell."""
    blocks = re.findall(r"^```(sh|http)\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)[1:]
    kinds = [kind for kind, _text in blocks]
    assert kinds == ["sh", "http"] * (len(blocks) // 2), "each command has its answer below it"
    texts = [text for _kind, text in blocks]
    return [Shown(*pair) for pair in zip(texts[::2], texts[1::2], strict=True)]


def script(url: str) -> str:
    """All commands in one shell, as a reader has them; what each got stays in files."""
    (prepared, *_) = re.findall(r"^```sh\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    steps = [
        f"rm -f answer.*\n{each.command}\nfor kept in answer.*; do mv $kept {number}.$kept; done"
        for number, each in enumerate(shown())
    ]
    return "\n".join(["set -eu", CURL, prepared.replace(SERVER, url), *steps])


@pytest.fixture
def admin(transactional_db: None) -> Person:
    """Whom `make run` makes."""
    person = make_person(NAME, is_staff=True, is_superuser=True)
    encoded = PBKDF2PasswordHasher().encode(PASSWORD, salt="salt", iterations=1000)
    type(person.user).objects.update(password=encoded)
    return person


@pytest.fixture
def live_site(workers: Workers, tmp_path: Path) -> Iterator[Site]:
    """A site whose settings name a publisher, which has trouble."""
    named = json.dumps({"hooks": {"class": LOG, "options": {}}})
    publisher_row("hooks", failing_for=90)
    letter("hooks", 212)
    with some_site(tmp_path, workers, CONTAINER_MANAGER_PUBLISHERS=named) as site:
        yield site


@pytest.fixture
def ran(admin: Person, workers: Workers, live_site: Site, tmp_path: Path) -> Path:
    """Where the shell ran that did all that the page says."""
    workers.start("--concurrency", "4").wait_until_started()
    workers.start_scheduler()
    directory = tmp_path / "shell"
    directory.mkdir()
    command = ["bash", "-c", script(live_site.url)]
    done = subprocess.run(
        command, cwd=directory, capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return directory


def test_every_command_of_the_page_gets_the_answer_that_is_shown(
    ran: Path, live_site: Site
) -> None:
    wrong = [
        f"{each.command}\n{told}"
        for number, each in enumerate(shown())
        for told in differences(each, ran, number)
    ]
    assert not wrong, "\n".join(wrong)
    assert documented() - called(live_site.said) == set(), "the page has a command for each"


def differences(each: Shown, directory: Path, number: int) -> Iterator[str]:
    """What the page says of an answer and the answer does not."""
    codes, headers, body = (
        (directory / f"{number}.answer.{part}").read_text(errors="replace")
        if (directory / f"{number}.answer.{part}").exists()
        else ""
        for part in ("codes", "headers", "body")
    )
    status = int(codes.split()[-1])
    if status != each.status:
        yield f"was answered with {status}: {body}"
    had = {line.partition(":")[0].lower() for line in headers.splitlines()}
    if missing := each.headers - had:
        yield f"has no header {missing}: {headers}"
    if missing := each.members - set(re.findall(r'"(\w+)":', body)):
        yield f"has no member {missing}: {body}"


def documented() -> set[str]:
    """Every operation of the OpenAPI document, as `GET /api/v1/jobs/{}/`."""
    return {
        f"{method.upper()} {re.sub(r'{[a-z]+}', '{}', path)}"
        for path, methods in document()["paths"].items()
        for method in methods
        if method in METHODS
    }


def called(log: str) -> set[str]:
    """What the server was asked, in the same form."""
    asked = re.findall(r'"([A-Z]+) (\S+) HTTP', log)
    return {f"{method} {_form(urlsplit(target).path)}" for method, target in asked}


def _form(path: str) -> str:
    ids = r"(?<=/)([0-9a-f]{8}-[0-9a-f-]{27}|(?<=/queues/)[^/]+|(?<=/publishers/)[^/]+)(?=/)"
    return re.sub(ids, "{}", f"{path.rstrip('/')}/")
