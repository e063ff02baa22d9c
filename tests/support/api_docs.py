"""The parts of docs/api.md that the code says: paths, filters and error codes."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from drf_spectacular.generators import SchemaGenerator
from rest_framework import exceptions as rest

from container_manager import api, exceptions
from container_manager.api.errors import problem_of
from container_manager.api.job_query import FILTERS, ORDERING
from container_manager.api.operations import MEANINGS
from container_manager.api.parameters import Parameter
from container_manager.api.workflow_query import (
    DAG_FILTERS,
    DAG_ORDERING,
    RUN_FILTERS,
    RUN_ORDERING,
    TASK_FILTERS,
    TASK_ORDERING,
)
from container_manager.models import ContainerJob
from container_manager.states import JobStatus

PREFIX = "/api/v1/"
METHODS = ("get", "post", "put", "patch", "delete")


def paths() -> str:
    """Each path with what its methods do."""
    rows = [
        f"| `{path.removeprefix(PREFIX)}` | {method.upper()} | {operation['summary']} |"
        for path, methods in document()["paths"].items()
        for method, operation in sorted(methods.items(), key=lambda each: METHODS.index(each[0]))
    ]
    return _table("path", "method", "what it does", rows=rows)


def filters() -> str:
    """The query parameters by which jobs are chosen."""
    return _filters("chooses jobs", FILTERS, ORDERING)


def dag_filters() -> str:
    return _filters("chooses DAGs", DAG_FILTERS, DAG_ORDERING)


def run_filters() -> str:
    return _filters("chooses runs", RUN_FILTERS, RUN_ORDERING)


def task_filters() -> str:
    return _filters("chooses tasks", TASK_FILTERS, TASK_ORDERING)


def _filters(head: str, parameters: Iterable[Parameter], ordering: Parameter) -> str:
    columns = [word for word in ordering.schema["items"]["enum"] if not word.startswith("-")]
    rows = [f"| `{each.name}` | {each.description} |" for each in parameters]
    rows.append(f"| `ordering` | {ordering.description} {', '.join(columns)}. |")
    return _table("parameter", head, rows=rows)


def error_codes() -> str:
    """Each code with its status and what it means."""
    meanings: dict[tuple[int, str], set[str]] = {}
    for status, code, meaning in (*_written_in_the_api(), *_raised()):
        meanings.setdefault((status, code), set()).add(meaning)
    rows = [
        f"| {status} | `{code}` | {found.pop() if len(found) == 1 else MEANINGS[status]} |"
        for (status, code), found in sorted(meanings.items())
    ]
    return _table("status", "code", "what it means", rows=rows)


def document() -> dict[str, Any]:
    """The OpenAPI document."""
    return SchemaGenerator().get_schema(request=None, public=True)


def _written_in_the_api() -> Iterator[tuple[int, str, str]]:
    """Status, code and words of each `Problem(…)` of which the text of a module has these."""
    for module in sorted(Path(inspect.getfile(api)).parent.glob("*.py")):
        for node in ast.walk(ast.parse(module.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Problem":
                given = [each.value for each in node.args if isinstance(each, ast.Constant)]
                if len(given) > 1:
                    yield given[0], given[1], given[2] if len(given) > 2 else MEANINGS[given[0]]


def _raised() -> Iterator[tuple[int, str, str]]:
    """Of the exceptions that come to a view from below, and from the framework."""
    job = ContainerJob(status=JobStatus.COMPLETED)
    moves = [exceptions.InvalidTransition, exceptions.HeldByWorker, exceptions.StopRequested]
    ours = [
        *(refused(old=job.status) for refused in moves),
        exceptions.NotChangeable.of(job, ["image"], []),
        exceptions.StaleState(),
        exceptions.KeyReused(),
        exceptions.SpecError([]),
        exceptions.NameTaken("etl"),
        exceptions.RunExists(run=None),
        *(refused() for refused in (exceptions.DagPaused, exceptions.DagActive)),
        *(refused() for refused in (exceptions.NothingToRetry, exceptions.ManagedByTask)),
    ]
    for error in ours:
        problem = problem_of(error)
        yield problem.status, problem.code, (type(error).__doc__ or "").strip()
    for error in (rest.NotAuthenticated(), rest.MethodNotAllowed("PUT"), rest.Throttled()):
        problem = problem_of(error)
        yield problem.status, problem.code, MEANINGS[problem.status]


def _table(*heads: str, rows: Iterable[str]) -> str:
    return "\n".join([f"| {' | '.join(heads)} |", "|---" * len(heads) + "|", *rows])
