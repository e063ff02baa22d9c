from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest

from container_manager.models import Dag
from container_manager.workflows import dags
from tests.commands.shell import PROJECT, Answer, run
from tests.factories import UserFactory
from tests.workflows.driving import started

pytestmark = pytest.mark.django_db

GOOD = """\
name: nightly
schedule: "0 2 * * *"
tasks:
  first: {executor: process, command: [/bin/true]}
  second: {executor: process, command: [/bin/true], depends_on: first}
"""
BAD = """\
name: wrong
schedule: "61 * * * *"
tasks:
  first: {executor: process, command: [/bin/true], depends_on: secnd}
  second: {executor: process, command: [/bin/true], retries: 3}
"""


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def written(text: str, name: str = "nightly.yaml") -> str:
    Path(name).write_text(text)
    return name


def imported(*arguments: str, **options: object) -> Answer:
    answer = run("import_dag", *arguments, **options)
    assert answer.code == 0, answer.err
    return answer


def test_a_new_name_makes_a_new_dag() -> None:
    answer = imported(written(GOOD))
    assert answer.out.startswith("nightly: created, 2 tasks, next run 2")
    assert answer.out.endswith("02:00 UTC\n")
    dag = Dag.objects.get_by_name("nightly")
    assert (dag.is_paused, dag.created_by, list(dag.spec["tasks"])) == (
        False,
        None,
        ["first", "second"],
    )


def test_a_known_name_is_updated_or_left_as_it_is() -> None:
    file = written(GOOD)
    imported(file)
    before = Dag.objects.get()
    assert imported(file).out.startswith("nightly: unchanged")
    assert Dag.objects.get().revision == before.revision
    written(GOOD.replace("0 2", "0 3"))
    assert imported(file).out.startswith("nightly: updated")
    assert Dag.objects.get().schedule == "0 3 * * *"


def test_another_order_of_tasks_is_a_change() -> None:
    imported(written("name: x\ntasks: {b: {image: x, command: b}, a: {image: x, command: a}}"))
    again = written("name: x\ntasks: {a: {image: x, command: a}, b: {image: x, command: b}}")
    assert imported(again).out.startswith("x: updated")
    assert list(Dag.objects.get().spec["tasks"]) == ["a", "b"]


def test_every_mistake_is_a_line_with_file_line_and_path() -> None:
    answer = run("import_dag", written(BAD, "bad.yaml"))
    assert (answer.code, answer.out) == (2, "")
    lines = answer.err.splitlines()
    assert lines[0].startswith("bad.yaml:2: schedule: '61 * * * *'")
    assert lines[1] == (
        "bad.yaml:4: tasks.first.depends_on[0]: There is no task 'secnd'. Did you mean 'second'?"
    )
    assert lines[2].startswith("bad.yaml:5: tasks.second.retries: Unknown key.")
    assert lines[3:] == ["3 mistakes; nothing was taken in"]


def test_one_wrong_file_keeps_all_out() -> None:
    answer = run("import_dag", written(GOOD), written(BAD, "bad.yaml"))
    assert answer.code == 2
    assert not Dag.objects.exists()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("name: x\ntasks: ]", "bad.yaml:2: Not valid YAML: "),
        ("a: !!python/object:os.system {}", "bad.yaml:1: a: The tag 'python/object:os.system'"),
        ("", "bad.yaml: Must be a mapping with `name` and `tasks`."),
        (
            "name: x\ntasks: {a: {command: x, image: y, depends_on: a}}",
            "bad.yaml:2: tasks.a.depends_on[0]: A task cannot depend on itself.",
        ),
        ("name: \x1b[2Jx\ntasks: {}", "bad.yaml: Not valid YAML: "),
        (r'"\e[2J": 1', r"bad.yaml:1: '\x1b[2J': Unknown key."),
    ],
)
def test_what_is_no_dag_is_told_in_a_line(text: str, told: str) -> None:
    answer = run("import_dag", written(text, "bad.yaml"))
    assert answer.code == 2
    assert told in answer.err
    assert "\x1b" not in answer.err


@pytest.mark.parametrize(
    ("file", "told"),
    [
        ("missing.yaml", "missing.yaml: Cannot be read: No such file or directory."),
        (".", ".: Cannot be read: Is a directory."),
        ("a\x00b", "a\\x00b: Cannot be read: embedded null byte."),
        ("/dev/zero", "/dev/zero: Must not be longer than 2 MiB."),
    ],
)
def test_a_file_that_cannot_be_read_is_one_of_the_mistakes(file: str, told: str) -> None:
    answer = run("import_dag", file)
    assert (answer.code, answer.err.splitlines()[0]) == (2, told)


def test_two_files_of_one_name_are_a_mistake() -> None:
    answer = run("import_dag", written(GOOD), written(GOOD, "again.yaml"))
    assert answer.code == 2
    assert "again.yaml: name: 'nightly' is the name of the DAG in nightly.yaml" in answer.err
    assert not Dag.objects.exists()


def test_the_document_may_come_from_stdin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(GOOD.encode())))
    assert imported("-", "--json").json["dags"][0]["file"] == "stdin"
    monkeypatch.setattr(sys, "stdin", None)
    assert "stdin: Cannot be read: stdin is closed." in run("import_dag", "-").err


def test_check_looks_for_mistakes_and_writes_nothing(django_assert_num_queries: object) -> None:
    with django_assert_num_queries(0):  # type: ignore[operator]
        answer = imported("--check", written(GOOD))
        assert run("import_dag", "--check", written(BAD, "bad.yaml")).code == 2
    assert answer.out == "nightly: good, 2 tasks\n"


def test_new_ones_may_begin_paused_and_known_ones_stay_as_they_are() -> None:
    file = written(GOOD)
    assert imported(file, "--paused").out == "nightly: created, 2 tasks, paused\n"
    dags.pause(Dag.objects.get().pk, paused=False)
    written(GOOD.replace("0 2", "0 3"))
    imported(file, "--paused")
    assert not Dag.objects.get().is_paused


def test_new_ones_may_have_an_owner() -> None:
    owner = UserFactory(username="robin")
    imported(written(GOOD), "--owner", "robin")
    assert Dag.objects.get().created_by == owner
    answer = run("import_dag", written(GOOD), "--owner", "nobody")
    assert (answer.code, answer.err) == (2, "--owner: there is no user 'nobody'\n")


def test_json_tells_results_and_mistakes() -> None:
    (result,) = imported("--json", written(GOOD)).json["dags"]
    assert (result["name"], result["result"], result["tasks"]) == ("nightly", "created", 2)
    assert result["id"] == str(Dag.objects.get().pk)
    answer = run("import_dag", "--json", written(BAD, "bad.yaml"))
    assert answer.code == 2
    problem = answer.json["problems"][0]
    assert (problem["file"], problem["line"], problem["path"]) == ("bad.yaml", 2, "schedule")


def test_a_run_under_way_keeps_its_document() -> None:
    imported(written(GOOD.replace('schedule: "0 2 * * *"', "")))
    under_way = started(Dag.objects.get())
    imported(written("name: nightly\ntasks: {only: {executor: process, command: [/bin/true]}}"))
    under_way.refresh_from_db()
    assert list(under_way.spec["tasks"]) == ["first", "second"]


def test_the_examples_are_without_mistakes() -> None:
    answer = imported("--check", *map(str, sorted((PROJECT / "examples").glob("*.yaml"))))
    assert answer.lines == ["etl_pipeline: good, 4 tasks", "fan_out: good, 10 tasks"]
