from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.commands.shell import Shell


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An SQLite file with all tables and no rows."""
    path = tmp_path_factory.mktemp("shell") / "migrated.sqlite3"
    answer = Shell(path)("migrate", "-v0")
    assert answer.code == 0, answer.err
    return path


@pytest.fixture
def shell(migrated: Path, tmp_path: Path) -> Shell:
    """`manage.py` as a process, on a database of its own."""
    return Shell(Path(shutil.copy(migrated, tmp_path / "db.sqlite3")))
