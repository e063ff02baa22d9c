"""Issue item 7: the job's life by model, on the database of this run.

`HYPOTHESIS_PROFILE=long pytest tests/model` searches for minutes instead of seconds, and looks for
the shortest life that goes wrong. The small search prints a blob with which it can be done again.
"""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.model.machine import JobMachine

SMALL = settings(
    max_examples=20,
    stateful_step_count=40,
    deadline=None,
    print_blob=True,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
)
PROFILES = {
    "small": SMALL,
    "long": settings(SMALL, max_examples=2_000, stateful_step_count=80, phases=list(Phase)),
}


@pytest.mark.django_db
def test_whatever_people_workers_and_faults_do_the_records_are_what_the_model_says():
    profile = PROFILES[os.environ.get("HYPOTHESIS_PROFILE", "small")]
    run_state_machine_as_test(JobMachine, settings=profile)
