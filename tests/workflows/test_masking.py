"""Documents as they are shown, and as they come back."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from container_manager.workflows.masking import masked, unmasked

STORED: dict[str, Any] = {
    "name": "etl",
    "params": {"DAY": "monday"},
    "defaults": {"environment": {"TOKEN": "t"}},
    "tasks": {"a": {"environment": {"KEY": "k", "EMPTY": ""}}, "b": {"command": ["x"]}},
}


def test_only_the_values_of_environments_are_masked():
    assert masked(STORED) == {
        "name": "etl",
        "params": {"DAY": "monday"},
        "defaults": {"environment": {"TOKEN": "***"}},
        "tasks": {
            "a": {"environment": {"KEY": "***", "EMPTY": "***"}},
            "b": {"command": ["x"]},
        },
    }


def test_what_was_masked_comes_back_as_it_was():
    before = copy.deepcopy(STORED)
    assert unmasked(masked(STORED), STORED) == STORED == before


def test_a_value_that_is_new_is_taken_and_a_mask_without_one_stays():
    given = {"tasks": {"a": {"environment": {"KEY": "new"}}, "b": {"environment": {"KEY": "***"}}}}
    assert unmasked(given, STORED) == given


def test_a_mask_means_the_value_of_the_same_task_only():
    given = {
        "defaults": {"environment": {"KEY": "***"}},
        "tasks": {"c": {"environment": {"TOKEN": "***"}}},
    }
    assert unmasked(given, STORED) == given


@pytest.mark.parametrize(
    "given",
    [
        *({}, {"tasks": []}, {"tasks": {"a": 1}}, {"defaults": "x"}, {"tasks": None}),
        *({"tasks": {"a": {"environment": ["KEY"]}}}, {"defaults": {"environment": None}}),
        {"tasks": {"a": {"environment": {"KEY": ["***"], "OTHER": None}}}},
    ],
)
def test_what_is_not_of_the_right_type_is_left_as_it_is(given):
    assert unmasked(given, STORED) == given
    assert unmasked(masked(STORED), given).keys() == STORED.keys()
