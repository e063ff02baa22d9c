"""What a measure beside a peer says where the peer could not be had, and of older results."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

import pytest

from tests.support.workers import wait_until

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # the PostgreSQL for measures warns when imported
    from benchmarks import workflow
    from benchmarks.peers import airflow

PARTS = {
    "validate_yaml": [1.0],
    "validate": [0.5],
    "validate_deep": [0.1],
    "create": [2.0],
    "queries": {"100": [27], "10000": [27]},
}


def results(**more: Any) -> dict[str, Any]:
    postgresql = {"server_version": "18.4"}
    machine = {"cores": 2, "python": "3.11.7", "django": "5.2.19", "postgresql": postgresql}
    return {"machine": machine, "drains": [4.0], "flows": [6.0], "parts": PARTS, **more}


def row(table: str, beginning: str) -> list[str]:
    """The cells of the one row that begins so."""
    [found] = [line for line in table.splitlines() if line.startswith(f"| {beginning}")]
    return [cell.strip() for cell in found.strip("|").split("|")]


def test_the_peer_of_the_same_run_stands_beside_the_historic_one() -> None:
    peer = {"tasks": 1000, "seconds": 120.0, "tasks_per_minute": 500.0, "version": "3.3.2"}
    table = workflow.markdown(results(airflow=peer))
    assert row(table, "tasks per minute / Airflow's 358")[1] == "28"
    assert row(table, "tasks per minute / Airflow 3.3.2's here")[1] == "20.0"
    assert row(table, "Airflow 3.3.2's here, tasks per minute")[1] == "500"


@pytest.mark.parametrize("more", [{}, {"airflow": {"not_measured": "no network"}}])
def test_a_peer_without_a_number_is_said_to_be_not_measured(more: dict[str, Any]) -> None:
    table = workflow.markdown(results(**more))
    assert row(table, "tasks per minute / Airflow's here")[1] == "**NOT MEASURED**"
    assert row(table, "tasks per minute / Airflow's 358")[1] == "28"


def test_a_peer_that_cannot_be_installed_is_no_end_of_the_measure(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AIRFLOW_VENV", str(tmp_path))
    result = workflow._airflow(workflow.Server("nowhere"))
    assert str(tmp_path) in result["not_measured"]
    assert "AIRFLOW WAS NOT MEASURED" in capsys.readouterr().out


def test_a_process_of_the_peer_ends_with_all_that_it_started(tmp_path: Path) -> None:
    """Also what it put into a process group of its own."""
    begin = (
        "import os, subprocess, sys, time\n"
        "child = subprocess.Popen(['sleep', '60'], process_group=0)\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    given = {"AIRFLOW_HOME": str(tmp_path)}
    with airflow._process([sys.executable, "-c", begin], given, "scheduler") as process:
        log = tmp_path / "scheduler.log"
        child = wait_until(lambda: log.read_text().partition("\n")[0])
    assert process.poll() is not None
    wait_until(lambda: not _lives(int(child)))


def _lives(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
