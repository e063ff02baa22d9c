"""The commands of workflows, with a real worker and scheduler: what docs/workflows.md shows."""

from __future__ import annotations

import io
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from django.core.management import CommandError, call_command

from container_manager.models import DagRun, TaskInstance
from container_manager.states import OVER, RUN_ACTIVE
from tests.support.spine import contradictions
from tests.support.workers import ROOT, WorkerProcess, Workers, wait_until

pytestmark = [pytest.mark.processes, pytest.mark.django_db(transaction=True)]

PAGE = ROOT / "docs/workflows.md"
BLOCK = re.compile(r"^```(yaml|console|text)\n(.*?)^```", re.DOTALL | re.MULTILINE)
ID = re.compile(r"\b[0-9a-f]{8}-[0-9a-f-]{27}\b|\b[0-9a-f]{12}\b")
VARIES = {
    ID: "ID",
    re.compile(r"\b\d+\.\ds\b"): "SECONDS",
    re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d UTC"): "DATE",
    re.compile(r"[ \t]+"): " ",
}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def at_work(workers: Workers) -> Iterator[Workers]:
    """A worker and a scheduler."""
    workers.start()
    scheduler = WorkerProcess(
        [sys.executable, "-W", "ignore", "manage.py", "run_scheduler"],
        workers.environment(),
        workers.directory / "scheduler.log",
    )
    workers.started.append(scheduler)
    yield workers
    scheduler.terminate()
    assert scheduler.ended() == 0
    assert "Traceback" not in scheduler.said


@pytest.fixture(autouse=True)
def _in_a_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm")


def typed(line: str) -> str:
    """What a command says in a terminal of 80 columns, and how it fails."""
    _manage, name, *arguments = shlex.split(line)
    screen = Terminal()
    try:
        call_command(name, *arguments, no_color=True, stdout=screen, stderr=screen)
    except CommandError as error:
        screen.write(f"{name}: {error}\n")
    return re.sub(r"\x1b\[[012]?m", "", screen.getvalue())


def with_ids(text: str, known: dict[str, str]) -> str:
    """The ids of this database in the place of those that the page shows."""
    return ID.sub(lambda shown: known[shown[0]], text)


def without_what_varies(text: str) -> list[str]:
    for pattern, word in VARIES.items():
        text = pattern.sub(word, text)
    return [line.strip() for line in text.splitlines()]


def test_the_tutorial_does_what_it_shows(at_work: Workers) -> None:
    tutorial = PAGE.read_text().partition("tutorial: begin")[2].partition("tutorial: end")[0]
    known: dict[str, str] = {}
    said = ""
    for kind, text in BLOCK.findall(tutorial):
        if kind == "yaml":
            Path(f"{yaml.safe_load(text)['name']}.yaml").write_text(text)
        elif kind == "console":
            said = "".join(map(typed, with_ids(text, known).splitlines()))
        else:
            assert without_what_varies(said) == without_what_varies(text)
            assert max(map(len, said.splitlines())) <= 80
            known |= zip(ID.findall(text), ID.findall(said), strict=True)
    wait_until(lambda: not DagRun.objects.exclude(state__in=OVER).exists(), "all runs to end")
    assert set(DagRun.objects.values_list("state", flat=True)) == {"success"}
    assert TaskInstance.objects.get(name="fetch").try_number == 2
    assert contradictions() == []


def test_a_cancelled_run_is_over_when_its_jobs_are_gone(at_work: Workers) -> None:
    document = {
        "name": "long",
        "defaults": {"executor": "process", "stop_grace_seconds": 1},
        "tasks": {
            "sleeps": {"command": ["/bin/sleep", "60"]},
            "after": {"command": ["/bin/true"], "depends_on": ["sleeps"]},
        },
    }
    Path("long.yaml").write_text(yaml.safe_dump(document, sort_keys=False))
    typed("manage.py import_dag long.yaml")
    typed("manage.py trigger_dag long --run-id one")
    run = DagRun.objects.get()
    wait_until(lambda: run.tasks.filter(state="running").exists(), "its first task to run")
    assert typed("manage.py cancel_run long/one").startswith("long/one: done, now ")
    wait_until(lambda: not DagRun.objects.filter(state__in=RUN_ACTIVE).exists(), "its end")
    run.refresh_from_db()
    assert (run.state, run.reason) == ("failed", "cancelled")
    assert (
        typed("manage.py list_tasks long/one --state skipped").splitlines()[1].startswith("after")
    )
    wait_until(lambda: not at_work.left_behind(), "the remains to be removed")
