"""When, if ever, is the next attempt?"""

from __future__ import annotations

import doctest
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from container_manager import retries
from container_manager.retries import BUILT_IN, PolicyError, Retry, RetryPolicy, decide, read_policy
from container_manager.states import Blame, Reason

OWN = [r for r in Reason if r.blame != Blame.INFRA and not r.is_permanent]
INFRA = [
    r
    for r in Reason
    if r.blame == Blame.INFRA and not r.is_permanent and r != Reason.WORKER_STOPPED
]
PERMANENT = [r for r in Reason if r.is_permanent]


def decision(policy=RetryPolicy(base_seconds=10, jitter=0), **given):  # noqa: B008
    return decide(
        policy,
        **{
            "reason": Reason.EXIT_CODE,
            "exit_code": 1,
            "retries_left": True,
            "retry_count": 0,
            "infra_retry_count": 0,
            "max_infra_retries": 3,
            "chance": 0.5,
            **given,
        },
    )


def test_the_examples_in_the_documentation_are_true():
    assert doctest.testmod(retries).failed == 0
    assert doctest.testmod(retries).attempted > 0


@pytest.mark.parametrize(
    ("strategy", "waits"),
    [
        ("exponential", [10, 20, 40, 80, 100, 100]),
        ("linear", [10, 20, 30, 40, 50, 60]),
        ("fixed", [10, 10, 10, 10, 10, 10]),
    ],
)
def test_each_strategy_waits_as_it_says_up_to_its_maximum(strategy, waits):
    policy = RetryPolicy(strategy=strategy, base_seconds=10, max_seconds=100, jitter=0)
    assert [policy.delay(retry, 0.5) for retry in range(1, 7)] == waits
    assert [decision(policy, retry_count=n).delay_seconds for n in range(6)] == waits


@pytest.mark.parametrize("strategy", retries.STRATEGIES)
@pytest.mark.parametrize("retry", [1000, 10**9, 10**300])
def test_a_thousandth_retry_waits_no_longer_than_the_maximum(strategy, retry):
    policy = RetryPolicy(strategy=strategy, base_seconds=5, max_seconds=60, jitter=0)
    assert policy.delay(retry, 0.999) == (5 if strategy == "fixed" else 60)


@given(
    strategy=st.sampled_from(retries.STRATEGIES),
    base=st.floats(0, retries.LONGEST_WAIT),
    longest=st.floats(0, retries.LONGEST_WAIT),
    jitter=st.floats(0, 1),
    retry=st.integers(-5, 10**6),
    chance=st.floats(0, 1, exclude_max=True),
)
def test_jitter_stays_in_its_share_of_the_wait(strategy, base, longest, jitter, retry, chance):
    policy = RetryPolicy(strategy, base, longest, jitter)
    plain = RetryPolicy(strategy, base, longest, 0).delay(retry, chance)
    wait = policy.delay(retry, chance)
    slack = 1e-9 * (1 + plain)
    assert 0 <= plain <= longest
    assert plain * (1 - jitter) - slack <= wait <= plain * (1 + jitter) + slack
    assert math.isfinite(wait)


@pytest.mark.parametrize("first", [0.0, 0.37, 0.999999])
@pytest.mark.parametrize("taken", [10, 100, 1000])
def test_chances_lie_evenly_however_many_are_taken(first, taken):
    """Of any tenth there is a tenth of them, give or take two."""
    chances = retries.Chances(first)
    numbers = [chances.next() for _ in range(taken)]
    assert all(0 <= number < 1 for number in numbers)
    for tenth in range(10):
        share = sum(tenth / 10 <= number < (tenth + 1) / 10 for number in numbers)
        assert abs(share - taken / 10) <= 2


def test_chance_spreads_from_one_end_to_the_other():
    policy = RetryPolicy(base_seconds=100, jitter=0.2)
    assert policy.delay(1, 0.0) == pytest.approx(80)
    assert policy.delay(1, 0.5) == pytest.approx(100)
    assert policy.delay(1, 0.999999) == pytest.approx(120, rel=1e-4)


@pytest.mark.parametrize("reason", PERMANENT)
def test_a_permanent_end_is_never_retried_by_itself(reason):
    insist = RetryPolicy(rules=({"action": "retry"},))
    assert decision(insist, reason=reason) is None


@pytest.mark.parametrize("reason", OWN)
def test_an_own_failure_is_retried_while_retries_are_left(reason):
    assert decision(reason=reason) == Retry(10.0)
    assert decision(reason=reason, retries_left=False) is None


@pytest.mark.parametrize("reason", INFRA)
def test_a_failure_of_the_machinery_uses_up_no_own_retry_but_not_for_ever(reason):
    for count, wait in enumerate((10.0, 20.0, 40.0)):
        found = decision(reason=reason, retries_left=False, infra_retry_count=count)
        assert found == Retry(wait, infra=True)
        assert not retries.is_poison(reason, count, 3)
    assert decision(reason=reason, infra_retry_count=3) is None
    assert retries.is_poison(reason, 3, 3)
    assert decision(reason=reason, max_infra_retries=0) is None


@pytest.mark.parametrize("reason", [*OWN, *PERMANENT, Reason.WORKER_STOPPED])
def test_only_the_machinery_is_poison(reason):
    assert not retries.is_poison(reason, 99, 3)


