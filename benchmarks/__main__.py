"""python -m benchmarks WORKLOAD [--rounds 5] [--jobs 20000] [--docs]"""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path

from benchmarks import drain, events, listing, memory, report, rescue, stats, streams, workflow

ROOT = Path(__file__).resolve().parent.parent
WORKLOADS = {
    "drain": (drain.run, report.markdown),
    "events": (events.run, events.markdown),
    "list": (listing.run, listing.markdown),
    "stats": (stats.run, stats.markdown),
    "memory": (memory.run, memory.markdown),
    "rescue": (rescue.run, rescue.markdown),
    "streams": (streams.run, streams.markdown),
    "workflow": (workflow.run, workflow.markdown),
}
"""How each is run, and how its table is made."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("workload", choices=sorted(WORKLOADS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=20_000)
    parser.add_argument("--concurrency", type=int, default=400, help="of our worker")
    parser.add_argument("--json", type=Path, help="default: benchmarks/results/<workload>.json")
    parser.add_argument(
        "--docs", action="store_true", help="put the table into docs/performance.md"
    )
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what was started ends first
    run, markdown = WORKLOADS[given.workload]
    results = run(given.rounds, given.jobs, given.concurrency)
    report.write_json(results, given.json or ROOT / f"benchmarks/results/{given.workload}.json")
    table = markdown(results)
    print(table)
    if given.docs:
        report.write_docs(ROOT / "docs/performance.md", given.workload, table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
