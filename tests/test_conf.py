"""The typed settings."""

from __future__ import annotations

import json

import pytest
from django.core.exceptions import ImproperlyConfigured

from container_manager import conf

KINDS = {name: key.metadata["kind"] for name, key in conf.keys().items()}
NUMBERS = sorted(name for name, kind in KINDS.items() if kind in (int, float))
GOOD = {int: ("7", 7), float: ("2.5", 2.5), str: ("text", "text"), bool: ("on", True)}
PICKY = {"CRASH_AT": ("R4", "R4"), "METRICS_TOKEN": ("sixteen-or-more!", "sixteen-or-more!")}


def problems(**given):
    return conf.read(given)[1]


def test_the_defaults_are_valid_and_every_key_says_what_it_means():
    values, found = conf.read({})
    assert found == []
    assert values == conf.Settings()
    assert [
        name for name, key in conf.keys().items() if not key.metadata["doc"].endswith(".")
    ] == []


@pytest.mark.parametrize("name", sorted(name for name in KINDS if KINDS[name] is not dict))
def test_every_key_can_be_given_as_text(name, settings):
    settings.DEBUG = True  # else a crash on demand is refused
    text, expected = PICKY.get(name, GOOD[KINDS[name]])
    values, found = conf.read({name: text})
    assert found == []
    assert getattr(values, name) == expected
    assert type(getattr(values, name)) is KINDS[name]


@pytest.mark.parametrize("name", sorted(name for name in KINDS if KINDS[name] is dict))
def test_a_dict_can_be_given_as_json(name):
    given = {"a": {"class": "x.Y", "options": {}}}
    assert getattr(conf.read({name: json.dumps(given)})[0], name) == given


@pytest.mark.parametrize("name", KINDS)
def test_a_value_of_a_wrong_type_is_a_problem_with_its_key(name):
    for wrong in ([], object(), (1,)):
        assert f"CONTAINER_MANAGER[{name!r}]" in problems(**{name: wrong})[0]


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize(
    "wrong", ["", "x", "1g", "nan", "inf", True, float("nan"), float("inf"), -1]
)
def test_a_number_must_be_a_finite_number_in_its_range(name, wrong):
    assert problems(**{name: wrong})[0].startswith(f"CONTAINER_MANAGER[{name!r}]: ")


@pytest.mark.parametrize("name", [name for name in NUMBERS if KINDS[name] is int])
def test_a_whole_number_is_not_cut_off(name):
    assert "not a valid int" in problems(**{name: 1.5})[0]
    assert "not a valid int" in problems(**{name: "1.5"})[0]
    assert conf.read({name: 2.0})[1] == []


@pytest.mark.parametrize(
    ("text", "value"),
    [("1", True), ("TRUE", True), ("yes", True), ("0", False), ("off", False), ("No", False)],
)
def test_a_switch_is_on_or_off(text, value):
    assert conf.read({"PROCESS_EXECUTOR": text})[0].PROCESS_EXECUTOR is value


@pytest.mark.parametrize("text", ["maybe", "", "2", "onn"])
def test_a_switch_that_is_neither_is_a_problem(text):
    assert "not a valid bool" in problems(PROCESS_EXECUTOR=text)[0]


def test_none_is_for_keys_that_may_be_unset():
    assert problems(PROCESS_EXECUTOR=None, LOST_AFTER_SECONDS=None) == []
    for name in KINDS.keys() - {"PROCESS_EXECUTOR", "LOST_AFTER_SECONDS"}:
        assert problems(**{name: None}) != []


def test_an_unknown_key_is_a_problem_and_the_others_count():
    values, found = conf.read({"LEASE": 1, "LEASE_SECONDS": 9})
    assert found == ["CONTAINER_MANAGER['LEASE']: no such key"]
    assert values.LEASE_SECONDS == 9


@pytest.mark.parametrize("given", [None, [], "x", 7])
def test_settings_that_are_no_dict_are_a_problem(given):
    assert conf.read(given)[1] == ["CONTAINER_MANAGER: must be a dict"]


@pytest.mark.parametrize("text", ["{", "[]", "7", '"x"', "null", ""])
def test_a_dict_as_text_must_be_a_json_object(text):
    assert "not a valid dict" in problems(RETRY_POLICIES=text)[0]


@pytest.mark.parametrize("entry", [{}, {"class": 7}, "x.Y", None])
def test_an_executor_needs_a_class(entry):
    assert problems(EXECUTORS={"mine": entry})[0].startswith(
        "CONTAINER_MANAGER['EXECUTORS']['mine']"
    )


@pytest.mark.parametrize(
    ("alias", "entry", "words"),
    [
        ("hook", {}, "needs a dict"),
        ("hook", "x.Y", "needs a dict"),
        ("hook", {"class": 7}, "needs a dict"),
        ("", {"class": "x.Y"}, "1 to 64 characters"),
        ("x" * 65, {"class": "x.Y"}, "1 to 64 characters"),
        ("hook", {"class": "x.Y", "options": []}, "`options` must be a dict"),
        ("hook", {"class": "x.Y", "option": {}}, "not 'option'"),
    ],
)
def test_a_publisher_has_an_alias_a_class_and_options(alias, entry, words):
    (problem,) = problems(PUBLISHERS={alias: entry})
    assert problem.startswith(f"CONTAINER_MANAGER['PUBLISHERS'][{alias!r}]: ")
    assert words in problem


def test_the_lease_must_be_three_times_the_poll():
    assert "three times" in problems(LEASE_SECONDS=1, REQUEST_POLL_SECONDS=0.5)[0]
    assert problems(LEASE_SECONDS=1.5, REQUEST_POLL_SECONDS=0.5) == []


def test_the_settings_are_read_when_asked_for_and_again_after_a_change(settings):
    settings.CONTAINER_MANAGER = {"CLAIM_BATCH": "5"}
    assert conf.settings.CLAIM_BATCH == 5
    settings.CONTAINER_MANAGER = {"CLAIM_BATCH": 6}
    assert conf.settings.CLAIM_BATCH == 6


def test_wrong_settings_raise_one_error_that_names_all(settings):
    settings.CONTAINER_MANAGER = {"CLAIM_BATCH": 0, "NO_SUCH": 1}
    with pytest.raises(ImproperlyConfigured, match=r"CLAIM_BATCH.*; .*NO_SUCH"):
        conf.settings.load()


@pytest.mark.parametrize(
    ("debug", "given", "there"),
    [(True, None, True), (False, None, False), (False, "on", True), (True, "off", False)],
)
def test_local_processes_are_for_development_or_when_switched_on(settings, debug, given, there):
    settings.DEBUG = debug
    settings.CONTAINER_MANAGER = {"PROCESS_EXECUTOR": given}
    assert ("process" in conf.executors()) == there
    assert "docker" in conf.executors()
