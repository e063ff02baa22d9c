"""`relay_events`: what it says, what it refuses; tests/events has it at work."""

from __future__ import annotations

import io
import json

import pytest
from django.core.management import call_command

from container_manager.events.base import Refused, Unavailable
from container_manager.ids import uuid7
from container_manager.models import DeadLetter, PublisherState
from container_manager.models.sequencing import take_all
from container_manager.outbox import Outbox
from container_manager.worker.delivery import note_refusal
from tests.commands.shell import Shell, run
from tests.factories import JobFactory
from tests.support.loops import configured
from tests.support.publishers import Spy, spies, to_file, told

__all__ = ["configured"]

pytestmark = pytest.mark.django_db(transaction=True)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def one_is_away(configured):
    """Two publishers, of which one has been told everything and the other nothing."""
    configured(PUBLISHERS=spies("away", "well"))
    take_all()
    newest = Outbox().newest()
    for alias in ("away", "well"):
        PublisherState.objects.create(alias=alias, position=newest, holder=uuid7())
    for _ in range(3):
        JobFactory()
    take_all()
    PublisherState.objects.filter(alias="well").update(position=newest + 3)
    PublisherState.objects.filter(alias="away").update(
        failures=4, failing_since="2026-01-01T00:00Z", last_error="nobody\nis there"
    )
    return newest


def dead_letter(alias):
    event = Outbox().after(Outbox().newest() - 1, 1)[0]
    note_refusal(alias, event, 10, Refused("no"))


def test_the_status_is_a_line_for_each_publisher(one_is_away):
    dead_letter("away")
    answer = run("relay_events", "--status")
    rows = [line.split("\t") for line in answer.lines]
    behind = rows[0].pop(4)
    assert rows == [
        ["away", "failing", str(one_is_away), "3", "1", "4", "nobody\\nis there"],
        ["well", "ok", str(one_is_away + 3), "0", "0.000", "0", "0", ""],
    ]
    assert float(behind) >= 0


def test_the_status_as_json_has_every_number(one_is_away):
    told = run("relay_events", "--status", "--json").json
    assert told["newest"] == one_is_away + 3
    assert told["oldest"] <= told["newest"]
    assert isinstance(told["is_behind"], bool)
    away, well = told["publishers"]
    assert (away["alias"], away["state"], away["lag"], away["failures"]) == (
        "away",
        "failing",
        3,
        4,
    )
    assert away["failing_since"] == "2026-01-01T00:00:00+00:00"
    assert (well["state"], well["lag"], well["lag_seconds"], well["dead_letters"]) == (
        "ok",
        0,
        0,
        0,
    )


def test_on_a_terminal_it_is_a_table_of_80_columns(one_is_away, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "dumb")
    out = Terminal()
    call_command("relay_events", "--status", "--no-color", stdout=out)
    lines = out.getvalue().splitlines()
    assert lines[0].split() == ["PUBLISHER", "STATE", "POSITION", "LAG", "FOR", "DEAD", "ERROR"]
    assert lines[1].split()[:2] == ["away", "failing"]
    assert max(map(len, lines)) <= 80


def test_a_publisher_that_is_no_longer_in_the_settings_is_said_to_be(one_is_away, configured):
    configured(PUBLISHERS=spies("well"))
    assert [line.split("\t")[:2] for line in run("relay_events", "--status").lines] == [
        ["away", "removed"],
        ["well", "ok"],
    ]


def test_without_publishers_the_status_says_how_to_have_some():
    answer = run("relay_events", "--status")
    assert (answer.code, answer.out) == (0, "")
    assert "name some in PUBLISHERS, or set REDIS_URL" in answer.err


def test_dead_letters_are_delivered_and_gone(one_is_away):
    dead_letter("away")
    answer = run("relay_events", "--redeliver", "away")
    assert (answer.code, answer.out) == (0, "1 delivered, 0 refused again\n")
    assert Spy.of["away"].sequences == [one_is_away + 3]
    assert not DeadLetter.objects.exists()
    answer = run("relay_events", "--redeliver", "away")
    assert (answer.code, answer.err) == (3, "away has no dead letters\n")


def trouble(monkeypatch, error):
    class InTrouble(Spy):
        def publish(self, events):
            raise error

    monkeypatch.setattr("tests.support.publishers.Spy", InTrouble)


def test_dead_letters_that_are_refused_again_are_exit_code_1(one_is_away, monkeypatch):
    dead_letter("away")
    trouble(monkeypatch, Refused("still not"))
    answer = run("relay_events", "--redeliver", "away")
    assert (answer.code, answer.out) == (1, "0 delivered, 1 refused again\n")
    assert DeadLetter.objects.values_list("tries", "error").get() == (11, "still not")


def test_dead_letters_of_who_is_away_stay_as_they_are(one_is_away, monkeypatch):
    dead_letter("away")
    trouble(monkeypatch, Unavailable("nobody is there"))
    answer = run("relay_events", "--redeliver", "away")
    assert (answer.code, answer.err) == (1, "away: nobody is there\n")
    assert DeadLetter.objects.get().tries == 10


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--redeliver", "nobody"], "there is no publisher 'nobody'"),
        (["--json"], "--json goes with --status"),
        (["--status", "--until-idle"], "not allowed with"),
    ],
)
def test_what_makes_no_sense_is_exit_code_2(arguments, words):
    answer = run("relay_events", *arguments)
    assert answer.code == 2
    assert words in answer.err


@pytest.mark.sqlite
def test_a_publisher_that_cannot_be_made_is_one_line_and_exit_code_2(shell: Shell):
    wrong = json.dumps({"hook": {"class": "no.such.Publisher"}})
    answer = shell("relay_events", CONTAINER_MANAGER_PUBLISHERS=wrong)
    assert (answer.code, answer.out) == (2, "")
    assert answer.err == "relay_events: PUBLISHERS: no.such.Publisher: No module named 'no'\n"


@pytest.mark.sqlite
@pytest.mark.processes
def test_a_relay_of_a_shell_tells_what_there_is_and_ends(shell: Shell, tmp_path):
    publishers = json.dumps({"file": to_file(tmp_path / "told")})
    shell("relay_events", "--until-idle", CONTAINER_MANAGER_PUBLISHERS=publishers)
    assert shell("submit_job", "--image", "busybox", "--", "true").code == 0
    answer = shell("relay_events", "--until-idle", CONTAINER_MANAGER_PUBLISHERS=publishers)
    assert answer.code == 0, answer.err
    assert [sequence for sequence, _, _ in told(tmp_path / "told")] == [1, 2]


@pytest.mark.sqlite
@pytest.mark.parametrize(
    ("environment", "aliases"),
    [
        ({"REDIS_URL": "redis://127.0.0.1:1/0"}, ["redis"]),
        ({}, []),
        ({"REDIS_URL": "redis://127.0.0.1:1/0", "CONTAINER_MANAGER_PUBLISHERS": "{}"}, []),
    ],
    ids=["REDIS_URL", "nothing", "PUBLISHERS wins"],
)
def test_a_project_that_names_its_redis_tells_it(shell: Shell, environment, aliases):
    answer = shell("relay_events", "--status", "--json", **environment)
    assert [each["alias"] for each in answer.json["publishers"]] == aliases
