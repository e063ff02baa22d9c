"""Mends what `check_jobs` finds, where that needs no guess: through the verbs, the guard's own ways
and the engines. What a history says against a row is a person's to judge, and stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from container_manager import guarding, lifecycle
from container_manager.consistency import Finding
from container_manager.engines import Engines
from container_manager.executors.base import ExecutorError
from container_manager.models.attempt import attempt_of_name
from container_manager.models.base import batched

USING = "default"
BATCH = 500

Found = Sequence[Finding]


class Repair:
    """Mends findings, and says in one line what became of each.

    `unknown`: also end and remove what the records do not know. That is live work where the
    database is a copy, or was restored from a backup.
    """

    def __init__(self, engines: Engines, instance: str, *, unknown: bool = False) -> None:
        self._engines = engines
        self._instance = instance
        self._mends: dict[str, Callable[[Found], Iterator[str]]] = {
            "guard": _install,
            "counter": _recount,
            "changes_unfolded": _recount,
            "attempt_held": _let_go,
            "retry_overdue": _requeue,
            "keys_expired": _forget,
            "execution_left": self._remove,
            "execution_of_abandoned": self._remove,
        }
        if unknown:
            self._mends["execution_unknown"] = self._remove

    @property
    def codes(self) -> tuple[str, ...]:
        """What can be mended, in the order in which it is: first what keeps the records sound."""
        return tuple(self._mends)

    def mend(self, findings: Iterable[Finding]) -> Iterator[str]:
        """Mend what can be; the lines that say so."""
        by_code: dict[str, list[Finding]] = {code: [] for code in self._mends}
        for finding in findings:
            if finding.code in by_code:
                by_code[finding.code].append(finding)
        for code, alike in by_code.items():
            if alike:
                yield from self._mends[code](alike)

    def _remove(self, findings: Found) -> Iterator[str]:
        for finding in findings:
            try:
                self._engines[finding.engine].remove(finding.execution, self._instance)
            except ExecutorError as error:
                yield f"not repaired {finding.code}: {finding.execution}: {error}"
            else:
                _note_removed(finding)
                yield f"repaired {finding.code}: {finding.execution} was removed"


def _install(findings: Found) -> Iterator[str]:
    guarding.after_migrate(using=USING)
    yield from (f"repaired guard: installed again ({each.text})" for each in findings)


def _recount(findings: Found) -> Iterator[str]:
    guarding.recount(USING)
    yield from (
        f"repaired {each.code}: counted anew from the rows ({each.text})" for each in findings
    )


def _let_go(findings: Found) -> Iterator[str]:
    jobs = list(dict.fromkeys(each.job_id for each in findings if each.job_id))
    for batch in batched(jobs, BATCH):
        lifecycle.end_unheld(batch)
        yield from (f"repaired attempt_held: job {pk}: its attempt was ended" for pk in batch)


def _requeue(_: Found) -> Iterator[str]:
    queued = _until_done(lifecycle.requeue_due)
    yield f"repaired retry_overdue: {queued} retries were queued"


def _forget(_: Found) -> Iterator[str]:
    yield f"repaired keys_expired: {_until_done(lifecycle.forget_keys)} keys were forgotten"


def _until_done(verb: Callable[[int], int]) -> int:
    done = 0
    while some := verb(BATCH):
        done += some
    return done


def _note_removed(finding: Finding) -> None:
    key = attempt_of_name(finding.execution)
    if finding.job_id is not None and key is not None:
        lifecycle.cleaned_up([{"job_id": key[0], "attempt": key[1], "epoch": 0}])
