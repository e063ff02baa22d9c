"""The browser of the browser tests: is there one?"""

from __future__ import annotations

import os
import shutil

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]


def path() -> str:
    """The program itself, empty when there is none; CHROMIUM may name one."""
    given = os.environ.get("CHROMIUM", "")
    return given or next((found for name in NAMES if (found := shutil.which(name))), "")


def why_not() -> str:
    """Empty when there is a browser, else one sentence that says what is missing."""
    if path():
        return ""
    return "NO CHROMIUM: install the package `chromium`, or name the program in CHROMIUM"
