"""Take in DAGs that are written in YAML or JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from django.contrib.auth import get_user_model
from django.core.management.base import CommandParser
from django.utils import timezone

from container_manager import lifecycle
from container_manager.exceptions import Problem, SpecError
from container_manager.management import tables
from container_manager.management.base import JobCommand, wrong_usage
from container_manager.management.tables import visible
from container_manager.management.workflows import next_run
from container_manager.models import Dag
from container_manager.models.validators import plain_text
from container_manager.workflows import dags, spec
from container_manager.workflows.documents import MAX_BYTES
from container_manager.workflows.spec import DagSpec

STDIN = "-"


@dataclass(frozen=True)
class Written:
    """A document without mistakes, and where it stands."""

    file: str
    spec: DagSpec


@dataclass(frozen=True)
class Mistake:
    """One thing that is wrong with one file."""

    file: str
    problem: Problem

    def __str__(self) -> str:
        """`file:line: path: message`, as editors and CI read it."""
        line = "" if self.problem.line is None else f":{self.problem.line}"
        words = (f"{self.file}{line}", self.problem.path, self.problem.message)
        return visible(": ".join(word for word in words if word))

    def as_json(self) -> dict[str, Any]:
        problem = self.problem
        return {
            "file": self.file,
            "line": problem.line,
            "path": problem.path,
            "message": problem.message,
        }


class Command(JobCommand):
    help = (
        "Take in DAGs: a new name makes a new DAG, a known one gets its new document; runs under "
        "way keep theirs. Every mistake is a line `file:line: path: message`; while there is one, "
        "nothing of any file is taken in."
    )
    examples = """examples:
  manage.py import_dag examples/*.yaml
  manage.py import_dag --check examples/etl_pipeline.yaml
  generate_dag | manage.py import_dag - --paused
"""

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("files", nargs="+", metavar="FILE", help="YAML or JSON; - is stdin")
        parser.add_argument(
            "--check", action="store_true", help="only look for mistakes; asks no database"
        )
        parser.add_argument(
            "--paused", action="store_true", help="new ones begin no run until unpaused"
        )
        parser.add_argument("--owner", metavar="NAME", help="the user whose new ones are (nobody)")
        parser.add_argument("--json", action="store_true", help="one JSON document")

    def handle(self, **options: Any) -> None:
        written, mistakes = _read(options["files"])
        if mistakes:
            self._refuse(mistakes, as_json=options["json"])
        if options["check"]:
            results = [_as_checked(each) for each in written]
        else:
            results = _take_in(written, _user(options["owner"]), paused=options["paused"])
        if options["json"]:
            self.say(tables.dumps({"dags": results}))
        else:
            for result in results:
                self.say(_line(result))

    def _refuse(self, mistakes: list[Mistake], *, as_json: bool) -> None:
        if as_json:
            self.say(tables.dumps({"problems": [each.as_json() for each in mistakes]}))
        else:
            for each in mistakes:
                self.stderr.write(str(each), lambda text: text)
        count = "1 mistake" if len(mistakes) == 1 else f"{len(mistakes)} mistakes"
        raise wrong_usage(f"{count}; nothing was taken in")


# Reading ------------------------------------------------------------------------------------------


def _read(files: Iterable[str]) -> tuple[list[Written], list[Mistake]]:
    """All documents, or all that is wrong with them."""
    written: dict[str, Written] = {}
    mistakes: list[Mistake] = []
    for file in dict.fromkeys(files):
        try:
            read = _read_one(file)
            if read.spec.name in written:
                other = written[read.spec.name].file
                message = f"{read.spec.name!r} is the name of the DAG in {other}, too."
                raise SpecError([Problem("name", message)])
            written[read.spec.name] = read
        except SpecError as error:
            mistakes += [Mistake(_told(file), problem) for problem in error.problems]
    return list(written.values()), mistakes


def _read_one(file: str) -> Written:
    """Raises SpecError."""
    try:
        text = _text(file)
    except (OSError, ValueError) as error:
        message = getattr(error, "strerror", None) or str(error)
        raise SpecError([Problem("", f"Cannot be read: {message}.")]) from error
    return Written(_told(file), spec.validate(spec.read(text), text))


def _text(file: str) -> bytes:
    """Not more of it than tells that it is too long."""
    if file == STDIN and sys.stdin is None:
        raise ValueError("stdin is closed")
    if file == STDIN:
        return sys.stdin.buffer.read(MAX_BYTES + 1)
    with Path(file).open("rb") as stream:
        return stream.read(MAX_BYTES + 1)


def _told(file: str) -> str:
    return "stdin" if file == STDIN else file


# Taking in ----------------------------------------------------------------------------------------


def _user(name: str | None) -> Any:
    if name is None:
        return None
    plain_text(name)
    try:
        return get_user_model()._default_manager.get_by_natural_key(name)
    except get_user_model().DoesNotExist:
        raise wrong_usage(f"--owner: there is no user {name!r}") from None


@lifecycle.verb
def _take_in(written: list[Written], owner: Any, *, paused: bool) -> list[dict[str, Any]]:
    """All of them or, when one cannot be taken in, none. By name: of two at once none waits."""
    results = {
        each.spec.name: _take_in_one(each, owner, paused)
        for each in sorted(written, key=lambda each: each.spec.name)
    }
    return [results[each.spec.name] for each in written]


def _take_in_one(each: Written, owner: Any, paused: bool) -> dict[str, Any]:
    there = Dag.objects.select_for_update().filter(name=each.spec.name).first()
    if there is not None and _is_the_same(there, each.spec):
        return _as_told(each, there, "unchanged")
    dag, created = dags.take_in(each.spec, owner=owner)
    if created and paused:
        dag = dags.pause(dag.pk)
    return _as_told(each, dag, "created" if created else "updated")


def _is_the_same(dag: Dag, spec: DagSpec) -> bool:
    """As text: the order of tasks counts."""
    return json.dumps(dag.spec) == json.dumps(spec.document())


# What is told of it -------------------------------------------------------------------------------


def _as_told(each: Written, dag: Dag, result: str) -> dict[str, Any]:
    return {
        **_as_checked(each),
        "result": result,
        "id": dag.pk,
        "next_run": next_run(dag, timezone.now()),
    }


def _as_checked(each: Written) -> dict[str, Any]:
    name, size = each.spec.name, each.spec.size
    return {"file": each.file, "name": name, "result": "good", "tasks": size}


def _line(result: dict[str, Any]) -> str:
    """`etl_pipeline: created, 4 tasks, next run 2026-01-31 01:00 UTC`."""
    tasks = "1 task" if result["tasks"] == 1 else f"{result['tasks']} tasks"
    told = [f"{result['name']}: {result['result']}", tasks]
    if when := result.get("next_run"):
        told.append(f"next run {when} UTC" if when[0].isdigit() else when)
    return ", ".join(told)
