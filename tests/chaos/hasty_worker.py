"""run_worker that looks for remains often, so that a small run need not wait a minute for it.

python -m tests.chaos.hasty_worker 3 --concurrency 8
"""

from __future__ import annotations

import sys
from datetime import timedelta

import django
from django.core.management import call_command


def main() -> None:
    seconds = float(sys.argv[1])
    django.setup()
    from container_manager.worker.reaper import Reaper

    Reaper.EVERY_SECONDS = seconds
    Reaper.AFTER = timedelta(seconds=2 * seconds)
    call_command("run_worker", *sys.argv[2:])


if __name__ == "__main__":
    main()
