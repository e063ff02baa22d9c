"""The examples in the docstrings of reports and logs are true."""

from __future__ import annotations

import doctest

import pytest

from container_manager.api import logs
from container_manager.reports import activity, explanation, log_pages


@pytest.mark.parametrize("module", [activity, explanation, log_pages, logs])
def test_examples_are_true(module):
    found = doctest.testmod(module)
    assert found.attempted > 0
    assert found.failed == 0
