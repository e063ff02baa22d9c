"""One run: a database of its own, the server on it, schemathesis, and what came of it.

The exit code is 0 when every check passed, nothing was a 5xx, and at least 40 % of at least so many
cases ended in 2xx; else 1.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from django.db import connection

from tests import fuzz as package
from tests.fuzz.rows import Targets, as_json, make_targets
from tests.fuzz.tally import Tally
from tests.support.web import start_site
from tests.support.workers import ROOT, Workers

CONFIG = Path(__file__).resolve().parent / "schemathesis.toml"
TRACEBACK = re.compile(r"^Traceback .*?^(?=\S)[^\n]*", re.MULTILINE | re.DOTALL)
EXAMPLES, CASES_OF_THEM = 22, 2800
"""With so many examples for each operation there are more cases than that, most of them of the
coverage phase, which always has the same."""
CASES_OF_ONE_MORE = 25


def run(arguments: Sequence[str] | None = None) -> int:
    given = _parser().parse_args(arguments)
    print(f"fuzz: {given.cases} cases on {connection.vendor}, seed {given.seed}", flush=True)
    began = time.monotonic()
    with _database(), _directory(given.keep) as directory:
        code, tally = fuzz(directory, given.cases, given.seed, given.options)
    print(*tally.tracebacks, tally.table(), sep="\n")
    print(f"{tally.cases} cases in {time.monotonic() - began:.0f} s, {tally.good:.1%} in 2xx")
    wanting = tally.wanting(given.cases) + ["checks failed: see above"] * bool(code)
    for told in wanting:
        print(f"fuzz: FAILED: {told}")
    return 1 if wanting else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m tests.fuzz", description=(package.__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--cases", type=int, default=2000, help="at least so many (2000)")
    parser.add_argument("--seed", type=int, default=1, help="the same seed, the same cases (1)")
    parser.add_argument("--keep", type=_new, help="a new directory for the log and the rest")
    parser.add_argument("options", nargs="*", help="after --: options of `schemathesis run`")
    return parser


def _new(text: str) -> Path:
    if Path(text).exists():
        raise argparse.ArgumentTypeError(f"{text} is there already")
    return Path(text)


def fuzz(directory: Path, cases: int, seed: int, options: Sequence[str]) -> tuple[int, Tally]:
    """The exit code of schemathesis, and what its cases came to."""
    _write(directory, make_targets(cases))
    served = json.dumps({"ours": {"class": "container_manager.events.log.LogPublisher"}})
    site = start_site(directory, Workers(directory).environment(PUBLISHERS=served))
    try:
        code = _run_schemathesis(directory, site.url, cases, seed, options)
    finally:
        site.end()
    tally = Tally(tracebacks=TRACEBACK.findall(site.said))
    tally.read(directory / "tally.jsonl")
    return code, tally


@contextmanager
def _database() -> Iterator[None]:
    own = connection.settings_dict["NAME"]
    connection.creation.create_test_db(verbosity=0, autoclobber=True, serialize=False)
    try:
        yield
    finally:
        connection.creation.destroy_test_db(own, verbosity=0)


@contextmanager
def _directory(kept: Path | None) -> Iterator[Path]:
    if kept is None:
        with tempfile.TemporaryDirectory(prefix="cm-fuzz-") as directory:
            yield Path(directory)
        return
    kept.mkdir(parents=True)
    yield kept.resolve()


def _write(directory: Path, targets: Targets) -> None:
    """What the run reads beside its configuration."""
    shutil.copy(CONFIG, directory)
    (directory / "targets.json").write_text(json.dumps(as_json(targets)))
    people = [_identity(name, token) for name, token in targets.people.items()]
    (directory / "people.json").write_text(json.dumps({"auth": people}))


def _identity(name: str, token: str) -> dict[str, Any]:
    return {
        "name": name,
        "fixedHeaders": [{"name": "Authorization", "value": f"Token {token}"}],
    }


def _run_schemathesis(
    directory: Path, url: str, cases: int, seed: int, options: Sequence[str]
) -> int:
    examples = EXAMPLES + max(0, cases - CASES_OF_THEM) // CASES_OF_ONE_MORE
    command = [
        *(sys.executable, "-m", "schemathesis.cli", "run", f"{url}/api/v1/schema/"),
        *("--seed", str(seed), "--max-examples", str(examples)),
        *options,
    ]
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "FUZZ_TARGETS": "targets.json",
        "FUZZ_TALLY": "tally.jsonl",
    }
    return subprocess.run(command, cwd=directory, env=environment, check=False).returncode
