from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from container_manager.executors.base import Executor
from container_manager.executors.process import ProcessExecutor
from container_manager.states import Reason
from tests.executors.contract import ExecutorContract, MakeSpec, finish


@pytest.fixture
def executor(tmp_path: Path) -> Iterator[ProcessExecutor]:
    executor = ProcessExecutor(tmp_path / "state", durable=False)
    yield executor
    executor.close()


class TestContract(ExecutorContract):
    given_environment = ExecutorContract.given_environment | {"CM_EXECUTION"}

    def test_a_job_that_needs_too_much_memory_is_told_so(
        self, executor: Executor, make_spec: MakeSpec
    ) -> None:
        """Its allocation fails; what it makes of that is its own affair."""
        spec = make_spec(
            "head -c 400000000 /dev/zero | tail -c 300000000 >/dev/null", memory_limit_mb=32
        )

        run = finish(executor, spec)

        assert (run.outcome.exit_code, run.outcome.reason) == (1, Reason.EXIT_CODE)
        assert b"memory" in run.stderr
