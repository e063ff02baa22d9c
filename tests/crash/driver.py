"""Plays cases, several at once: each is a process, and most of its time is waiting."""

from __future__ import annotations

import shutil
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.crash import points
from tests.crash.forks import Child
from tests.crash.ground import Ground
from tests.crash.points import Case
from tests.crash.stage import Result, Stage

Tell = Callable[[str], None]


class Driver:
    """One database server or directory, and so many cases at once."""

    def __init__(self, ground: Ground, parallel: int, tell: Tell) -> None:
        self._ground = ground
        self._parallel = parallel
        self._tell = tell
        self._number = 0

    def play(self, cases: Iterable[Case]) -> list[Result]:
        wanted = list(cases)
        waiting, results = deque(wanted), list[Result]()
        total, told_at = len(waiting), time.monotonic()
        running: list[tuple[Case, Path, Child]] = []
        try:
            while waiting or running:
                while waiting and len(running) < self._parallel:
                    running.append(self._begin(waiting.popleft()))
                over = [each for each in running if each[2].has_ended]
                running = [each for each in running if each not in over]
                results += [self._result(case, directory) for case, directory, _ in over]
                if time.monotonic() - told_at > 10:
                    told_at = time.monotonic()
                    self._tell(f"{len(results)} of {total} cases, {_bad(results)} violated")
                time.sleep(0.02)
        finally:
            for _, _, child in running:
                child.end()
        return sorted(results, key=lambda result: wanted.index(result.case))

    def _begin(self, case: Case) -> tuple[Case, Path, Child]:
        self._number += 1
        directory = self._ground.directory / f"case-{self._number}"
        directory.mkdir()
        child = Child(lambda: _play(case, self._ground, directory), directory / "stage.log")
        return case, directory, child

    def _result(self, case: Case, directory: Path) -> Result:
        path = directory / "result.json"
        result = Result.read(path) if path.exists() else Result(case, ["the case itself broke"])
        if result.violations:
            self._tell(f"VIOLATED {case.title}: {'; '.join(result.violations)}")
            self._tell(_logs(directory))
        shutil.rmtree(directory, ignore_errors=True)
        return result

    def counted(self, executor: str, life: str) -> dict[str, int]:
        """How many statements, commits and calls of an executor such a life has."""
        (result,) = self.play([Case("a life without a crash", executor, life, ("",))])
        assert not result.violations, result.violations
        told = ", ".join(f"{result.counts[what]} {what}" for what in points.COUNTED)
        self._tell(f"{executor}: the life {life!r} has {told}")
        return result.counts


def _play(case: Case, ground: Ground, directory: Path) -> None:
    Stage(case, ground, directory).play().write(directory / "result.json")


def _bad(results: list[Result]) -> int:
    return sum(bool(result.violations) for result in results)


def _logs(directory: Path) -> str:
    said = [f"--- {path.name}\n{path.read_text()[-3000:]}" for path in directory.glob("*.log")]
    return "\n".join(said)


@contextmanager
def driver(directory: Path, executors: Iterable[str], parallel: int) -> Iterator[Driver]:
    """Everything that cases need, on the database of this process's settings."""
    with ExitStack() as stack:
        ground = Ground(directory)
        stack.callback(ground.clear)
        if "docker" in executors:
            stack.enter_context(ground.watching_the_engine())
        yield Driver(ground, parallel, _tell)


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
