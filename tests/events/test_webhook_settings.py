"""What `manage.py check` says of a webhook in the settings."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from container_manager import checks, conf
from container_manager.events.webhook import new_secret
from tests.support.loops import configured

__all__ = ["configured"]

PATH = "container_manager.events.webhook.WebhookPublisher"
SECRET = new_secret()


def lines(configured: Callable[..., None], **options: Any) -> list[str]:
    given = {"url": "https://hooks.example.org/tok-5ecret", "secret": SECRET, **options}
    configured(PUBLISHERS={"hook": {"class": PATH, "options": given}})
    return [error.msg for error in checks.settings_are_valid()]


def test_a_good_one_is_no_problem(configured: Callable[..., None]) -> None:
    assert lines(configured) == []


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"url": "http://127.0.0.1/tok-5ecret"}, "url: leads to 127.0.0.1, which is no public"),
        ({"url": "http://0x7f000001/tok-5ecret"}, "url: spells an IPv4 address oddly"),
        ({"url": "file:///tok-5ecret"}, "url: must begin with http:// or https://, not file:"),
        ({"url": "https://me:5ecret@hooks.example.org"}, "url: must not hold a user"),
        ({"secret": "5ecret"}, "secret: number 1 does not begin with whsec_"),
        ({"secret": f"{SECRET} whsec_5ecret!"}, "secret: number 2 is not base64"),
        ({"states": ["done"]}, "states: there is no state 'done'"),
    ],
)
def test_each_mistake_is_a_line_that_says_where_and_no_secret(
    configured: Callable[..., None], options: dict[str, Any], told: str
) -> None:
    (line,) = lines(configured, **options)
    assert line.startswith(f"CONTAINER_MANAGER['PUBLISHERS']['hook']: {PATH}: {told}")
    assert "5ecret" not in line
    assert SECRET not in line


def test_unknown_options_are_told(configured: Callable[..., None]) -> None:
    (line,) = lines(configured, colour="red")
    assert "colour" in line


@pytest.mark.parametrize("cut", [1, 30])
def test_settings_that_cannot_be_read_are_not_shown(cut: int) -> None:
    text = json.dumps({"hook": {"class": PATH, "options": {"secret": SECRET}}})[:-cut]
    _values, problems = conf.read({"PUBLISHERS": text})
    assert problems == ["CONTAINER_MANAGER['PUBLISHERS']: what is given is not a valid dict"]


@pytest.mark.parametrize("alias", ["", "a/b", "a b", ".", "-a", "ä", "a" * 65, "a\n", 7])
def test_an_alias_is_a_plain_word(alias: Any) -> None:
    _values, problems = conf.read({"PUBLISHERS": {alias: {"class": PATH}}})
    assert ["an alias has 1 to 64 characters" in each for each in problems] == [True]
