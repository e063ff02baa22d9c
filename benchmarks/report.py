"""The table of a run, its JSON, and its place in the docs."""

from __future__ import annotations

import json
import re
from pathlib import Path
from statistics import median
from typing import Any

MIB = 1024 * 1024


def markdown(results: dict[str, Any]) -> str:
    """Medians over the rounds; ratios are taken inside each round, against the baseline."""
    postgresql = results["machine"]["postgresql"]
    lines = [
        f"{results['jobs']:,} jobs, {results['rounds']} interleaved rounds,"
        f" {results['machine']['cores']} cores, Python {results['machine']['python']},"
        f" Django {results['machine']['django']}, PostgreSQL {postgresql['server_version']}"
        f" (fsync={postgresql['fsync']}, synchronous_commit={postgresql['synchronous_commit']});"
        f" concurrency: {', '.join(f'{k} {v}' for k, v in results['concurrency'].items())}.",
        "",
        "| | jobs/s, median | lowest to highest | ratio, median | lowest to highest |"
        " worker's memory at the first claim | at the last end |",
        "|---|---:|---:|---:|---:|---:|---:|",
        *(_row(name, rounds, results) for name, rounds in results["contestants"].items()),
    ]
    return "\n".join(lines)


def _row(name: str, rounds: list[dict[str, Any]], results: dict[str, Any]) -> str:
    baseline = results["contestants"][results["baseline"]]
    speeds = [each["per_second"] for each in rounds]
    ratios = [
        each["per_second"] / other["per_second"]
        for each, other in zip(rounds, baseline, strict=True)
    ]
    memory = [
        f"{median(each[key] for each in rounds) / MIB:.0f} MiB"
        for key in ("rss_at_first_claim", "rss_at_last_end")
    ]
    cells = [
        name,
        f"{median(speeds):,.0f}",
        f"{min(speeds):,.0f} to {max(speeds):,.0f}",
        f"{median(ratios):.1f}",
        f"{min(ratios):.1f} to {max(ratios):.1f}",
        *memory,
    ]
    return f"| {' | '.join(cells)} |"


def write_json(results: dict[str, Any], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=2) + "\n")


def write_docs(path: Path, workload: str, table: str) -> None:
    """Replace what stands between the markers of this workload."""
    begin, end = f"<!-- {workload}: begin -->", f"<!-- {workload}: end -->"
    pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    text = path.read_text()
    path.write_text(pattern.sub(lambda _: f"{begin}\n{table}\n{end}", text))
