"""Plants, runs, tells."""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests import bite as package
from tests.bite.bugs import BUGS, PACKAGE, Bug

ROOT = Path(__file__).resolve().parents[2]
LEFT_BEHIND = shutil.ignore_patterns(
    ".git", ".venv*", "var", "*.sqlite3*", "__pycache__", ".*_cache", ".hypothesis"
)
MOST_UNNOTICED = 1
LONGEST_SECONDS = 900
FAILED = re.compile(r"^FAILED (\S+?::.+?)(?: - |$)", re.MULTILINE)
NO_TEST_FAILED = "-"


@contextmanager
def copy_of_the_tree() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="cm-bite-") as directory:
        copy = Path(directory) / "tree"
        shutil.copytree(ROOT, copy, ignore=LEFT_BEHIND)
        (copy / ".venv").symlink_to(ROOT / ".venv")
        yield copy


@contextmanager
def planted(bug: Bug, copy: Path) -> Iterator[None]:
    file = copy / PACKAGE / bug.file
    sound = file.read_text()
    assert sound.count(bug.old) == 1, f"{bug.name}: its text is not once in {bug.file}"
    file.write_text(sound.replace(bug.old, bug.new))
    try:
        yield
    finally:
        file.write_text(sound)


def run(bug: Bug, copy: Path, tests: Sequence[str]) -> tuple[int, str]:
    """The exit code of pytest and what it said."""
    on = ["-m", "tests.services", bug.on, "--", sys.executable] if bug.on != "sqlite" else []
    options = ["-q", "-x", "-p", "no:cacheprovider", "-p", "no:randomly"]
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", *on, "-m", "pytest", *options, *tests],
        cwd=copy,
        env={**os.environ, "DEBUG": "on", "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=LONGEST_SECONDS,
        check=False,
    )
    return ran.returncode, ran.stdout


def caught_by(bug: Bug, copy: Path) -> str:
    """The test that fails with the bug and passes without it."""
    words = ["-k", bug.words] if bug.words else []
    with planted(bug, copy):
        code, said = run(bug, copy, [*words, *bug.tests])
    if code == 0:
        return NO_TEST_FAILED
    failed = FAILED.search(said)
    if code != 1 or failed is None:
        raise SystemExit(f"bite: {bug.name}: the tests could not run\n{said[-3_000:]}")
    code, said = run(bug, copy, [failed[1]])
    if code:
        raise SystemExit(f"bite: {failed[1]} fails without any bug\n{said[-3_000:]}")
    return failed[1]


def table(caught: dict[Bug, str]) -> str:
    lines = ["| in | the bug | caught by |", "|---|---|---|"]
    for bug, test in caught.items():
        by = "**nothing**" if test == NO_TEST_FAILED else f"`{_short(test)}`"
        lines.append(f"| `{bug.file}` | {bug.told} | {by} |")
    return "\n".join(lines)


def _short(test: str) -> str:
    """File and name, without directories, class and parameters."""
    file, *_, name = test.partition("[")[0].split("::")
    return f"{Path(file).name}::{name}"


def write_docs(path: Path, made: str) -> None:
    """Replace what stands between the markers."""
    begin, end = "<!-- bite: begin -->", "<!-- bite: end -->"
    before, _, rest = path.read_text().partition(begin)
    _, found, after = rest.partition(end)
    if not found:
        raise SystemExit(f"bite: {path} has no place {begin} … {end}")
    path.write_text(f"{before}{begin}\n{made}\n{end}{after}")


def main() -> int:
    parser = argparse.ArgumentParser("python -m tests.bite", description=package.__doc__)
    parser.add_argument("word", nargs="?", default="", help="only bugs whose name has it")
    parser.add_argument("--docs", type=Path, help="put the table between its markers there")
    given = parser.parse_args()
    bugs = [bug for bug in BUGS if given.word in bug.name]
    caught: dict[Bug, str] = {}
    with copy_of_the_tree() as copy:
        for bug in bugs:
            caught[bug] = caught_by(bug, copy)
            print(f"{bug.name}: {caught[bug]}", flush=True)
    made = table(caught)
    print(made)
    if given.docs:
        write_docs(given.docs, made)
    unnoticed = list(caught.values()).count(NO_TEST_FAILED)
    print(f"bite: {len(caught) - unnoticed} of {len(caught)} were caught")
    return 1 if unnoticed > MOST_UNNOTICED else 0


if __name__ == "__main__":
    sys.exit(main())
