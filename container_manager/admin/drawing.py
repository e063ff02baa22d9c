"""Where the parts of a drawing stand: the graph of a DAG, and the chart of a run's times.

Pure: names and moments come in, coordinates go out. Colours, words and links are the pages'.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise

from container_manager.workflows.graph import Graph

# The graph ----------------------------------------------------------------------------------------

MOST_NAMES = 300
"""A graph of more tasks shows nothing any more."""

MOST_BENDS = 5_000
"""Points that edges over several layers go through; with more they go straight."""

NODE_WIDTH, NODE_HEIGHT = 156, 44
GAP_ACROSS, GAP_DOWN = 28, 16
BEND_HEIGHT = 10
MARGIN = 4
SWEEPS = 4

Bend = tuple[str, str, int]
"""Where the edge from the one to the other passes through a layer."""

Place = str | Bend


@dataclass(frozen=True, slots=True)
class Node:
    """One task: its box."""

    name: str
    x: float
    y: float


@dataclass(frozen=True, slots=True)
class Edge:
    """From a task to one that depends on it: an SVG path."""

    source: str
    target: str
    path: str


@dataclass(frozen=True, slots=True)
class Drawing:
    """A graph from left to right."""

    width: float
    height: float
    nodes: list[Node]
    edges: list[Edge]


def draw(graph: Graph) -> Drawing:
    """Layers from left to right, ordered so that few edges cross.

    >>> drawing = draw(Graph.of({"a": [], "b": ["a"]}))
    >>> [(node.name, node.x, node.y) for node in drawing.nodes]
    [('a', 4, 4.0), ('b', 188, 4.0)]
    """
    layers, ways = _with_bends(graph)
    _untangle(layers, ways)
    places = _places(layers)
    edges = [Edge(str(way[0]), str(way[-1]), _path([places[each] for each in way])) for way in ways]
    nodes = [
        Node(place, *places[place]) for layer in layers for place in layer if isinstance(place, str)
    ]
    return Drawing(
        width=2 * MARGIN + len(layers) * (NODE_WIDTH + GAP_ACROSS) - GAP_ACROSS,
        height=2 * MARGIN + max((_height(layer) for layer in layers), default=0),
        nodes=nodes,
        edges=edges,
    )


def _with_bends(graph: Graph) -> tuple[list[list[Place]], list[list[Place]]]:
    """The layers, with a point for each edge that passes through; and the way of each edge."""
    layers: list[list[Place]] = [list(layer) for layer in graph.layers()]
    depth = {name: number for number, layer in enumerate(layers) for name in layer}
    edges = [(source, name) for name, needed in graph.upstream.items() for source in needed]
    bends = sum(depth[target] - depth[source] - 1 for source, target in edges)
    ways: list[list[Place]] = []
    for source, target in edges:
        between = range(depth[source] + 1, depth[target]) if bends <= MOST_BENDS else ()
        points: list[Place] = [(source, target, number) for number in between]
        for number, point in zip(between, points, strict=True):
            layers[number].append(point)
        ways.append([source, *points, target])
    return layers, ways


def _untangle(layers: list[list[Place]], ways: Iterable[Sequence[Place]]) -> None:
    """Put what is joined beside each other: each layer in the order of its neighbours' middle."""
    before: dict[Place, list[Place]] = {}
    after: dict[Place, list[Place]] = {}
    for way in ways:
        for point, next_point in pairwise(way):
            after.setdefault(point, []).append(next_point)
            before.setdefault(next_point, []).append(point)
    for _ in range(SWEEPS):
        for one, next_one in pairwise(layers):
            _arrange(next_one, one, before)
        for one, next_one in pairwise(layers[::-1]):
            _arrange(next_one, one, after)


def _arrange(
    layer: list[Place], beside: Sequence[Place], joined: Mapping[Place, Sequence[Place]]
) -> None:
    order = {place: number for number, place in enumerate(beside)}
    own = {place: number for number, place in enumerate(layer)}

    def middle(place: Place) -> float:
        known = [order[other] for other in joined.get(place, ()) if other in order]
        return sum(known) / len(known) if known else float(own[place])

    layer.sort(key=middle)


def _size(place: Place) -> int:
    return NODE_HEIGHT if isinstance(place, str) else BEND_HEIGHT


