"""DAGs as people send them to the API."""

from __future__ import annotations

from typing import Any

TASKS: dict[str, Any] = {
    "extract": {"command": ["/bin/true"], "environment": {"PASSWORD": "secret"}},
    "load": {"command": ["/bin/true"], "depends_on": ["extract"]},
}
PLAIN: dict[str, Any] = {
    "name": "etl",
    "defaults": {"executor": "process", "max_retries": 0, "environment": {"TOKEN": "secret"}},
    "tasks": TASKS,
}


def flow(**fields: Any) -> dict[str, Any]:
    """The document of a DAG of two tasks, with secrets, and these fields."""
    return {**PLAIN, **fields}
