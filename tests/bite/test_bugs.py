"""The planted bugs can still be planted, and the tests that shall catch them are there."""

from __future__ import annotations

import ast

import pytest

from tests.bite.__main__ import ROOT
from tests.bite.bugs import BUGS, PACKAGE

each_bug = pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)


@each_bug
def test_its_text_occurs_exactly_once(bug):
    assert (ROOT / PACKAGE / bug.file).read_text().count(bug.old) == 1


@each_bug
def test_what_is_planted_is_still_python(bug):
    planted = (ROOT / PACKAGE / bug.file).read_text().replace(bug.old, bug.new)
    assert bug.old != bug.new
    ast.parse(planted)


@each_bug
def test_the_tests_that_shall_catch_it_are_there(bug):
    assert all((ROOT / test.partition("::")[0]).exists() for test in bug.tests)


def test_there_are_some_in_all_parts_of_the_machinery():
    parts = {bug.file.rpartition("/")[0] for bug in BUGS}
    assert len({bug.name for bug in BUGS}) == 26
    assert parts == {"", "models", "worker", "executors", "events"}
