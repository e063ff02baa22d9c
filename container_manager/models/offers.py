"""Which lanes a worker serves, from what it says of its engines: the one place that knows.

A worker asks it before it claims; whoever explains why a job waits asks it, too.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from container_manager.models.leases import Offer
from container_manager.states import Isolation

STRENGTH = {str(isolation): rank for rank, isolation in enumerate(Isolation)}

Described = Mapping[str, Mapping[str, Any]]
"""What stands in a worker's row: alias to engine id, isolations, whether it answers."""


def offers_of(described: Described, elsewhere: Iterable[Described] = ()) -> tuple[Offer, ...]:
    """The lanes that a worker serves; `elsewhere`: what the other living workers describe."""
    ready = {alias: engine for alias, engine in described.items() if engine["available"]}
    named = [offer for alias, engine in ready.items() for offer in _by_name(alias, engine)]
    return (*named, *_unnamed(ready, [described, *elsewhere]))


def strongest(engine: Mapping[str, Any]) -> str:
    """The isolation that `auto` means on this engine."""
    return max(engine["isolations"], key=_strength, default="")


def _by_name(alias: str, engine: Mapping[str, Any]) -> Iterator[Offer]:
    for isolation in engine["isolations"]:
        yield Offer(alias, isolation, alias, isolation, engine["engine_id"])
    yield Offer(alias, Isolation.AUTO, alias, strongest(engine), engine["engine_id"])


def _unnamed(ready: Described, known: Iterable[Described]) -> Iterator[Offer]:
    by_strength = sorted(ready, key=lambda alias: _strength(strongest(ready[alias])))
    first: dict[str, str] = {}
    for alias in by_strength:
        first |= dict.fromkeys(ready[alias]["isolations"], alias)
    for isolation, alias in first.items():
        yield Offer("", isolation, alias, isolation, ready[alias]["engine_id"])
    if by_strength and _may_choose(strongest(ready[by_strength[-1]]), known):
        best = by_strength[-1]
        yield Offer("", Isolation.AUTO, best, strongest(ready[best]), ready[best]["engine_id"])


def _may_choose(best: str, known: Iterable[Described]) -> bool:
    """A job that leaves the choice to us is no plain process while anything else is known."""
    if best != Isolation.PROCESS:
        return True
    words = (
        word
        for described in known
        for engine in described.values()
        for word in engine.get("isolations", ())
    )
    return all(word == Isolation.PROCESS for word in words)


def _strength(isolation: str) -> int:
    return STRENGTH.get(isolation, -1)
