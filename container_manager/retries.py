"""When, if ever, is the next attempt? Pure functions; time and chance come in as arguments."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from itertools import count
from typing import Any

from container_manager.states import Reason

STRATEGIES = ("exponential", "linear", "fixed")
ACTIONS = ("retry", "fail")
CONDITIONS = ("on_exit_codes", "on_reason")

MOST_RULES, MOST_WORDS = 100, 256
"""Rules of a policy, and exit codes or reasons of a rule."""

LONGEST_WAIT = 30 * 24 * 3600.0


@dataclass(frozen=True)
class RetryPolicy:
    """How long to wait before the next attempt, and for which ends there is one.

    Seconds before retry number n (from 1), before jitter:
    exponential `base * 2**(n-1)`, linear `base * n`, fixed `base`; at most `max_seconds`.
    """

    strategy: str = "exponential"
    base_seconds: float = 20.0
    max_seconds: float = 600.0
    jitter: float = 0.8
    """Share of the wait that is random: 0.8 means 20 % to 180 %.

    By default wide enough that of all that failed in one second less than 5 % come back in any one.
    """
    rules: tuple[Mapping[str, Any], ...] = ()

    def delay(self, retry: int, chance: float) -> float:
        """Seconds to wait before retry number `retry`; `chance` is in [0, 1)."""
        wait = min(self._wait(max(retry, 1)), self.max_seconds)
        return wait * (1 + self.jitter * (2 * chance - 1))

    def _wait(self, retry: int) -> float:
        if self.strategy == "fixed":
            return self.base_seconds
        if self.strategy == "linear":
            return self.base_seconds * retry
        return self.base_seconds * 2.0 ** min(retry - 1, 60)

    def rule_for(self, exit_code: int | None, reason: str) -> Mapping[str, Any] | None:
        """The first rule that speaks of this end."""
        return next((rule for rule in self.rules if _matches(rule, exit_code, reason)), None)


BUILT_IN: Mapping[str, RetryPolicy] = {
    "default": RetryPolicy(),
    "aggressive": RetryPolicy(base_seconds=1.0, max_seconds=60.0),
    "conservative": RetryPolicy(strategy="linear", base_seconds=60.0, max_seconds=3600.0),
    "high_priority": RetryPolicy(strategy="fixed", base_seconds=2.0, max_seconds=2.0),
}


class Chances:
    """Numbers in [0, 1) that lie evenly, however many: what fails together comes back apart.

    Steps of the golden ratio. Drawn at random, some seconds would get twice their share.

    >>> chances = Chances(0.0)
    >>> sorted(int(10 * chances.next()) for _ in range(10))
    [0, 0, 2, 3, 4, 5, 6, 7, 8, 9]
    """

    STEP = 0.6180339887498949

    def __init__(self, first: float) -> None:
        self._first = first
        self._taken = count()

    def next(self) -> float:
        return (self._first + next(self._taken) * self.STEP) % 1.0


@dataclass(frozen=True)
class Retry:
    """The decision to try again."""

    delay_seconds: float
    memory_factor: float = 1.0
    infra: bool = False
    """It does not use up the job's own retries."""


def _matches(rule: Mapping[str, Any], exit_code: int | None, reason: str) -> bool:
    codes, reasons = rule.get("on_exit_codes"), rule.get("on_reason")
    return (codes is None or exit_code in codes) and (reasons is None or reason in reasons)


def decide(
    policy: RetryPolicy,
    *,
    reason: Reason,
    exit_code: int | None,
    retries_left: bool,
    retry_count: int,
    infra_retry_count: int,
    max_infra_retries: int,
    chance: float,
) -> Retry | None:
    """The next attempt after such an end, or None when there is none.

    >>> from container_manager.states import Reason
    >>> policy = RetryPolicy(base_seconds=4, jitter=0)
    >>> common = dict(exit_code=1, infra_retry_count=0, max_infra_retries=3, chance=0.5)
    >>> decide(policy, reason=Reason.EXIT_CODE, retries_left=True, retry_count=1, **common)
    Retry(delay_seconds=8.0, memory_factor=1.0, infra=False)
    >>> decide(policy, reason=Reason.EXIT_CODE, retries_left=False, retry_count=1, **common)
    """
    rule = policy.rule_for(exit_code, reason) or {}
    if reason.is_permanent or _is_forbidden(rule, reason):
        return None
    if reason == Reason.WORKER_STOPPED:  # an orderly end is no failure: never too many of them
        return Retry(0.0, infra=True)
    if reason.blame == "infra":
        if infra_retry_count >= max_infra_retries:
            return None
        return Retry(policy.delay(infra_retry_count + 1, chance), infra=True)
    if not retries_left:
        return None
    return Retry(policy.delay(retry_count + 1, chance), rule.get("memory_factor", 1.0))


