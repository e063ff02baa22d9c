"""The entry point: Django first, then everything that needs it."""

from __future__ import annotations

import os
import sys

import django


def main() -> int:
    os.environ["DJANGO_SETTINGS_MODULE"] = "tests.settings"
    django.setup()
    from tests.fuzz.run import run

    return run()


if __name__ == "__main__":
    sys.exit(main())