def _height(layer: Sequence[Place]) -> float:
    return sum(_size(place) for place in layer) + GAP_DOWN * max(0, len(layer) - 1)


def _places(layers: Sequence[Sequence[Place]]) -> dict[Place, tuple[float, float]]:
    """Left upper corners; each layer in the middle of the height."""
    highest = max((_height(layer) for layer in layers), default=0)
    found: dict[Place, tuple[float, float]] = {}
    for number, layer in enumerate(layers):
        y = MARGIN + (highest - _height(layer)) / 2
        for place in layer:
            found[place] = (MARGIN + number * (NODE_WIDTH + GAP_ACROSS), round(y, 1))
            y += _size(place) + GAP_DOWN
    return found


def _path(corners: Sequence[tuple[float, float]]) -> str:
    """Out of the right side of the first, through the height of what is between, into the last."""
    (x, y), *between, (to_x, to_y) = corners
    points = [(x + NODE_WIDTH, y + NODE_HEIGHT / 2)]
    for left, top in between:
        points += [(left, top + BEND_HEIGHT / 2), (left + NODE_WIDTH, top + BEND_HEIGHT / 2)]
    points.append((to_x, to_y + NODE_HEIGHT / 2))
    parts = [f"M{points[0][0]:g} {points[0][1]:g}"]
    for (ax, ay), (bx, by) in pairwise(points):
        middle = (ax + bx) / 2
        parts.append(f"C{middle:g} {ay:g} {middle:g} {by:g} {bx:g} {by:g}")
    return "".join(parts)


# The chart of times -------------------------------------------------------------------------------

ROW_HEIGHT = 26
LEAST_WIDTH = 0.4
"""Percent: what took no time is seen, too."""

STEPS = (
    *(0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600),
    *(2 * 3600, 6 * 3600, 12 * 3600, 86400, 2 * 86400, 7 * 86400, 30 * 86400, 365 * 86400),
)
"""Seconds between two lines of the scale."""

MOST_LINES = 7


@dataclass(frozen=True, slots=True)
class Stretch:
    """What is known of the time of one task; what has not come is None."""

    name: str
    queued_at: datetime | None
    started_at: datetime | None
    ended_at: datetime | None


@dataclass(frozen=True, slots=True)
class Bar:
    """One row of the chart: left and width in percent of the whole time, None for what was not."""

    name: str
    y: int
    waited: tuple[float, float] | None
    ran: tuple[float, float] | None


@dataclass(frozen=True, slots=True)
class Chart:
    """Bars over a common scale of time."""

    height: int
    bars: list[Bar]
    lines: list[tuple[float, float]]
    """Percent from the left, seconds since the beginning."""


def chart(stretches: Iterable[Stretch], beginning: datetime, now: datetime) -> Chart:
    """Rows in the order in which they began; what still goes on ends now."""
    known = [each for each in stretches if each.queued_at or each.started_at]
    known.sort(key=_began)
    beginning = min([beginning, *map(_began, known)])
    end = max((each.ended_at or now for each in known), default=now)
    whole = max((end - beginning).total_seconds(), 0.001)

    def part(since: datetime, until: datetime) -> tuple[float, float]:
        left = 100 * max(0.0, (since - beginning).total_seconds()) / whole
        width = 100 * max(0.0, (until - since).total_seconds()) / whole
        width = max(width, LEAST_WIDTH)
        return round(min(left, 100 - width), 3), round(width, 3)

    bars = []
    for number, each in enumerate(known):
        ended = each.ended_at or now
        waited = part(each.queued_at, each.started_at or ended) if each.queued_at else None
        ran = part(each.started_at, ended) if each.started_at else None
        bars.append(Bar(each.name, number * ROW_HEIGHT, waited, ran))
    return Chart(len(known) * ROW_HEIGHT, bars, _lines(whole))


def _began(stretch: Stretch) -> datetime:
    moments = (stretch.queued_at, stretch.started_at)
    return min(moment for moment in moments if moment is not None)


def _lines(whole: float) -> list[tuple[float, float]]:
    step = next((step for step in STEPS if whole / step <= MOST_LINES), STEPS[-1])
    count = min(MOST_LINES, int(whole / step))
    return [(round(100 * number * step / whole, 3), number * step) for number in range(count + 1)]