def _is_forbidden(rule: Mapping[str, Any], reason: Reason) -> bool:
    """A failure of the machinery is forbidden to be retried only by a rule that names it."""
    return rule.get("action") == "fail" and (reason.blame != "infra" or "on_reason" in rule)


def is_poison(reason: Reason, infra_retry_count: int, max_infra_retries: int) -> bool:
    """The machinery failed around it once more than is borne."""
    return (
        reason.blame == "infra"
        and reason != Reason.WORKER_STOPPED
        and not reason.is_permanent
        and infra_retry_count >= max_infra_retries
    )


# Reading what people write ------------------------------------------------------------------------


class PolicyError(ValueError):
    """The retry policy is malformed; the message says where and what is allowed."""


def read_policy(given: Any, named: Mapping[str, Any] | None = None) -> RetryPolicy:
    """A policy from its name or its JSON object. Raises PolicyError."""
    if isinstance(given, str):
        return _named_policy(given, named or {})
    if given in (None, {}):
        return BUILT_IN["default"]
    if not isinstance(given, Mapping):
        raise PolicyError("must be the name of a policy or an object")
    return _policy_from(given)


def _named_policy(name: str, named: Mapping[str, Any]) -> RetryPolicy:
    if name in named:
        return read_policy(named[name])
    if name in BUILT_IN:
        return BUILT_IN[name]
    raise PolicyError(f"no policy {name!r}; there are {', '.join([*BUILT_IN, *named])}")


def _policy_from(given: Mapping[str, Any]) -> RetryPolicy:
    known = {field.name for field in fields(RetryPolicy)}
    if unknown := sorted(set(given) - known):
        raise PolicyError(f"unknown key {unknown[0]!r}; known are {', '.join(sorted(known))}")
    strategy = given.get("strategy", "exponential")
    if strategy not in STRATEGIES:
        raise PolicyError(f"strategy: {strategy!r} is not one of {', '.join(STRATEGIES)}")
    numbers = {
        name: _number(given[name], name, top)
        for name, top in (
            ("base_seconds", LONGEST_WAIT),
            ("max_seconds", LONGEST_WAIT),
            ("jitter", 1),
        )
        if name in given
    }
    rules = given.get("rules", ())
    if not isinstance(rules, list | tuple) or len(rules) > MOST_RULES:
        raise PolicyError(f"rules: must be a list of at most {MOST_RULES}")
    checked = tuple(_rule(rule, f"rules[{index}]") for index, rule in enumerate(rules))
    return RetryPolicy(strategy=strategy, rules=checked, **numbers)


def _number(value: Any, where: str, top: float, low: float = 0) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise PolicyError(f"{where}: must be a number")
    if not low <= value <= top:
        raise PolicyError(f"{where}: must be between {low:g} and {top:g}")
    return float(value)


def _rule(rule: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(rule, Mapping):
        raise PolicyError(f"{where}: must be an object")
    known = {*CONDITIONS, "action", "memory_factor"}
    if unknown := sorted(set(rule) - known):
        raise PolicyError(
            f"{where}: unknown key {unknown[0]!r}; known are {', '.join(sorted(known))}"
        )
    if rule.get("action") not in ACTIONS:
        raise PolicyError(f"{where}.action: must be one of {', '.join(ACTIONS)}")
    _list_of(rule, "on_exit_codes", int, where)
    _list_of(rule, "on_reason", str, where)
    for reason in rule.get("on_reason", ()):
        if reason not in Reason.values:
            raise PolicyError(
                f"{where}.on_reason: {reason!r} is not one of {', '.join(Reason.values)}"
            )
    if "memory_factor" in rule:
        _number(rule["memory_factor"], f"{where}.memory_factor", 64, low=1)
    return rule


def _list_of(rule: Mapping[str, Any], key: str, kind: type, where: str) -> None:
    values = rule.get(key, [])
    good = isinstance(values, list) and all(type(value) is kind for value in values)
    if not good or len(values) > MOST_WORDS:
        raise PolicyError(f"{where}.{key}: must be a list of {kind.__name__}, at most {MOST_WORDS}")
