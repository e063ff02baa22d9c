"""From text to a document."""

from __future__ import annotations

import doctest
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from container_manager.exceptions import SpecError
from container_manager.workflows import documents
from container_manager.workflows.documents import MAX_BYTES, MAX_DEPTH, is_too_deep, lines, read


def refused(text):
    with pytest.raises(SpecError) as error:
        read(text)
    (problem,) = error.value.problems
    assert error.value.code == "invalid_dag"
    return problem


def aliases(widths):
    """Lists of lists: each as many times the one before it."""
    names = "abcdefghij"
    rows = [f"{names[0]}: &{names[0]} x"]
    for name, before, width in zip(names[1:], names, widths, strict=False):
        rows.append(f"{name}: &{name} [{', '.join([f'*{before}'] * width)}]")
    return "\n".join(rows)


def test_the_examples_in_the_documentation_are_true():
    assert doctest.testmod(documents).failed == 0
    assert doctest.testmod(documents).attempted > 0


def test_yaml_and_json_say_the_same():
    document = {"a": [1, -2.5, "x", None, True], "b": {"c": {}, "d": []}, "e": "ä\n{{ ds }}"}
    as_yaml = 'a: [1, -2.5, x, ~, true]\nb:\n  c: {}\n  d: []\ne: "ä\\n{{ ds }}"\n'
    assert read(as_yaml) == read(json.dumps(document)) == read(json.dumps(document).encode())
    assert read(as_yaml) == document
    assert read("\ufeff" + as_yaml) == document


@pytest.mark.parametrize(
    ("word", "value"),
    [
        *[(word, None) for word in ("", "~", "null")],
        *[("true", True), ("False", False)],
        *[(word, word) for word in ("yes", "no", "on", "off", "y", "2026-01-01", "12:30:00")],
        *[("2026-01-01T02:00:00Z",) * 2, ("1_000",) * 2, ("-x",) * 2, ("1.2.3",) * 2, ("<<",) * 2],
        *[("7", 7), ("-7", -7), ("007", 7), ("0x1F", 31), ("0o17", 15)],
        *[("0.5", 0.5), (".5", 0.5), ("1e3", 1000.0), ("'7'", "7"), ('"true"', "true")],
        *[("!!str 7", "7"), ("! 7", "7"), ("!!map {b: 1}", {"b": 1}), ("!!seq [1]", [1])],
    ],
)
def test_plain_words_are_read_by_the_core_schema(word, value):
    assert read(f"a: {word}") == {"a": value}
    assert type(read(f"a: {word}")["a"]) is type(value)


def test_a_key_is_a_string_as_it_is_written():
    assert read("1: a\ntrue: b\n~: c\n'x': d") == {"1": "a", "true": "b", "~": "c", "x": "d"}


