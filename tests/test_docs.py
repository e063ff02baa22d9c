"""The docs say what the code says.

python -m tests.test_docs --write     writes the generated blocks of docs/ again
"""

from __future__ import annotations

import argparse
import doctest
import json
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import django
import pytest
import yaml
from django.apps import apps
from django.core.management import get_commands, load_command_class

from container_manager import conf, faults
from container_manager.states import JOB, WORKFLOW, JobStatus, Reason, StateMachine, WorkflowState

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])


# The generated blocks -----------------------------------------------------------------------------


def diagram(machine: StateMachine, first: str) -> str:
    finals = [state for state in machine.states if machine.is_terminal_state(state)]
    lines = [
        "```mermaid",
        "stateDiagram-v2",
        f"    [*] --> {first}",
        *(f"    {old} --> {new}" for old, new in machine.edges),
        *(f"    {state} --> [*]" for state in finals),
        "```",
    ]
    return "\n".join(lines)


def states(machine: StateMachine, words: Any) -> str:
    rows = [
        f"| `{word}` | {_words(machine.get_next_states(word))} | {word.meaning} |" for word in words
    ]
    return "\n".join(["| state | may go to | what it means |", "|---|---|---|", *rows])


def reasons() -> str:
    rows = [
        f"| `{reason}` | {reason.blame} | {'no' if reason.is_permanent else 'yes'} |"
        f" {reason.meaning} |"
        for reason in Reason
    ]
    return "\n".join(
        [
            "| reason | blame | may be retried by itself | what it means |",
            "|---|---|---|---|",
            *rows,
        ]
    )


def settings() -> str:
    rows = [
        f"| `{name}` | {key.metadata['kind'].__name__} | {_default(name, key)} |"
        f" {key.metadata['doc']} |"
        for name, key in conf.keys().items()
    ]
    return "\n".join(["| key | type | default | meaning |", "|---|---|---|---|", *rows])


def _default(name: str, key: Any) -> str:
    if name == "CONCURRENCY":
        return "twice the cores"
    value = key.default_factory()
    if name == "EXECUTORS":
        return "`docker` and `process`"
    return "unset" if value in (None, "") else f"`{json.dumps(value)}`"


def _words(states: tuple[str, ...]) -> str:
    return " ".join(f"`{state}`" for state in states) or "nothing: final"


def api(name: str, module: str = "tests.support.api_docs") -> str:
    """A block of docs/api.md, from modules that need Django's apps."""
    if not apps.ready:
        os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.settings")
        django.setup()
    return str(getattr(import_module(module), name)())


def workflows(name: str) -> str:
    """A block of docs/workflows.md, likewise."""
    return api(name, "tests.support.workflow_docs")


BLOCKS: dict[tuple[str, str], Callable[[], str]] = {
    ("state_machine.md", "job-diagram"): lambda: diagram(JOB, JobStatus.PENDING),
    ("state_machine.md", "job-states"): lambda: states(JOB, JobStatus),
    ("state_machine.md", "workflow-diagram"): lambda: diagram(WORKFLOW, WorkflowState.QUEUED),
    ("state_machine.md", "workflow-states"): lambda: states(WORKFLOW, WorkflowState),
    ("state_machine.md", "reasons"): reasons,
    ("settings.md", "settings"): settings,
    ("api.md", "api-filters"): lambda: api("filters"),
    ("api.md", "api-dag-filters"): lambda: api("dag_filters"),
    ("api.md", "api-run-filters"): lambda: api("run_filters"),
    ("api.md", "api-task-filters"): lambda: api("task_filters"),
    ("api.md", "api-errors"): lambda: api("error_codes"),
    ("api.md", "api-paths"): lambda: api("paths"),
    ("workflows.md", "job-fields"): lambda: workflows("job_fields"),
    ("workflows.md", "trigger-rules"): lambda: workflows("trigger_rules"),
    ("workflows.md", "trigger-table"): lambda: workflows("trigger_table"),
    ("workflows.md", "missed-runs"): lambda: workflows("missed_runs"),
}


def block_of(name: str) -> re.Pattern[str]:
    begin, end = f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->"
    return re.compile(f"(?<={re.escape(begin)}).*?(?={re.escape(end)})", re.DOTALL)


def write() -> None:
    for (page, name), generate in BLOCKS.items():
        path = ROOT / "docs" / page
        made = f"{generate()}\n".replace("\\", r"\\")
        text, count = block_of(name).subn(made, path.read_text())
        if count != 1:
            sys.exit(f"{path}: the markers of {name} are not there once")
        path.write_text(text)


