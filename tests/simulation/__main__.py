"""Simulated worlds by seed; a red one prints what happened in it.

python -m tests.simulation --runs 200             fresh seeds
python -m tests.simulation --seed 17 --story      one world, step by step
python -m tests.simulation --for 20               as many as fit into so many seconds
"""

from __future__ import annotations

import argparse
import logging
import os
import random
import sys
import time
from typing import Any

STORY_LINES = 60


def main() -> int:
    given = _arguments()
    if os.environ.get("PYTHONHASHSEED") != "0":  # the order of a set of words is a choice, too
        environment = {**os.environ, "PYTHONHASHSEED": "0"}
        os.execve(  # noqa: S606
            sys.executable,
            [sys.executable, "-W", "ignore", "-m", "tests.simulation", *sys.argv[1:]],
            environment,
        )
    return _simulate(given)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seed", type=int, help="the first seed; a fresh one when left out")
    parser.add_argument("--seeds", default="", help="these, separated by commas")
    parser.add_argument("--runs", type=int, default=1, help="so many worlds, seed after seed")
    parser.add_argument("--steps", type=int, help="steps in which faults happen")
    parser.add_argument("--for", type=float, dest="seconds", help="stop after so many seconds")
    parser.add_argument("--story", action="store_true", help="print every step")
    parser.add_argument("--twice", action="store_true", help="run each twice and compare")
    return parser.parse_args()


def _seeds(given: argparse.Namespace) -> list[int]:
    if given.seeds:
        return [int(seed) for seed in given.seeds.split(",")]
    first = given.seed if given.seed is not None else random.randrange(10**9)
    return list(range(first, first + (10**6 if given.seconds else given.runs)))


def _simulate(given: argparse.Namespace) -> int:
    os.environ.update(DJANGO_SETTINGS_MODULE="tests.settings", DATABASE_URL="sqlite://:memory:")
    import django

    django.setup()
    logging.disable(logging.CRITICAL)
    from tests.simulation.database import empty_database
    from tests.simulation.run import STEPS, Simulation, Verdict

    template, steps = empty_database(), given.steps or STEPS
    ends_at = time.monotonic() + (given.seconds or 10**9)
    red, done, faults = 0, 0, 0
    for seed in _seeds(given):
        if time.monotonic() > ends_at:
            break
        verdict = Simulation(seed, template, steps).run()
        done, faults = done + 1, faults + len(verdict.faults)
        if given.twice:
            again: Verdict = Simulation(seed, template, steps).run()
            if again.trace != verdict.trace:
                verdict.wrongs.append("the same seed went another way")
                _show_where(verdict.story, again.story)
        red += bool(verdict.wrongs)
        _tell(verdict, given.story)
    print(f"{done} worlds, {faults} faults, {red} red")
    return 1 if red else 0


def _tell(verdict: Any, story: bool) -> None:
    if story or verdict.wrongs:
        for line in verdict.story if story else verdict.story[-STORY_LINES:]:
            print("   ", line)
    if verdict.wrongs:
        print(*(f"  fault {fault}" for fault in verdict.faults), sep="\n")
        print(*(f"  WRONG {wrong}" for wrong in verdict.wrongs), sep="\n")
    print(
        f"seed {verdict.seed}: {verdict.steps} steps, {verdict.seconds:.0f} s,"
        f" {len(verdict.faults)} faults, {verdict.statuses}, {verdict.trace[:12]}"
    )


def _show_where(one: list[str], other: list[str]) -> None:
    for number, (left, right) in enumerate(zip(one, other, strict=False)):
        if left != right:
            for line in one[max(0, number - 5) : number]:
                print("    same", line)
            print(f"    step {number}: {left!r} and {right!r}")
            return


if __name__ == "__main__":
    sys.exit(main())
