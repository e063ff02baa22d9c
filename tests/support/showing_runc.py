"""Stands in for runc: each new container sees some paths of the machine where the machine has them.

python showing_runc.py RUNC PATH[:ro]... -- ARGUMENTS OF RUNC
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any


def main() -> None:
    split = sys.argv.index("--")
    (runc, *paths), arguments = sys.argv[1:split], sys.argv[split + 1 :]
    if "--bundle" in arguments:
        _show(paths, Path(arguments[arguments.index("--bundle") + 1], "config.json"))
    os.execv(runc, ["runc", *arguments])  # noqa: S606


def _show(paths: list[str], config: Path) -> None:
    """Last, so that no mount of the container's own lies above them."""
    container = json.loads(config.read_text())
    container["mounts"] += map(_mount, paths)
    config.write_text(json.dumps(container))


def _mount(path: str) -> dict[str, Any]:
    place, _, mode = path.partition(":")
    options = ["rbind", mode or "rw"]
    return {"destination": place, "source": place, "type": "bind", "options": options}


if __name__ == "__main__":
    main()