def test_a_stopped_worker_gives_its_jobs_back_at_once_and_without_limit():
    assert decision(reason=Reason.WORKER_STOPPED, infra_retry_count=99) == Retry(0.0, infra=True)


def test_the_first_rule_that_speaks_of_the_end_decides():
    policy = RetryPolicy(
        base_seconds=10,
        jitter=0,
        rules=(
            {"on_exit_codes": [2, 3], "action": "fail"},
            {"on_exit_codes": [3, 4], "on_reason": ["exit_code"], "action": "retry"},
            {"on_reason": ["oom"], "action": "retry", "memory_factor": 2},
            {"on_reason": ["timeout"], "action": "fail"},
        ),
    )
    assert decision(policy, exit_code=2) is None
    assert decision(policy, exit_code=3) is None
    assert decision(policy, exit_code=4) == Retry(10.0)
    assert decision(policy, exit_code=5) == Retry(10.0)
    assert decision(policy, reason=Reason.OOM, exit_code=137) == Retry(10.0, memory_factor=2)
    assert decision(policy, reason=Reason.TIMEOUT, exit_code=None) is None
    assert decision(policy, reason=Reason.OOM, retries_left=False) is None


def test_a_rule_that_names_a_failure_of_the_machinery_can_forbid_its_retry():
    never = RetryPolicy(rules=({"on_reason": ["worker_lost", "worker_stopped"], "action": "fail"},))
    assert decision(never, reason=Reason.WORKER_LOST, exit_code=None) is None
    assert decision(never, reason=Reason.WORKER_STOPPED, exit_code=None) is None
    assert decision(never, reason=Reason.LAUNCH_ERROR, exit_code=None).infra
    catch_all = RetryPolicy(rules=({"action": "fail"},))
    assert decision(catch_all) is None
    assert decision(catch_all, reason=Reason.WORKER_LOST, exit_code=None).infra


# Reading


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_built_in_policy_is_found_by_its_name(name):
    assert read_policy(name) is BUILT_IN[name]


@pytest.mark.parametrize("nothing", [None, {}])
def test_nothing_means_the_default(nothing):
    assert read_policy(nothing) == BUILT_IN["default"]


def test_a_named_policy_of_the_settings_goes_before_a_built_in_one():
    named = {"default": {"base_seconds": 1}, "same": "aggressive"}
    assert read_policy("default", named).base_seconds == 1
    assert read_policy("same", named) is BUILT_IN["aggressive"]


def test_a_policy_is_read_as_it_is_written():
    rules = [{"on_exit_codes": [1], "action": "retry", "memory_factor": 1.5}]
    written = {
        "strategy": "linear",
        "base_seconds": 3,
        "max_seconds": 9,
        "jitter": 0,
        "rules": rules,
    }
    assert read_policy(written) == RetryPolicy("linear", 3.0, 9.0, 0.0, tuple(rules))


@pytest.mark.parametrize(
    ("written", "place"),
    [
        ("nobody", "no policy 'nobody'"),
        ("", "no policy ''"),
        (7, "must be the name of a policy or an object"),
        ([], "must be the name of a policy or an object"),
        ({"colour": 1}, "unknown key 'colour'"),
        ({"strategy": "x"}, "strategy: 'x' is not one of exponential, linear, fixed"),
        ({"strategy": []}, "strategy: "),
        ({"base_seconds": "10"}, "base_seconds: must be a number"),
        ({"base_seconds": True}, "base_seconds: must be a number"),
        ({"base_seconds": -1}, "base_seconds: must be between 0 and"),
        ({"base_seconds": 10**400}, "base_seconds: must be between"),
        ({"max_seconds": float("inf")}, "max_seconds: must be between"),
        ({"max_seconds": float("nan")}, "max_seconds: must be between"),
        ({"jitter": 1.1}, "jitter: must be between 0 and 1"),
        ({"rules": {}}, "rules: must be a list"),
        ({"rules": ["x"]}, r"rules\[0\]: must be an object"),
        ({"rules": [{}]}, r"rules\[0\].action: must be one of retry, fail"),
        ({"rules": [{"action": "retry"}, {"action": []}]}, r"rules\[1\].action"),
        ({"rules": [{"action": "retry", "if": 1}]}, r"rules\[0\]: unknown key 'if'"),
        (
            {"rules": [{"action": "fail", "on_exit_codes": 1}]},
            r"rules\[0\].on_exit_codes: .* list of int",
        ),
        ({"rules": [{"action": "fail", "on_exit_codes": [True]}]}, "list of int"),
        ({"rules": [{"action": "fail", "on_exit_codes": ["1"]}]}, "list of int"),
        (
            {"rules": [{"action": "fail", "on_reason": "oom"}]},
            r"rules\[0\].on_reason: .* list of str",
        ),
        (
            {"rules": [{"action": "fail", "on_reason": ["x"]}]},
            r"rules\[0\].on_reason: 'x' is not one of",
        ),
        (
            {"rules": [{"action": "retry", "memory_factor": 0}]},
            r"rules\[0\].memory_factor: .* 1 and 64",
        ),
        ({"rules": [{"action": "retry", "memory_factor": "2"}]}, r"rules\[0\].memory_factor"),
    ],
)
def test_a_malformed_policy_is_refused_with_its_place(written, place):
    with pytest.raises(PolicyError, match=place):
        read_policy(written)
