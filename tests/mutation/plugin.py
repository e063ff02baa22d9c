"""The pytest run that turns into a mutation run when its tests are collected."""

from __future__ import annotations

import argparse
import importlib
import inspect
import os
import random
import shutil
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
from django.db import connections

from tests.mutation.mutants import ROOT, Mutant, mutants_of

LONGEST_SECONDS, TIMES_AS_LONG = 60, 4
"""A mutant whose tests take so long, and so many times as long as without it, hangs."""

CONTROLS = 4
"""Functions of each module that are put in place unchanged: their tests must pass."""

SURVIVED, KILLED, NOT_TRIED = 0, 1, 3
"""Exit codes of the fork of a mutant; the last where its code does not fit into the function."""

Items = Sequence[pytest.Item]


class MutationRun:
    """Learns which test comes where, then lets the tests loose on each mutant."""

    def __init__(self, paths: Sequence[str], given: argparse.Namespace) -> None:
        self._paths = paths
        self._given = given
        self._failed = False
        self._last = ""
        self._died: list[str] = []
        self._results: dict[str, Counter[str]] = defaultdict(Counter)
        self._survivors: list[str] = []

    # What pytest calls

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        by_line, seconds = self._learn(session)
        for path in self._paths:
            mutants = self._chosen(path)
            print(f"{path}: {len(mutants)} mutants", flush=True)
            self._try([*self._controls(mutants), *mutants], by_line, seconds)
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

    def _controls(self, mutants: Sequence[Mutant]) -> list[Mutant]:
        one_each = list({mutant.function: mutant for mutant in mutants}.values())
        chosen = random.Random(self._given.seed).sample(one_each, min(CONTROLS, len(one_each)))
        return [mutant.unchanged() for mutant in chosen]

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
                expected = sum(seconds[item] for item in items)
                running[self._begin(mutant, items, expected)] = mutant
            pid, status = os.wait()
            _remove_copy(pid)
            if mutant := running.pop(pid, None):  # type: ignore[assignment]
                self._note(mutant, os.waitstatus_to_exitcode(status))

    def _begin(self, mutant: Mutant, items: Items, expected: float) -> int:
        if pid := self._fork(expected):
            return pid
        code = NOT_TRIED
        try:
            work_on_a_copy_of_the_database()
            put_in_place(mutant)
            code = KILLED
            code = SURVIVED if self._survives(items) else KILLED
            if mutant.is_unchanged and code == KILLED:
                print(f"{self._last} fails in a fork", file=sys.__stderr__, flush=True)
        finally:
            os._exit(code)

    def _fork(self, expected: float) -> int:
        """As os.fork; the child is silent, and ends when it takes far longer than expected."""
        sys.stdout.flush()
        connections.close_all()
        if not (pid := os.fork()):
            signal.alarm(max(LONGEST_SECONDS, round(TIMES_AS_LONG * expected)))
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.__stdout__.fileno())
        return pid

    def _survives(self, items: Items) -> bool:
        if items:  # fixtures of other modules may still stand
            items[0].session._setupstate.teardown_exact(items[0])
        for item, following in pairwise([*items, *items[:1]]):
            self._run(item, following)
            if self._failed:
                self._last = item.nodeid
                return False
        return True

    def _note(self, mutant: Mutant, code: int) -> None:
        word = {SURVIVED: "survived", NOT_TRIED: "not tried"}.get(code, "killed")
        if mutant.is_unchanged:
            self._died += [str(mutant)] if word != "survived" else []
            return
        self._results[mutant.path][word] += 1
        if code == SURVIVED:
            self._survivors.append(str(mutant))
            print(mutant, flush=True)

    # The end

    def verdict(self) -> int:
        """Prints the table; 1 when a module has less than asked for, 2 when it proves nothing."""
        print(f"\n{'module':45} mutants  killed  survived")
        worst = 100.0
        for path, counts in self._results.items():
            total = counts.total() - counts["not tried"]
            share = 100 * (total - counts["survived"]) / max(total, 1)
            worst = min(worst, share)
            print(f"{path:45} {total:7} {share:6.1f} % {counts['survived']:8}")
        if self._given.survivors:
            Path(self._given.survivors).write_text("\n".join(self._survivors) + "\n")
        for control in self._died:
            print(f"THIS PROVES NOTHING: tests fail although nothing was changed in {control}")
        return 2 if self._died else int(worst < self._given.at_least)


def work_on_a_copy_of_the_database() -> None:
    database = connections.settings["default"]
    database["NAME"] = shutil.copy(database["NAME"], _copy_of_database(os.getpid()))


def _copy_of_database(pid: int) -> str:
    return f"{connections.settings['default']['NAME']}.{pid}"


def _remove_copy(pid: int) -> None:
    for end in ("", "-wal", "-shm"):
        Path(_copy_of_database(pid) + end).unlink(missing_ok=True)


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
