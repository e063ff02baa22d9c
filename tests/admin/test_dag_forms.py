"""The document of a DAG as YAML."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from container_manager.admin.dag_forms import AS_PROCESSES, EXAMPLE, IN_CONTAINERS, as_yaml
from container_manager.workflows.spec import read, validate
from tests.workflows.driving import task

NASTY = [
    *("1e5", "0o17", "0x1f", "12:30", "2026-01-01", "yes", "on", "null", "~", "true", "", " "),
    *("a: b", "# no comment", "{{ x }}", "- a", "*a", "&a", "!tag", "'", '"', "\\", "a\tb"),
    *("two\nlines", "trailing \n", "\n\nlead", "  indented\n end", "é→😀", "@x", "%x", "|", ">"),
    *("+1", ".5", "-", "...", "---", "=", "<<", "[", "a,b", "x" * 3000, "\x85", "\u2028", "\x07"),
]


@pytest.mark.parametrize("text", NASTY)
def test_a_string_stays_that_string(text: str) -> None:
    document = {"a": text, "b": [text, "x"], "c": {text or "k": {"d": text}}}
    assert read(as_yaml({"x": document})) == {"x": document}


@given(
    st.recursive(
        st.one_of(
            st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")),
            *(st.integers(-(2**63), 2**63), st.floats(allow_nan=False, allow_infinity=False)),
            st.booleans(),
        ),
        lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(NASTY), inner),
        max_leaves=10,
    )
)
def test_whatever_is_stored_is_read_back_as_it_was(value: Any) -> None:
    assert read(as_yaml({"x": {"y": value}})) == {"x": {"y": value}}


def test_a_dag_that_is_written_back_is_the_same_dag() -> None:
    spec = validate(
        {
            "name": "all",
            "description": "Two\nlines",
            "schedule": "0 2 * * *",
            "start_date": "2026-01-01",
            "tags": {"team": "data"},
            "params": {"A": "1"},
            "defaults": {"executor": "process", "environment": {"X": "0123"}},
            "tasks": {"a": task(cpu_limit=0.5), "b": task("a", array=3, skip_exit_codes=[9])},
        }
    )
    assert validate(read(as_yaml(spec.document()))) == spec


@pytest.mark.parametrize("defaults", [IN_CONTAINERS, AS_PROCESSES])
def test_the_example_is_a_dag(defaults: str) -> None:
    spec = validate(read(EXAMPLE.format(name="example", defaults=defaults)))
    assert list(spec.tasks) == ["extract", "transform", "notify"]
