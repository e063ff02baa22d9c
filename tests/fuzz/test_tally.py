from __future__ import annotations

import json

import pytest

from tests.fuzz.tally import Tally


def tally_of(**statuses: list[int]) -> Tally:
    tally = Tally()
    for name, answers in statuses.items():
        lines = [{"operation": f"GET /api/v1/{name}/", "status": status} for status in answers]
        tally.add(json.dumps(line) for line in lines)
    return tally


def test_nothing_is_wanting_where_every_operation_answered_and_enough_were_good() -> None:
    assert tally_of(jobs=[200, 201, 404], queues=[200, 400]).wanting(5) == []


@pytest.mark.parametrize(
    ("answers", "wanted", "told"),
    [
        ([200, 200], 3, "2 cases, fewer than 3"),
        ([200, 404, 404], 3, "33% of the cases ended in 2xx, less than 40%"),
        ([200, 200, 500], 3, "1 server errors"),
    ],
)
def test_what_is_wanting_is_told(answers: list[int], wanted: int, told: str) -> None:
    assert tally_of(jobs=answers).wanting(wanted) == [told]


def test_an_operation_that_never_answered_well_was_not_tested() -> None:
    tally = tally_of(jobs=[200, 200, 200], workers=[403])
    assert tally.wanting(4) == ["never answered with 2xx: GET /api/v1/workers/"]


def test_a_traceback_in_the_log_is_a_failure_whatever_was_answered() -> None:
    tally = tally_of(jobs=[200])
    tally.tracebacks.append("Traceback (most recent call last):")
    assert tally.wanting(1) == ["1 tracebacks in the server's log"]


def test_the_table_fits_a_terminal() -> None:
    long = {"jobs/{id}/logs/raw": [200, 206, 304], "auth/logout-all": [500]}
    assert max(map(len, tally_of(**long).table().splitlines())) <= 80