def test_an_alias_is_what_it_names():
    assert read("a: &x {k: 1}\nb: [*x, *x]\n&n c: *n") == {
        "a": {"k": 1},
        "b": [{"k": 1}, {"k": 1}],
        "c": "c",
    }


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("", None, "must be a mapping"),
        ("- a", None, "must be a mapping"),
        ("just words", None, "must be a mapping"),
        ("a: 1\nb: 2\na: 3", 3, "'a' is given twice"),
        ('{"a": 1,\n "a": 2}', 2, "'a' is given twice"),
        ("a:\n  b: 1\n  c: 2\n  b: 3", 4, "'b' is given twice"),
        ("a: 1\n---\nb: 2", 2, "one document"),
        ("a: 1\n---", 2, "one document"),
        ("a: .nan", 1, "not a finite number"),
        ("a: 1\nb: -.inf", 2, "not a finite number"),
        ("a: 1e999", 1, "not a finite number"),
        ('{"a": NaN}', None, "not a finite number"),
        ('{"a": 1e999}', None, "not a finite number"),
        (f"a: {'9' * 5_000}", 1, "too many digits"),
        (f'{{"a": {"9" * 5_000}}}', 1, "too many digits"),
        ("a: 1\nb: !!python/object/apply:os.system [ls]", 2, "python/object/apply:os.system"),
        ("!!python/object:os.x {a: 1}", 1, "python/object:os.x"),
        ("a: !!binary aGk=", 1, "'binary' is not allowed"),
        ("a: !!timestamp 2026-01-01", 1, "'timestamp' is not allowed"),
        ("a: !own x", 1, "'!own' is not allowed"),
        ("!own a: x", 1, "'!own' is not allowed"),
        ("a: *b", 1, "*b names nothing that stands before"),
        ("a: &x [*x]", 1, "*x names nothing that stands before"),
        ("? [a]\n: b", 1, "a key must be a string"),
        ("? &m {a: 1}\n: b", 1, "a key must be a string"),
        ("a: &x [1]\n*x : 2", 2, "a key must be a string"),
        ("a: [1,\n 2: }", 2, "not valid YAML"),
        ("a: 1\n\tb: 2", 2, "not valid YAML"),
        ('{"a": 1} trailing', 1, "not valid YAML"),
        ("a: \x01", None, "not valid YAML"),
        ("a: b\0c", None, "NUL"),
        ("a: \ud800", None, "UTF-8"),
        (b"a: \xff", None, "UTF-8"),
        ("a: " + "x" * MAX_BYTES, None, "longer than 2 MiB"),
        ("ä" * (MAX_BYTES // 2 + 1), None, "longer than 2 MiB"),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_what_is_no_document_is_refused_with_its_line(text, line, message):
    problem = refused(text)
    assert message.lower() in problem.message.lower()
    assert problem.line == line


def test_the_place_of_a_mistake_in_the_text_is_named():
    problem = refused("tasks:\n  a:\n    b: [x, {c: !own 1}]")
    assert problem.path == "tasks.a.b[1].c"
    assert str(problem).startswith("line 3: tasks.a.b[1].c: The tag")


@pytest.mark.parametrize("before", ["", "# not JSON\n"])
def test_fifty_deep_is_read_and_no_deeper(before):
    inner = MAX_DEPTH - 1
    deep = before + '{"a": ' + "[" * inner + "1" + "]" * inner + "}"
    assert not is_too_deep(read(deep))
    deeper = deep.replace("1", "[]")
    assert "deeper than 50" in refused(deeper).message


@pytest.mark.parametrize("nest", ["[", "- ", "{a: ", '{"a":'])
def test_a_hundred_thousand_deep_is_refused_as_well(nest):
    assert "deeper than 50" in refused(nest * 300_000).message


def test_aliases_may_add_so_much_and_no_more():
    assert len(read(aliases([10, 10, 10]))["d"]) == 10
    problem = refused(aliases([10] * 9))
    assert (problem.line, problem.message) == (6, "Its aliases make too much of it.")


def test_one_long_text_is_not_multiplied_either():
    text = f"a: &a {'x' * 100_000}\nb: [{', '.join(['*a'] * 100)}]"
    assert refused(text).message == "Its aliases make too much of it."


def test_every_value_knows_its_line():
    text = "a: 1\nb:\n  - x\n  - y: 2\n    z: [p,\n       q]\n"
    assert lines(text) == {
        ("a",): 1,
        ("b",): 2,
        ("b", 0): 3,
        ("b", 1): 4,
        ("b", 1, "y"): 4,
        ("b", 1, "z"): 5,
        ("b", 1, "z", 0): 5,
        ("b", 1, "z", 1): 6,
    }
    assert lines('{"a": 1,\n "b": [{}]}') == {("a",): 1, ("b",): 2, ("b", 0): 2}


def test_lines_are_told_as_far_as_the_text_can_be_read():
    assert lines("a: 1\nb: [") == {("a",): 1, ("b",): 2}
    assert lines("a: \ud800") == {}


YAMLISH = st.text("ab:-[]{},&*!'\"|>?%#@ \n\t~01.", max_size=60)


@settings(max_examples=50, deadline=None)
@given(st.one_of(st.text(), YAMLISH, st.binary()))
def test_whatever_is_written_is_a_document_or_refused(text):
    try:
        document = read(text)
    except SpecError as error:
        assert error.problems  # noqa: PT017
        return
    assert isinstance(document, dict)
    json.dumps(document, allow_nan=False)