@pytest.mark.parametrize(("page", "name"), BLOCKS)
def test_a_generated_block_is_what_the_code_says(page: str, name: str) -> None:
    found = block_of(name).findall((ROOT / "docs" / page).read_text())
    assert found == [f"{BLOCKS[page, name]()}\n"], "run `make docs`"


# What is written by hand --------------------------------------------------------------------------


def code_blocks(page: Path, *languages: str) -> Iterator[str]:
    fence = re.compile(rf"^```(?:{'|'.join(languages)})\n(.*?)^```", re.DOTALL | re.MULTILINE)
    yield from fence.findall(page.read_text())


@pytest.mark.django_db
def test_the_python_example_of_the_readme_does_what_it_shows() -> None:
    (example,) = code_blocks(ROOT / "README.md", "pycon")
    test = doctest.DocTestParser().get_doctest(example, {}, "README", "README.md", 0)
    result = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(test)
    assert (result.failed, result.attempted > 5) == (0, True)


def shown_commands() -> list[Any]:
    """Each `manage.py …` in a block that a reader may copy."""
    line = re.compile(r"manage\.py ([^#\n|`]+)")
    return [
        pytest.param(shown.strip(), id=f"{page.name}: {shown.strip()}")
        for page in PAGES
        for block in code_blocks(page, "console", "sh", "ini")
        for shown in line.findall(block)
    ]


@pytest.mark.parametrize("shown", shown_commands())
def test_a_shown_command_has_these_options(shown: str) -> None:
    name, *arguments = shlex.split(shown)
    command = load_command_class(get_commands()[name], name)
    command.create_parser("manage.py", name).parse_args(arguments)


def test_the_table_of_commands_is_complete() -> None:
    ours = {name for name, app in get_commands().items() if app == "container_manager"}
    told = re.findall(r"^\| `(\w+)` \|", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert sorted(told) == sorted(ours)


def test_the_table_of_crash_points_names_them_all() -> None:
    told = re.findall(
        r"^\| \*\*(\w\d)\*\* \|", (ROOT / "docs/architecture.md").read_text(), re.MULTILINE
    )
    assert told == list(faults.POINTS)


NAMED_TEST = re.compile(r"`(tests/[\w/]+\.py)(?:::(\w+))?`")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_test_that_a_page_names_is_there(page: Path) -> None:
    for path, name in NAMED_TEST.findall(page.read_text()):
        text = (ROOT / path).read_text()
        assert re.search(rf"def {name}\b", text) if name else text, f"{path}::{name}"


FAULTS = {1, 2, *range(4, 8), *range(9, 36), 37, 39, 40, 41}
"""Rows of the list of faults, but those about what is not here yet."""


def test_every_fault_is_told_with_its_tests() -> None:
    page = (ROOT / "docs/reliability.md").read_text()
    rows = re.findall(r"^\| (\d+) \| .*`tests/", page, re.MULTILINE)
    assert set(map(int, rows)) == FAULTS


def test_every_key_of_a_dag_and_of_a_task_is_told() -> None:
    from container_manager.workflows import spec

    page = (ROOT / "docs/workflows.md").read_text()
    rows = re.findall(r"^\| ((?:`\w+` ?)+)\|", page, re.MULTILINE)
    told = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    assert (spec.DAG_KEYS | spec.TASK_KEYS) - spec.JOB_FIELDS - told == set()


@pytest.mark.parametrize("page", ["README.md", "docs/workflows.md"])
def test_a_shown_document_that_is_an_example_is_the_same(page: str) -> None:
    examples = [yaml.safe_load(path.read_text()) for path in ROOT.glob("examples/*.yaml")]
    known = {example["name"]: example for example in examples}
    shown = [yaml.safe_load(text) for text in code_blocks(ROOT / page, "yaml")]
    same = [document for document in shown if document["name"] in known]
    assert same == [known[document["name"]] for document in same]
    assert same


def test_every_environment_variable_of_the_project_is_told() -> None:
    read = set(re.findall(r'env\.\w+\(\s*"(\w+)"', (ROOT / "config/settings.py").read_text()))
    text = (ROOT / "docs/settings.md").read_text()
    assert {name for name in read if f"| `{name}` |" not in text} == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_the_make_targets_that_are_named_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {
        name for page in PAGES for name in re.findall(r"`make ([a-z][a-z-]*)", page.read_text())
    }
    assert named <= targets


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", required=True)
    parser.parse_args()
    write()
