"""The mutants of a module: mutmut's operators applied to one place of one function each.

mutmut leaves decorated functions alone, because it cannot put a second function beside them. Here a
mutant is the code of the function only, put into the function that stands, so they take part.
Texts of SQL are left out: what they say is tested by their effect, and a changed keyword is no
mistake that anybody makes and keeps.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import CodeType

import libcst as cst
from libcst.metadata import MetadataWrapper, PositionProvider
from mutmut.mutation.file_mutation import OuterFunctionProvider, _is_enum_class
from mutmut.mutation.mutators import mutation_operators

ROOT = Path(__file__).resolve().parents[2]

SQL = re.compile(
    r"\b(SELECT|UPDATE|INSERT|DELETE|FROM|WHERE|CREATE|DROP|ALTER|TRIGGER|BEGIN|END|RAISE|RETURNING|"
    r"JOIN|CASE|WHEN|THEN|COALESCE|NULL|VALUES|SET|IS|AND|OR|NEW|OLD|LOCK|PRAGMA|ORDER BY|CAST)\b"
)

ASKED_BEFORE = ("moves", "verb", "state_is_known", "null_follows_state")
"""Their work is done when a module has been read: other code of theirs changes nothing then."""

OF_POSTGRESQL = ("_pg_", "_PostgreSQL")
"""What begins so is run by PostgreSQL only; the tests run on SQLite."""


@dataclass(frozen=True)
class Mutant:
    """One change in one function."""

    path: str
    """Below the top of the repository."""
    function: str
    """Its qualified name: `save` or `Guarded.save`."""
    line: int
    before: str
    after: str
    source: str
    """The whole module with the change."""
    is_unchanged: bool = False
    """A control."""

    def __str__(self) -> str:
        return f"{self.path}:{self.line} {self.function}: {self.before} -> {self.after}"

    def unchanged(self) -> Mutant:
        """The same function as it stands."""
        source = (ROOT / self.path).read_text()
        return replace(self, after="as it is", source=source, is_unchanged=True)

    @property
    def module(self) -> str:
        return self.path.removesuffix(".py").replace("/", ".")

    def code(self) -> CodeType:
        """What the changed function does."""
        return _code_of(compile(self.source, self.path, "exec"), self.function.split("."))


def _code_of(code: CodeType, names: list[str]) -> CodeType:
    for name in names:
        (code,) = (
            each for each in code.co_consts if isinstance(each, CodeType) and each.co_name == name
        )
    return code


class Finder(cst.CSTVisitor):
    """Collects what mutmut's operators make of each node inside a function."""

    METADATA_DEPENDENCIES = (PositionProvider, OuterFunctionProvider)

    def __init__(self) -> None:
        self.found: list[tuple[cst.FunctionDef, str, cst.CSTNode, cst.CSTNode, int]] = []
        self._classes: list[str] = []

    def visit_ClassDef(self, node: cst.ClassDef) -> bool:  # noqa: N802
        self._classes.append(node.name.value)
        return not _is_enum_class(node)

    def leave_ClassDef(self, original_node: cst.ClassDef) -> None:  # noqa: N802
        self._classes.pop()

    def on_visit(self, node: cst.CSTNode) -> bool:
        if _is_left_out(node):
            return False
        function = self.get_metadata(OuterFunctionProvider, node, None)
        if isinstance(function, cst.FunctionDef) and node is not function:
            self._mutate(function, node)
        return super().on_visit(node)

    def _mutate(self, function: cst.FunctionDef, node: cst.CSTNode) -> None:
        name = ".".join([*self._classes, function.name.value])
        if name in ASKED_BEFORE or name.startswith(OF_POSTGRESQL):
            return
        position = self.get_metadata(PositionProvider, node, None)
        for kind, operator in mutation_operators:
            if isinstance(node, kind):
                for changed in operator(node):
                    self.found.append(
                        (function, name, node, changed, position.start.line if position else 0)
                    )


def _is_left_out(node: cst.CSTNode) -> bool:
    """What is done when the module is read, not when the function is called; and SQL."""
    if isinstance(node, cst.Annotation | cst.Decorator | cst.Parameters | cst.FormattedString):
        return True
    if isinstance(node, cst.Call) and isinstance(node.func, cst.Name):
        return node.func.value in ("len", "isinstance", "cast")
    return isinstance(node, cst.SimpleString | cst.ConcatenatedString) and bool(
        SQL.search(_text(node))
    )


def _text(node: cst.CSTNode) -> str:
    return cst.Module([]).code_for_node(node)


def mutants_of(path: str) -> Iterator[Mutant]:
    """Every mutant of a module that compiles to something else."""
    text = (ROOT / path).read_text()
    wrapper = MetadataWrapper(cst.parse_module(text), unsafe_skip_copy=True)
    finder = Finder()
    wrapper.visit(finder)
    for _, name, before, after, line in finder.found:
        source = wrapper.module.deep_replace(before, after).code  # type: ignore[arg-type]
        if _compiles(source):
            yield Mutant(path, name, line, _short(before), _short(after), source)


def _compiles(source: str) -> bool:
    try:
        ast.parse(source)
    except SyntaxError:
        return False
    return True


def _short(node: cst.CSTNode) -> str:
    return " ".join(_text(node).split())[:60]
