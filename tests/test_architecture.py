"""What the shape of the code promises, kept by a test."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from container_manager.states import JobStatus

ROOT = Path(__file__).resolve().parent.parent
MODULES = sorted(
    path
    for package in ("container_manager", "config")
    for path in (ROOT / package).rglob("*.py")
    if "migrations" not in path.parts
)

OWN_WORDS = ("executors/", "states.py", "models/claims.py")
"""Where such a word may stand: an executor never hears of a job's states, so its words are its own;
and the claim tells the log what its SQL did."""

TAKE_A_STATE = {"can_transition", "can_transition_to", "transition_to", "log_move", "moves"}

BANNED_IMPORTS = {"pickle", "marshal", "shelve", "dill", "cloudpickle"}
BANNED_CALLS = {"eval", "exec", "os.system", "os.popen", "yaml.load", "yaml.unsafe_load"}


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


every_module = pytest.mark.parametrize("path", MODULES, ids=name_of)


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def imports_of(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""


def test_imports_point_downwards_and_every_module_has_its_layer() -> None:
    """In a process of its own: the linter configures logging, and so silences everybody else."""
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    linted = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert linted.returncode == 0, linted.stdout + linted.stderr


def words_for_states(node: ast.AST) -> Iterator[ast.Constant]:
    """Constants that are compared with a state, or given where a state is taken."""
    if isinstance(node, ast.ClassDef) and node.name == "Meta":
        return  # becomes a migration, which must not change when a name in Python does
    given: list[ast.expr] = []
    if isinstance(node, ast.Compare):
        given = [node.left, *node.comparators]
    elif isinstance(node, ast.keyword) and (node.arg or "").startswith(("status", "state")):
        given = [node.value]
    elif isinstance(node, ast.Call) and dotted(node.func).rpartition(".")[2] in TAKE_A_STATE:
        given = node.args
    elif isinstance(node, ast.Assign):
        targets = [dotted(target).rpartition(".")[2] for target in node.targets]
        given = [node.value] if {"status", "state"} & set(targets) else []
    for each in given:
        inside = each.elts if isinstance(each, ast.Tuple | ast.List | ast.Set) else [each]
        yield from (
            word
            for word in inside
            if isinstance(word, ast.Constant) and word.value in JobStatus.values
        )
    for child in ast.iter_child_nodes(node):
        yield from words_for_states(child)


@every_module
def test_a_job_state_is_named_not_spelled(path: Path) -> None:
    if not any(exempt in name_of(path) for exempt in OWN_WORDS):
        spelled = [(word.lineno, word.value) for word in words_for_states(tree_of(path))]
        assert spelled == [], "use JobStatus"


@every_module
def test_nothing_runs_text_as_code_or_through_a_shell(path: Path) -> None:
    tree = tree_of(path)
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    banned = [dotted(call.func) for call in calls if dotted(call.func) in BANNED_CALLS]
    shells = [
        call.lineno
        for call in calls
        for keyword in call.keywords
        if keyword.arg == "shell" and getattr(keyword.value, "value", True) is not False
    ]
    roots = {module.partition(".")[0] for module in imports_of(tree)}
    assert (banned, shells, roots & BANNED_IMPORTS) == ([], [], set())


def test_the_threads_of_jobs_never_open_the_database() -> None:
    """What runs on a job's own thread reports to the recorder, which the main thread empties."""
    for name in ("runner", "output", "sweeper"):
        used = set(imports_of(tree_of(ROOT / f"container_manager/worker/{name}.py")))
        assert not {module for module in used if module.startswith("django")}, name


def test_nothing_is_imported_that_a_test_or_the_project_alone_has() -> None:
    for path in MODULES:
        roots = {module.partition(".")[0] for module in imports_of(tree_of(path))}
        assert not roots & {"tests", "pytest", "factory", "benchmarks"}, name_of(path)
