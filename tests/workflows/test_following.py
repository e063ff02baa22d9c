"""How a task follows its job, as a table; and that each step is one of the state table."""

from __future__ import annotations

import re
from itertools import pairwise, product

import pytest

from container_manager.states import LAUNCHED, WORKFLOW, JobStatus, WorkflowState
from container_manager.workflows.following import JobNow, counts_as, moves, outcome_of_run

#    task        try  job                       skips   the states that it goes through
TABLE = """
queued      0    queued 0                  -       -
queued      0    running 1                 -       running
queued      0    completed 1 0             -       running success
queued      0    failed 1 1                -       running failed
queued      0    failed 1 99               99      running success
queued      0    failed 1 99               1       running failed
queued      0    retrying 1 1              -       running retrying
queued      0    queued 1 1                -       running retrying
queued      0    running 3                 -       running
queued      0    cancelled 0               -       failed
queued      0    killed 1 137              -       running failed
running     1    running 1                 -       -
running     1    completed 1 0             -       success
running     1    failed 1 2                -       failed
running     1    retrying 1 2              -       retrying
running     1    queued 1                  -       retrying
running     1    running 2                 -       retrying running
running     1    completed 2 0             -       retrying running success
running     1    retrying 2 1              -       retrying running retrying
running     1    cancelled 1               -       failed
retrying    1    retrying 1                -       -
retrying    1    queued 1                  -       -
retrying    1    running 2                 -       running
retrying    1    completed 2 0             -       running success
retrying    1    failed 2 1                -       running failed
retrying    1    cancelled 1               -       failed
retrying    1    killed 1                  -       failed
retrying    0    running 1                 -       running
retrying    0    queued 0                  -       -
queued      0    gone                      -       failed
running     1    gone                      -       failed
retrying    1    gone                      -       failed
"""


ROWS = [re.split(r"\s{2,}", line) for line in TABLE.strip().splitlines()]


@pytest.mark.parametrize(("state", "tries", "job", "skips", "path"), ROWS)
def test_a_task_goes_where_its_job_is(state, tries, job, skips, path):
    now = None
    if job != "gone":
        status, *numbers = job.split()
        now = JobNow(status, *map(int, numbers))
    codes = [int(skips)] if skips != "-" else []
    wanted = [] if path == "-" else path.split()
    assert list(moves(state, int(tries), now, codes)) == wanted


def test_no_step_is_one_that_the_table_of_states_does_not_have():
    for state, tries, status, attempt in product(
        ("queued", "running", "retrying"), range(3), JobStatus, range(4)
    ):
        if (state == "queued") != (tries == 0) or attempt < tries:
            continue
        if not attempt and status in LAUNCHED:
            continue  # no such job
        path = moves(state, tries, JobNow(status, attempt, 1))
        for old, new in pairwise([state, *path]):
            assert WORKFLOW.can_transition(old, new), (state, tries, status, attempt, path)


@pytest.mark.parametrize("state", WorkflowState)
def test_only_a_success_that_says_skip_counts_as_skipped(state):
    assert counts_as(state, "") == state
    assert counts_as(state, "skip") == ("skipped" if state == "success" else state)


@pytest.mark.parametrize(
    ("counts", "cancelled", "outcome"),
    [
        ({"success": 2}, False, ("success", "")),
        ({"success": 1, "skipped": 1}, False, ("success", "")),
        ({"skipped": 3}, False, ("success", "")),
        ({"success": 9, "failed": 1}, False, ("failed", "task_failed")),
        ({"success": 9, "upstream_failed": 1}, False, ("failed", "task_failed")),
        ({"success": 1, "skipped": 1}, True, ("failed", "cancelled")),
    ],
)
def test_a_run_with_a_failed_task_is_failed(counts, cancelled, outcome):
    assert outcome_of_run(counts, cancelled=cancelled) == outcome
