"""The pytest run that turns into a mutation run when its tests are collected."""

from __future__ import annotations

import argparse
import importlib
import inspect
import os
import random
import signal
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from contextlib import redirect_stdout
from itertools import pairwise
from pathlib import Path
from typing import Any

import coverage
import pytest

from tests.mutation.mutants import ROOT, Mutant, mutants_of

LONGEST_SECONDS = 60
"""A mutant whose tests take longer is taken for one that hangs."""

SURVIVED, KILLED, NOT_TRIED = 0, 1, 3
"""Exit codes of the fork of a mutant; the last where its code does not fit into the function."""

Items = Sequence[pytest.Item]


class MutationRun:
    """Learns which test comes where, then lets the tests loose on each mutant."""

    def __init__(self, paths: Sequence[str], given: argparse.Namespace) -> None:
        self._paths = paths
        self._given = given
        self._failed = False
        self._results: dict[str, Counter[str]] = defaultdict(Counter)
        self._survivors: list[str] = []

    # What pytest calls

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        tests = self._learn(session)
        by_line, seconds = tests
        for path in self._paths:
            mutants = self._chosen(path)
            print(f"{path}: {len(mutants)} mutants", flush=True)
            self._try(mutants, by_line, seconds)
        return True

    @pytest.hookimpl
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._failed |= report.failed

    # Which test comes where

    def _learn(self, session: pytest.Session) -> tuple[dict[Any, Items], dict[pytest.Item, float]]:
        measured = coverage.Coverage(
            data_file=None, include=[str(ROOT / path) for path in self._paths]
        )
        measured.start()
        names: dict[str, pytest.Item] = {}
        seconds = {}
        for item, following in pairwise([*session.items, session.items[0]]):
            measured.switch_context(item.nodeid)
            began = time.monotonic()
            self._run(item, following)
            seconds[item] = time.monotonic() - began
            if self._failed:
                raise pytest.UsageError(f"{item.nodeid} fails without any mutant")
            names[item.nodeid] = item
        measured.stop()
        found = measured.get_data()
        by_line = {}
        for path in self._paths:
            for line, contexts in found.contexts_by_lineno(str(ROOT / path)).items():
                items = [names[context] for context in contexts if context in names]
                by_line[path, line] = sorted(items, key=seconds.__getitem__)
        return by_line, seconds

    def _run(self, item: pytest.Item, following: pytest.Item) -> None:
        with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere):
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)

    # The mutants

    def _chosen(self, path: str) -> list[Mutant]:
        mutants = list(mutants_of(path))
        if self._given.sample is None or self._given.sample >= len(mutants):
            return mutants
        return random.Random(self._given.seed).sample(mutants, self._given.sample)

    def _try(
        self,
        mutants: Sequence[Mutant],
        by_line: dict[Any, Items],
        seconds: dict[pytest.Item, float],
    ) -> None:
        waiting, running = list(reversed(mutants)), dict[int, Mutant]()
        while waiting or running:
            while waiting and len(running) < self._given.at_once:
                mutant = waiting.pop()
                items = _on_the_way(mutant, by_line)
                running[self._begin(mutant, items)] = mutant
            pid, status = os.wait()
            if mutant := running.pop(pid, None):  # type: ignore[assignment]
                self._note(mutant, os.waitstatus_to_exitcode(status))

    def _begin(self, mutant: Mutant, items: Items) -> int:
        sys.stdout.flush()
        if pid := os.fork():
            return pid
        signal.alarm(LONGEST_SECONDS)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.__stdout__.fileno())
        code = NOT_TRIED
        try:
            put_in_place(mutant)
            code = KILLED
            code = SURVIVED if self._survives(items) else KILLED
        finally:
            os._exit(code)

    def _survives(self, items: Items) -> bool:
        if items:  # fixtures of other modules may still stand
            items[0].session._setupstate.teardown_exact(items[0])
        for item, following in pairwise([*items, *items[:1]]):
            self._run(item, following)
            if self._failed:
                return False
        return True

    def _note(self, mutant: Mutant, code: int) -> None:
        word = {SURVIVED: "survived", NOT_TRIED: "not tried"}.get(code, "killed")
        self._results[mutant.path][word] += 1
        if code == SURVIVED:
            self._survivors.append(str(mutant))
            print(mutant, flush=True)

    # The end

    def verdict(self) -> int:
        """Prints the table; 1 when a module has less than asked for."""
        print(f"\n{'module':45} mutants  killed  survived")
        worst = 100.0
        for path, counts in self._results.items():
            total = counts.total() - counts["not tried"]
            share = 100 * (total - counts["survived"]) / max(total, 1)
            worst = min(worst, share)
            print(f"{path:45} {total:7} {share:6.1f} % {counts['survived']:8}")
        if self._given.survivors:
            Path(self._given.survivors).write_text("\n".join(self._survivors) + "\n")
        return int(worst < self._given.at_least)


def _on_the_way(mutant: Mutant, by_line: dict[Any, Items]) -> Items:
    """The tests that come to its line; of a line inside a statement, to the statement's first."""
    for line in range(mutant.line, max(mutant.line - 12, 0), -1):
        if items := by_line.get((mutant.path, line)):
            return items
    return ()


def put_in_place(mutant: Mutant) -> None:
    """Let the function do what the mutant says, wherever it was imported to."""
    owner: Any = importlib.import_module(mutant.module)
    *path, name = mutant.function.split(".")
    for each in path:
        owner = getattr(owner, each)
    found = inspect.getattr_static(owner, name)
    for attribute in ("fget", "func", "__func__"):
        found = getattr(found, attribute, None) or found
    inspect.unwrap(found).__code__ = mutant.code()
