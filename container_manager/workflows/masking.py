"""How a document is shown: the values of its environments are kept and never told.

What comes back with a mask in it means the value that is there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from container_manager.models.validators import MASK

Document = Mapping[str, Any]


def masked(document: Document) -> dict[str, Any]:
    """A document as anybody may see it."""
    return _with_environments(document, lambda given, _of_task: dict.fromkeys(given, MASK))


def unmasked(document: Document, stored: Document) -> dict[str, Any]:
    """A document that was shown and came back, with the values of the stored one.

    A mask with nothing behind it stays one, which `spec.validate` refuses. Whatever is not of the
    right type is left as it is.
    """

    def reveal(given: dict[str, Any], of_task: str | None) -> dict[str, Any]:
        known = _environment_of(stored, of_task)
        return {
            name: known.get(name, value) if value == MASK else value
            for name, value in given.items()
        }

    return _with_environments(document, reveal)


def _with_environments(
    document: Document, change: Callable[[dict[str, Any], str | None], dict[str, Any]]
) -> dict[str, Any]:
    """A copy in which each environment is what `change` makes of it and the id of its task."""

    def changed(holder: Any, of_task: str | None) -> Any:
        environment = _dict(holder).get("environment")
        if not isinstance(environment, dict):
            return holder
        return {**holder, "environment": change(environment, of_task)}

    copy = {**document}
    if isinstance(copy.get("defaults"), dict):
        copy["defaults"] = changed(copy["defaults"], None)
    if isinstance(copy.get("tasks"), dict):
        copy["tasks"] = {name: changed(task, name) for name, task in copy["tasks"].items()}
    return copy


def _environment_of(document: Document, of_task: str | None) -> dict[str, Any]:
    """What `defaults` say, or what one task says itself."""
    holder = (
        document.get("defaults") if of_task is None else _dict(document.get("tasks")).get(of_task)
    )
    return _dict(_dict(holder).get("environment"))


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
