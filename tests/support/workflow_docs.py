"""The generated parts of docs/workflows.md."""

from __future__ import annotations

import re

from container_manager.states import MissedRuns, Words, WorkflowState
from container_manager.workflows.graph import Decision, TriggerRule, decide
from container_manager.workflows.spec import JOB_FIELDS

_W = WorkflowState

UPSTREAM = (
    (_W.SUCCESS, _W.SUCCESS),
    (_W.SUCCESS, _W.SKIPPED),
    (_W.SUCCESS, _W.FAILED),
    (_W.SKIPPED, _W.SKIPPED),
    (_W.SKIPPED, _W.FAILED),
    (_W.FAILED, _W.FAILED),
    (_W.SUCCESS, _W.RUNNING),
    (_W.FAILED, _W.RUNNING),
)
SAID = {
    Decision.RUN: "**run**",
    Decision.SKIP: "skip",
    Decision.UPSTREAM_FAILED: "fail",
    Decision.WAIT: "wait",
}


def job_fields() -> str:
    return " ".join(f"`{name}`" for name in sorted(JOB_FIELDS))


def trigger_rules() -> str:
    return _words("rule", TriggerRule, "it runs when")


def missed_runs() -> str:
    return _words("`missed_runs`", MissedRuns, "what becomes of them")


def trigger_table() -> str:
    heads = [" ".join(f"`{state}`" for state in states) for states in UPSTREAM]
    rows = [
        f"| `{rule}` | " + " | ".join(SAID[decide(rule, states)] for states in UPSTREAM) + " |"
        for rule in TriggerRule
    ]
    return "\n".join([f"| rule | {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|", *rows])


def _words(what: str, words: type[Words], meaning: str) -> str:
    rows = [f"| `{word}` | {_sentence(word)} |" for word in words]  # type: ignore[attr-defined]
    return "\n".join([f"| {what} | {meaning} |", "|---|---|", *rows])


def _sentence(word: Words) -> str:
    return re.sub(r"\s+", " ", word.meaning)
