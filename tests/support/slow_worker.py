"""run_worker with random pauses between the steps of a claim.

python -m tests.support.slow_worker 0.02 --until-idle
"""

from __future__ import annotations

import random
import sys
import time

import django
from django.core.management import call_command

from container_manager import faults

STEPS = ("C1", "C2", "C3")


def main() -> None:
    longest = float(sys.argv[1])

    def pause(point: str) -> None:
        if point in STEPS:
            time.sleep(random.uniform(0, longest))

    django.setup()
    faults.on_reach = pause
    call_command("run_worker", *sys.argv[2:])


if __name__ == "__main__":
    main()
