"""Where the parts of a drawing stand."""

from __future__ import annotations

import doctest
from datetime import UTC, datetime, timedelta

import pytest

from container_manager.admin import drawing, flow_pages
from container_manager.admin.drawing import NODE_HEIGHT, NODE_WIDTH, Stretch, chart, draw
from container_manager.reports import workflows as reports
from container_manager.templatetags import cm_workflows
from container_manager.workflows.graph import Graph

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)

DIAMOND = {"a": [], "b": ["a"], "c": ["a"], "d": ["b", "c", "a"]}


@pytest.mark.parametrize("module", [drawing, flow_pages, reports, cm_workflows])
def test_examples(module: object) -> None:
    result = doctest.testmod(module)  # type: ignore[arg-type]
    assert result.failed == 0
    assert result.attempted > 0


def places(edges: dict[str, list[str]]) -> dict[str, tuple[float, float]]:
    return {node.name: (node.x, node.y) for node in draw(Graph.of(edges)).nodes}


def seconds(count: float) -> datetime:
    return NOON + timedelta(seconds=count)


def test_a_task_stands_right_of_all_that_it_depends_on() -> None:
    at = places(DIAMOND)
    assert at["a"][0] + NODE_WIDTH < at["b"][0] == at["c"][0]
    assert at["b"][0] + NODE_WIDTH < at["d"][0]


def test_no_two_boxes_overlap_and_all_lie_in_the_picture() -> None:
    edges = {
        f"{layer}-{n}": [f"{layer - 1}-{n // 2}"] if layer else []
        for layer in range(4)
        for n in range(2**layer)
    }
    drawn = draw(Graph.of(edges))
    boxes = [(node.x, node.y) for node in drawn.nodes]
    assert len(boxes) == 15
    for number, (x, y) in enumerate(boxes):
        assert x >= 0 <= y
        assert x + NODE_WIDTH <= drawn.width
        assert y + NODE_HEIGHT <= drawn.height
        for other_x, other_y in boxes[number + 1 :]:
            assert x != other_x or abs(y - other_y) >= NODE_HEIGHT


def test_every_dependency_is_an_edge_from_the_one_box_to_the_other() -> None:
    drawn = draw(Graph.of(DIAMOND))
    assert {(edge.source, edge.target) for edge in drawn.edges} == {
        *(("a", "b"), ("a", "c"), ("a", "d"), ("b", "d"), ("c", "d")),
    }
    at = places(DIAMOND)
    path = next(edge.path for edge in drawn.edges if edge.target == "b")
    (x, y), (to_x, to_y) = at["a"], at["b"]
    assert path.startswith(f"M{x + NODE_WIDTH:g} {y + NODE_HEIGHT / 2:g}")
    assert path.endswith(f" {to_x:g} {to_y + NODE_HEIGHT / 2:g}")


def test_an_edge_over_several_layers_goes_around_the_boxes_between() -> None:
    edges = {"a": [], "b": ["a"], "c": ["b", "a"]}
    drawn = draw(Graph.of(edges))
    long = next(edge.path for edge in drawn.edges if (edge.source, edge.target) == ("a", "c"))
    assert long.count("C") == 3
    top = {node.name: node.y for node in drawn.nodes}["b"]
    through = float(long.split("C")[1].split()[-1])
    assert not top <= through <= top + NODE_HEIGHT


def test_neighbours_are_put_beside_each_other() -> None:
    at = places({"a": [], "b": [], "of_b": ["b"], "of_a": ["a"]})
    assert (at["a"][1] < at["b"][1]) == (at["of_a"][1] < at["of_b"][1])


def test_a_graph_of_very_many_long_edges_is_drawn_with_straight_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(drawing, "MOST_BENDS", 0)
    assert {edge.path.count("C") for edge in draw(Graph.of(DIAMOND)).edges} == {1}


def test_a_chart_shows_waiting_and_running_in_percent_of_the_whole() -> None:
    stretches = [
        Stretch("late", seconds(40), seconds(50), seconds(100)),
        Stretch("early", seconds(0), seconds(20), seconds(60)),
        Stretch("not yet", None, None, None),
    ]
    drawn = chart(stretches, NOON, seconds(1000))
    assert [bar.name for bar in drawn.bars] == ["early", "late"]
    assert [bar.y for bar in drawn.bars] == [0, drawing.ROW_HEIGHT]
    assert drawn.bars[0].waited == (0.0, 20.0)
    assert drawn.bars[0].ran == (20.0, 40.0)
    assert drawn.bars[1].ran == (50.0, 50.0)
    assert drawn.height == 2 * drawing.ROW_HEIGHT


def test_what_goes_on_ends_now_and_what_never_began_only_waited() -> None:
    stretches = [
        Stretch("running", None, seconds(0), None),
        Stretch("withdrawn", seconds(0), None, seconds(50)),
    ]
    running, withdrawn = chart(stretches, NOON, seconds(100)).bars
    assert running.ran == (0.0, 100.0)
    assert running.waited is None
    assert withdrawn.waited == (0.0, 50.0)
    assert withdrawn.ran is None


def test_what_took_no_time_at_the_end_is_seen_and_inside() -> None:
    drawn = chart(
        [
            Stretch("long", None, NOON, seconds(100)),
            Stretch("end", None, seconds(100), seconds(100)),
        ],
        *(NOON, seconds(100)),
    )
    left, width = drawn.bars[1].ran or (0, 0)
    assert width > 0
    assert left + width == 100


@pytest.mark.parametrize("whole", [0.0001, 0.5, 7, 65, 3600, 86400 * 40, 86400 * 365 * 90])
def test_a_scale_has_few_lines_that_lie_inside(whole: float) -> None:
    lines = chart([Stretch("one", None, NOON, seconds(whole))], NOON, NOON).lines
    assert 1 <= len(lines) <= drawing.MOST_LINES + 1
    assert lines[0] == (0.0, 0)
    assert all(0 <= left <= 100 for left, _ in lines)


def test_nothing_is_a_chart_without_bars() -> None:
    assert chart([], NOON, NOON).bars == []
    assert draw(Graph.of({})).nodes == []
